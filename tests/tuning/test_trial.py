"""Trials without Tune: whose state they go on from, and what is told of one that diverged."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState
from tiny import TINY

from braintum.config import Experiment
from braintum.data.table import load_table
from braintum.training.fit import Diverged
from braintum.tuning.ahead import Ahead
from braintum.tuning.budget import Allowance
from braintum.tuning.records import HISTORY
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.slots import Places, Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending
from braintum.tuning.trial import FAILED, TrialSpec, read_shares, trial_epochs


def spec_of(out: Path, **overrides: Any) -> TrialSpec:
    experiment = Experiment.load("fast", {"model.name": "unet", **TINY, "training.epochs": 2, **overrides})
    return TrialSpec("unet", 0, experiment.to_dict(), "", str(out), 2, {"dice": 1.0})


def test_a_trial_goes_on_from_its_own_state_and_from_no_other(tiny_phantom: str, tmp_path: Path) -> None:
    mine, other = spec_of(tmp_path), spec_of(tmp_path, **{"optim.lr": 1e-5})
    table = load_table(tiny_phantom, Experiment.from_dict(mine.experiment).data)
    first_fold = list(islice(trial_epochs(mine, table), 2))
    assert [row["folds_done"] for row in first_fold] == [0, 1]
    again = list(islice(trial_epochs(mine, table), 3))
    assert again[:2] == [{**row, "again": True} for row in first_fold], "all that the driver may not have heard of"
    assert (again[2]["epoch"], "again" in again[2]) == (3, False)
    assert next(trial_epochs(other, table))["epoch"] == 1


def test_what_was_stopped_is_gone_on_with_after_the_folds_that_it_finished(tiny_phantom: str, tmp_path: Path) -> None:
    calm, stopped = spec_of(tmp_path / "calm"), spec_of(tmp_path / "stopped")
    table = load_table(tiny_phantom, Experiment.from_dict(calm.experiment).data)
    undisturbed = list(trial_epochs(calm, table))
    first = list(islice(trial_epochs(stopped, table), 3))
    Path(stopped.out, "state.pt").unlink()  # only living trials keep theirs
    again = replace(spec_of(tmp_path / "again"), number=1, after=stopped.out)
    assert next(trial_epochs(again, table)) == {**first[0], "again": True}
    assert rows_of(again) == first[:2], "one that is stopped at once is gone on with too"
    rows = list(trial_epochs(again, table))
    assert rows[:2] == [{**row, "again": True} for row in first[:2]], "and not the third: its fold had not finished"
    assert [row["score"] for row in rows] == [row["score"] for row in undisturbed]
    assert not [row for row in rows[2:] if "again" in row]
    for fold in {row["fold"] for row in rows}:
        assert read_shares(again.out, fold) == read_shares(calm.out, fold), "what racing compares"


def test_an_epoch_that_is_trained_ahead_is_kept_once_it_is_asked_for(tiny_phantom: str, tmp_path: Path) -> None:
    plain, stopped, left = (spec_of(tmp_path / name) for name in ("plain", "stopped", "left"))
    table = load_table(tiny_phantom, Experiment.from_dict(plain.experiment).data)
    known = [row["score"] for row in trial_epochs(plain, table)]

    ahead = Ahead(lambda ahead: trial_epochs(stopped, table, ahead=ahead))
    assert [ahead.next()["score"] for _ in known] == known
    ahead.leave()

    ahead = Ahead(lambda ahead: trial_epochs(left, table, ahead=ahead))
    ahead.next()
    time.sleep(2 * seconds_of(plain))  # the next one is trained by now
    ahead.leave()
    assert [row["score"] for row in rows_of(left)] == known[:1]
    assert [row["score"] for row in trial_epochs(left, table)] == known


def test_what_a_training_raises_is_raised_to_who_asks(tiny_phantom: str, tmp_path: Path) -> None:
    wild = spec_of(tmp_path, **{"loss.segmentation_weight": 1e39})
    table = load_table(tiny_phantom, Experiment.from_dict(wild.experiment).data)
    ahead = Ahead(lambda ahead: trial_epochs(wild, table, ahead=ahead))
    with pytest.raises(Diverged):
        list(iter(ahead.next, {}))
    ahead.leave()


def test_a_trial_that_is_left_lets_go_of_its_network(tiny_phantom: str, tmp_path: Path) -> None:
    left, wild = spec_of(tmp_path / "left"), spec_of(tmp_path / "wild", **{"loss.segmentation_weight": 1e39})
    table = load_table(tiny_phantom, Experiment.from_dict(left.experiment).data)
    next(trial_epochs(spec_of(tmp_path / "first"), table))  # torch imports a part of itself, and keeps who asked for it
    gc.collect()
    before = parameters()
    gc.disable()  # what a circle of references keeps stays on a GPU until somebody looks for it
    try:
        ahead = Ahead(lambda ahead: trial_epochs(left, table, ahead=ahead))
        ahead.next()
        assert parameters() > before
        ahead.leave()
        assert parameters() == before
        ahead = Ahead(lambda ahead: trial_epochs(wild, table, ahead=ahead))
        try:
            list(iter(ahead.next, {}))
        except Diverged:
            ahead.leave()
        assert parameters() == before
    finally:
        gc.enable()


def parameters() -> int:
    return sum(type(thing) is torch.nn.Parameter for thing in gc.get_objects())


def test_a_process_that_ends_does_not_wait_for_an_epoch_that_nobody_asked_for(tmp_path: Path) -> None:
    script = "import sys; from braintum.tuning.ahead import Ahead\n"
    script += "def epochs(ahead):\n    yield {}\n    ahead.wait()\n"
    script += "Ahead(epochs).next()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def rows_of(spec: TrialSpec) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((Path(spec.out) / HISTORY).read_text())
    return rows


def seconds_of(spec: TrialSpec) -> float:
    """The longest epoch of a trial."""
    return max(row["ended"] - row["began"] for row in rows_of(spec))


def test_a_trial_whose_driver_died_before_it_was_placed_is_placed_as_it_would_have_been(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({
        "name": "s", "architectures": ["unet"], "base": "fast", "overrides": TINY, "trials": 3,
        "parameters": {"optim.lr": {"log_uniform": [1e-3, 1e-1]}},
    }))  # fmt: skip
    space = SearchSpace.load(file)

    def searched(dies_at: int | None) -> list[float]:
        study = optuna.create_study(direction="maximize")
        studies = {"unet": study}
        allowance = Allowance(space, studies, Spending(str(tmp_path)), Places, folds=2)
        dies = [dies_at]

        def place(_: str, number: int, __: str, values: dict[str, Any]) -> TrialSpec:
            if number in dies:
                dies.clear()
                raise KeyboardInterrupt
            return spec_of(tmp_path, **values)

        with contextlib.suppress(KeyboardInterrupt):
            driver(space, studies, place, allowance)
        driver(space, studies, place, allowance)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
        return [trial.params["optim.lr"] for trial in study.trials]

    def driver(*of: Any) -> None:
        searcher = OptunaSearcher(*of, Slots(1, 1, {"CPU": 1.0}))
        while isinstance(searcher.suggest("a"), dict):
            searcher.on_trial_complete("a", {"epoch": 4, "score": 0.5, "finished": True, "again": True})

    undisturbed = searched(dies_at=None)
    assert len(set(undisturbed)) == 3
    assert searched(dies_at=0) == undisturbed, "the papers' own settings are not lost"
    assert searched(dies_at=2) == undisturbed


def test_a_diverged_trial_is_told_as_failed_without_a_score(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({
        "name": "s", "architectures": ["unet"], "base": "fast", "overrides": TINY, "trials": 1,
        "parameters": {"optim.lr": {"log_uniform": [1e-3, 1e-1]}},
    }))  # fmt: skip
    study = optuna.create_study(direction="maximize")
    space, studies = SearchSpace.load(file), {"unet": study}
    allowance = Allowance(space, studies, Spending(str(tmp_path)), Places, folds=2)
    searcher = OptunaSearcher(space, studies, lambda *_: spec_of(tmp_path), allowance, Slots(1, 1, {"CPU": 1.0}))
    reason = "the loss became nan at epoch 1, step 2"
    diverged = {"outcome": FAILED, "failure": reason, "finished": False, "epoch": 0, "score": 0.0}
    searcher.suggest("a")
    searcher.on_trial_result("a", diverged)  # as the workers of a DDP trial report it, before they end
    searcher.on_trial_complete("a", diverged)
    trial = study.trials[0]
    assert (trial.state, trial.intermediate_values) == (TrialState.FAIL, {})
    assert trial.user_attrs["failure"] == reason
