"""Several objectives: the Pareto front of an architecture's trials, and the one that is chosen on it."""

from __future__ import annotations

from typing import Any

import ray
import torch

from braintum.settings import ConfigError
from braintum.training.energy import EnergyCounter, EnergyUnknown
from braintum.tuning.slots import Slots
from braintum.tuning.space import COSTS, SearchSpace

Records = list[dict[str, Any]]

RULE = (
    "the trial of the Pareto front that is nearest to the best value of every objective, each in units of its range "
    "over all trials that finished (the knee)"
)


def pareto(space: SearchSpace, trials: Records, history: Records) -> dict[str, Records]:
    """The Pareto front of each architecture that has two or more of the space's objectives: `trial` and its values.

    Of the trials that finished all folds, those that no other beats in one objective without being worse in another.
    Metrics are selection metrics, means over folds, by the weights that each fold kept; costs were measured once. The
    chosen one (`RULE`; of equal ones the first) has `chosen`: True.
    """
    fronts = {}
    for name in space.architectures:
        points = _points(space, name, trials, history)
        if points and len(points[0]) > 2:
            front = [point for point in points if not any(_beats(other, point) for other in points)]
            chosen = knee(front, points)
            fronts[name] = [{**point, "chosen": point is chosen} for point in front]
    return fronts


def knee(front: Records, points: Records) -> dict[str, Any]:
    """The point of a front that `RULE` chooses; ranges are those of `points`."""
    objectives = sorted(front[0].keys() - {"trial"})
    best = {o: max(_gain(o, point) for point in front) for o in objectives}
    spread = {o: max(_gain(o, p) for p in points) - min(_gain(o, p) for p in points) for o in objectives}

    def distance(point: dict[str, Any]) -> float:
        return sum(((best[o] - _gain(o, point)) / spread[o]) ** 2 for o in objectives if spread[o] > 0)

    return min(front, key=distance)


def refuse_unmeasurable(space: SearchSpace, slots: Slots) -> None:
    """Raises ConfigError where a trial's device does not report an objective."""
    if "energy" not in space.objectives:
        return
    task = ray.remote(num_cpus=slots.per_worker["CPU"], num_gpus=slots.per_worker.get("GPU", 0))(_why_unknown)
    reason = ray.get(task.remote("GPU" in slots.per_worker))
    if reason:
        raise ConfigError(f"objectives: energy: {reason}; leave it out, or search where GPUs report it")


def _why_unknown(on_gpu: bool) -> str | None:
    try:
        EnergyCounter(torch.device("cuda" if on_gpu else "cpu"))
    except EnergyUnknown as error:
        return str(error)
    return None


def _points(space: SearchSpace, architecture: str, trials: Records, history: Records) -> Records:
    """`trial` and the objectives that the architecture has, of each complete trial."""
    points = []
    for trial in trials:
        if trial["architecture"] != architecture or trial["state"] != "complete":
            continue
        rows = [row for row in history if row["run"] == f"{architecture}-{trial['number']}"]
        last = {row["fold"]: row["kept_epoch"] for row in rows}
        kept = [row for row in rows if row["epoch_in_fold"] == last[row["fold"]]]
        known = [m for m in space.objectives if all(f"selection_{m}" in row for row in kept)]
        means = {metric: sum(row[f"selection_{metric}"] for row in kept) / len(kept) for metric in known}
        costs = {cost: rows[-1][cost] for cost in space.objectives if cost in COSTS}
        points.append({"trial": trial["number"], **means, **costs})
    return points


def _gain(objective: str, point: dict[str, Any]) -> float:
    """An objective's value, turned so that the larger is the better."""
    value = float(point[objective])
    return -value if objective in COSTS else value


def _beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    gains = [(_gain(o, a), _gain(o, b)) for o in a.keys() - {"trial"}]
    return all(x >= y for x, y in gains) and any(x > y for x, y in gains)
