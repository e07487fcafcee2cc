"""Random changes of training slices, in batch and on the device that trains.

Random numbers are drawn per dataset row from (seed, epoch), so that a slice is changed alike whatever batch, worker or
resumed run it comes in.

Shapes: B batch, C channels, H W height and width, R rows of the table, P draws a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from braintum.data.change_by_slice import change_slices
from braintum.data.change_in_batch import change_in_batch
from braintum.data.changes import changes_of
from braintum.parts import Augment

NUM_DRAWS = 8
_ORDER, _AUGMENT, _PARTS = 0, 1, 2  # which stream of a (seed, epoch)


def _raw(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    """64 random bits each. A counter-based generator's raw stream, which numpy promises never to change."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)).random_raw(count)


def shuffled(
    rows: NDArray[np.int64], seed: int, epoch: int, window: int, part_ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows in the order of an epoch: a pure function of the arguments.

    More than `window` rows are brought part by part (`part_ends`: the row behind the last of each), the parts in a
    random order, cut into windows of nearly equal size, and shuffled within each.
    """
    if len(rows) <= window:
        return rows[np.argsort(_raw(seed, epoch, _ORDER, len(rows)), kind="stable")]
    place_of_part = np.argsort(np.argsort(_raw(seed, epoch, _PARTS, len(part_ends)), kind="stable"))
    part_R = np.searchsorted(part_ends, rows, side="right")
    rows = rows[np.argsort(place_of_part[part_R], kind="stable")]
    windows = np.array_split(rows, -(-len(rows) // window))
    window_R = np.repeat(np.arange(len(windows)), [len(part) for part in windows])
    return rows[np.lexsort((_raw(seed, epoch, _ORDER, len(rows)), window_R))]


def augment_draws(num_rows: int, seed: int, epoch: int) -> NDArray[np.float32]:
    """[R, P], uniform in [0, 1): what `augment_batch` needs, for every row of the table."""
    uniform = (_raw(seed, epoch, _AUGMENT, num_rows * NUM_DRAWS) >> np.uint64(40)).astype(np.float32) * 2.0**-24
    return uniform.reshape(num_rows, NUM_DRAWS).astype(np.float32)


def augment_batch(
    image_BCHW: Tensor, mask_B1HW: Tensor, draws_BP: NDArray[np.float32], augment: Augment
) -> tuple[Tensor, Tensor]:
    """Changed copies of images in [0, 1] and of uint8 label maps; the inputs are left as they are.

    Flips, rotation, zoom and shift are one resampling (image bilinear, mask nearest, zeros from outside). Then contrast
    around the slice's mean, brightness, and a cut to [0, 1].
    """
    changes = changes_of(draws_BP, augment, *image_BCHW.shape[2:])
    if image_BCHW.is_cuda:
        return change_in_batch(image_BCHW, mask_B1HW, changes)
    low_BC = np.zeros(image_BCHW.shape[:2], np.float32)
    return change_slices(image_BCHW.numpy(), mask_B1HW.numpy()[:, 0], low_BC, low_BC + 1, changes)
