"""The loaders that benchmarks/batches.py measures, each with the settings that its documentation advises.

All give float32 images in [0, 1] and float32 masks of 0 and 1, in an order that is new in every epoch, changed at
random by flips, rotation, zoom, shift, contrast and brightness as `Augment` says.

Shapes: B batch, R slices, C channels (1), H W height and width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import monai.transforms as mt
import numpy as np
import pyarrow as pa
import ray
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, ThreadDataLoader, set_track_meta
from monai.data import DataLoader as MonaiDataLoader
from numpy.typing import NDArray
from PIL import Image
from ray.data import DataContext
from ray.data.collate_fn import NumpyBatchCollateFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from braintum.data.augment import NUM_DRAWS
from braintum.data.batches import Batches
from braintum.data.change_by_slice import change_slices
from braintum.data.changes import changes_of
from braintum.data.table import SliceTable, pixels
from braintum.parts import Augment
from braintum.training.device import keep_freed_memory

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # Ray's, and nothing here writes

BATCH_SIZE = 16
WORKERS = 2
Pair = tuple[Tensor, Tensor]


class Setting(NamedTuple):
    """`epoch(number)`: the batches (image_BCHW, mask_B1HW); `threads`: of torch, in the process that asks for them."""

    threads: int
    epoch: Callable[[int], Iterator[Pair]]


def ours(table: SliceTable, augment: Augment) -> dict[str, Setting]:
    batches = Batches(table, np.arange(len(table)), batch_size=BATCH_SIZE, seed=0, augment=augment)

    def epoch(number: int) -> Iterator[Pair]:
        return ((batch.image_BCHW, batch.mask_BKHW) for batch in batches.epoch(number))

    return {"1 thread": Setting(1, epoch), "2 threads": Setting(2, epoch)}


Change = Callable[[Tensor, Tensor, NDArray[np.float32], Augment], Pair]
"""`by_torch`, as users of the peers below would write it, or `by_braintum`, lent to them."""


def by_torch(image_BCHW: Tensor, mask_B1HW: Tensor, drawn_BP: NDArray[np.float32], augment: Augment) -> Pair:
    """As `by_braintum`, written with the functions that torch's documentation has for it."""
    draws_BP = torch.from_numpy(drawn_BP)
    flips = (augment.flip_horizontal, augment.flip_vertical)
    flip_x_B, flip_y_B = (1 - 2 * (draws_BP[:, i] < share).float() for i, share in enumerate(flips))
    shift = 2 * augment.shift  # in half sides
    amounts = (math.radians(augment.rotate), augment.scale, shift, shift, augment.contrast, augment.brightness)
    angle_B, zoom_B, shift_x_B, shift_y_B, contrast_B, brightness_B = (
        (2 * draws_BP[:, i] - 1) * amount for i, amount in enumerate(amounts, 2)
    )
    cos_B, sin_B = angle_B.cos() / (1 + zoom_B), angle_B.sin() / (1 + zoom_B)
    rows = [cos_B * flip_x_B, -sin_B * flip_x_B, shift_x_B, sin_B * flip_y_B, cos_B * flip_y_B, shift_y_B]
    grid_BHW2 = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(image_BCHW.shape), align_corners=False)
    image_BCHW = F.grid_sample(image_BCHW, grid_BHW2, "bilinear", "zeros", align_corners=False)
    mask_B1HW = F.grid_sample(mask_B1HW.float(), grid_BHW2, "nearest", "zeros", align_corners=False)
    mean_BC11 = image_BCHW.mean((2, 3), keepdim=True)
    factor_B111, brightness_B111 = (1 + contrast_B).view(-1, 1, 1, 1), brightness_B.view(-1, 1, 1, 1)
    return ((image_BCHW - mean_BC11) * factor_B111 + (mean_BC11 + brightness_B111)).clamp_(0, 1), mask_B1HW


def by_braintum(image_BCHW: Tensor, mask_B1HW: Tensor, drawn_BP: NDArray[np.float32], augment: Augment) -> Pair:
    """What braintum's own batches are changed by."""
    low_BC = np.zeros(image_BCHW.shape[:2], np.float32)
    changes = changes_of(drawn_BP, augment, *image_BCHW.shape[2:])
    return change_slices(image_BCHW.numpy(), mask_B1HW.numpy()[:, 0], low_BC, low_BC + 1, changes)


