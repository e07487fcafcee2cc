from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from example_rows import SIZE, make_row

from braintum.data.folds import at_most, held_out_folds, split, validation_split, without
from braintum.data.schema import DataError
from braintum.data.table import SliceTable

CLASSES = ("a", "b", "c")


def cases(count: int, **more) -> list:
    """Two to four slices a case, classes in turn."""
    return [
        make_row(f"{case}-{i}", CLASSES[case % 3], group=f"case {case}", case_id=str(case), **more)
        for case in range(count)
        for i in range(2 + case % 3)
    ]


def groups(table: SliceTable, rows) -> set[str]:
    return {table.group_R[row] for row in rows}


def test_folds_are_stratified_and_cut_no_group(make_table) -> None:
    table = make_table(cases(30))
    held_out = held_out_folds(table, None, seed=0)
    assert list(held_out) == ["1", "2", "3", "4", "5"]
    assert sorted(np.concatenate(list(held_out.values()))) == list(range(len(table)))
    for name, rows in held_out.items():
        result = split(table, name, None, seed=0)
        np.testing.assert_array_equal(result.held_out, rows)
        assert not groups(table, result.train) & groups(table, result.held_out)
        assert len(result.train) + len(rows) == len(table)
        counts = np.bincount(table.label_R[rows], minlength=3)
        np.testing.assert_allclose(counts / np.bincount(table.label_R), 0.2, atol=0.1)
    assert len(held_out_folds(table, 3, seed=0)) == 3
    other = held_out_folds(table, None, seed=1)
    assert any(not np.array_equal(other[name], held_out[name]) for name in held_out)


def test_the_sources_own_folds_are_held_out(make_table) -> None:
    rows = [row for k in (1, 2, 10) for row in fold_rows(str(k))] + fold_rows("test")
    table = make_table(rows)
    held_out = held_out_folds(table, None, seed=0)
    assert list(held_out) == ["1", "2", "10"]
    for name in held_out:
        result = split(table, name, None, seed=5)
        assert {table.source_fold_R[row] for row in result.held_out} == {name}
        assert {table.source_fold_R[row] for row in result.train} == {"1", "2", "10"} - {name}
        fit, validation = validation_split(table, result.train, 0.2, seed=0)
        assert len({table.source_fold_R[row] for row in validation}) == 1  # a whole fold
        assert not set(fit) & set(validation)
        assert sorted([*fit, *validation]) == sorted(result.train)
    assert list(held_out_folds(table, 2, seed=0)) == ["1", "2"]
    assert {table.source_fold_R[row] for row in split(table, "1", 2, seed=0).train} == {"2", "10"}
    assert "test" not in {table.source_fold_R[row] for part in split(table, None, None, 0) for row in part}


def fold_rows(fold: str) -> list:
    return [make_row(f"{fold}-{i}", CLASSES[i % 3], group=f"fold {fold}", source_fold=fold) for i in range(6)]


def test_train_and_test_alone_are_no_folds(make_table) -> None:
    rows = [make_row(f"r{i}", CLASSES[i % 3], source_fold="test" if i % 5 == 0 else "train") for i in range(60)]
    table = make_table(rows)
    held_out = held_out_folds(table, None, seed=0)
    assert len(held_out) == 5
    assert {table.source_fold_R[row] for part in held_out.values() for row in part} == {"train"}


@pytest.mark.parametrize("seed", range(5))
def test_the_default_split_is_eighty_twenty(make_table, seed: int) -> None:
    table = make_table(cases(45))
    train, held_out = split(table, None, None, seed)
    assert not groups(table, train) & groups(table, held_out)
    shares = np.bincount(table.label_R[held_out], minlength=3) / np.bincount(table.label_R)
    np.testing.assert_allclose(shares, 0.2, atol=0.08)
    fit, validation = validation_split(table, train, 0.25, seed)
    assert not groups(table, fit) & groups(table, validation)
    shares = np.bincount(table.label_R[validation], minlength=3) / np.bincount(table.label_R[train])
    np.testing.assert_allclose(shares, 0.25, atol=0.1)
    again = split(table, None, None, seed)
    np.testing.assert_array_equal(again.held_out, held_out)


def test_a_rare_class_is_on_both_sides(make_table) -> None:
    rows = [make_row(f"r{i}", "rare" if i < 2 else "common") for i in range(50)]
    table = make_table(rows)
    for seed in range(5):
        for part in split(table, None, None, seed):
            assert set(table.label_R[part]) == {0, 1}


