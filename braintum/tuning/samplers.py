"""What proposes a trial: Optuna's samplers, and four that are a function of the study's trials alone.

A sampler is made anew at every ask, from the seed, the study's name and the trial's number, and from the trials that
the study has. So a study that was resumed asks as if undisturbed, with one trial at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, create_study
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats.qmc import Sobol

from braintum.tuning.front import gain
from braintum.tuning.records import OBJECTIVES, own_trials
from braintum.tuning.space import ARCHITECTURE, SearchSpace

POPULATION = 20
"""Trials of a generation of NSGA-II."""
STEP = 0.25
"""CMA-ES' first standard deviation, in ranges of a parameter."""


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "little")


def build_sampler(space: SearchSpace, study: str, number: int) -> BaseSampler:
    """The sampler that asks for trial `number` of a study of the space."""
    name = space.sampler.name
    seed = seed_of(space.sampler.seed, "ask", study, number)
    whole = seed_of(space.sampler.seed, "study", study)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed)
    if name == "nsga2":
        return Nsga2(space.objectives, seed)
    if name == "cmaes":
        return CmaEs(seed)
    if name == "sobol":
        return SobolPoints([ARCHITECTURE, *space.parameters], whole, number)
    if name == "grid":
        return Grid(space.grid(None if space.joint else study), whole)
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


class _OneByOne(BaseSampler):
    """Samplers that give each parameter when it is asked for."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class SobolPoints(_OneByOne):
    """Point `number` of a scrambled Sobol sequence, in which every parameter that there may be has its dimension.

    Choices too: Optuna's QMCSampler draws those at random.
    """

    def __init__(self, parameters: Sequence[str], seed: int, number: int) -> None:
        sequence = Sobol(len(parameters), scramble=True, rng=seed)
        if number:  # scipy counts backwards from 0
            sequence.fast_forward(number)
        self._point = dict(zip(parameters, sequence.random(1)[0].tolist(), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return from_unit(self._point[param_name], param_distribution)


class Grid(_OneByOne):
    """The first of the points, in an order of the seed's, that no trial of the study has had.

    `points`: the values of every combination by name. Values that a trial has already stay as they are.
    """

    def __init__(self, points: Sequence[dict[str, Any]], seed: int) -> None:
        self._points = [points[i] for i in np.random.default_rng(seed).permutation(len(points))]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        others = {_key(other.params) for other in own_trials(study) if other.number != trial.number}
        had = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        left = (p for p in self._points if _key(p | had) == _key(p) and _key(p) not in others)
        # Where all were had: by trials that began with values of their own.
        point = next(left, None) or next(p for p in self._points if param_name in p)
        return point[param_name]


def _key(values: dict[str, Any]) -> str:
    """Equal for equal values: True is not 1, and 1.0 is."""
    return json.dumps(
        {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in values.items()}, sort_keys=True
    )


class CmaEs(BaseSampler):
    """CMA-ES over the numbers that all complete trials have; other parameters are drawn at random.

    Optuna's CmaEsSampler keeps a pickle in the study's storage, where a stranger could have put another. This one
    learns anew at every ask: from the complete trials in order, a generation after another, with the first (the base's
    own settings) as its start. Trials that were stopped early teach it nothing, as in Optuna's.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._random = seed, RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        shared = intersection_search_space(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
        numbers = {name: of for name, of in shared.items() if not isinstance(of, CategoricalDistribution)}
        return numbers if len(numbers) > 1 else {}  # of one number there is no covariance

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        points = [
            np.array([to_unit(trial.params[name], of) for name, of in search_space.items()]) for trial in complete
        ]
        learned = self._new(points[0])
        size = learned.population_size
        for start in range(0, len(points) - size + 1, size):
            told = zip(points[start : start + size], complete[start : start + size], strict=True)
            learned.tell([(point, -(of.value or 0.0)) for point, of in told])
            if learned.should_stop():
                learned = self._new(points[0])
        asked = learned.ask()
        return {name: from_unit(float(x), of) for x, (name, of) in zip(asked, search_space.items(), strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _new(self, start: NDArray[np.float64]) -> CMA:
        bounds = np.array([[0.0, 1.0]] * len(start))
        return CMA(start, STEP, bounds=bounds, seed=self._seed)


class Nsga2(BaseSampler):
    """NSGA-II on the objectives, or on the score where there are none.

    The study has one value, the score, as only one can prune. What its complete trials came to in every objective is
    told to Optuna's NSGAIISampler in a study of its own that is made anew at every ask: each POPULATION of them, in
    order, is a generation. Trials that were stopped early teach it nothing, and neither do those of another study
    where there are objectives.
    """

    def __init__(self, objectives: Sequence[str], seed: int) -> None:
        self._objectives = objectives
        self._random = RandomSampler(seed=seed)
        self._genetic = NSGAIISampler(population_size=POPULATION, seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._genetic.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        known = [of for of in complete if not self._objectives or OBJECTIVES in of.user_attrs]
        size = len(self._objectives) or 1
        told = create_study(directions=["maximize"] * size, sampler=self._random)
        for index, of in enumerate(known):
            generation = {self._genetic._get_generation_key(): index // POPULATION}
            told.add_trial(
                create_trial(
                    values=self._values(of), params=of.params, distributions=of.distributions, system_attrs=generation
                )
            )
        asked = told.ask()
        return self._genetic.sample_relative(told, told.get_trials(deepcopy=False)[asked.number], search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _values(self, trial: FrozenTrial) -> list[float]:
        """The larger, the better; a metric of a task that an architecture lacks is 0."""
        if not self._objectives:
            return [trial.value or 0.0]
        known = trial.user_attrs[OBJECTIVES]
        return [gain(name, known.get(name, 0.0)) for name in self._objectives]


def to_unit(value: Any, distribution: BaseDistribution) -> float:
    """Where a number lies in its range, in [0, 1]: in the logarithm where it is searched so, integers in the middle."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return float((value - distribution.low + 0.5) / (distribution.high - distribution.low + 1))
    low, high = distribution.low, distribution.high
    return float(math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low))


def from_unit(share: float, distribution: BaseDistribution) -> Any:
    """The value at a place in [0, 1] of a range, or of a list of choices."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(share * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return min(int(low + share * (high - low + 1)), high)
    value = low * (high / low) ** share if distribution.log else low + share * (high - low)
    return min(max(value, low), high)  # of sums that were rounded
