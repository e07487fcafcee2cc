"""Ray Tune's searcher on Optuna's ask-and-tell, and its early stopping: one of each per study.

Optuna's storage is the only state of a search. Whoever resumes opens the same storage: trials that it left unfinished
are handed out first, and the rungs of the scheduler are filled again from the intermediate values.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from braintum.tuning.budget import Allowance
from braintum.tuning.parts import Sampler
from braintum.tuning.racing import Race
from braintum.tuning.records import ALONE, LOST, PLACED, SPEC
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import CROWDED, TrialSpec, reason_of_failure

STEPS = "epoch"


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "little")


def build_sampler(sampler: Sampler, study: str, number: int) -> BaseSampler:
    """The sampler that asks for trial `number` of a study.

    It is made anew from (seed, study, number) at every ask, so that a study that was resumed asks as if undisturbed.
    """
    seed = seed_of(sampler.seed, "ask", study, number)
    if sampler.name == "random":
        return RandomSampler(seed=seed)
    if sampler.name == "gp":
        return GPSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


class OptunaSearcher(Searcher):
    """Hands out trials of the studies in turn, and tells Optuna the truth about how each ended.

    `studies`: by architecture, or the joint one under the space's name. `place` completes a trial's values to its
    TrialSpec. Trials stopped by the scheduler are told as PRUNED at the step they reached, diverged and broken ones
    as FAIL, and only those that finished all folds as COMPLETE. What the `allowance` does not allow is not handed out.
    """

    def __init__(
        self,
        space: SearchSpace,
        studies: dict[str, Study],
        place: Callable[[str, int, str, dict[str, Any]], TrialSpec],
        allowance: Allowance,
        slots: Slots,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._space, self._studies, self._place = space, studies, place
        self._allowance, self._slots = allowance, slots
        for study in studies.values():
            for trial in study.get_trials(states=[TrialState.RUNNING]):
                if SPEC not in trial.user_attrs:  # its driver died between asking and placing
                    study.tell(trial.number, state=TrialState.FAIL)
        self._running: dict[str, optuna.trial.Trial] = {}
        self._waits = False
        """Whether nothing more fits into the budget until a trial has ended."""
        self._unfinished = [
            optuna.trial.Trial(study, trial._trial_id)
            for study in studies.values()
            for trial in study.get_trials(states=[TrialState.RUNNING])
        ]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A TrialSpec and when it was asked for: Tune asks when there is a slot, and places it at once."""
        if self._unfinished:
            self._running[trial_id] = trial = self._unfinished.pop(0)
            return self._placed(trial_id, TrialSpec(**json.loads(trial.user_attrs[SPEC])))
        if self._waits:
            return None
        name = self._allowance.next_study()
        # Tune asks again: a trial that is stopped early leaves some of the budget, one without memory is handed out.
        may_go_on = self._allowance.stopped_by != "trials" or self._slots.trials_per_gpu > 1
        if name is None and self._running and may_go_on:
            self._waits = True
            return None
        if name is None:
            return cast(None, Searcher.FINISHED)  # a string, against the declared type
        self._running[trial_id], spec = self._ask(name)
        return self._placed(trial_id, spec)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "outcome" not in result:
            self._allowance.told(trial_id, result)
            self._report(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, self._waits = self._running.pop(trial_id), False
        if result is not None and "outcome" not in result:
            self._allowance.told(trial_id, result)  # the last one
        self._allowance.ended(trial_id)
        if result is not None and result.get("outcome") == CROWDED:
            trial.set_user_attr(ALONE, True)
            self._unfinished.append(trial)
            return
        if error or result is None or "outcome" in result:
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            trial.set_user_attr("failure", (result or {}).get("failure") or reason_of_failure(spec))
            trial.study.tell(trial, state=TrialState.FAIL)
            return
        self._report(trial, result)  # the step at which a scheduler stops a trial is not told before
        if result["finished"]:
            trial.study.tell(trial, result["score"])
        else:
            trial.study.tell(trial, state=TrialState.PRUNED)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a Tuner pickles its searcher to a file that nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage holds the search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def _report(self, trial: optuna.trial.Trial, result: dict[str, Any]) -> None:
        """Tells a step once: a resumed trial says its last one again, and so does one that ends by itself."""
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if result[STEPS] not in known:
            trial.report(result["score"], result[STEPS])

    def _placed(self, trial_id: str, spec: TrialSpec) -> dict[str, Any]:
        """What Tune hands to the trial: `params`, the values that were chosen, are for whoever shows them."""
        now, trial = time.time(), self._running[trial_id]
        trial.set_user_attr(PLACED, [*trial.user_attrs.get(PLACED, []), now])
        self._allowance.placed(trial_id, spec)
        gpus = self._slots.gpus(self._sharing(trial))
        return {"trial": asdict(spec), "params": trial.params, "placed": now, "gpus": gpus}

    def _sharing(self, trial: optuna.trial.Trial) -> int:
        """How many trials share a GPU: one less for each that had no memory beside others, which are alone."""
        if ALONE in trial.user_attrs:
            return 1
        every = [known for study in self._studies.values() for known in study.get_trials(deepcopy=False)]
        return max(1, self._slots.trials_per_gpu - sum(ALONE in known.user_attrs for known in every))

    def _ask(self, name: str) -> tuple[optuna.trial.Trial, TrialSpec]:
        study = self._studies[name]
        number = len(study.get_trials(deepcopy=False)) - _waiting(study)
        study.sampler = build_sampler(self._space.sampler, name, number)
        trial = study.ask()
        architecture, values = self._space.suggest(trial, None if self._space.joint else name)
        spec = self._place(architecture, trial.number, name, values)
        trial.set_user_attr(SPEC, json.dumps(asdict(spec)))
        return trial, spec


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
            for trial in study.get_trials(deepcopy=False):
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


@dataclass(frozen=True)
class _Named:
    """What a scheduler looks at of a trial: a name that stays the same when a study is resumed."""

    trial_id: str


def _named(trial: Trial) -> _Named:
    return _Named(str(trial.config["trial"]["number"]))


def _scheduler(space: SearchSpace, most_epochs: int) -> TrialScheduler:
    if space.scheduler.name == "none":
        return FIFOScheduler()
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


def _waiting(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=[TrialState.WAITING]))