def test_rows_without_label_are_shared_out_too(make_table) -> None:
    table = make_table([make_row(f"r{i}", None if i % 2 else "a") for i in range(40)] + [make_row("b", "a")])
    for rows in held_out_folds(table, 4, seed=0).values():
        assert 3 <= (table.label_R[rows] == -1).sum() <= 7


@pytest.mark.parametrize(
    ("rows", "fold", "folds", "message"),
    [
        (cases(30), "6", None, "'6' is not a fold of the data; known: 1, 2, 3, 4, 5"),
        (cases(30), "1", 1, "cross-validation needs 2 or more"),
        (cases(3), "1", 5, "too few|only 3 groups"),
        ([row for k in "123" for row in fold_rows(k)], "1", 4, "has 3 of its own: 1, 2, 3"),
        ([*fold_rows("1"), *fold_rows("2")[:2]], "2", None, "fold 2 has no slice of class 'c'"),
        ([make_row(f"r{i}", "a", group="one") for i in range(4)], None, None, "all slices are of one group"),
        ([make_row(f"r{i}", "a" if i else "b") for i in range(9)], None, None, "no slice of class 'b'"),
    ],
)
def test_impossible_splits_are_refused(make_table, rows, fold, folds, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        split(make_table(rows), fold, folds, seed=0)
    assert "\n" not in str(error.value)


def test_scarce_masks_are_on_both_sides(make_table) -> None:
    table = make_table([replace(row, mask_HW=row.mask_HW if row.case_id in ("4", "7") else None) for row in cases(30)])
    fit, validation = validation_split(table, np.arange(len(table)), 0.2, seed=0)
    assert table.has_mask_R[fit].any()
    assert table.has_mask_R[validation].any()


@pytest.mark.parametrize("with_tumour", [("4", "7"), ("0", "1", "2")])
@pytest.mark.parametrize("label", ["a", None])
def test_scarce_tumours_are_on_both_sides(make_table, with_tumour: tuple[str, ...], label: str | None) -> None:
    """All other masks are empty, and the label tells nothing."""
    empty = np.zeros((SIZE, SIZE), np.uint8)
    rows = [replace(row, label=label, case_id=None) for row in cases(30)]
    rows = [row if row.group.split()[1] in with_tumour else replace(row, mask_HW=empty) for row in rows]
    table = make_table(rows)
    for seed in range(20):
        for part in validation_split(table, np.arange(len(table)), 0.2, seed):
            assert table.has_tumour_R[part].any(), seed


def test_splits_of_slices_that_all_have_tumours_stay_what_they_were(make_table) -> None:
    """Recorded results are of these."""
    table = make_table(cases(30))
    train, held_out = split(table, None, None, seed=0)
    assert [*held_out] == [18, 19, 23, 24, 25, 26, 29, 30, 31, 54, 55, 56, 57, 58, 68, 69, 70, 71]
    _, validation = validation_split(table, train, 0.2, seed=0)
    assert [*validation] == [14, 15, 16, 17, 20, 21, 22, 38, 39, 40, 45, 46, 63, 64, 86, 87, 88, 89]


def test_a_group_in_two_folds_is_refused(make_table) -> None:
    rows = [make_row(f"r{i}", CLASSES[i % 3], group=str(i % 4), source_fold=str(i % 2 + (i == 7))) for i in range(12)]
    with pytest.raises(DataError, match="group '3' is in the source folds '1' and '2'"):
        held_out_folds(make_table(rows), None, seed=0)


@pytest.mark.parametrize("own", [True, False])
def test_a_fold_that_is_left_out_is_in_no_other_part(make_table, own: bool) -> None:
    """Of the source's folds the others stay what they are; folds that are cut here are cut out of the rest."""
    source = [row for k in (1, 2, 10) for row in fold_rows(str(k))] + fold_rows("test")
    table = make_table(source if own else cases(30))
    left_out = held_out_folds(table, 3, seed=0)["2"]
    rest = without(table, "2", 3, seed=0)
    folds = at_most(rest, 3)
    assert (folds, at_most(rest, None)) == (2 if own else 3, None)
    names = list(held_out_folds(rest, folds, seed=0))
    assert names == (["1", "10"] if own else ["1", "2", "3"])
    for name in names:
        parts = split(rest, name, folds, seed=0)
        assert not {*parts.train, *parts.held_out} & set(left_out)
        assert not groups(table, parts.train) & groups(table, left_out)
        assert len(parts.train) + len(parts.held_out) + len(left_out) == len(table) - 6 * own, "but the test set"
    with pytest.raises(DataError, match="fold: '7' is not a fold of the data"):
        without(table, "7", 3, seed=0)
