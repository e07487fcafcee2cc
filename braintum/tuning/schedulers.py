"""What stops trials early: a scheduler for each study, filled again from what Optuna's storage has of its trials."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from braintum.tuning.racing import Race
from braintum.tuning.records import LOST, SPEC, own_trials
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import CROWDED, TrialSpec

STEPS = "epoch"


class StudySchedulers(FIFOScheduler):
    """A scheduler for each study, so that architectures with equal budgets do not stop one another's trials.

    Where the space races folds, each has a race too (`braintum.tuning.racing`), which hears of every result.
    """

    def __init__(self, space: SearchSpace, studies: dict[str, Study], most_epochs: dict[str, int], folds: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._joint = space.name if space.joint else None
        self._studies = studies
        self._schedulers: dict[str, Any] = {}  # TrialScheduler, given `_Named` trials
        self._races = {name: Race(space.racing.level, folds) for name in studies} if space.racing else {}
        for name, study in studies.items():
            self._schedulers[name] = scheduler = _scheduler(space, most_epochs[name])
            for trial in own_trials(study):  # of others it knows not how they fared among these
                _replay(scheduler, trial)
                if self._races and trial.state in (TrialState.COMPLETE, TrialState.RUNNING):
                    spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
                    self._races[name].refill(spec, trial.intermediate_values)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "outcome" in result:
            return TrialScheduler.CONTINUE  # it ends by itself
        decision = str(self._of(trial).on_trial_result(tune_controller, _named(trial), result))
        if self._races and self._loses(trial, result):
            return TrialScheduler.STOP
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if self._races:
            self._races[self._study_of(trial)].drop(trial.config["trial"]["number"])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if result.get("outcome") == CROWDED:
            return  # it goes on, alone
        if "outcome" not in result:
            self._of(trial).on_trial_complete(tune_controller, _named(trial), result)
        if self._races:
            spec = TrialSpec(**trial.config["trial"])
            race = self._races[self._study_of(trial)]
            if result.get("finished"):
                race.record(spec, result)  # a trial's last result is told here only
            else:
                race.drop(spec.number)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_remove(tune_controller, _named(trial))

    def debug_string(self) -> str:
        return "; ".join(f"{name}: {scheduler.debug_string()}" for name, scheduler in self._schedulers.items())

    def _of(self, trial: Trial) -> Any:
        return self._schedulers[self._study_of(trial)]

    def _study_of(self, trial: Trial) -> str:
        return self._joint or str(trial.config["trial"]["architecture"])

    def _loses(self, trial: Trial, result: dict[str, Any]) -> bool:
        """Whether racing stops a trial here; Optuna keeps why."""
        name, spec = self._study_of(trial), TrialSpec(**trial.config["trial"])
        lost = self._races[name].lost(spec, result)
        if lost is not None:
            study = self._studies[name]
            known = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[spec.number]._trial_id)
            known.set_user_attr(LOST, asdict(lost))
        return lost is not None


class MedianRule(FIFOScheduler):
    """Stops a trial whose best score so far is below the median of what others had on average by the same step.

    The rule of Google Vizier (Golovin and others, 2017, section 3.2.2). Ray's MedianStoppingRule cannot be filled again
    without a running Tune. Decides from `grace` steps on, where at least `min_trials` others have come as far.
    """

    def __init__(self, grace: int, min_trials: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grace, self._min_trials = grace, min_trials
        self._scores: dict[str, dict[int, float]] = defaultdict(dict)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        step, mine = result[STEPS], self._scores[trial.trial_id]
        mine[step] = result["score"]
        others = [
            fmean(score for at, score in scores.items() if at <= step)
            for name, scores in self._scores.items()
            if name != trial.trial_id and max(scores) >= step
        ]
        if step < self._grace or len(others) < self._min_trials or max(mine.values()) >= median(others):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)


@dataclass(frozen=True)
class _Named:
    """What a scheduler looks at of a trial: a name that stays the same when a study is resumed."""

    trial_id: str


def _named(trial: Trial) -> _Named:
    return _Named(str(trial.config["trial"]["number"]))


def _scheduler(space: SearchSpace, most_epochs: int) -> TrialScheduler:
    if space.scheduler.name == "none":
        return FIFOScheduler()
    if space.scheduler.name == "median":
        return MedianRule(
            min(space.scheduler.option("grace_epochs"), most_epochs), space.scheduler.option("min_trials")
        )
    return ASHAScheduler(
        time_attr=STEPS,
        metric="score",
        mode="max",
        max_t=most_epochs + 1,  # a trial ends by itself: at max_t Tune would count it as stopped
        grace_period=min(space.scheduler.option("grace_epochs"), most_epochs),
        reduction_factor=space.scheduler.option("reduction"),
    )


def _replay(scheduler: Any, trial: FrozenTrial) -> None:
    """Tells a scheduler what an earlier driver's heard of a trial, so that its rungs are as they were."""
    if trial.state is TrialState.WAITING:
        return
    named = _Named(str(trial.number))
    scheduler.on_trial_add(None, named)
    for step, value in sorted(trial.intermediate_values.items()):
        scheduler.on_trial_result(None, named, {STEPS: step, "score": value})
    if trial.state is not TrialState.RUNNING:
        scheduler.on_trial_remove(None, named)
