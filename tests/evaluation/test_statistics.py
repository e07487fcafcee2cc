"""The one-sided test that racing asks."""

from __future__ import annotations

import numpy as np
import pytest

from braintum.evaluation.predict import score_shares, selection_metrics
from braintum.evaluation.statistics import p_behind


def test_p_is_exact_for_few_units() -> None:
    names = [str(i) for i in range(6)]
    assert p_behind(-np.arange(1.0, 7.0), names) == pytest.approx(2**-6)
    assert p_behind(-np.ones(6), names) == pytest.approx(2**-6), "ties in size"
    assert p_behind(np.arange(1.0, 7.0), names) == 1.0
    many = [*names, *(f"equal {i}" for i in range(60))]
    assert p_behind(np.append(-np.ones(6), np.zeros(60)), many) == pytest.approx(2**-6), "units that do not differ"
    assert p_behind(np.zeros(6), names) == 1.0


def test_slices_of_a_case_count_once() -> None:
    difference = np.array([-1.0, -2.0, -3.0, -4.0])
    assert p_behind(difference, ["a", "b", "c", "d"]) == pytest.approx(2**-4)
    assert p_behind(difference, ["a", "a", "b", "b"]) == pytest.approx(2**-2)
    assert p_behind(np.array([-1.0, 1.0]), ["a", "a"]) == 1.0


def test_the_mean_of_a_slices_shares_is_the_score() -> None:
    """A slice without mask, one without tumour and one without label count for what they have."""
    scores = {
        "dice": np.array([0.8, 1.0, np.nan, 0.3]),
        "iou": np.array([0.7, 1.0, np.nan, 0.2]),
        "pixel_accuracy": np.array([0.9, 1.0, np.nan, 0.8]),
        "has_tumour": np.array([True, False, False, True]),
        "label": np.array([0, 1, 0, -1]),
        "predicted": np.array([0, 0, 0, 1]),
    }
    metrics = selection_metrics(scores, ("a", "b"))
    weights = {"dice": 3.0, "accuracy": 1.0}
    shares = score_shares(scores, weights)
    assert shares.mean() == pytest.approx((3 * metrics["dice"] + metrics["accuracy"]) / 4)
    assert shares.tolist() == pytest.approx([(3 * 0.8 * 2 + 4 / 3) / 4, 0, 1 / 3, 3 * 0.3 * 2 / 4])
    assert score_shares(scores, {"dice": 3.0, "macro_f1": 1.0}) == pytest.approx(shares), "the class being right"
    only_masks = {name: scores[name] for name in ("dice", "iou", "pixel_accuracy", "has_tumour")}
    assert score_shares(only_masks, weights).mean() == pytest.approx(metrics["dice"]), "of the tasks that there are"
