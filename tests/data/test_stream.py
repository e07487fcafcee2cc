"""Tables too large to be kept: windows of an epoch, parts that come and go, and batches that are the same anyway."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from example_rows import make_row
from hypothesis import given, settings
from hypothesis import strategies as st

from braintum.data.augment import shuffled
from braintum.data.batches import Batch, Batches, ordered_batches
from braintum.data.stream import Streamed, rows_of_steps
from braintum.data.table import SliceTable, load_table
from braintum.parts import Augment, Data

PARTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@settings(deadline=None)
@given(
    sizes=PARTS, window=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000), data=st.data()
)
def test_an_epoch_is_a_permutation_in_windows_of_whole_parts(sizes, window: int, seed: int, epoch: int, data) -> None:
    ends = np.cumsum(sizes)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, int(ends[-1]) - 1), min_size=1))))
    order = shuffled(rows, seed, epoch, window, ends)
    assert sorted(order.tolist()) == rows.tolist()
    assert (order == shuffled(rows, seed, epoch, window, ends)).all()
    part_R = np.searchsorted(ends, order, side="right")
    if len(rows) <= window:
        assert (order == shuffled(rows, seed, epoch, 10**6, np.array([ends[-1]]))).all(), (
            "one window: parts say nothing"
        )
        return
    windows = np.array_split(part_R, -(-len(rows) // window))
    assert max(map(len, windows)) <= window
    seen: set[int] = set()
    for before, now in pairwise(windows):
        seen |= set(before.tolist())
        assert len(seen & set(now.tolist())) <= 1, "at most the part that the windows' border cuts"


def test_epochs_differ_in_parts_and_within_them() -> None:
    ends = np.arange(10, 110, 10)
    orders = [shuffled(np.arange(100), seed, epoch, 20, ends) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    firsts = [tuple(sorted(set((order[:20] // 10).tolist()))) for order in orders]
    assert len(set(firsts)) == 3
    assert not any((np.diff(order[:20]) == 1).all() for order in orders)


class Kept:
    """Ten parts of four rows, and which of them anybody holds."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.held: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        ends = np.arange(4, 44, 4)
        self.array = Streamed(self._fetch, ends, (40, 3), np.dtype(np.int64))
        self.rows = np.arange(120).reshape(40, 3)

    def _fetch(self, part: int) -> np.ndarray:
        self.fetched.append(part)
        self.held[part] = rows = self.rows[part * 4 : part * 4 + 4].copy()
        return rows


def test_a_part_is_fetched_once_and_let_go() -> None:
    kept = Kept()
    order = shuffled(np.arange(40), 0, 0, 8, kept.array.part_ends)
    steps = np.array_split(order, 20)
    most = 0
    for rows, (found,) in zip(steps, rows_of_steps([kept.array], steps, ahead=4), strict=True):
        assert (found == kept.rows[rows]).all()
        gc.collect()
        most = max(most, len(kept.held))
    assert sorted(kept.fetched) == list(range(10)), "each part once"
    assert most <= 5, "two windows of two parts, and one that a border cuts"
    gc.collect()
    assert not kept.held


def test_leaving_an_epoch_lets_its_parts_go() -> None:
    kept = Kept()
    epoch = rows_of_steps([kept.array], np.array_split(np.arange(40), 20), ahead=2)
    next(epoch)
    epoch.close()
    gc.collect()
    assert (len(kept.fetched) <= 3, dict(kept.held)) == (True, {})


def test_what_cannot_be_fetched_is_raised() -> None:
    def fetch(part: int) -> np.ndarray:
        raise OSError(f"part {part} is gone")

    lost = Streamed(fetch, np.array([2, 4]), (4, 3), np.dtype(np.int64))
    with pytest.raises(OSError, match="part 1 is gone"):
        next(rows_of_steps([lost], [np.array([3])], ahead=1))


@pytest.fixture
def tables(write) -> tuple[SliceTable, SliceTable]:
    """One dataset, kept and streamed."""
    labels = ["a", "b", None]
    url, card = write([make_row(f"r{i}", labels[i % 3]) for i in range(41)], shard_bytes=7000)
    assert len(card.shards) > 8
    table = load_table(url, Data(image_size=16))

    def streamed(array: np.ndarray) -> Streamed:
        parts = np.split(array, table.part_ends[:-1])
        return Streamed(lambda part: parts[part], table.part_ends, array.shape, array.dtype)

    return table, replace(table, image_RCHW=streamed(table.image_RCHW), mask_RHW=streamed(table.mask_RHW))


def same(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("window", [1, 6, 20, 100])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_do_not_depend_on_where_pixels_lie(tables, window: int, world_size: int) -> None:
    for rank in range(world_size):
        options = {"batch_size": 8, "seed": 5, "augment": Augment(), "window": window}
        kept, streamed = (
            Batches(table, np.arange(1, 41), rank=rank, world_size=world_size, **options) for table in tables
        )
        for epoch in range(2):
            pairs = list(zip(kept.epoch(epoch), streamed.epoch(epoch), strict=True))
            assert len(pairs) == 5
            assert all(same(*pair) for pair in pairs)


def test_rows_in_any_order_come_from_a_streamed_table(tables) -> None:
    rows = np.array([40, 0, 7, 7, 39, 3])
    kept, streamed = (list(ordered_batches(table, rows, 4)) for table in tables)
    assert all(same(*pair) for pair in zip(kept, streamed, strict=True))
    assert (tables[1].image_RCHW[17] == tables[0].image_RCHW[17]).all()
