"""Ray Tune's searcher on Optuna's ask-and-tell.

Optuna's storage is the only state of a search. Whoever resumes opens the same storage: trials that it left unfinished
are handed out first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import optuna
from optuna.study import Study
from optuna.trial import TrialState
from ray.tune.search import Searcher

from braintum import storage
from braintum.tuning.budget import Allowance
from braintum.tuning.records import ALONE, HISTORY, OBJECTIVES, PLACED, SPEC, metrics_of
from braintum.tuning.repeats import Trained, answer
from braintum.tuning.samplers import build_sampler
from braintum.tuning.schedulers import STEPS
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import CROWDED, TrialSpec, reason_of_failure


class OptunaSearcher(Searcher):
    """Hands out trials of the studies in turn, and tells Optuna the truth about how each ended.

    `studies`: by architecture, or the joint one under the space's name. `place` completes a trial's values to its
    TrialSpec. Trials stopped by the scheduler are told as PRUNED at the step they reached, diverged and broken ones
    as FAIL, and only those that finished all folds as COMPLETE. What the `allowance` does not allow is not handed out,
    and neither is what was trained already (`braintum.tuning.repeats`).
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
        self._trained = {name: Trained(study) for name, study in studies.items()}
        for name, study in studies.items():
            for known in study.get_trials(states=[TrialState.RUNNING]):
                if SPEC not in known.user_attrs:  # its driver died between asking and placing
                    study.sampler = build_sampler(space, name, _num_asked(study) - 1)
                    self._specify(name, optuna.trial.Trial(study, known._trial_id))
        self._running: dict[str, _Running] = {}
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
            trial = self._unfinished.pop(0)
            known = trial.study.get_trials(deepcopy=False)[trial.number]
            before = known.user_attrs.get(PLACED, [])
            spec = TrialSpec(**json.loads(known.user_attrs[SPEC]))
            return self._placed(trial_id, _Running(trial, set(known.intermediate_values)), spec, before)
        if self._waits:
            return None
        name = self._allowance.next_study()
        if name is None:
            # Tune asks again: a trial stopped early leaves some of the budget, one without memory is handed out.
            may_go_on = self._allowance.stopped_by != "trials" or self._slots.trials_per_gpu > 1
            self._waits = bool(self._running) and may_go_on
            return None if self._waits else cast(None, Searcher.FINISHED)  # a string, against the declared type
        asked = self._ask(name)
        if asked is None:  # while others run, Tune hears of them before it asks again
            return None if self._running else self.suggest(trial_id)
        trial, spec = asked
        return self._placed(trial_id, _Running(trial, set()), spec, [])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if "outcome" not in result:
            self._allowance.told(trial_id, result)
            self._running[trial_id].report(result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        running, self._waits = self._running.pop(trial_id), False
        trial = running.trial
        if result is not None and "outcome" not in result:
            self._allowance.told(trial_id, result)  # the last one
        self._allowance.ended(trial_id)
        if result is not None and result.get("outcome") == CROWDED:
            trial.set_user_attr(ALONE, True)
            self._unfinished.append(trial)
            return
        if error or result is None or "outcome" in result:
            spec = self._not_finished(trial)
            trial.set_user_attr("failure", (result or {}).get("failure") or reason_of_failure(spec))
            trial.study.tell(trial, state=TrialState.FAIL)
            return
        running.report(result)  # the step at which a scheduler stops a trial is not told before
        if result["finished"]:
            if self._space.objectives:
                trial.set_user_attr(OBJECTIVES, self._objectives_of(trial))
            trial.study.tell(trial, result["score"])
        else:
            spec = self._not_finished(trial)
            self._trained_by(spec).stop(spec)
            trial.study.tell(trial, state=TrialState.PRUNED)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a Tuner pickles its searcher to a file that nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Optuna's storage holds the search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def _placed(self, trial_id: str, running: _Running, spec: TrialSpec, before: list[float]) -> dict[str, Any]:
        """What Tune hands to the trial: `params`, the values that were chosen, are for whoever shows them.

        `before`: when it was placed earlier.
        """
        now, trial = time.time(), running.trial
        self._running[trial_id] = running
        trial.set_user_attr(PLACED, [*before, now])
        self._allowance.placed(trial_id, spec)
        cpus, gpus = self._slots.per_worker["CPU"], self._slots.gpus(self._sharing(trial))
        return {"trial": asdict(spec), "params": trial.params, "placed": now, "cpus": cpus, "gpus": gpus}

    def _sharing(self, trial: optuna.trial.Trial) -> int:
        """How many trials share a GPU: one less for each that had no memory beside others, which are alone."""
        if self._slots.trials_per_gpu == 1 or ALONE in trial.user_attrs:
            return 1
        every = [known for study in self._studies.values() for known in study.get_trials(deepcopy=False)]
        return max(1, self._slots.trials_per_gpu - sum(ALONE in known.user_attrs for known in every))

    def _not_finished(self, trial: optuna.trial.Trial) -> TrialSpec:
        """Its settings may be proposed again."""
        spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
        self._trained_by(spec).drop(spec.experiment)
        return spec

    def _trained_by(self, spec: TrialSpec) -> Trained:
        return self._trained[self._space.name if self._space.joint else spec.architecture]

    def _objectives_of(self, trial: optuna.trial.Trial) -> dict[str, float]:
        place = storage.join(json.loads(trial.user_attrs[SPEC])["out"], HISTORY)
        metrics = metrics_of(storage.read_json(place))
        return {name: metrics[name] for name in self._space.objectives if name in metrics}

    def _ask(self, name: str) -> tuple[optuna.trial.Trial, TrialSpec] | None:
        """A trial of a study and what it is; None where its settings were known, and it was answered at once."""
        study = self._studies[name]
        study.sampler = build_sampler(self._space, name, _num_asked(study))
        trial = study.ask()
        spec = self._specify(name, trial)
        return None if spec is None else (trial, spec)

    def _specify(self, name: str, trial: optuna.trial.Trial) -> TrialSpec | None:
        """Gives a trial that was asked for its values; None where they were known, and it was answered."""
        architecture, values = self._space.suggest(trial, None if self._space.joint else name)
        spec = self._place(architecture, trial.number, name, values)
        known = self._trained[name].find(spec.experiment)
        if known is not None:
            answer(trial.study, trial, known)
            return None
        stopped = self._trained[name].stopped(spec.experiment)
        if stopped is not None:  # with the seed that it had, so that what it finished is the same Experiment's
            seed = {"training.seed": stopped.experiment["training"]["seed"]}
            spec = replace(self._place(architecture, trial.number, name, {**values, **seed}), after=stopped.out)
        self._trained[name].add(spec.experiment, trial.number)
        trial.set_user_attr(SPEC, json.dumps(asdict(spec)))
        return spec


def _num_asked(study: Study) -> int:
    return sum(trial.state is not TrialState.WAITING for trial in study.get_trials(deepcopy=False))


@dataclass(frozen=True)
class _Running:
    """A trial that runs, and the steps that Optuna knows of it. To read them of the storage takes 10 ms each time."""

    trial: optuna.trial.Trial
    steps: set[int]

    def report(self, result: dict[str, Any]) -> None:
        """Tells a step once: a resumed trial says its last one again, and so does one that ends by itself."""
        if result[STEPS] not in self.steps:
            self.trial.report(result["score"], result[STEPS])
            self.steps.add(result[STEPS])