def augmented(image_BCHW: Tensor, mask_B1HW: Tensor, augment: Augment, change: Change) -> Pair:
    """uint8 to what a training takes."""
    low_BC11, high_BC11 = (limit(image_BCHW, (2, 3), keepdim=True).float() for limit in (torch.amin, torch.amax))
    image_BCHW = image_BCHW.float().sub_(low_BC11).mul_(1 / (high_BC11 - low_BC11).clamp_min(1))
    image_BCHW, mask_B1HW = change(image_BCHW, mask_B1HW, torch.rand(len(image_BCHW), NUM_DRAWS).numpy(), augment)
    return image_BCHW, mask_B1HW.float()


# monai: https://docs.monai.io/en/stable/data.html, and its guide to fast training
# (https://github.com/Project-MONAI/tutorials/blob/main/acceleration/fast_model_training_guide.md): all that is not
# random is cached, `copy_cache` off, no metadata tracked, a cached grid. Left out: workers that are threads, since its
# random transforms are not thread-safe, and lazy resampling, whose flips of 2D slices fail in monai 1.6.1 (one that is
# not drawn counts as an affine of three dimensions).


def monai_settings(table: SliceTable, augment: Augment) -> dict[str, Setting]:
    dataset = _cached(table, augment)
    shuffled: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": True}

    def workers(num_workers: int) -> MonaiDataLoader:
        return MonaiDataLoader(dataset, num_workers=num_workers, persistent_workers=num_workers > 0, **shuffled)

    def setting(loader: MonaiDataLoader, threads: int = 1) -> Setting:
        return Setting(threads, lambda _: ((batch["image"], batch["mask"]) for batch in loader))

    here = workers(0)
    buffered = ThreadDataLoader(dataset, num_workers=0, **shuffled)
    return {
        "no worker, 1 thread": setting(here, 1),
        "no worker, 2 threads": setting(here, 2),
        "1 worker": setting(workers(1)),
        "2 workers": setting(workers(2)),
        "ThreadDataLoader, 1 thread": setting(buffered, 1),
        "ThreadDataLoader, 2 threads": setting(buffered, 2),
    }


def _cached(table: SliceTable, augment: Augment) -> CacheDataset:
    both, size = ("image", "mask"), table.mask_RHW.shape[1]
    set_track_meta(False)
    affine = mt.RandAffined(
        both,
        prob=1,
        spatial_size=(size, size),
        rotate_range=math.radians(augment.rotate),
        scale_range=(augment.scale, augment.scale),
        translate_range=(augment.shift * size, augment.shift * size),
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
        cache_grid=True,
    )
    transform = mt.Compose(
        [
            mt.ScaleIntensityd("image", 0, 1),
            mt.EnsureTyped(both, dtype=torch.float32, track_meta=False),
            mt.RandFlipd(both, augment.flip_horizontal, spatial_axis=1),
            mt.RandFlipd(both, augment.flip_vertical, spatial_axis=0),
            affine,
            mt.RandScaleIntensityFixedMeand("image", augment.contrast, prob=1),
            mt.RandShiftIntensityd("image", augment.brightness, prob=1),
            mt.Lambdad("image", _clamped),
        ]
    )
    slices = [
        {"image": image_CHW, "mask": mask_HW[None]}
        for image_CHW, mask_HW in zip(table.image_RCHW, table.mask_RHW, strict=True)
    ]
    return CacheDataset(slices, transform, cache_rate=1, copy_cache=False, progress=False)


def _clamped(image_CHW: Tensor) -> Tensor:
    return image_CHW.clamp(0, 1)


# torch: https://docs.pytorch.org/docs/stable/data.html. Persistent workers, a batch at once (`__getitems__`, and
# nothing to collate), one torch thread a worker. Pillow decodes, as in torchvision's datasets. Workers send augmented
# float32, or uint8 that the asking process augments.


class PngPairs(Dataset[Pair]):
    """Opens and decodes the files image{i}.png and mask{i}.png of a folder, every epoch anew."""

    def __init__(self, folder: Path, count: int, then: Callable[[Tensor, Tensor], Pair] | None) -> None:
        self._folder, self._count, self._then = folder, count, then

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: list[int]) -> Pair:
        image_B1HW, mask_B1HW = (
            torch.from_numpy(np.stack([self._decoded(f"{kind}{i}") for i in indices])[:, None])
            for kind in ("image", "mask")
        )
        return (image_B1HW, mask_B1HW) if self._then is None else self._then(image_B1HW, mask_B1HW)

    def _decoded(self, name: str) -> NDArray[np.uint8]:
        with Image.open(self._folder / f"{name}.png") as picture:
            return np.asarray(picture)


def as_it_is(batch: Pair) -> Pair:
    return batch


def begin_worker(_: int) -> None:
    keep_freed_memory()


