"""Whether one more trial would end within a study's budget.

A trial counts as if it trained all its folds, at the median speed of the epochs that were measured so far: those of its
architecture, else those of all. While none is, trials are placed until the budget is spent. Of what is left, as much is
kept as the cross-validation of the winners takes at that speed. To start workers takes seconds, which are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState

from braintum import storage
from braintum.config import Experiment
from braintum.tuning.parts import LIMITS
from braintum.tuning.records import HISTORY, SPEC, is_own
from braintum.tuning.repeats import is_exhausted
from braintum.tuning.slots import Places
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending, Spent, words
from braintum.tuning.trial import TrialSpec


@dataclass
class _Living:
    """A trial: what all its folds' epochs cost, how many it has trained, when the last one ended."""

    architecture: str
    costs: list[float]
    epochs: int = 0
    ended: float | None = None


class Allowance:
    """Which study may place a trial: the shares of trials, and the budget. Told of every trial, its epochs, its end.

    `places`: of the cluster as it is when asked. `folds`: of a trial; `nested`: winners train once, on all of them.
    """

    def __init__(
        self,
        space: SearchSpace,
        studies: Mapping[str, Study],
        spending: Spending,
        places: Callable[[], Places],
        folds: int,
        *,
        nested: bool = False,
    ) -> None:
        self._space, self._studies, self._spending, self._places = space, studies, spending, places
        self._folds, self._nested = folds, nested
        self._costs = {name: _longest(space, name) for name in space.architectures}
        self._paces: dict[str, list[float]] = {name: [] for name in space.architectures}
        self._living: dict[str, _Living] = {}
        self._refused: dict[str, str] = {}
        if space.budget.limits:
            self._refill()

    @property
    def winners(self) -> int:
        """Trainings of the winner of an architecture."""
        return self._space.seeds * (1 if self._nested else self._folds)

    @property
    def stopped_by(self) -> str | None:
        """What ends the search: `trials` (there are as many, or no others to try), or the limit that one more would
        exceed; None while it goes on.
        """
        names = self._behind()
        if not names:
            return "trials"
        limits = [self._limit(name) for name in names]
        return None if None in limits else limits[0]

    def way_out(self, stopped_by: str | None) -> str:
        """What lets a search go on that was stopped by that."""
        budget, stopped_by = self._space.budget, stopped_by or "trials"
        amounts = self._spending.now().amounts(budget.price_per_node_hour)
        why = "" if stopped_by == "trials" else f"no more fit into the budget ({words(amounts, budget.given)} spent): "
        return f"{why}give more --{stopped_by.replace('_', '-')}"

    def next_study(self) -> str | None:
        """The study that is furthest behind its share of trials, of those whose trials fit; None if there is none."""
        return next((name for name in self._behind() if self._limit(name) is None), None)

    def placed(self, key: str, spec: TrialSpec) -> None:
        costs = Experiment.from_dict(spec.experiment).training.epoch_costs * self._folds
        self._living[key] = _Living(spec.architecture, costs)

    def told(self, key: str, result: Mapping[str, Any]) -> None:
        """An epoch's result. Those that a resumed trial tells again say nothing of how fast it is."""
        trial = self._living[key]
        done, trial.epochs = trial.epochs, result["epoch"]
        if result.get("again"):
            trial.ended = None
            return
        if result["epoch"] == done:  # its last one is told twice, if nothing stops it
            return
        seconds = result["ended"] - (result["began"] if trial.ended is None else trial.ended)
        self._paces[trial.architecture].append(seconds / trial.costs[result["epoch"] - 1])
        trial.ended = result["ended"]

    def ended(self, key: str) -> None:
        self._living.pop(key)
        self._refused.clear()

    def _refill(self) -> None:
        """Takes down how fast the trials of earlier starts were."""
        for study in self._studies.values():
            for trial in study.get_trials(deepcopy=False):
                if SPEC not in trial.user_attrs:
                    continue
                spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
                place = storage.join(spec.out, HISTORY)
                self.placed(spec.run, spec)
                for row in storage.read_json(place) if storage.exists(place) else []:
                    self.told(spec.run, row)
                self.ended(spec.run)

    def _behind(self) -> list[str]:
        """The studies that have not asked for their share of trials and have more to ask, the furthest behind first."""
        shares, asked = self._space.shares(), {}
        for name, study in self._studies.items():
            trials = study.get_trials(deepcopy=False)
            if not is_exhausted(trials):
                asked[name] = sum(is_own(trial) and trial.state is not TrialState.WAITING for trial in trials)
        return sorted((name for name in asked if asked[name] < shares[name]), key=lambda n: asked[n] / shares[n])

    def _limit(self, study: str) -> str | None:
        """The first limit that one more trial of a study would exceed; None where it fits.

        A refusal stands until a trial ends: nothing else leaves more of the budget.
        """
        limit = self._refused.get(study) or self._exceeded(study)
        if limit is not None:
            self._refused[study] = limit
        return limit

    def _exceeded(self, study: str) -> str | None:
        limits, price = self._space.budget.limits, self._space.budget.price_per_node_hour
        if not limits:
            return None
        names = self._space.architectures if self._space.joint else (study,)
        own = max(self._pace(name) * self._costs[name] * self._folds for name in names)
        living = [self._pace(trial.architecture) * sum(trial.costs[trial.epochs :]) for trial in self._living.values()]
        places, every = self._places(), [own, *living]
        reserve, gpu_reserve = self._reserve(places)
        wall = max(*every, sum(every) / places.trials)  # the latter where some wait for room
        gpu_seconds = sum(every) * places.trial_gpus
        needs = Spent(wall + reserve, gpu_seconds + gpu_reserve, (wall + reserve) * self._spending.nodes)
        after = (self._spending.now() + needs).amounts(price)
        return next((name for name in LIMITS if name in limits and (after[name] or 0.0) > limits[name]), None)

    def _reserve(self, places: Places) -> tuple[float, float]:
        """Seconds of wall time, and of GPUs, that training the winners takes."""
        of_fold = [self._pace(name) * self._costs[name] for name in self._space.architectures]
        seconds = max(of_fold) if self._nested and self._space.joint else sum(of_fold)
        return ceil(self.winners / places.winners) * seconds, self.winners * seconds * places.winner_gpus

    def _pace(self, architecture: str) -> float:
        """Median seconds of an epoch by its cost; 0 while none was measured."""
        every = [seconds for pace in self._paces.values() for seconds in pace]
        return median(self._paces[architecture] or every or [0.0])


def _longest(space: SearchSpace, architecture: str) -> float:
    """What the epochs of a fold cost, of the longest training that trials of an architecture may ask for."""
    base, searched = space.experiment(architecture, {}).training, space.parameters.get("training.epochs")
    most = base.epochs
    if searched is not None and space.may_exist("training.epochs", architecture):
        most = max(most, *(int(end) for end in searched.ends))  # type: ignore[arg-type]
    return sum(base.epoch_costs) * most / base.epochs
