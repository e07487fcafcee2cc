"""What an epoch draws at random: the order of its slices, and numbers that their changes are made of.

The numbers are drawn per dataset row from (seed, epoch), so that a slice is changed alike whatever batch, worker or
resumed run it comes in.

Shapes: R rows of the table, P draws a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    """[R, P], uniform in [0, 1): what `changes_of` needs, for every row of the table."""
    bits_X = _raw(seed, epoch, _AUGMENT, num_rows * NUM_DRAWS) >> np.uint64(40)
    return (bits_X.astype(np.float32) * np.float32(2.0**-24)).reshape(num_rows, NUM_DRAWS)
