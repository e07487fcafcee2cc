"""Early stopping without Ray: what is stopped, and that a scheduler that was filled again decides as before."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from small_study import SMALL, space

from braintum.tuning.records import SPEC
from braintum.tuning.schedulers import StudySchedulers
from braintum.tuning.trial import TrialSpec

MEDIAN = {"name": "median", "grace_epochs": 2, "min_trials": 3}
ASHA = {"name": "asha", "grace_epochs": 1, "reduction": 2}


class Decisions:
    """Trials one after another through the schedulers of a study of `joint_unet`, told to Optuna as they end."""

    def __init__(self, folder: Path, scheduler: dict[str, Any]) -> None:
        overrides = {**SMALL["overrides"], "training.epochs": 4}
        self.space = space(folder, architectures=["joint_unet"], scheduler=scheduler, overrides=overrides)
        self.studies = {"joint_unet": optuna.create_study(direction="maximize")}
        self.start()

    def start(self) -> None:
        self.schedulers = StudySchedulers(self.space, self.studies, {"joint_unet": 8}, 2)

    def run(self, scores: list[float]) -> int:
        """The epochs that a trial of those scores is trained for."""
        study = self.studies["joint_unet"]
        told = study.ask({"optim.lr": optuna.distributions.FloatDistribution(0, 1)})
        spec = TrialSpec("joint_unet", told.number, {}, "", "/none", 2, {"dice": 1.0})
        told.set_user_attr(SPEC, json.dumps(asdict(spec)))
        trial: Any = SimpleNamespace(config={"trial": asdict(spec)}, trial_id=str(told.number))
        self.schedulers.on_trial_add(None, trial)
        for epoch, score in enumerate(scores, start=1):
            result = {"epoch": epoch, "score": score, "finished": epoch == len(scores)}
            told.report(score, epoch)
            if epoch == len(scores):
                self.schedulers.on_trial_complete(None, trial, result)
                study.tell(told, score)
            elif self.schedulers.on_trial_result(None, trial, result) == "STOP":
                self.schedulers.on_trial_remove(None, trial)
                study.tell(told, state=TrialState.PRUNED)
                return epoch
        return len(scores)


def test_the_median_rule_stops_who_is_below_the_others_average(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path, MEDIAN)
    for level in (0.2, 0.4, 0.6):
        assert decisions.run([level] * 8) == 8, "too few to compare with"
    assert decisions.run([0.1, 0.1, *[0.9] * 6]) == 2, "not before the grace is over"
    assert decisions.run([0.45] * 8) == 8, "above the median of 0.1, 0.2, 0.4 and 0.6"
    assert decisions.run([0.1, 0.5, *[0.0] * 6]) == 8, "what counts is its best so far"
    assert decisions.run([0.1, 0.5, *[0.0] * 6]) == 8


@pytest.mark.parametrize("scheduler", [MEDIAN, ASHA])
def test_a_scheduler_that_is_filled_again_decides_as_the_undisturbed_one(
    tmp_path: Path, scheduler: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    curves = [(level + 0.05 * random.standard_normal(8)).tolist() for level in random.uniform(0, 1, 24)]
    calm, disturbed = Decisions(tmp_path / "calm", scheduler), Decisions(tmp_path / "disturbed", scheduler)
    undisturbed, found = [calm.run(curve) for curve in curves], []
    for number, curve in enumerate(curves):
        if number % 3 == 0:
            disturbed.start()
        found.append(disturbed.run(curve))
    assert found == undisturbed
    assert len(set(found)) > 1, "some were stopped"
