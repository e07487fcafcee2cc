"""A source for tests of `ingest`: arrays in files, one slice each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from braintum.data.ingest.engine import About
from braintum.data.schema import DataError, Row

SIDE = 16
ABOUT = About("example", "arrays in files", "CC0-1.0", {"add": 0})
TWO = 2 * 2 * SIDE * SIDE
"""Bytes of two slices: with as many in a shard, chunks are of two files."""


@dataclass(frozen=True)
class Arrays:
    """`before`: called with each name before it is read; no choice of the source's, and so not in its repr."""

    folder: Path
    add: int = 0
    before: Callable[[str], None] | None = field(default=None, repr=False)

    def where(self, name: str) -> str:
        return name

    def files(self, name: str) -> Sequence[Path]:
        return [self.folder / name]

    def read(self, name: str) -> list[Row]:
        if self.before is not None:
            self.before(name)
        try:
            image_HW = np.load(self.folder / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: {error}") from None
        image_CHW = (image_HW + np.uint8(self.add))[None]
        mask_HW = (image_HW > 99).astype(np.uint8)
        label = "ab"[int(image_HW[0, 0]) % 2]
        return [Row(slice_id=name, group=name, image_CHW=image_CHW, mask_HW=mask_HW, label=label, where=name)]


def write_arrays(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"{number:02d}.npy" for number in range(count)]
    for number, name in enumerate(names):
        write_array(folder / name, number)
    return names


def write_array(path: Path, seed: int) -> None:
    np.save(path, np.random.default_rng(seed).integers(0, 200, (SIDE, SIDE), np.uint8))
