"""One configuration trained with several seeds: how far seeds and folds move its scores, and its lead over another.

No torch: reporting uses it too. Shapes: S seeds, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from braintum import storage
from braintum.evaluation.metrics import FloatArray
from braintum.evaluation.scores import by_seed
from braintum.evaluation.summary import mean_and_sd, summarise

Grid = dict[str, FloatArray]
"""By metric, the score of every seed and fold [S, F]; nan where it is not defined."""


def place_of(url: str, seed: int) -> str:
    """The directory of a seed's cross-validation: the first seed's is `url`, and the others' lie in it."""
    return url if seed == 1 else storage.join(url, f"seed-{seed}")


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The tables of seeds 1, 2, ... as one, with a column `seed`."""
    numbered = [
        table.append_column("seed", pa.array([number] * len(table), pa.int64()))
        for number, table in enumerate(tables, start=1)
    ]
    return pa.concat_tables(numbered, promote_options="default")


def grid(predictions: pa.Table) -> Grid:
    """The scores of every seed and fold of one configuration. Raises DataError as `summarise` does."""
    folds_S = [summarise(table)["folds"] for table in by_seed(predictions)]
    names = dict.fromkeys(name for folds in folds_S for scores in folds.values() for name in scores)
    return {
        name: np.array([[scores.get(name, np.nan) for scores in folds.values()] for folds in folds_S]) for name in names
    }


def spread(scores: Grid) -> dict[str, Any]:
    """How far scores move: `n` seeds; `over_seeds` and `over_runs` {metric: {mean, sd, n}}.

    `over_seeds`: of the seeds' means over folds; `over_runs`: of every seed and fold.
    """
    return {
        "n": len(next(iter(scores.values()))),
        "over_seeds": {name: mean_and_sd(_known(_mean(values_SF, 1))) for name, values_SF in scores.items()},
        "over_runs": {name: mean_and_sd(_known(values_SF.ravel())) for name, values_SF in scores.items()},
    }


@dataclass(frozen=True)
class Lead:
    """First minus second configuration, trained with the same seeds on the same folds and paired by both.

    `difference`: the mean over seeds and folds. SDs: of the difference over seeds (each the mean of its folds), over
    folds (each the mean of its seeds), and over all; None for fewer than two.
    """

    difference: float
    num_seeds: int
    over_seeds: float | None
    over_folds: float | None
    over_runs: float | None

    @property
    def noise(self) -> float | None:
        """The standard error that seeds leave in the difference; None with one seed."""
        return None if self.over_seeds is None else self.over_seeds / self.num_seeds**0.5

    @property
    def share(self) -> float | None:
        """`noise` as a share of the difference; None with one seed, or without a difference."""
        return None if self.noise is None or not self.difference else self.noise / abs(self.difference)


def lead(first: Grid, second: Grid, metric: str) -> Lead | None:
    """Compares a metric of two configurations; None where one lacks it, or they have other seeds or folds."""
    if metric not in first or metric not in second or first[metric].shape != second[metric].shape:
        return None
    difference_SF = first[metric] - second[metric]
    known = _known(difference_SF.ravel())
    if not len(known):
        return None
    return Lead(
        difference=float(known.mean()),
        num_seeds=len(difference_SF),
        over_seeds=mean_and_sd(_known(_mean(difference_SF, 1)))["sd"],
        over_folds=mean_and_sd(_known(_mean(difference_SF, 0)))["sd"],
        over_runs=mean_and_sd(known)["sd"],
    )


def _mean(values_SF: FloatArray, axis: int) -> FloatArray:
    """The mean of what is known along an axis; nan where nothing is."""
    known = ~np.isnan(values_SF)
    counts = known.sum(axis=axis)
    means: FloatArray = np.where(counts > 0, np.nansum(values_SF, axis=axis) / np.maximum(counts, 1), np.nan)
    return means


def _known(values: FloatArray) -> FloatArray:
    return values[~np.isnan(values)]
