"""Several objectives: the Pareto front of an architecture's trials, and the one that is chosen on it.

Needs neither torch nor Ray, so that reports may show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from braintum.tuning.parts import COSTS
from braintum.tuning.records import SPEC, Records, best_trials, own_trials

RULE = (
    "the trial of the Pareto front that is nearest to the best value of every objective, each in units of its range "
    "over all trials that finished (the knee)"
)


def pareto(objectives: Sequence[str], trials: Records) -> dict[str, Records]:
    """The Pareto front of each architecture that has two or more of the objectives: `trial` and its values.

    Of the trials that finished all folds, those that no other beats in one objective without being worse in another.
    `trials`: rows of `trials.parquet`, with the objectives in `metrics`. The chosen one (`RULE`; of equal ones the
    first) has `chosen`: True.
    """
    fronts = {}
    for name in dict.fromkeys(trial["architecture"] for trial in trials):
        points = []
        for trial in trials:
            if trial["architecture"] == name and trial["state"] == "complete":
                metrics = json.loads(trial["metrics"])
                points.append({"trial": trial["number"], **{o: metrics[o] for o in objectives if o in metrics}})
        if points and len(points[0]) > 2:
            front = [point for point in points if not any(_beats(other, point) for other in points)]
            chosen = knee(front, points)
            fronts[name] = [{**point, "chosen": point is chosen} for point in front]
    return fronts


def chosen_trials(objectives: Sequence[str], studies: Mapping[str, Study], trials: Records) -> dict[str, FrozenTrial]:
    """The complete trial that is chosen, of each architecture that has one: on its Pareto front, or by its score."""
    best = best_trials(studies)
    for name, front in pareto(objectives, trials).items():
        number = next(point["trial"] for point in front if point["chosen"])
        best[name] = next(
            trial
            for study in studies.values()
            for trial in own_trials(study, TrialState.COMPLETE)
            if trial.number == number and json.loads(trial.user_attrs[SPEC])["architecture"] == name
        )
    return best


def knee(front: Records, points: Records) -> dict[str, Any]:
    """The point of a front that `RULE` chooses; ranges are those of `points`."""
    objectives = sorted(front[0].keys() - {"trial"})
    best = {o: max(gain(o, point[o]) for point in front) for o in objectives}
    spread = {o: max(p[o] for p in points) - min(p[o] for p in points) for o in objectives}

    def distance(point: dict[str, Any]) -> float:
        return float(sum(((best[o] - gain(o, point[o])) / spread[o]) ** 2 for o in objectives if spread[o] > 0))

    return min(front, key=distance)


def gain(objective: str, value: float) -> float:
    """An objective's value, turned so that the larger is the better."""
    return -value if objective in COSTS else value


def _beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    gains = [(gain(o, a[o]), gain(o, b[o])) for o in a.keys() - {"trial"}]
    return all(x >= y for x, y in gains) and any(x > y for x, y in gains)
