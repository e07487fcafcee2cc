"""Batches of a table: a pure function of (seed, epoch, step, global batch size), whatever the number of workers.

Nothing is decoded here: rows are gathered by index from the table, on the GPU where the table fits there, or from the
parts that a larger table streams. What a batch holds does not depend on where its pixels lie.

Shapes: R rows of the table, B batch (this worker's share), C channels, H W height and width, K mask channels,
P random draws a row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braintum.data.augment import augment_draws, shuffled
from braintum.data.change_by_slice import Slices, change_slices
from braintum.data.change_in_batch import change_in_batch
from braintum.data.changes import Changes, changes_of
from braintum.data.schema import DataError
from braintum.data.stream import Steps, Streamed, rows_of_steps
from braintum.data.table import SliceTable
from braintum.parts import DEFAULT_WINDOW, Augment

RESIDENT_SHARE = 0.5
"""Share of a GPU's free memory that a table may take to be kept there."""

STEPS_AHEAD = 8
"""How long before they are evaluated a streamed table's slices are fetched."""


class Batch(NamedTuple):
    """One worker's share of a step.

    image_BCHW: float32 in [0, 1], min-max per slice and channel; slices of volumes as their volume was scaled.
    mask_BKHW: float32, 0 or 1; zero where has_mask_B is false. label_B: int64, -1 for none. The counts and
    `global_label_B` are of the whole step, over all workers: what loss terms divide by.
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

    An epoch is a permutation of `rows` keyed by (seed, epoch), of more than `window` rows within windows (`shuffled`),
    cut into ceil(R / batch_size) global batches of nearly equal size; worker `rank` of `world_size` takes its
    contiguous share of each. Raises DataError where a worker would be left without a slice.
    """

    def __init__(
        self,
        table: SliceTable,
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        augment: Augment | None,
        window: int = DEFAULT_WINDOW,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_steps = steps_per_epoch(len(rows), batch_size, world_size)
        self._table, self._rows, self._seed, self._window = table, np.asarray(rows, np.int64), seed, window
        self._augment, self._rank, self._world_size = augment, rank, world_size
        self._gather = _Gather(table, torch.device(device))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        order = shuffled(self._rows, self._seed, epoch, self._window, self._table.part_ends)
        steps = np.array_split(order, self.num_steps)
        shares = [np.array_split(step, self._world_size)[self._rank] for step in steps]
        steps_ahead = -(-self._window * self.num_steps // len(self._rows))
        if self._augment is None:
            pixels = self._gather.pixels(shares, steps_ahead)
        else:
            draws_RP = augment_draws(len(self._table), self._seed, epoch)
            changes = changes_of(draws_RP, self._augment, *self._table.mask_RHW.shape[1:])
            pixels = self._gather.changed(shares, steps_ahead, changes)
        for step, mine, (image_BCHW, mask_B1HW) in zip(steps, shares, pixels, strict=True):
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
    steps = [np.asarray(rows[start : start + batch_size], np.int64) for start in range(0, len(rows), batch_size)]
    for step, pixels in zip(steps, gather.pixels(steps, STEPS_AHEAD), strict=True):
        yield gather.batch(*pixels, step, step)


class _Pixels(NamedTuple):
    image_RX: Tensor  # X: all values of a slice, flat, so that a gather is one copy a row
    mask_RX: Tensor


_PIXELS: WeakKeyDictionary[SliceTable, dict[str, _Pixels]] = WeakKeyDictionary()


def _pixels(table: SliceTable, image_RCHW: NDArray[Any], mask_RHW: NDArray[np.uint8], device: torch.device) -> _Pixels:
    """The pixels of a table as tensors, made once a table and device, and on the device if they fit."""
    known = _PIXELS.setdefault(table, {})
    if str(device) not in known:
        fits = device.type != "cuda" or _fits(image_RCHW.nbytes + mask_RHW.nbytes, device)
        home = device if fits else torch.device("cpu")
        pixels = (_tensor(array.reshape(len(table), -1)).to(home) for array in (image_RCHW, mask_RHW))
        known[str(device)] = _Pixels(*pixels)
    return known[str(device)]


def _fits(num_bytes: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes < free * RESIDENT_SHARE


def _tensor(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():  # tables out of Ray's object store are read-only, and nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class _Gather:
    """Makes batches of rows of one table on one device."""

    def __init__(self, table: SliceTable, device: torch.device) -> None:
        low_RC, span_RC = table.low_RC, table.high_RC - table.low_RC
        if table.scaled_by_volume:
            whole = 255.0 if table.image_RCHW.dtype == np.uint8 else 1.0
            low_RC, span_RC = np.zeros_like(low_RC), np.full_like(low_RC, whole)
        scale_RC = np.where(span_RC > 0, 1 / np.where(span_RC > 0, span_RC, 1), 0).astype(np.float32)
        self._table, self._device = table, device
        self._low_RC11 = _tensor(low_RC[:, :, None, None]).to(device)
        self._scale_RC11 = _tensor(scale_RC[:, :, None, None]).to(device)
        self._buffers: dict[str, Tensor] = {}

    def pixels(self, steps: Steps, ahead: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For every step images in [0, 1], a fresh tensor, and uint8 label maps, which the next step overwrites.

        `ahead`: how many steps before they are needed a streamed table's parts are fetched.
        """
        shape = self._table.image_RCHW.shape[1:]
        for rows, (image_BX, mask_BX) in zip(steps, self._stored(steps, ahead), strict=True):
            index_B = torch.from_numpy(rows).to(self._device)
            image_BCHW = image_BX.to(self._device).view(len(rows), *shape).float()
            image_BCHW.sub_(self._low_RC11[index_B]).mul_(self._scale_RC11[index_B])
            yield image_BCHW, mask_BX.to(self._device).view(len(rows), 1, *shape[1:])

    def changed(self, steps: Steps, ahead: int, changes: Changes) -> Iterator[tuple[Tensor, Tensor]]:
        """As `pixels`, changed. On a CPU a resident table's slices are read where they lie.

        `changes`: of every row of the table.
        """
        if self._device.type == "cuda":
            for rows, pixels in zip(steps, self.pixels(steps, ahead), strict=True):
                yield change_in_batch(*pixels, changes.of(rows))
            return
        low_RC, scale_RC = self._low_RC11.numpy()[:, :, 0, 0], self._scale_RC11.numpy()[:, :, 0, 0]
        for rows, slices in zip(steps, self._slices(steps, ahead), strict=True):
            yield change_slices(*slices, low_RC[rows], scale_RC[rows], changes.of(rows))

    def _slices(self, steps: Steps, ahead: int) -> Iterator[tuple[Slices, Slices]]:
        """Each step's images [C, H, W] and label maps [H, W] as they are stored."""
        image_RCHW, mask_RHW = self._table.image_RCHW, self._table.mask_RHW
        if isinstance(image_RCHW, Streamed) or isinstance(mask_RHW, Streamed):
            shape = image_RCHW.shape[1:]
            for image_BX, mask_BX in self._stored(steps, ahead):
                yield image_BX.numpy().reshape(-1, *shape), mask_BX.numpy().reshape(-1, *shape[1:])
            return
        for rows in steps:
            yield [image_RCHW[row] for row in rows], [mask_RHW[row] for row in rows]

    def _stored(self, steps: Steps, ahead: int) -> Iterator[Sequence[Tensor]]:
        """Each step's images and masks as they are stored; the next step overwrites them."""
        image_RCHW, mask_RHW = self._table.image_RCHW, self._table.mask_RHW
        if isinstance(image_RCHW, Streamed) or isinstance(mask_RHW, Streamed):
            streamed = [array for array in (image_RCHW, mask_RHW) if isinstance(array, Streamed)]
            for found in rows_of_steps(streamed, steps, ahead):
                yield [torch.from_numpy(array) for array in found]
            return
        table = _pixels(self._table, image_RCHW, mask_RHW, self._device)
        for rows in steps:
            index_B = torch.from_numpy(rows).to(table.image_RX.device)
            yield self._take("image", table.image_RX, index_B), self._take("mask", table.mask_RX, index_B)

    def batch(
        self, image_BCHW: Tensor, mask_B1HW: Tensor, rows: NDArray[np.int64], step_rows: NDArray[np.int64]
    ) -> Batch:
        table, num_masks = self._table, len(self._table.masks)
        if num_masks == 1:  # the label map holds 0 and 1: it is the mask channel
            mask_BKHW = mask_B1HW.float()
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
