"""What a report says of leads, seeds and selection scores, of predictions written by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from braintum.evaluation.predict import prediction_schema
from braintum.evaluation.seeds import joined
from braintum.evaluation.summary import summarise
from braintum.reporting.noise import lead_words, leads_table, optimism_table, seeds_table
from braintum.reporting.results import Entry, Results


def entry(name: str, *dice_of_seeds: float) -> Entry:
    """Two folds of a slice each; the second scores 0.1 more."""

    def of(dice: float) -> pa.Table:
        rows = [
            {"slice_id": fold, "fold": fold, "group": fold, "has_tumour": True, "dice": dice + add, "hd_unit": "px"}
            for fold, add in (("1", 0.0), ("2", 0.1))
        ]
        return pa.Table.from_pylist(rows, schema=prediction_schema(()))

    predictions = joined([of(dice) for dice in dice_of_seeds])
    return Entry(name, {}, predictions, pa.table({}), summarise(predictions))


def results(*entries: Entry, **summary: Any) -> Results:
    return Results("out", "study", "data", "digest", summary, list(entries), None)


def test_a_lead_stands_beside_what_seeds_do_to_it() -> None:
    found = results(entry("best", 0.60, 0.62, 0.64), entry("other", 0.60, 0.60, 0.60), entry("last", 0.1, 0.1, 0.1))
    assert lead_words(found) == [
        "Dice: best leads other by 0.020. Seeds alone move that lead by 0.020 (SD of 3 seeds), and leave ± 0.012 in "
        "its mean: 58 % of the lead."
    ]
    table = leads_table(found)
    assert table is not None
    assert [row[:3] for row in table.rows] == [["Dice", "best", "other"], ["Dice", "best", "last"]]
    assert table.rows[1][3:6] == [pytest.approx(0.52), pytest.approx(0.0), pytest.approx(0.02)]
    moved = seeds_table(found)
    assert moved is not None
    assert moved.rows[0][:4] == ["best, Dice", "0.670", "0.071", "0.020"]


def test_one_seed_cannot_tell_luck() -> None:
    found = results(entry("best", 0.6), entry("other", 0.5))
    assert "trained with one seed" in lead_words(found)[0]
    assert seeds_table(found) is None
    table = leads_table(found)
    assert table is not None
    assert table.rows[0][5:] == [None, pytest.approx(0.0), None, None], "over folds only"
    assert lead_words(results(entry("alone", 0.6))) == []
    assert lead_words(results(entry("a", 0.6, 0.6), entry("b", 0.6, 0.6))) == [], "no lead"


def test_selection_scores_are_named_beside_results() -> None:
    optimism = {"selection": 0.7, "crossval": 0.6, "difference": 0.1}
    table = optimism_table(results(entry("best", 0.6), best={"best": {"optimism": optimism}}))
    assert table is not None
    assert table.columns == ["architecture", "selection score", "cross-validated", "difference"]
    assert table.rows == [["best", 0.7, 0.6, 0.1]]
    assert "it is no result" in table.note
    assert optimism_table(results(entry("best", 0.6), best={"best": {"optimism": None}})) is None, "a comparison"
