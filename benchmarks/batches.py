"""How fast batches come out of the table in memory, against torch's own DataLoader over memory and over files.

    python benchmarks/batches.py [--slices 1500] [--size 256]

The peer in memory holds the same uint8 pixels, with the same least values and scales worked out before, and takes a
batch at once (`__getitems__`, and nothing to collate): the best of no worker with one or two threads, one and two
workers. The other peer opens PNG files and decodes them again every epoch, as most training scripts do: that is more
work. Both are set up as the documentation advises (persistent workers, default prefetching, one torch thread a worker;
https://docs.pytorch.org/docs/stable/data.html). All give image and mask as float32 in [0, 1], in a new order each
epoch, batches of 16, no augmentation. The first epoch of each warms up and is not counted; of the others the median
counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from braintum.data.batches import Batches
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.shards import write_dataset
from braintum.data.table import SliceTable, load_table
from braintum.parts import Augment, Data

BATCH_SIZE = 16
EPOCHS = 3


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """The peer that does the same work: the same pixels, in memory, taken a batch at once."""

    def __init__(self, table: SliceTable) -> None:
        self._image_RCHW, self._mask_RHW = torch.from_numpy(table.image_RCHW), torch.from_numpy(table.mask_RHW)
        self._low_RC11 = torch.from_numpy(table.low_RC)[:, :, None, None]
        self._scale_RC11 = 1 / (torch.from_numpy(table.high_RC)[:, :, None, None] - self._low_RC11).clamp_min(1)

    def __len__(self) -> int:
        return len(self._image_RCHW)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        image_BCHW = self._image_RCHW[rows].float().sub_(self._low_RC11[rows]).mul_(self._scale_RC11[rows])
        return image_BCHW, self._mask_RHW[rows].float()[:, None]


class PngPairs(Dataset[tuple[Tensor, Tensor]]):
    """The peer over files: a pair a slice, decoded when it is asked for."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (
            torch.from_numpy(np.array(Image.open(self._folder / f"{kind}{index}.png"))).float()[None]
            for kind in ("image", "mask")
        )
        return (image - image.min()) / (image.max() - image.min()).clamp_min(1), mask


def slices_per_second(epoch: Callable[[int], Iterable[object]], num_slices: int) -> float:
    """Median over epochs, the first left out. Every batch is taken and dropped."""
    seconds = []
    for number in range(EPOCHS + 1):
        start = time.perf_counter()
        for _ in epoch(number):
            pass
        seconds.append(time.perf_counter() - start)
    return num_slices / statistics.median(seconds[1:])


def table_speed(table: SliceTable, augment: Augment | None, threads: int) -> float:
    torch.set_num_threads(threads)
    batches = Batches(table, np.arange(len(table)), batch_size=BATCH_SIZE, seed=0, augment=augment)
    return slices_per_second(batches.epoch, len(table))


def as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def in_memory_speed(table: SliceTable, workers: int, threads: int) -> float:
    torch.set_num_threads(threads)
    loader = DataLoader(
        InMemory(table),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=as_it_is,
    )
    return slices_per_second(lambda _: loader, len(table))


def png_speed(folder: Path, count: int) -> float:
    torch.set_num_threads(1)
    loader = DataLoader(PngPairs(folder, count), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)
    return slices_per_second(lambda _: loader, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1500)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = list(phantom_rows(cases=10, slices_per_case=5, size=given.size, seed=0))
        rows = [
            type(row)(**{**vars(row), "slice_id": f"{row.slice_id}-{i}"})
            for i in range(-(-given.slices // len(few)))
            for row in few
        ][: given.slices]
        write_dataset(rows, f"{folder}/set", name="phantom", provenance="drawn, repeated", licence=None)
        for i, row in enumerate(rows):
            assert row.mask_HW is not None
            Image.fromarray(row.image_CHW[0]).save(f"{folder}/image{i}.png")
            Image.fromarray(row.mask_HW).save(f"{folder}/mask{i}.png")
        table = load_table(f"{folder}/set", Data(image_size=given.size))
        plain = {threads: table_speed(table, None, threads) for threads in (1, 2)}
        augmented = {threads: table_speed(table, Augment(), threads) for threads in (1, 2)}
        in_memory = {
            f"{workers}_workers_{threads}_threads": in_memory_speed(table, workers, threads)
            for workers, threads in ((0, 1), (0, 2), (1, 1), (2, 1))
        }
        png = png_speed(Path(folder), len(rows))
    best = max(plain.values())
    results = {
        "ratio_to_dataloader_in_memory": round(best / max(in_memory.values()), 2),
        "ratio_to_dataloader_png": round(best / png, 1),
        "table_slices_per_second": {f"{threads}_threads": round(speed) for threads, speed in plain.items()},
        "augmented_slices_per_second": {f"{threads}_threads": round(speed) for threads, speed in augmented.items()},
        "dataloader_in_memory_slices_per_second": {setting: round(speed) for setting, speed in in_memory.items()},
        "dataloader_png_slices_per_second": round(png),
        "slices": len(rows),
        "size": given.size,
        "batch_size": BATCH_SIZE,
    }
    record("batches", results, f"python benchmarks/batches.py --slices {given.slices} --size {given.size}")


if __name__ == "__main__":
    main()
