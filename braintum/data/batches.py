"""Batches of a table: a pure function of (seed, epoch, step, global batch size), whatever the number of workers.

Nothing is decoded here: rows are gathered by index from the table, on the GPU where the table fits there.

Shapes: R rows of the table, B batch (this worker's share), C channels, H W height and width, K mask channels,
P random draws a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braintum.data.augment import augment_batch, augment_draws, shuffled
from braintum.data.schema import DataError
from braintum.data.table import SliceTable
from braintum.parts import Augment

RESIDENT_SHARE = 0.5
"""Share of a GPU's free memory that a table may take to be kept there."""


class Batch(NamedTuple):
    """One worker's share of a step.

    image_BCHW: float32 in [0, 1], min-max per slice and channel. mask_BKHW: float32, 0 or 1; zero where has_mask_B is
    false. label_B: int64, -1 for none. The counts and `global_label_B` are of the whole step, over all workers: what
    loss terms divide by.
    """

    image_BCHW: Tensor
    mask_BKHW: Tensor
    has_mask_B: Tensor
    label_B: Tensor
    num_masks: int
    num_labels: int
    global_label_B: Tensor


class Batches:
    """The training batches of one worker.

    An epoch is a permutation of `rows` keyed by (seed, epoch), cut into ceil(R / batch_size) global batches of nearly
    equal size; worker `rank` of `world_size` takes its contiguous share of each. Raises DataError where a worker would
    be left without a slice.
    """

    def __init__(
        self,
        table: SliceTable,
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        augment: Augment | None,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_steps = steps_per_epoch(len(rows), batch_size, world_size)
        self._table, self._rows, self._seed = table, np.asarray(rows, np.int64), seed
        self._augment, self._rank, self._world_size = augment, rank, world_size
        self._gather = _Gather(table, torch.device(device))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        steps = np.array_split(shuffled(self._rows, self._seed, epoch), self.num_steps)
        draws_RP = None if self._augment is None else augment_draws(len(self._table), self._seed, epoch)
        for step in steps:
            mine = np.array_split(step, self._world_size)[self._rank]
            image_BCHW, mask_B1HW = self._gather.pixels(mine)
            if self._augment is not None and draws_RP is not None:
                image_BCHW, mask_B1HW = augment_batch(image_BCHW, mask_B1HW, draws_RP[mine], self._augment)
            yield self._gather.batch(image_BCHW, mask_B1HW, mine, step)


def steps_per_epoch(num_rows: int, batch_size: int, world_size: int) -> int:
    """Steps in which `num_rows` are seen once. Raises DataError where a worker would have none in a step."""
    if not num_rows:
        raise DataError("no slices to train on")
    steps = -(-num_rows // batch_size)
    if num_rows // steps < world_size:
        raise DataError(
            f"training.batch_size: {batch_size} over {num_rows} slices leaves some of {world_size} workers "
            "without a slice; use fewer workers or a larger batch"
        )
    return steps


def ordered_batches(
    table: SliceTable, rows: NDArray[np.int64], batch_size: int, device: str | torch.device = "cpu"
) -> Iterator[Batch]:
    """The rows in the order given, unchanged, for evaluation."""
    gather = _Gather(table, torch.device(device))
    for start in range(0, len(rows), batch_size):
        mine = np.asarray(rows[start : start + batch_size], np.int64)
        yield gather.batch(*gather.pixels(mine), mine, mine)


class _Pixels(NamedTuple):
    image_RX: Tensor  # X: all values of a slice, flat, so that a gather is one copy a row
    mask_RX: Tensor
    low_RC11: Tensor
    scale_RC11: Tensor


_PIXELS: WeakKeyDictionary[SliceTable, dict[str, _Pixels]] = WeakKeyDictionary()


def _pixels(table: SliceTable, device: torch.device) -> _Pixels:
    """The table as tensors, made once a table and device, and on the device if it fits."""
    known = _PIXELS.setdefault(table, {})
    if str(device) not in known:
        span_RC = table.high_RC - table.low_RC
        scale_RC = np.where(span_RC > 0, 1 / np.where(span_RC > 0, span_RC, 1), 0).astype(np.float32)
        home = device if device.type != "cuda" or _fits(table, device) else torch.device("cpu")
        known[str(device)] = _Pixels(
            _tensor(table.image_RCHW.reshape(len(table), -1)).to(home),
            _tensor(table.mask_RHW.reshape(len(table), -1)).to(home),
            _tensor(table.low_RC[:, :, None, None]).to(home),
            _tensor(scale_RC[:, :, None, None]).to(home),
        )
    return known[str(device)]


def _fits(table: SliceTable, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return table.image_RCHW.nbytes + table.mask_RHW.nbytes < free * RESIDENT_SHARE


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # tables out of Ray's object store are read-only, and nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class _Gather:
    """Makes batches of rows of one table on one device."""

    def __init__(self, table: SliceTable, device: torch.device) -> None:
        self._table, self._device = table, device
        self._pixels = _pixels(table, device)
        self._buffers: dict[str, Tensor] = {}

    def pixels(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and float label maps, both fresh tensors on the device."""
        table = self._pixels
        index_B = torch.from_numpy(rows).to(table.image_RX.device)
        shape = self._table.image_RCHW.shape[1:]
        image_BX = self._take("image", table.image_RX, index_B).to(self._device)
        image_BCHW = image_BX.view(len(rows), *shape).float()
        low_BC11 = table.low_RC11[index_B].to(self._device)
        scale_BC11 = table.scale_RC11[index_B].to(self._device)
        image_BCHW.sub_(low_BC11).mul_(scale_BC11)
        mask_BX = self._take("mask", table.mask_RX, index_B).to(self._device)
        return image_BCHW, mask_BX.view(len(rows), 1, *shape[1:]).float()

    def batch(
        self, image_BCHW: Tensor, mask_B1HW: Tensor, rows: NDArray[np.int64], step_rows: NDArray[np.int64]
    ) -> Batch:
        table, num_masks = self._table, len(self._table.masks)
        if num_masks == 1:  # the label map holds 0 and 1: it is the mask channel
            mask_BKHW = mask_B1HW
        else:
            mask_BKHW = torch.cat([mask_B1HW == value for value in range(1, num_masks + 1)], 1).float()
        global_label_B = table.label_R[step_rows]
        return Batch(
            image_BCHW,
            mask_BKHW,
            torch.from_numpy(table.has_mask_R[rows]).to(self._device),
            torch.from_numpy(table.label_R[rows]).to(self._device),
            int(table.has_mask_R[step_rows].sum()),
            int((global_label_B >= 0).sum()),
            torch.from_numpy(global_label_B).to(self._device),
        )

    def _take(self, name: str, table_RX: Tensor, index_B: Tensor) -> Tensor:
        """Rows into a buffer that is kept: the next call overwrites it."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < len(index_B):
            buffer = self._buffers[name] = table_RX.new_empty(len(index_B), table_RX.shape[1])
        return gather_rows(table_RX, index_B, buffer[: len(index_B)])


def gather_rows(table_RX: Tensor, index_B: Tensor, out_BX: Tensor) -> Tensor:
    """Rows of a contiguous table into a contiguous tensor of its type, which is returned."""
    if table_RX.shape[1] * table_RX.element_size() % 8 == 0:
        # Eight bytes at once: torch's threads then share out the rows, and not the bytes of each.
        torch.index_select(table_RX.view(torch.int64), 0, index_B, out=out_BX.view(torch.int64))
    else:
        torch.index_select(table_RX, 0, index_B, out=out_BX)
    return out_BX
