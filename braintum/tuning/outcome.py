"""The winners of a search."""

from __future__ import annotations

import json
from typing import NamedTuple

from optuna.study import Study

from braintum.config import Experiment
from braintum.tuning.records import SPEC, best_trials
from braintum.tuning.searcher import seed_of
from braintum.tuning.space import SearchSpace


class Winner(NamedTuple):
    """An architecture's settings with a fresh seed: that of the trial was chosen with them, by luck too.

    `trial` and its selection `score` are None in a comparison, which has no trials.
    """

    experiment: Experiment
    trial: int | None
    score: float | None


def winners(space: SearchSpace, studies: dict[str, Study]) -> dict[str, Winner]:
    """The best trial of each architecture that has a complete one; of a comparison, each architecture as it is."""
    seed = {"training.seed": seed_of(space.sampler.seed, "winner")}
    if not space.parameters:
        return {name: Winner(space.experiment(name, seed), None, None) for name in space.architectures}
    found = {}
    best = best_trials(studies)
    for name, trial in ((name, best[name]) for name in space.architectures if name in best):
        experiment = Experiment.from_dict(json.loads(trial.user_attrs[SPEC])["experiment"])
        found[name] = Winner(experiment.with_overrides(seed), trial.number, trial.value)
    return found
