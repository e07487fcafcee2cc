"""One configuration trained with several seeds: every slice counts once; what seeds and folds move is told apart."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from predictions import TWO_FOLDS, table, tumour

from braintum.data.schema import DataError
from braintum.evaluation.seeds import grid, joined, lead, spread
from braintum.evaluation.statistics import paired_difference
from braintum.evaluation.summary import summarise

DICE = {"a": ("1", (0.8, 0.6, 0.7)), "b": ("1", (0.4, 0.6, 0.5)), "c": ("2", (0.3, 0.5, 0.7))}
"""By slice its fold, and what three seeds score on it."""


def seeded(offset: float = 0.0) -> pa.Table:
    def of(seed: int) -> pa.Table:
        named = DICE.items()
        return table(*(tumour(name, fold, dice[seed] + offset, case=f"case {name}") for name, (fold, dice) in named))

    return joined([of(seed) for seed in range(3)])


def test_a_slice_counts_once() -> None:
    summary = summarise(seeded())
    means = [np.mean(dice) for _, dice in DICE.values()]
    assert summary["counts"]["slices"] == 3
    assert summary["metrics"]["dice"] == {
        "mean": pytest.approx(np.mean(means)), "sd": pytest.approx(np.std(means, ddof=1)), "n": 3,
    }  # fmt: skip
    assert summary["folds"]["1"]["dice"] == pytest.approx(0.6)
    assert summary["over_folds"]["dice"]["n"] == 2
    assert summary["cases"]["metrics"]["dice"]["n"] == 3
    assert summary["classes"]["glioma"]["slices"] == 3


def test_as_often_the_same_is_the_same() -> None:
    once, thrice = (
        json.loads(json.dumps(summarise(predictions)), parse_float=lambda digits: round(float(digits), 9))
        for predictions in (TWO_FOLDS, joined([TWO_FOLDS] * 3))
    )
    assert once == thrice


def test_a_score_of_many_slices_is_the_mean_of_the_seeds() -> None:
    right, wrong = (table(*(tumour(name, "1", 0.8, right=right) for name in "ab")) for right in (True, False))
    summary = summarise(joined([right, right, wrong]))
    assert summary["metrics"]["accuracy"] == {"mean": pytest.approx(2 / 3), "sd": None, "n": 2}
    assert summary["confusion"]["counts"][0] == [pytest.approx(4 / 3), pytest.approx(2 / 3)]


def test_a_distance_that_a_seed_lacks_is_of_the_others() -> None:
    drawn, empty = table(tumour("a", "1", 0.8, hd=3.0)), table(tumour("a", "1", 0.0, hd=None))
    summary = summarise(joined([drawn, empty]))
    assert summary["metrics"]["hd"] == {"mean": 3.0, "sd": None, "n": 1}
    assert summary["counts"]["hd_undefined"] == 1


def test_seeds_and_folds_are_told_apart() -> None:
    moved = spread(grid(seeded()))
    folds = np.array([[0.6, 0.6, 0.6], [0.3, 0.5, 0.7]])
    assert moved["n"] == 3
    assert moved["over_seeds"]["dice"]["mean"] == pytest.approx(folds.mean())
    assert moved["over_seeds"]["dice"]["sd"] == pytest.approx(folds.mean(axis=0).std(ddof=1))
    assert moved["over_runs"]["dice"] == {
        "mean": pytest.approx(folds.mean()), "sd": pytest.approx(folds.std(ddof=1)), "n": 6,
    }  # fmt: skip
    assert spread(grid(TWO_FOLDS))["over_seeds"]["dice"]["sd"] is None


def test_a_lead_and_what_seeds_leave_in_it() -> None:
    better = joined([table(tumour("a", "1", 0.6 + x), tumour("b", "2", 0.8 + x)) for x in (0.0, 0.1, 0.2)])
    worse = joined([table(tumour("a", "1", 0.5), tumour("b", "2", 0.5))] * 3)
    found = lead(grid(better), grid(worse), "dice")
    assert found is not None
    assert found.difference == pytest.approx(0.3)
    assert found.over_seeds == pytest.approx(0.1)
    assert found.over_folds == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert found.share == pytest.approx(0.1 / 3**0.5 / 0.3)
    alone = lead(grid(TWO_FOLDS), grid(TWO_FOLDS), "dice")
    assert alone is not None
    assert (alone.difference, alone.over_seeds, alone.share) == (0, None, None)
    assert lead(grid(better), grid(TWO_FOLDS), "dice") is None, "other seeds"


def test_a_paired_test_counts_a_slice_once() -> None:
    found = paired_difference(seeded(0.1), seeded(), "dice")
    assert found is not None
    assert (found.num_units, found.num_slices) == (3, 3)
    assert found.difference == pytest.approx(0.1)


def test_other_slices_or_folds_are_refused() -> None:
    with pytest.raises(DataError, match="different slices or folds"):
        summarise(joined([TWO_FOLDS, TWO_FOLDS.slice(1)]))
    with pytest.raises(DataError, match="one configuration at a time"):
        summarise(joined([pa.concat_tables([TWO_FOLDS, TWO_FOLDS])]))
