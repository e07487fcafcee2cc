"""What a study sees of Tune while it runs."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from optuna.study import Study
from ray import tune

from braintum import storage
from braintum.config import Experiment
from braintum.training.checkpoint import STATE
from braintum.training.progress import Progress
from braintum.tuning.location import Store
from braintum.tuning.records import best_trials, ended_by_state
from braintum.tuning.spending import Spending
from braintum.tuning.trial import CROWDED, FULL, RAY_FILES, TrialSpec
from braintum.tuning.trial_events import TrialEvents


class Watch(tune.Callback):
    """Follows Tune: shows progress, adds up busy seconds and held GPUs, removes the checkpoints of trials that ended.

    `events` gets every epoch; `studies` is what was found by earlier starts; a trial holds `gpus`.
    """

    def __init__(
        self,
        progress: Progress,
        folds: int,
        store: Store,
        events: TrialEvents,
        studies: Mapping[str, Study],
        spending: Spending,
        gpus: float,
    ) -> None:
        self._progress, self._folds, self._store, self._events = progress, folds, store, events
        self._spending, self._gpus = spending, gpus
        self.busy = 0.0
        self.starts: dict[str, float] = {}
        """Seconds from when a trial was placed to its first step here."""
        self.restarts = 0
        """Trials that were begun again as their worker had died. Of those of many workers Ray Train tells nothing."""
        self.running: set[str] = set()
        self.ended = Counter(ended_by_state(studies))
        self.best: dict[str, float] = {}
        """Of each architecture, its best selection score."""
        progress.earlier(self.ended)
        for name, trial in best_trials(studies).items():
            self._complete(name, trial.value or 0.0, trial.number)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a Tuner pickles its callbacks to a file that nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        spec = TrialSpec(**trial.config["trial"])
        self._spending.hold(spec.run, self._gpus)
        self.running.add(spec.run)
        costs = Experiment.from_dict(spec.experiment).training.epoch_costs * self._folds
        self._progress.update(spec.shown, what=spec.architecture, state="training", epoch_costs=costs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        spec = TrialSpec(**trial.config["trial"])
        if result.get("outcome") == FULL:  # ends the study before Optuna hears that the trial has ended
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), spec.out)
        if "outcome" in result:
            return
        self._events.write(spec.out, {"architecture": spec.architecture, **trial.config["params"]}, result)
        if result.get("again"):
            return  # what was trained earlier is not of this trial's pace
        self.busy += result["ended"] - result["began"]
        self.starts.setdefault(spec.run, result["began"] - result["placed"])
        self._progress.update(
            spec.shown,
            epoch=result["epoch"],
            fold=f"{result['fold']}",
            score=result["score"],
            slices_per_second=result["slices_per_second"],
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if result.get("outcome") == CROWDED:
            spec = TrialSpec(**trial.config["trial"])
            self.running.discard(spec.run)
            self._progress.update(spec.shown, state="waiting")
            self._progress.say(f"{spec.shown} had not enough GPU memory beside others: it is trained again, alone")
            return
        ended = "failed" if "outcome" in result else "complete" if result.get("finished") else "pruned"
        if ended == "complete":
            spec = TrialSpec(**trial.config["trial"])
            self._complete(spec.architecture, result["score"], spec.number)
        self._end(trial, ended)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.restarts += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed")

    def _complete(self, architecture: str, score: float, number: int) -> None:
        self.best[architecture] = max(score, self.best.get(architecture, score))
        self._progress.best(architecture, score, f"trial {number}")

    def _end(self, trial: Any, state: str) -> None:
        spec = TrialSpec(**trial.config["trial"])
        self._spending.release(spec.run)
        self.running.discard(spec.run)
        self.ended[state] += 1
        self._progress.update(spec.shown, state=state)
        self._events.end(spec.out)
        if self._store.safe():  # else who resumes would train it again from the start
            storage.remove(storage.join(spec.out, STATE))
        storage.remove(storage.join(spec.out, RAY_FILES))
