"""Is a difference between two configurations real? Paired over what is independent. No torch.

U units: cases where they are known, else groups (what a split must not cut), else slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.stats import wilcoxon

from braintum.evaluation.metrics import FloatArray
from braintum.evaluation.scores import Scores

RESAMPLES = 2_000


@dataclass(frozen=True)
class PairedDifference:
    """First minus second configuration, over `num_units` units that both predict.

    `difference`: the mean over units of the difference of their means. `low`, `high`: a 95 % bootstrap interval over
    units (percentiles of 2,000 resamples, fixed seed). `p`: two-sided Wilcoxon signed-rank test over units; 1 when
    no unit differs. `least_p`: the smallest p that so many units could give. Neither knows that the two were chosen
    out of several.
    """

    metric: str
    unit: Literal["case", "group", "slice"]
    num_units: int
    num_slices: int
    difference: float
    low: float
    high: float
    p: float
    least_p: float


def paired_difference(
    first: pa.Table, second: pa.Table, metric: Literal["dice", "accuracy"]
) -> PairedDifference | None:
    """Compares two prediction tables on the slices that both score: Dice on tumour slices, or the class being right.

    Slices of one unit are averaged first: they are not independent of one another. None where no slice is scored by
    both, as by configurations that see other classes of the data.
    """
    first_scores, second_scores = _by_slice(first, metric), _by_slice(second, metric)
    shared = sorted(first_scores.keys() & second_scores.keys())
    if not shared:
        return None
    difference_R = np.array([first_scores[name] - second_scores[name] for name in shared])
    unit, unit_of = _units(first)
    unit_R = [unit_of[name] for name in shared]
    difference_U = _means(difference_R, unit_R)
    num_units = len(difference_U)
    low, high = _bootstrap(difference_U)
    return PairedDifference(
        metric=metric,
        unit=unit,
        num_units=num_units,
        num_slices=len(shared),
        difference=float(difference_U.mean()),
        low=low,
        high=high,
        p=float(wilcoxon(difference_U).pvalue) if (difference_U != 0).any() else 1.0,
        least_p=min(1.0, 2.0 ** (1 - num_units)),
    )


def p_behind(difference_R: FloatArray, unit_R: Sequence[str]) -> float:
    """The p of a one-sided Wilcoxon signed-rank test that paired differences, first minus second, lie below zero.

    `unit_R` names the unit of each of R slices: slices of one unit are averaged first. Units that do not differ count
    for nothing; 1 where none does. Exact up to 50 units (13 where sizes tie), a normal approximation above.
    """
    difference_U = _means(difference_R, unit_R)
    differing_U = difference_U[difference_U != 0]  # left in, they would keep a few from being tested exactly
    return float(wilcoxon(differing_U, alternative="less").pvalue) if len(differing_U) else 1.0


def _means(difference_R: FloatArray, unit_R: Sequence[str]) -> FloatArray:
    """The mean of each unit's slices, U long."""
    _, index_R = np.unique(unit_R, return_inverse=True)
    means_U: FloatArray = np.bincount(index_R, weights=difference_R) / np.bincount(index_R)
    return means_U


def _by_slice(predictions: pa.Table, metric: Literal["dice", "accuracy"]) -> dict[str, float]:
    """A slice's score, averaged over the seeds that give it one: they are not independent of one another."""
    scores = Scores.of(predictions)
    if metric == "dice":
        values_R = scores.per_slice()["dice"]
    else:
        values_R = np.where(scores.classified_R, scores.label_R == scores.predicted_R, np.nan)
    found: dict[str, list[float]] = {}
    for name, value in zip(predictions["slice_id"].to_pylist(), values_R, strict=True):
        if not np.isnan(value):
            found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _units(predictions: pa.Table) -> tuple[Literal["case", "group", "slice"], dict[str, str]]:
    """The finest units that are independent of one another, as far as the source says."""
    ids = predictions["slice_id"].to_pylist()
    columns: tuple[tuple[Literal["case", "group"], str], ...] = (("case", "case_id"), ("group", "group"))
    for unit, column in columns:
        names = predictions[column].to_pylist()
        if all(name is not None for name in names):
            return unit, dict(zip(ids, names, strict=True))
    return "slice", dict(zip(ids, ids, strict=True))


def _bootstrap(difference_U: FloatArray) -> tuple[float, float]:
    num_units = len(difference_U)
    drawn = np.random.default_rng(0).integers(num_units, size=(RESAMPLES, num_units))
    low, high = np.percentile(difference_U[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