def png_settings(folder: Path, count: int, augment: Augment, change: Change) -> dict[str, Setting]:
    def loader(inside: Callable[[Tensor, Tensor], Pair] | None) -> DataLoader[Pair]:
        dataset = PngPairs(folder, count, inside)
        options: dict[str, Any] = {
            "num_workers": WORKERS, "persistent_workers": True, "collate_fn": as_it_is,
            # not forked: OpenCV, which braintum augments by, waits for ever where its threads were left behind
            "multiprocessing_context": "forkserver", "worker_init_fn": begin_worker,
        }  # fmt: skip
        return DataLoader(dataset, BATCH_SIZE, shuffle=True, **options)

    then = partial(augmented, augment=augment, change=change)
    plain, changed = loader(None), loader(then)
    return {
        "2 workers augment": Setting(1, lambda _: iter(changed)),
        "2 workers decode, 1 thread augments": Setting(1, lambda _: (then(*pair) for pair in plain)),
    }


# Ray Data: https://docs.ray.io/en/latest/data/shuffling-data.html and .../performance-tips.html. Decoded once into the
# object store (`materialize`), since all of it fits there. Shuffled in full (`random_shuffle`), or blocks in a random
# order and rows in a buffer of a quarter of all or each block by itself, which is cheaper and shuffles less. Augmented
# by tasks or where the batch is collated.


class Augmented(NumpyBatchCollateFn):
    """uint8 columns to a pair."""

    def __init__(self, augment: Augment, change: Change) -> None:
        super().__init__()
        self._augment, self._change = augment, change

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> Pair:
        image_BCHW, mask_BHW = (torch.from_numpy(batch[name]) for name in ("image", "mask"))
        return augmented(image_BCHW, mask_BHW[:, None], self._augment, self._change)


class AugmentedColumns:
    """uint8 columns to float32 columns, in a task; a batch of many rows is shuffled and changed a few at a time."""

    def __init__(self, collated: Augmented) -> None:
        self._collated = collated

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        keep_freed_memory()
        torch.set_num_threads(1)
        order = np.random.permutation(len(batch["mask"]))
        pairs = [
            self._collated({name: column[rows] for name, column in batch.items()})
            for rows in np.array_split(order, -(-len(order) // BATCH_SIZE))
        ]
        return {name: torch.cat(column).numpy() for name, column in zip(batch, zip(*pairs, strict=True), strict=True)}


def stored_blocks(url: str, table: SliceTable) -> ray.data.Dataset:
    """The shards at `url`, whose slices have the table's size, decoded into the object store of a Ray that is up."""
    DataContext.get_current().enable_progress_bars = False
    side = table.mask_RHW.shape[1]

    def decoded(rows: pa.Table) -> dict[str, NDArray[np.uint8]]:
        return {
            "image": pixels(rows["image"], (1, side, side), "uint8"),
            "mask": pixels(rows["mask"], (side, side), "uint8"),
        }

    shards = [str(path) for path in sorted(Path(url).glob("*.parquet"))]
    read = ray.data.read_parquet(shards, columns=["image", "mask"]).map_batches(decoded, batch_format="pyarrow")
    return read.repartition(WORKERS * 8).materialize()


def ray_settings(stored: ray.data.Dataset, augment: Augment, change: Change) -> dict[str, Setting]:
    collated, buffer = Augmented(augment, change), stored.count() // 4
    in_tasks = AugmentedColumns(collated)

    def pairs(dataset: ray.data.Dataset, **options: Any) -> Iterator[Pair]:
        for batch in dataset.iter_torch_batches(batch_size=BATCH_SIZE, prefetch_batches=4, **options):
            yield batch if isinstance(batch, tuple) else (batch["image"], batch["mask"])

    def changed(dataset: ray.data.Dataset, rows: int | None) -> ray.data.Dataset:
        return dataset.map_batches(in_tasks.__call__, batch_size=rows, batch_format="numpy")

    def buffered(_: int) -> Iterator[Pair]:
        return pairs(stored.randomize_block_order(), local_shuffle_buffer_size=buffer, collate_fn=collated)

    return {
        "all shuffled, tasks augment": Setting(1, lambda _: pairs(changed(stored.random_shuffle(), BATCH_SIZE))),
        "blocks shuffled, tasks augment": Setting(1, lambda _: pairs(changed(stored.randomize_block_order(), None))),
        "all shuffled, collating augments": Setting(1, lambda _: pairs(stored.random_shuffle(), collate_fn=collated)),
        "blocks and buffer shuffled, collating augments, 1 thread": Setting(1, buffered),
        "blocks and buffer shuffled, collating augments, 2 threads": Setting(2, buffered),
    }
