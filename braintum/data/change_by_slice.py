"""Slices made from what is stored and changed at random, on a CPU: one slice after another by each thread.

A slice is read, moved, scaled and stored while it lies in its core's cache. Batch by batch, each of these steps would
go through memory again, which takes a quarter to a half longer.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braintum.data.changes import Changes

Slices = Sequence[NDArray[Any]] | NDArray[Any]
"""Slices where they lie, or in one array."""


def change_slices(
    images: Slices,
    masks: Slices,
    low_BC: NDArray[np.float32],
    scale_BC: NDArray[np.float32],
    changes: Changes,
) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] in [0, 1] and label maps [B, 1, H, W], uint8, of B images [C, H, W] and label maps [H, W].

    Values v become (v - low) * scale, with zeros from outside where a slice is moved; then contrast by a factor around
    the slice's mean, brightness, and a cut to [0, 1].
    """
    import cv2  # not at the top: who trains on a GPU needs none

    cv2.setNumThreads(1)  # the threads are ours
    (channels, height, width), linear = images[0].shape, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image_BCHW = torch.empty(len(images), channels, height, width)
    mask_B1HW = torch.zeros(len(images), 1, height, width, dtype=torch.uint8)
    out_BCHW, out_BHW = image_BCHW.numpy(), mask_B1HW.numpy()[:, 0]
    move_B23, factor_B, brightness_B = changes
    if move_B23 is not None:
        move_B23 = _from_first_pixel(move_B23, height, width)

    def change(numbers: Sequence[int]) -> None:
        source = np.empty((height, width), np.float32)
        for b in numbers:
            for c in range(channels):
                target, low = out_BCHW[b, c], float(low_BC[b, c])
                if move_B23 is None:
                    np.copyto(target, images[b][c])
                else:
                    np.copyto(source, images[b][c])
                    cv2.warpAffine(source, move_B23[b], (width, height), dst=target, flags=linear, borderValue=low)
                scale, factor = float(scale_BC[b, c]), float(factor_B[b])
                mean = (cv2.mean(target)[0] - low) * scale if factor != 1 else 0.0
                offset = mean * (1 - factor) + float(brightness_B[b]) - low * scale * factor
                cv2.addWeighted(target, scale * factor, target, 0, offset, dst=target)
                target.clip(0, 1, out=target)
            if move_B23 is None:
                np.copyto(out_BHW[b], masks[b])
            else:
                _move_mask(masks[b], move_B23[b], out_BHW[b])

    _share_out(change, len(images))
    return image_BCHW, mask_B1HW


def _from_first_pixel(move_B23: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Moves that count from the first pixel, as OpenCV does, instead of from the centre."""
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = move_B23.copy()
    moved[:, :, 2] += centre - moved[:, :, :2] @ centre
    return moved


def _move_mask(mask_HW: NDArray[np.uint8], move_23: NDArray[np.float64], out_HW: NDArray[np.uint8]) -> None:
    """A label map moved into one of zeros (nearest). Only where its labels come to lie is looked at."""
    import cv2

    left, top, columns, rows = cv2.boundingRect(mask_HW)
    if not columns:
        return
    (a, b, c), (d, e, f) = move_23.tolist()
    determinant, (height, width) = a * e - b * d, mask_HW.shape
    corners = [(x - 0.5 - c, y - 0.5 - f) for x in (left, left + columns) for y in (top, top + rows)]
    x_4 = [(e * x - b * y) / determinant for x, y in corners]
    y_4 = [(a * y - d * x) / determinant for x, y in corners]
    x, y = max(math.floor(min(x_4)), 0), max(math.floor(min(y_4)), 0)
    x_end, y_end = min(math.ceil(max(x_4)) + 1, width), min(math.ceil(max(y_4)) + 1, height)
    if x < x_end and y < y_end:
        part_23 = np.array([[a, b, a * x + b * y + c], [d, e, d * x + e * y + f]])
        nearest = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(mask_HW, part_23, (x_end - x, y_end - y), dst=out_HW[y:y_end, x:x_end], flags=nearest)


def _share_out(work: Callable[[Sequence[int]], None], count: int) -> None:
    """Has the numbers below `count` worked on by as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    parts = [range(first, count, threads) for first in range(threads)]
    others = [_threads(threads - 1).submit(work, part) for part in parts[1:]]
    work(parts[0])
    for other in others:
        other.result()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "braintum-slices")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads are not there in a process that was forked
