"""The winners of a search, and what racing did."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from optuna.study import Study
from optuna.trial import TrialState

from braintum.config import Experiment
from braintum.data.table import SliceTable
from braintum.tuning.front import chosen_trials
from braintum.tuning.racing import unit_of
from braintum.tuning.records import LOST, SPEC, Records, own_trials, trials_and_history
from braintum.tuning.samplers import seed_of
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import TrialSpec


class Winner(NamedTuple):
    """An architecture's settings, with the first of `seed_of_winner`'s seeds.

    `trial` and its selection `score` are None in a comparison, which has no trials.
    """

    experiment: Experiment
    trial: int | None
    score: float | None


def winners(space: SearchSpace, studies: dict[str, Study], out: str) -> dict[str, Winner]:
    """The trial of each architecture that is chosen, if one is complete; of a comparison, each architecture as it is.

    That with the best selection score, or, with objectives of which the architecture has two, `front.RULE`'s.
    `out` is the study's directory.
    """
    seed = {"training.seed": seed_of_winner(space, 1)}
    if not space.parameters:
        return {name: Winner(space.experiment(name, seed), None, None) for name in space.architectures}
    found = {}
    trials = trials_and_history(studies, out)[0] if space.objectives else []
    best = chosen_trials(space.objectives, studies, trials)
    for name, trial in ((name, best[name]) for name in space.architectures if name in best):
        experiment = Experiment.from_dict(json.loads(trial.user_attrs[SPEC])["experiment"])
        found[name] = Winner(experiment.with_overrides(seed), trial.number, trial.value)
    return found


def seed_of_winner(space: SearchSpace, number: int) -> int:
    """The seed of the winners' training number 1, 2, ...: with those of the trials they were chosen, by luck too."""
    return seed_of(space.sampler.seed, "winner", number)


def only_the_best(found: dict[str, Winner]) -> dict[str, Winner]:
    """The winner of a joint study: the one with the best selection score of all architectures."""
    best = sorted(found, key=lambda name: -(found[name].score or 0.0))[:1]
    return {name: found[name] for name in best}


def race_summary(space: SearchSpace, studies: dict[str, Study], folds: int, table: SliceTable) -> dict[str, Any]:
    """What racing did: `level`, `unit` (case, or slice: then the level is nominal), `looks` a trial, `stopped` trials.

    `epochs`: `all`, if every trial that did not fail had trained all folds; `saved`, those that racing left out.
    """
    stopped: Records = []
    every = saved = 0
    for study in studies.values():
        for trial in own_trials(study, TrialState.COMPLETE, TrialState.PRUNED):
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            epochs = Experiment.from_dict(spec.experiment).training.epochs
            every += folds * epochs
            if LOST in trial.user_attrs:
                lost = trial.user_attrs[LOST]
                saved += (folds - lost["folds"]) * epochs
                stopped.append({"architecture": spec.architecture, "trial": trial.number, **lost})
    return {
        "level": space.racing.level if space.racing else None,
        "unit": unit_of(table),
        "looks": folds - 1,
        "stopped": stopped,
        "epochs": {"all": every, "saved": saved},
    }
