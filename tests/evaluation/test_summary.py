"""Averages of a prediction table written by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest
from predictions import TWO_FOLDS, healthy, table, tumour

from braintum.data.schema import DataError
from braintum.evaluation.statistics import paired_difference
from braintum.evaluation.summary import METRICS, summarise


def test_dice_is_given_over_tumour_slices_and_over_all() -> None:
    metrics = summarise(TWO_FOLDS)["metrics"]
    assert metrics["dice"]["mean"] == pytest.approx(1.4 / 3)
    assert metrics["dice"]["n"] == 3
    assert metrics["dice_all"]["mean"] == pytest.approx(2.4 / 5)
    assert metrics["dice"]["sd"] == pytest.approx(0.416333, rel=1e-5)


def test_an_undefined_distance_is_counted_and_not_averaged_in() -> None:
    summary = summarise(TWO_FOLDS)
    assert summary["metrics"]["hd"] == {"mean": 5.0, "sd": 0.0, "n": 2}
    assert summary["counts"] == {
        "slices": 5, "with_tumour": 3, "without_tumour": 2, "hd_undefined": 1,
    }  # fmt: skip
    assert summary["hd_unit"] == "px"


def test_millimetres_and_pixels_are_never_averaged_together() -> None:
    mixed = table(tumour("a", "1", 0.8, hd=3.0, hd_unit="mm"), tumour("b", "2", 0.7, hd=50.0))
    with pytest.raises(DataError, match="in mm and in px"):
        summarise(mixed)


def test_shares_and_classes() -> None:
    summary = summarise(TWO_FOLDS)
    assert summary["metrics"]["false_mask_rate"] == {"mean": 0.5, "sd": None, "n": 2}
    assert summary["metrics"]["both_right"]["mean"] == pytest.approx(3 / 5)
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(4 / 5)
    assert summary["confusion"] == {"labels": ["glioma", "no_tumor"], "counts": [[2, 1], [0, 2]]}
    assert summary["classes"]["glioma"]["sensitivity"] == pytest.approx(2 / 3)
    assert summary["classes"]["glioma"]["dice"] == pytest.approx(1.4 / 3)
    assert summary["classes"]["no_tumor"]["dice"] is None


def test_folds_and_the_spread_over_them() -> None:
    summary = summarise(TWO_FOLDS)
    assert summary["folds"]["1"]["dice"] == pytest.approx(0.4)
    assert summary["folds"]["2"]["dice"] == pytest.approx(0.6)
    assert summary["over_folds"]["dice"] == {
        "mean": pytest.approx(0.5), "sd": pytest.approx(0.1414, rel=1e-3), "n": 2,
    }  # fmt: skip
    assert list(summary["metrics"]) == [name for name in METRICS if name in summary["metrics"]]
    assert set(METRICS) == set(summary["metrics"])


def test_cases() -> None:
    assert summarise(TWO_FOLDS)["cases"] is None  # not known
    known = table(
        tumour("a", "1", 0.8, case="x"),
        tumour("b", "1", 0.6, case="x"),
        tumour("c", "1", 0.1, case="y", right=False),
        tumour("d", "1", 0.1, case="z"),
        healthy("e", "1", false_mask=False, case="z"),
    )
    cases = summarise(known)["cases"]
    assert cases["cases"] == 3
    assert cases["mixed_cases"] == 1
    assert cases["metrics"]["dice"]["mean"] == pytest.approx((0.7 + 0.1 + 0.1) / 3)
    assert cases["metrics"]["accuracy"] == {"mean": 0.5, "sd": None, "n": 2}


def test_a_case_has_the_class_of_its_mean_probability() -> None:
    """Two slices lean a little to one side, one strongly to the other."""
    weak = {"probability_glioma": 0.45, "probability_no_tumor": 0.55, "predicted": "no_tumor"}
    rows = [tumour(name, "1", 0.8, case="x", **weak) for name in "ab"] + [tumour("c", "1", 0.8, case="x")]
    summary = summarise(table(*rows))
    assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert summary["cases"]["metrics"]["accuracy"]["mean"] == 1.0


def test_only_metrics_of_the_task() -> None:
    unknown = {"predicted": None, "probability_glioma": None, "probability_no_tumor": None, "both_right": None}
    segmenter = summarise(table(tumour("a", "1", 0.8, **unknown)))["metrics"]
    assert set(segmenter) == {"dice", "dice_all", "iou", "pixel_accuracy", "hd", "hd95"}
    drawn = ("dice", "iou", "pixel_accuracy", "hd", "hd95", "hd_unit", "false_mask", "both_right")
    rows = [tumour("a", "1", 0.8), healthy("b", "1", false_mask=False)]
    classifier = summarise(table(*({**known, **dict.fromkeys(drawn)} for known in rows)))["metrics"]
    assert set(classifier) == {
        "accuracy", "macro_f1", "weighted_f1", "auroc", "sensitivity", "specificity",
    }  # fmt: skip


def test_two_configurations_are_not_summarised_as_one() -> None:
    with pytest.raises(ValueError, match="one configuration at a time"):
        summarise(pa.concat_tables([TWO_FOLDS, TWO_FOLDS]))


def test_a_difference_is_paired_over_cases() -> None:
    def predictions(offset: float) -> pa.Table:
        named = [(f"{case}{i}", case) for case in range(8) for i in range(3)]
        return table(*(tumour(name, "1", 0.5 + 0.01 * case + offset, case=f"case {case}") for name, case in named))

    found = paired_difference(predictions(0.1), predictions(0.0), "dice")
    assert found is not None
    assert (found.unit, found.num_units, found.num_slices) == ("case", 8, 24)
    assert found.difference == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.p == found.least_p == pytest.approx(2 / 2**8)
    same = paired_difference(predictions(0.1), predictions(0.1), "dice")
    assert same is not None
    assert (same.difference, same.p) == (0, 1)
    assert paired_difference(predictions(0.1), TWO_FOLDS, "dice") is None  # no slice in both


def test_without_cases_folds_alone_cannot_decide() -> None:
    first = table(*(tumour(f"{fold}{i}", fold, 0.9) for fold in "1234" for i in range(50)))
    second = table(*(tumour(f"{fold}{i}", fold, 0.5 + 0.01 * int(fold)) for fold in "1234" for i in range(50)))
    found = paired_difference(first, second, "dice")
    assert found is not None
    assert (found.unit, found.num_units) == ("group", 4)
    assert found.p == found.least_p == 0.125
