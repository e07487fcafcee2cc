"""Nothing is trained twice: what a sampler proposes again is answered with what is known.

Settings are the same where all of the Experiment is but its seed, which each trial has of its own. What a finished
trial of the study had is told with that trial's score and intermediate values; what is being trained, as FAIL, which
samplers leave out. Both have the attribute REPEATS, take no slot, and are none of the trials that were asked for.
Settings whose trial was stopped early, or failed, may be tried again: what they would have come to is not known. One
that was stopped after it had finished folds is gone on with: with its seed, and those folds are read.

A sampler that proposes nothing new NOTHING_NEW times in a row has come to its end (a space of choices holds only so
many settings), and its study ends with fewer trials.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from braintum.tuning.records import REPEATS, SPEC, own_trials
from braintum.tuning.trial import TrialSpec, finished_rows

NOTHING_NEW = 20


class Trained:
    """Which settings a study has trained to the end, or is training, and by which trial; and which it has stopped."""

    def __init__(self, study: Study) -> None:
        self._number_of: dict[str, int] = {}
        self._stopped: dict[str, TrialSpec] = {}
        for trial in own_trials(study, TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED):
            if SPEC not in trial.user_attrs:
                continue
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            if trial.state is TrialState.PRUNED:
                self.stop(spec)
            else:
                self.add(spec.experiment, trial.number)

    def add(self, experiment: Mapping[str, Any], number: int) -> None:
        self._number_of.setdefault(_settings(experiment), number)

    def drop(self, experiment: Mapping[str, Any]) -> None:
        """Of a trial that did not finish."""
        self._number_of.pop(_settings(experiment), None)

    def stop(self, spec: TrialSpec) -> None:
        """Of a trial that was stopped early."""
        self._stopped[_settings(spec.experiment)] = spec

    def stopped(self, experiment: Mapping[str, Any]) -> TrialSpec | None:
        """The last trial of these settings that was stopped, if it had finished a fold."""
        spec = self._stopped.get(_settings(experiment))
        return spec if spec is not None and finished_rows(spec.out) else None

    def find(self, experiment: Mapping[str, Any]) -> int | None:
        return self._number_of.get(_settings(experiment))


def answer(study: Study, trial: Trial, number: int) -> None:
    """Ends a trial with what trial `number` of the study came to, or is still to come to."""
    trial.set_user_attr(REPEATS, number)
    known = study.get_trials(deepcopy=False)[number]
    if known.state is not TrialState.COMPLETE:
        study.tell(trial, state=TrialState.FAIL)
        return
    for step, value in sorted(known.intermediate_values.items()):
        trial.report(value, step)
    study.tell(trial, known.value)


def repeats(study: Study) -> int:
    """How many proposals were known."""
    return sum(REPEATS in trial.user_attrs for trial in study.get_trials(deepcopy=False))


def is_exhausted(trials: Sequence[FrozenTrial]) -> bool:
    """Whether the last NOTHING_NEW proposals of a study were known."""
    last = trials[-NOTHING_NEW:]
    return len(last) == NOTHING_NEW and all(REPEATS in trial.user_attrs for trial in last)


def _settings(experiment: Mapping[str, Any]) -> str:
    training = {field: value for field, value in experiment["training"].items() if field != "seed"}
    return json.dumps({**experiment, "training": training}, sort_keys=True)
