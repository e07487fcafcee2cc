"""What holds of any split: no group is cut, every class is everywhere if that can be, and the order does not matter."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from bare_table import Line, bare_table
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from braintum.data.folds import held_out_folds, split, validation_split
from braintum.data.table import SliceTable

SAME = settings(max_examples=100, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


class Data(NamedTuple):
    table: SliceTable
    folds: int
    seed: int


def of_group(rng: np.random.Generator, group: str, labels: list[int]) -> list[Line]:
    """One to five slices, of some of the labels."""
    some = rng.permutation(labels)[: rng.integers(1, len(labels) + 1)]
    return [
        Line(group, int(rng.choice(some)), has_mask=bool(masked), has_tumour=bool(masked))
        for masked in rng.integers(0, 2, rng.integers(1, 6))
    ]


@st.composite
def datasets(draw: st.DrawFn) -> Data:
    """In any order: groups enough that every fold can have every class; others of several classes; a test set.

    Where there are slices without label, there are enough of those too.
    """
    folds, classes, rng = draw(st.integers(2, 5)), draw(st.integers(1, 4)), np.random.default_rng(draw(seeds))
    labels = list(range(classes))
    lines: list[Line] = []
    for label in [*labels, -1] if draw(st.booleans()) else labels:
        for number in range(draw(st.integers(folds, folds + 4))):
            lines += of_group(rng, f"only {label}, {number}", [label])
    for number in range(draw(st.integers(0, 6))):
        lines += of_group(rng, f"mixed {number}", labels)
    for number in range(draw(st.integers(0, 3))):
        lines += [line._replace(fold="test") for line in of_group(rng, f"test {number}", labels)]
    return Data(bare_table([lines[row] for row in rng.permutation(len(lines))]), folds, draw(seeds))


def names(table: SliceTable, rows: np.ndarray) -> set[str]:
    return {table.slice_id_R[row] for row in rows}


def reordered(table: SliceTable, order: np.ndarray) -> SliceTable:
    changes = {
        name: [column[row] for row in order] if isinstance(column, list) else column[order]
        for name, column in vars(table).items()
        if name.endswith(("_R", "_RC", "_R2", "_RHW", "_RCHW"))
    }
    return SliceTable(**{**vars(table), **changes})


def check_two_sides(table: SliceTable, one: np.ndarray, other: np.ndarray, all_rows: np.ndarray) -> None:
    assert sorted([*one, *other]) == sorted(all_rows)
    assert not {table.group_R[row] for row in one} & {table.group_R[row] for row in other}
    for part in (one, other):
        assert set(range(len(table.classes))) <= set(table.label_R[part].tolist())


@SAME
@given(datasets())
def test_folds(data: Data) -> None:
    table, folds, seed = data
    to_train = np.array([row for row, fold in enumerate(table.source_fold_R) if fold != "test"])
    held_out = held_out_folds(table, folds, seed)
    assert list(held_out) == [str(number) for number in range(1, folds + 1)]
    assert sorted(np.concatenate(list(held_out.values()))) == to_train.tolist()
    for name, rows in held_out.items():
        parts = split(table, name, folds, seed)
        np.testing.assert_array_equal(parts.held_out, rows)
        check_two_sides(table, parts.train, rows, to_train)


@SAME
@given(datasets(), st.floats(0.1, 0.4))
def test_two_parts(data: Data, fraction: float) -> None:
    table, _, seed = data
    to_train = np.array([row for row, fold in enumerate(table.source_fold_R) if fold != "test"])
    check_two_sides(table, *split(table, None, None, seed), to_train)
    check_two_sides(table, *validation_split(table, to_train, fraction, seed), to_train)


@SAME
@given(datasets(), seeds)
def test_the_order_of_slices_does_not_matter(data: Data, order: int) -> None:
    table, folds, seed = data
    other = reordered(table, np.random.default_rng(order).permutation(len(table)))
    mine, theirs = held_out_folds(table, folds, seed), held_out_folds(other, folds, seed)
    assert {name: names(table, rows) for name, rows in mine.items()} == {
        name: names(other, rows) for name, rows in theirs.items()
    }
    for name in (None, "1"):
        for here, there in zip(split(table, name, folds, seed), split(other, name, folds, seed), strict=True):
            assert names(table, here) == names(other, there)
            np.testing.assert_array_equal(there, np.sort(there))


@st.composite
def few_groups(draw: st.DrawFn) -> Data:
    """Groups of any classes, few enough to try every way of sharing them out."""
    folds, labels, rng = (
        draw(st.integers(2, 3)),
        list(range(draw(st.integers(1, 4)))),
        np.random.default_rng(draw(seeds)),
    )
    lines = [line for number in range(draw(st.integers(folds, 7))) for line in of_group(rng, str(number), labels)]
    return Data(bare_table(lines), folds, draw(seeds))


@SAME
@given(few_groups())
def test_every_class_is_in_every_fold_where_that_can_be(data: Data) -> None:
    table, folds, seed = data
    groups = sorted(set(table.group_R))
    label_GN = np.zeros((len(groups), len(table.classes)), bool)
    label_GN[[groups.index(group) for group in table.group_R], table.label_R] = True

    def complete(fold_of: tuple[int, ...]) -> bool:
        return all(label_GN[np.array(fold_of) == fold].any(axis=0).all() for fold in range(folds))

    assume(any(map(complete, product(range(folds), repeat=len(groups)))))
    held_out = held_out_folds(table, folds, seed)
    assert all(set(table.label_R[rows]) == set(range(len(table.classes))) for rows in held_out.values())
