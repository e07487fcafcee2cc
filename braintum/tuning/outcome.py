"""What came out of a search, as Optuna's storage and the trials' directories have it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from braintum import storage
from braintum.config import Experiment
from braintum.data.table import SliceTable
from braintum.tuning.front import Records, pareto
from braintum.tuning.racing import unit_of
from braintum.tuning.searcher import LOST, SPEC, seed_of
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import HISTORY, TrialSpec


class Winner(NamedTuple):
    """An architecture's settings, with the first of `seed_of_winner`'s seeds.

    `trial` and its selection `score` are None in a comparison, which has no trials.
    """

    experiment: Experiment
    trial: int | None
    score: float | None


def winners(space: SearchSpace, studies: dict[str, Study]) -> dict[str, Winner]:
    """The trial of each architecture that is chosen, if one is complete; of a comparison, each architecture as it is.

    That with the best selection score, or, with objectives of which the architecture has two, `front.RULE`'s.
    """
    seed = {"training.seed": seed_of_winner(space, 1)}
    if not space.parameters:
        return {name: Winner(space.experiment(name, seed), None, None) for name in space.architectures}
    found = {}
    for name, trial in _best_trials(space, studies).items():
        experiment = Experiment.from_dict(json.loads(trial.user_attrs[SPEC])["experiment"])
        found[name] = Winner(experiment.with_overrides(seed), trial.number, trial.value)
    return found


def seed_of_winner(space: SearchSpace, number: int) -> int:
    """The seed of the winners' training number 1, 2, ...: with those of the trials they were chosen, by luck too."""
    return seed_of(space.sampler.seed, "winner", number)


def _best_trials(space: SearchSpace, studies: dict[str, Study]) -> dict[str, FrozenTrial]:
    """The complete trial that is chosen, of each architecture that has one."""
    fronts = pareto(space, *trials_and_history(studies)) if space.objectives else {}
    chosen = {name: next(p["trial"] for p in front if p["chosen"]) for name, front in fronts.items()}
    best: dict[str, FrozenTrial] = {}
    for study in studies.values():
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            name = json.loads(trial.user_attrs[SPEC])["architecture"]
            if trial.number != chosen.get(name, trial.number):
                continue
            if name not in best or (trial.value or 0.0) > (best[name].value or 0.0):
                best[name] = trial
    return {name: best[name] for name in space.architectures if name in best}


def only_the_best(found: dict[str, Winner]) -> dict[str, Winner]:
    """The winner of a joint study: the one with the best selection score of all architectures."""
    best = sorted(found, key=lambda name: -(found[name].score or 0.0))[:1]
    return {name: found[name] for name in best}


def trials_and_history(studies: dict[str, Study]) -> tuple[Records, Records]:
    """`trials.parquet`, a row per trial (`score` is a selection score), and `history.parquet`, a row per epoch."""
    trials: Records = []
    epochs: Records = []
    for name, study in studies.items():
        for trial in study.get_trials(deepcopy=False):
            if SPEC not in trial.user_attrs:
                continue
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            place = storage.join(spec.out, HISTORY)
            rows = storage.read_json(place) if storage.exists(place) else []
            about = {"run": spec.run, "architecture": spec.architecture}
            epochs += [{**about, **row} for row in rows]
            epoch = max(trial.intermediate_values, default=0)
            trials.append(
                {
                    "study": name,
                    "number": trial.number,
                    "architecture": spec.architecture,
                    "state": _STATES.get(trial.state, "open"),
                    "score": trial.intermediate_values.get(epoch),
                    "epochs": epoch,
                    "folds_done": rows[-1]["folds_done"] if rows else 0,
                    "seconds": trial.duration.total_seconds() if trial.duration else None,
                    "params": json.dumps(trial.params),
                    "lost_to": trial.user_attrs.get(LOST, {}).get("to"),
                    "failure": trial.user_attrs.get("failure"),
                    "directory": spec.out,
                    "start": trial.datetime_start,
                    "end": trial.datetime_complete,
                }
            )
    return trials, epochs


TRIAL_COLUMNS = (
    "study", "number", "architecture", "state", "score", "epochs", "folds_done", "seconds", "params", "lost_to",
    "failure", "directory", "start", "end",
)  # fmt: skip
"""Of `trials.parquet`, which a comparison leaves empty."""

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def race_summary(space: SearchSpace, studies: dict[str, Study], folds: int, table: SliceTable) -> dict[str, Any]:
    """What racing did: `level`, `unit` (case, or slice: then the level is nominal), `looks` a trial, `stopped` trials.

    `epochs`: `all`, if every trial that did not fail had trained all folds; `saved`, those that racing left out.
    """
    stopped: Records = []
    every = saved = 0
    for study in studies.values():
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]):
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


def counts(trials: Records) -> dict[str, int]:
    states = [trial["state"] for trial in trials]
    return {state: states.count(state) for state in _STATES.values()}
