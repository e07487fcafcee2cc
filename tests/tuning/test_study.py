"""Studies on real Ray: what they leave, how trials end, and what a resume does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.util.state import list_placement_groups
from small_study import SMALL, command, outcome, rows_of, space, studies_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny import TINY, dying, interrupted_when, quiet, train_runs, wait_for, workers_of

from braintum import storage
from braintum.config import Experiment
from braintum.data.ingest.phantom import ingest_phantom
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.training.progress import Progress
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

pytestmark = pytest.mark.ray


def comparison(folder: Path, architectures: dict[str, Any]) -> SearchSpace:
    """A space with nothing to search."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {field: value for field, value in SMALL.items() if field not in ("parameters", "trials", "scheduler")}
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**kept, "architectures": architectures}))
    return SearchSpace.load(file)


@pytest.mark.usefixtures("ray_cluster")
def test_study_ends_in_winners_that_were_cross_validated(tiny_phantom: str, tmp_path: Path) -> None:
    """One parameter is of the data and of one architecture only: two views of the slices. Some trials wait for room."""
    out = tmp_path / "study"
    only_unet = {"data.image_size": {"choice": [32, 16], "when": {"model.name": "unet"}}}
    waiting = {"resources": {"max_concurrent": 4}}
    searched = space(
        tmp_path, **waiting, parameters={**SMALL["parameters"], **only_unet}, objectives=["dice_all", "accuracy"]
    )
    summary = search(searched, tiny_phantom, str(out), progress=quiet())
    assert summary == storage.read_json(str(out / "summary.json"))
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == 6
    assert 0 < summary["busy_share"] <= 1
    for name in ("unet", "joint_unet"):
        best = summary["best"][name]
        winner = Experiment.load(out / "best" / f"{name}.yaml")
        assert winner == Experiment.from_dict(best["experiment"])
        assert winner.model.name == name
        complete = [t for t in studies_of(out)[name].trials if t.state.name == "COMPLETE"]
        if name == "unet":  # it has one of the objectives
            assert best["score"] == max(t.value or 0 for t in complete)
        assert best["crossval"]["dice_all"]["n"] == 2, "folds"
        assert (out / "crossval" / name / "fold-1" / "model.safetensors").exists()
    first = [study.trials[0].params["optim.lr"] for study in studies_of(out).values()]
    base = space(tmp_path).experiment("unet", {}).optim.lr
    assert first == [pytest.approx(base)] * 2, "the base's own settings are each study's first trial"
    seeds = {
        json.loads(t.user_attrs["spec"])["experiment"]["training"]["seed"]
        for s in studies_of(out).values()
        for t in s.trials
    }
    assert len(seeds) == 6, "every trial has a seed of its own"
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(trials) == 6
    for trial in trials:
        if trial["state"] == "pruned":
            assert trial["epochs"] < 6
    history = pq.read_table(out / "history.parquet").to_pylist()
    assert {row["run"] for row in history} == {f"{trial['architecture']}-{trial['number']}" for trial in trials}
    assert all((row["selection_accuracy"] is not None) == (row["architecture"] == "joint_unet") for row in history)
    assert not list((out / "trials").rglob("state.pt")), "checkpoints of ended trials are gone"
    for trial in trials:
        run = f"{trial['architecture']}-{trial['number']}"
        rows = [row for row in history if row["run"] == run]
        events = EventAccumulator(str(out / "trials" / run / "tensorboard")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("score")] == [
            (row["epoch"], pytest.approx(row["score"])) for row in rows
        ]
        shown = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
        settings = shown.session_start_info.hparams
        assert settings["architecture"].string_value == trial["architecture"]
        assert settings["optim.lr"].number_value == json.loads(trial["params"])["optim.lr"]
        assert trial["placed"][0] < rows[0]["began"]
    size = sum(file.stat().st_size for file in (out / "trials").rglob("events*"))
    assert size < 6 * 2_000 + len(history) * 3_000, "a bounded part for each trial and epoch"
    assert list(summary["pareto"]) == ["joint_unet"], "a segmenter has one of the objectives"
    (trial,) = [point for point in summary["pareto"]["joint_unet"] if point["chosen"]]
    assert trial["trial"] == summary["best"]["joint_unet"]["trial"]
    ends = {row["fold"]: row for row in history if row["run"] == f"joint_unet-{trial['trial']}"}  # the last are kept
    for metric in ("dice_all", "accuracy"):
        assert trial[metric] == pytest.approx(sum(row[f"selection_{metric}"] for row in ends.values()) / 2)
    assert f"dice_all {trial['dice_all']:.3f}, accuracy {trial['accuracy']:.3f}" in Path(report(str(out))).read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_a_comparison_has_no_trials(tiny_phantom: str, tmp_path: Path) -> None:
    """Without parameters nothing is searched: every architecture is cross-validated as the space says."""
    out = tmp_path / "study"
    architectures = {"unet": {"optim.lr": 3e-3}, "joint_unet": {}}
    compared = comparison(tmp_path, architectures)
    summary = search(compared, tiny_phantom, str(out), progress=quiet())
    assert summary["trials"] == {"complete": 0, "pruned": 0, "failed": 0}
    rates = {name: best["experiment"]["optim"]["lr"] for name, best in summary["best"].items()}
    assert rates == {"unet": 3e-3, "joint_unet": compared.experiment("joint_unet", {}).optim.lr}
    assert all(best["trial"] is None and best["crossval"]["dice_all"]["n"] == 2 for best in summary["best"].values())
    finished = (out / "crossval" / "unet" / "summary.json").stat().st_mtime_ns
    assert search(compared, tiny_phantom, str(out), resume=True, progress=quiet()) == summary
    assert (out / "crossval" / "unet" / "summary.json").stat().st_mtime_ns == finished
    page = Path(report(str(out))).read_text()
    assert "A comparison: nothing was searched." in page
    again = SearchSpace.load(out / "report" / "space.yaml")
    assert again.digest == compared.digest


