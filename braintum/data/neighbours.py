"""Slices that look alike, found without comparing all with all. Numpy only.

Multi-index hashing (Norouzi, Punjani, Fleet 2012): of four bands of 16 bits, two hashes that differ in at most 11 bits
have one band in which they differ in at most 2. So each band is looked up with up to 2 bits flipped, and what is found
is compared in full.

Shapes: R slices, P pairs, H W pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

BANDS, BITS = 4, 16
AT_ONCE = 4_000_000
"""Pairs that are compared at a time: bounds the memory."""
BLOCKS = 16
"""Along each side of a thumbnail, for a first look. Thumbnails are divisible by it."""
ROUNDING = 1e-4

Pairs = NDArray[np.int64]
"""P,2: indices, the smaller first."""


def near_pairs(hash_R: NDArray[np.uint64], distance: int) -> Pairs:
    """All pairs of hashes that differ in at most `distance` bits (0 to 11), in ascending order, each once."""
    if not 0 <= distance <= 3 * BANDS - 1:
        raise ValueError(f"distance: {distance}: expected 0 to {3 * BANDS - 1}")
    radius = distance // BANDS
    found = []
    for band in range(BANDS):
        for first_P, second_P in _same_but_for(_band(hash_R, band), radius):
            differ_P = hash_R[first_P] ^ hash_R[second_P]
            near_P = np.bitwise_count(differ_P) <= distance
            for earlier in range(band):  # found there before
                near_P &= np.bitwise_count(_band(differ_P, earlier)) > radius
            found.append(np.sort(np.column_stack([first_P[near_P], second_P[near_P]]), axis=1))
    pairs_P2 = np.concatenate([np.empty((0, 2), np.int64), *found])
    return pairs_P2[np.lexsort(pairs_P2.T[::-1])]


def correlations(
    thumb_RHW: NDArray[np.uint8] | NDArray[np.float16], pairs_P2: Pairs, least: float = -1
) -> NDArray[np.float32]:
    """Pearson's correlation of the pixels of two thumbnails; 0 with one of a single value.

    Where it is less than `least`, a bound above it, itself less, may stand in its place: of what is left of a thumbnail
    beside the means of its blocks, two correlate by no more than the product of their norms (Cauchy and Schwarz).
    """
    step = max(1, AT_ONCE // int(np.prod(thumb_RHW.shape[1:])))
    found_P = np.full(len(pairs_P2), np.inf, np.float32)
    if least > -1 and len(pairs_P2):
        coarse = [_coarse(thumb_RHW[start : start + step]) for start in range(0, len(thumb_RHW), step)]
        mean_RX, rest_R = (np.concatenate(part) for part in zip(*coarse, strict=True))
        for start in range(0, len(pairs_P2), AT_ONCE // BLOCKS**2):
            a_P, b_P = pairs_P2[start : start + AT_ONCE // BLOCKS**2].T
            bound_P = np.einsum("px,px->p", mean_RX[a_P], mean_RX[b_P]) + rest_R[a_P] * rest_R[b_P]
            found_P[start : start + len(a_P)] = bound_P
    near = np.flatnonzero(found_P >= least - ROUNDING)
    for start in range(0, len(near), step):
        at = near[start : start + step]
        first, second = (_normed(thumb_RHW[pairs_P2[at, side]]) for side in (0, 1))
        found_P[at] = np.einsum("px,px->p", first, second)
    return found_P


def _coarse(thumb_RHW: NDArray[np.uint8] | NDArray[np.float16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of thumbnails as unit vectors: the part that is constant in blocks, and the length of the rest."""
    count, height, width = thumb_RHW.shape
    blocks = (count, BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS)
    mean_RX = _normed(thumb_RHW).reshape(blocks).mean(axis=(2, 4)).reshape(count, -1)
    mean_RX *= np.sqrt(height * width) / BLOCKS
    rest_R = np.sqrt(np.maximum(1 - np.einsum("rx,rx->r", mean_RX, mean_RX), 0))
    return mean_RX, rest_R


def _normed(thumb_PHW: NDArray[np.uint8] | NDArray[np.float16]) -> NDArray[np.float32]:
    flat_PX = thumb_PHW.reshape(len(thumb_PHW), -1).astype(np.float32)
    flat_PX -= flat_PX.mean(axis=1, keepdims=True)
    norm_P1 = np.linalg.norm(flat_PX, axis=1, keepdims=True)
    flat_PX /= np.where(norm_P1 > 0, norm_P1, 1)
    return flat_PX


def _band(hash_R: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    return ((hash_R >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)).astype(np.int64)


def _same_but_for(key_R: NDArray[np.int64], radius: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows whose keys differ in at most `radius` bits, each once, in pieces."""
    order_R = np.argsort(key_R, kind="stable")
    count_K = np.bincount(key_R, minlength=2**BITS)
    start_K = np.concatenate([[0], np.cumsum(count_K)[:-1]])
    present = np.flatnonzero(count_K)
    flips = [sum(1 << bit for bit in bits) for size in range(radius + 1) for bits in combinations(range(BITS), size)]
    for flip in flips:
        other = present ^ flip
        once = (count_K[other] > 0) & ((present < other) | (flip == 0))
        for left, right in _pieces(present[once], other[once], count_K):
            sizes = count_K[left] * count_K[right]
            # which product of buckets a pair is of, and its place there
            of_P = np.repeat(np.arange(len(left)), sizes)
            place_P = np.arange(len(of_P)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            a_P, b_P = np.divmod(place_P, count_K[right][of_P])
            if flip == 0:  # of one bucket: each pair once, and no row with itself
                keep = a_P < b_P
                of_P, a_P, b_P = of_P[keep], a_P[keep], b_P[keep]
            yield order_R[start_K[left][of_P] + a_P], order_R[start_K[right][of_P] + b_P]


def _pieces(
    left: NDArray[np.int64], right: NDArray[np.int64], count_K: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Buckets in groups of about AT_ONCE pairs."""
    total = np.cumsum(count_K[left] * count_K[right])
    if len(total):
        cuts = np.searchsorted(total, np.arange(AT_ONCE, total[-1], AT_ONCE)) + 1
        yield from zip(np.split(left, cuts), np.split(right, cuts), strict=True)
