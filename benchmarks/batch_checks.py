"""That every loader of benchmarks/batches.py gives what a training takes, with the same augmentation.

Shapes: B batch, C channels (1), H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from batch_peers import BATCH_SIZE, Pair, Setting
from torch import Tensor

from braintum.data.table import SliceTable

CHECKED_BATCHES = 4


def digests(image_BCHW: Tensor) -> list[int]:
    """Of each image, rounded to 8 bits."""
    return [hash(image_CHW.numpy().tobytes()) for image_CHW in (image_BCHW * 255).round().to(torch.uint8)]


def plain_batches(table: SliceTable) -> Iterator[Pair]:
    for start in range(0, len(table), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        image_BCHW = torch.from_numpy(table.image_RCHW[rows]).float()
        low_BC11, high_BC11 = image_BCHW.amin((2, 3), keepdim=True), image_BCHW.amax((2, 3), keepdim=True)
        yield (image_BCHW - low_BC11) / (high_BC11 - low_BC11), torch.from_numpy(table.mask_RHW[rows])[:, None].float()


def stored_digests(table: SliceTable) -> set[int]:
    """Of every slice of the table and its three mirror images."""
    return {
        digest
        for image_BCHW, _ in plain_batches(table)
        for axes in ((), (2,), (3,), (2, 3))
        for digest in digests(image_BCHW.flip(axes))
    }


def checked(batches: Iterator[Pair], table: SliceTable, stored: set[int]) -> np.ndarray[Any, Any]:
    """Means of images, masks, and images under masks over an epoch. AssertionError for one that is not as it should."""
    size = table.mask_RHW.shape[1]
    sums, count = np.zeros(3), 0
    first = list(islice(batches, CHECKED_BATCHES))
    assert not stored.intersection(chain.from_iterable(digests(image_BCHW) for image_BCHW, _ in first))
    for image_BCHW, mask_B1HW in chain(first, batches):
        assert image_BCHW.dtype == mask_B1HW.dtype == torch.float32
        assert image_BCHW.shape == (len(mask_B1HW), 1, size, size)
        assert mask_B1HW.view(-1, 1, size, size).shape == image_BCHW.shape
        assert 0 <= image_BCHW.min() < 0.1
        assert 0.5 < image_BCHW.max() <= 1
        assert bool(((mask_B1HW == 0) | (mask_B1HW == 1)).all())
        under = image_BCHW * mask_B1HW.view_as(image_BCHW)
        sums += [float(values.sum()) for values in (image_BCHW, mask_B1HW, under)]
        count += len(image_BCHW)
    assert count == len(table), f"{count} of {len(table)} slices"
    return np.array([sums[0] / count / size**2, sums[1] / count / size**2, sums[2] / sums[1]])


def check_all(loaders: dict[str, dict[str, Setting]], table: SliceTable, stored: set[int]) -> None:
    """An epoch of every setting; AssertionError for one that is not as it should, or unlike the first."""
    expected: np.ndarray[Any, Any] | None = None
    for loader, settings in loaders.items():
        for name, setting in settings.items():
            torch.set_num_threads(setting.threads)
            means = checked(setting.epoch(0), table, stored)
            expected = means if expected is None else expected
            print(f"{loader}, {name}: means {means.round(4)}", flush=True)
            np.testing.assert_allclose(means, expected, rtol=0.05, err_msg=f"{loader}, {name}")