@pytest.mark.usefixtures("ray_cluster")
def test_an_architecture_that_fails_is_said_and_the_others_go_on(tiny_phantom: str, tmp_path: Path) -> None:
    too_large = {"unet": {"model.width": 10_000_000}, "joint_unet": {}}
    compared = comparison(tmp_path, too_large)
    summary = search(compared, tiny_phantom, str(tmp_path / "study"), progress=quiet())
    assert list(summary["best"]) == ["joint_unet"]
    assert list(summary["failed"]) == ["unet"]
    assert "its settings: " in summary["failed"]["unet"]


@pytest.mark.usefixtures("ray_cluster")
def test_stopped_trials_are_told_as_pruned_and_diverged_ones_as_failed(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    changes: dict[str, Any] = {
        "architectures": ["unet"],
        "trials": 6,
        "resources": {"max_concurrent": 1},
        "sampler": {"name": "random", "seed": 1},
        "parameters": {
            "loss.segmentation_weight": {"choice": [1.0, 1e39]},
            "optim.lr": {"choice": [1e-2, 1e-9, 1e-10, 1e-11]},
        },
    }
    search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    states = [trial.state.name for trial in studies_of(out)["unet"].trials]
    assert states.count("COMPLETE") >= 1
    assert states.count("PRUNED") >= 1
    assert states.count("FAIL") >= 1
    for trial in studies_of(out)["unet"].trials:
        diverging = trial.params["loss.segmentation_weight"] == 1e39
        assert (trial.state.name == "FAIL") == diverging
        if diverging:
            assert "epoch 1, step" in trial.user_attrs["failure"]
        if trial.state.name == "PRUNED":
            assert 1 <= max(trial.intermediate_values) < 6
            assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
        if trial.state.name == "COMPLETE":
            assert max(trial.intermediate_values) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_a_resume_may_find_another_winner_but_not_answer_another_question(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    changes: dict[str, Any] = {
        "architectures": ["unet"],
        "overrides": {**SMALL["overrides"], "optim.lr": 1e-9},
        "sampler": {"name": "random", "seed": 0},
        "parameters": {"optim.lr": {"choice": [1e-9, 1e-8, 1e-7, 1e-2]}},
        "scheduler": {"name": "none"},
    }
    nowhere = {"overrides": {**changes["overrides"], "model.init_from": f"{tmp_path}/none.safetensors"}}
    with pytest.raises(ConfigError, match=r"init_from: .*none\.safetensors: no such file"):
        search(space(tmp_path, **{**changes, **nowhere}), tiny_phantom, str(out), progress=quiet())
    assert not out.exists()
    first = search(space(tmp_path, **changes, trials=1), tiny_phantom, str(out), progress=quiet())
    assert first["best"]["unet"]["experiment"]["optim"]["lr"] == 1e-9
    with pytest.raises(ConfigError, match="exists"):
        search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    with pytest.raises(ConfigError, match="folds"):
        search(space(tmp_path, **{**changes, "folds": 3}), tiny_phantom, str(out), resume=True, progress=quiet())
    other = tmp_path / "other"
    ingest_phantom(str(other), cases=24, slices_per_case=2, size=32, seed=1)
    with pytest.raises(ConfigError, match="data"):
        search(space(tmp_path, **changes), str(other), str(out), resume=True, progress=quiet())
    more = space(tmp_path, **changes, trials=4)
    first_winner = out / "crossval" / "unet" / "summary.json"
    with pytest.raises(KeyboardInterrupt), interrupted_when(lambda: not first_winner.exists()):
        search(more, tiny_phantom, str(out), resume=True, progress=quiet())
    assert "This study has not finished" in Path(report(str(out))).read_text()
    moved = str(shutil.copytree(tiny_phantom, tmp_path / "moved"))
    second = search(more, moved, str(out), resume=True, progress=quiet())
    assert second["data"] == {**first["data"], "url": moved}, "the same slices elsewhere"
    assert storage.read_json(str(out / "study.json"))["data"] == second["data"]
    assert sum(second["trials"].values()) == 4
    winner = second["best"]["unet"]
    assert winner["experiment"]["optim"]["lr"] == 1e-2
    assert storage.read_json(str(out / "crossval" / "unet" / "experiment.json"))["experiment"] == winner["experiment"]
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.*") if file.is_file()}
    assert search(more, moved, str(out), resume=True, progress=quiet()) == second
    assert times == {file: file.stat().st_mtime_ns for file in times}, "nothing is trained or written again"


class Interrupting(Progress):
    """^C at a trial's first epoch, while Tune makes known what the trial has reported."""

    def update(self, name: str, **given: Any) -> None:
        super().update(name, **given)
        if given.get("epoch"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ray_cluster")
def test_an_interrupt_at_a_bad_time_leaves_no_actor(tiny_phantom: str, tmp_path: Path) -> None:
    out = str(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt) as held:
        search(space(tmp_path, trials=2), tiny_phantom, out, progress=Interrupting("test", quiet=True))
    wait_for(lambda: not workers_of("OneWorkerTrial"), 10)
    assert held.tb is not None, "while somebody holds what was raised, as a notebook does"


@pytest.mark.usefixtures("ray_cluster")
def test_a_winner_that_diverges_with_another_seed_does_not_end_the_study(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    tiny = space(tmp_path, trials=2, overrides={**TINY, "training.epochs": 1}, scheduler={"name": "none"})
    search(tiny, tiny_phantom, str(out), progress=quiet())
    with contextlib.closing(sqlite3.connect(out / "optuna.db")) as database:
        specs = database.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'spec'").fetchall()
        (written,) = next(row for row in specs if json.loads(json.loads(row[0]))["architecture"] == "unet")
        spec = json.loads(json.loads(written))
        spec["experiment"]["loss"]["segmentation_weight"] = 1e39  # it has won, and diverges from now on
        changed = (json.dumps(json.dumps(spec)), written)
        update = "UPDATE trial_user_attributes SET value_json = ? WHERE value_json = ?"
        database.execute(update, changed)
        database.commit()
    (out / "summary.json").unlink()
    summary = search(tiny, tiny_phantom, str(out), resume=True, progress=quiet())
    assert list(summary["best"]) == ["joint_unet"]
    assert "trial 0 diverged with another seed: the loss became" in summary["failed"]["unet"]
    assert "Not ranked: unet, trial 0 diverged" in Path(report(str(out))).read_text()
    with contextlib.closing(sqlite3.connect(out / "optuna.db")) as database:
        database.execute(update, changed[::-1])
        database.commit()
    again = search(tiny, tiny_phantom, str(out), resume=True, progress=quiet())
    assert (again["best"].keys(), again["failed"]) == ({"unet", "joint_unet"}, {}), "a finished study tries it again"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_winner_whose_workers_die_does_not_end_the_study_and_is_tried_again(
    tiny_phantom: str, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    tiny = space(tmp_path, trials=2, overrides={**TINY, "training.epochs": 1}, scheduler={"name": "none"})
    with dying("_run_fold", when=lambda: not (out / "crossval" / "joint_unet").exists()):
        lost = search(tiny, tiny_phantom, str(out), progress=quiet())
    assert list(lost["best"]) == ["joint_unet"]
    assert "its worker was lost more often than is retried; the same command with --resume" in lost["failed"]["unet"]
    found = search(tiny, tiny_phantom, str(out), resume=True, progress=quiet())
    assert (found["best"].keys(), found["failed"]) == ({"unet", "joint_unet"}, {})
    assert found["best"]["joint_unet"] == lost["best"]["joint_unet"]


@pytest.mark.usefixtures("ray_cluster")
def test_study_whose_driver_and_worker_are_killed_is_as_the_undisturbed_one(tiny_phantom: str, tmp_path: Path) -> None:
    """kill -9 in the middle of a trial: of the driver, then, in what resumes, of the actor that trains.

    One trial at a time, so that the whole study is a function of its seed.
    """
    changes: dict[str, Any] = {
        "architectures": ["joint_unet"], "trials": 4, "resources": {"max_concurrent": 1},
        "overrides": {**SMALL["overrides"], "training.epochs": 6},
        "scheduler": {"name": "asha", "grace_epochs": 5, "reduction": 2},
    }  # fmt: skip
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    undisturbed = search(space(tmp_path, **changes), tiny_phantom, str(calm), progress=quiet())
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command(tmp_path, tiny_phantom, killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    second = killed / "trials" / "joint_unet-1"
    wait_for(lambda: len(rows_of(second)) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for child in children:  # the Ray that the driver had started on this machine dies with it
        if child.is_running():
            child.kill()
    before = {trial.number: trial.state.name for trial in studies_of(killed)["joint_unet"].trials}
    assert before[0] in ("COMPLETE", "PRUNED")
    assert before[1] == "RUNNING"
    kept = (killed / "trials" / "joint_unet-0" / "history.json").stat().st_mtime_ns
    done = rows_of(second)
    third = killed / "trials" / "joint_unet-2"
    with ThreadPoolExecutor(1) as pool:
        resuming = pool.submit(
            search, space(tmp_path, **changes), tiny_phantom, str(killed), resume=True, progress=quiet()
        )
        wait_for(lambda: len(rows_of(third)) >= 2)
        (actor,) = workers_of("OneWorkerTrial")
        actor.kill()
        assert len(rows_of(third)) < 5, "it had ended before it was killed"
        resumed = resuming.result()
    assert outcome(killed) == outcome(calm)
    assert kept == (killed / "trials" / "joint_unet-0" / "history.json").stat().st_mtime_ns
    assert rows_of(second)[: len(done) - 1] == done[:-1], "no saved epoch is trained again"
    mine, theirs = (summary["best"]["joint_unet"] for summary in (resumed, undisturbed))
    assert (mine["trial"], mine["score"], mine["crossval"]) == (theirs["trial"], theirs["score"], theirs["crossval"])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_two_workers_leave_nothing_behind_when_stopped(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    changes: dict[str, Any] = {
        "architectures": ["joint_unet"],
        "trials": 4,
        "resources": {"workers": 2},
        "sampler": {"name": "random", "seed": 0},
        "parameters": {"optim.lr": {"choice": [1e-2, 1e-7]}},
        "overrides": {**SMALL["overrides"], "training.epochs": 4},
    }
    search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    states = [trial.state.name for trial in studies_of(out)["joint_unet"].trials]
    assert states.count("PRUNED") >= 1, states
    wait_for(lambda: all(group.state == "REMOVED" for group in list_placement_groups()), 60)
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 60)
    wait_for(lambda: not workers_of("RayTrainWorker") + workers_of("TrainController"), 60)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_of_two_workers_wins_and_is_cross_validated(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    changes: dict[str, Any] = {
        "architectures": ["joint_unet"], "trials": 1, "resources": {"workers": 2},
        "overrides": {**TINY, "training.epochs": 1}, "objectives": ["accuracy", "latency"], "racing": {"level": 0.05},
    }  # fmt: skip
    summary = search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    assert summary["pareto"]["joint_unet"][0]["latency"] > 0, "rank 0 measured it"
    (trial,) = studies_of(out)["joint_unet"].trials
    assert trial.state.name == "COMPLETE"
    assert list(trial.intermediate_values) == [1, 2], "an epoch of each fold"
    assert summary["best"]["joint_unet"]["crossval"]["dice_all"]["n"] == 2, "folds"
    assert 0 < summary["busy_share"] <= 1
    left = sorted(file.name for file in (out / "trials" / "joint_unet-0").iterdir())
    expected = ["history.json", "shares-1.json", "shares-2.json", "tensorboard"]
    assert left == expected, "neither its checkpoint nor Ray's own files"
    assert train_runs()["joint_unet-0"] == "FINISHED", "Ray's dashboard shows it"
