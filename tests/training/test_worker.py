"""Runs on Ray: DDP workers, failures, interrupts, cross-validation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from tiny import TINY, dying, quiet, train_runs, wait_for, workers_of

from braintum import storage
from braintum.cli import main
from braintum.config import Experiment
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.schema import DataError
from braintum.data.shards import write_dataset
from braintum.data.shared import share_table
from braintum.data.table import load_table
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.training.checkpoint import load_state
from braintum.training.crossval import crossval
from braintum.training.fit import Diverged
from braintum.training.progress import Progress
from braintum.training.run import RunSpec, run
from braintum.training.worker import Mailbox, train, train_on_workers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

RUN = {"model.name": "joint_unet", **TINY, "training.epochs": 3}
FIXED_LENGTH = {"schedule.name": "constant", "training.weights": "last", "training.early_stopping": None}


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def seconds_of_epochs(out: Path) -> list[float]:
    """How long each epoch took that the run has saved: an epoch that is trained again takes another time."""
    state = load_state(str(out / "state.pt"))
    assert state is not None
    return [row["seconds"] for row in state["history"]]


def test_run_leaves_what_the_design_says_and_is_the_plain_loop(tiny_phantom: str, tmp_path: Path) -> None:
    experiment = Experiment.load(None, RUN)
    out = tmp_path / "run"
    summary = train(experiment, tiny_phantom, str(out), fold="1", folds=3, progress=quiet())
    assert summary == storage.read_json(str(out / "summary.json"))
    assert {"experiment", "fold", "epochs", "best_epoch", "metrics", "seconds", "slices_per_second"} <= summary.keys()
    assert {"dice", "dice_all", "iou", "accuracy", "macro_f1", "auroc", "both_right"} <= summary["metrics"].keys()
    assert Experiment.from_dict(storage.read_json(str(out / "experiment.json"))["experiment"]) == experiment
    assert pq.read_table(out / "history.parquet").num_rows == summary["epochs"] == 3
    assert pq.read_table(out / "predictions.parquet").num_rows == 16
    assert list((out / "tensorboard").glob("events*"))
    assert train_runs()["joint_unet-fold-1"] == "FINISHED", "Ray's dashboard shows it"
    with pytest.raises(ConfigError, match="exists; choose another --out, or go on with --resume"):
        train(experiment, tiny_phantom, str(out), fold="1", folds=3, progress=quiet())
    spec = RunSpec.of(experiment, tiny_phantom, str(tmp_path / "plain"), "1", 3)
    torch.set_num_threads(2)  # as many as the cluster has cores: sums of other orders end in other bits
    list(run(spec, load_table(tiny_phantom, experiment.data)))
    assert digest(out) == digest(tmp_path / "plain"), "Ray adds nothing to a run but its place"
    other = experiment.with_overrides({"optim.lr": 0.01})
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.0001 there and is 0\.01 now"):
        train(other, tiny_phantom, str(out), fold="1", folds=3, resume=True, progress=quiet())


def test_killed_worker_is_started_again_and_changes_nothing(tiny_phantom: str, tmp_path: Path) -> None:
    experiment = Experiment.load(None, {**RUN, "training.epochs": 15, "training.early_stopping": None})
    train(experiment, tiny_phantom, str(tmp_path / "calm"), fold="1", folds=3, workers=2, progress=quiet())
    results: list[Any] = []
    out = tmp_path / "killed"
    thread = threading.Thread(
        target=lambda: results.append(
            train(experiment, tiny_phantom, str(out), fold="1", folds=3, workers=2, progress=quiet())
        )
    )
    thread.start()
    wait_for((out / "state.pt").exists)
    victims = workers_of("RayTrainWorker")
    assert len(victims) == 2
    victims[0].send_signal(signal.SIGKILL)
    seconds = seconds_of_epochs(out)
    assert len(seconds) < 15, "it had ended before it was killed"
    thread.join(180)
    assert results, "the run did not end"
    assert results[0]["epochs"] == 15
    assert pq.read_table(out / "history.parquet")["epoch"].to_pylist() == list(range(1, 16))
    assert digest(out) == digest(tmp_path / "calm")
    assert pq.read_table(out / "history.parquet")["seconds"].to_pylist()[: len(seconds)] == seconds, "no epoch again"


def test_divergence_is_said_and_not_retried(tiny_phantom: str, tmp_path: Path) -> None:
    settings = {"optim.name": "sgd", "optim.lr": 10.0, "model.norm": "batch", "loss.segmentation_weight": 1e30}
    with pytest.raises(Diverged, match=r"lower optim\.lr"):
        train(Experiment.load(None, {**RUN, **settings}), tiny_phantom, str(tmp_path / "run"), progress=quiet())


@pytest.mark.parametrize(
    ("settings", "without", "says"),
    [
        ({}, "mask", "joint_unet segments, and no training slice has a mask"),
        ({}, "label", "joint_unet classifies, and no training slice has a label"),
        ({}, "tumour", "joint_unet segments, and no training slice has a tumour in its mask"),
        (FIXED_LENGTH, "tumour but in a case", r"segments, and no held-out \(fold 1\) slice has a tumour in its mask"),
        ({"data.classes": {"any": ["glioma", "meningioma"], "none": ["no_tumor"]}}, "no_tumor", "no slice of class"),
        ({"training.batch_size": 1}, None, "leaves some of 2 workers without a slice"),
        ({"training.device": "cuda"}, None, "the cluster has no GPU"),
        ({"model.init_from": "/nowhere/unet.safetensors"}, None, "init_from: /nowhere/unet.safetensors: no such file"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], without: str | None, says: str
) -> None:
    lacking = {"mask": {"mask_HW": None}, "label": {"label": None}}.get(without or "", {})
    rows = [replace(row, **lacking) for row in phantom_rows(cases=24, slices_per_case=2, size=32, seed=0)]
    if without is not None and without.startswith("tumour"):
        spared = "case-0001" if without == "tumour but in a case" else ""
        rows = [row if row.group == spared else replace(row, mask_HW=0 * row.mask_HW) for row in rows]
    if without == "no_tumor":  # of one group: on one side of any cut
        rows = [replace(row, group="one", case_id="one") if row.label == "no_tumor" else row for row in rows]
    data = str(tmp_path / "data")
    write_dataset(rows, data, name="set", provenance="drawn", licence=None)
    experiment = Experiment.load(None, {**RUN, **settings})
    for number, start in enumerate((train, crossval)):
        out = tmp_path / f"out-{number}"
        fold: dict[str, Any] = {"fold": "1"} if start is train else {}
        with pytest.raises(ValueError, match=says):
            start(experiment, data, str(out), folds=2, workers=2, progress=quiet(), **fold)
        assert not out.exists()


def test_more_workers_than_the_cluster_has_cores_are_refused(tiny_phantom: str, tmp_path: Path) -> None:
    for start in (train, crossval):
        with pytest.raises(ConfigError, match="workers: 3 need 3 CPUs, and the cluster has 2"):
            start(Experiment.load(None, RUN), tiny_phantom, str(tmp_path / "out"), workers=3, progress=quiet())
        assert not (tmp_path / "out").exists()


def test_workers_that_do_not_see_the_output_end_with_one_line(tiny_phantom: str, tmp_path: Path) -> None:
    """As on a node whose own disk is at that path: nobody has claimed it."""
    experiment = Experiment.load(None, RUN)
    spec = RunSpec.of(experiment, tiny_phantom, str(tmp_path / "elsewhere"), "1", 3)
    mailbox = Mailbox()
    with pytest.raises(ConfigError, match="1 of 1 workers do not see the driver's; --out must be storage that every"):
        train_on_workers(spec, share_table(tiny_phantom, experiment.data), 1, mailbox, "run")
    mailbox.remove()


@pytest.mark.parametrize("masks_in", ["2", "4"])
def test_masks_in_one_fold_only_are_too_few_to_choose_by(tmp_path: Path, masks_in: str) -> None:
    """Folds are the groups: whichever is cut off to validate on, fitting or validation is left without a mask."""
    rows = []
    for k, row in enumerate(phantom_rows(cases=32, slices_per_case=2, size=32, seed=0)):
        fold = f"{k // 8 % 4 + 1}"  # four cases, one of each class, at a time
        mask_HW = row.mask_HW if fold == masks_in else None
        rows.append(replace(row, case_id=None, group=f"fold:{fold}", source_fold=fold, mask_HW=mask_HW))
    data = str(tmp_path / "data")
    write_dataset(rows, data, name="set", provenance="drawn", licence=None)
    with pytest.raises(DataError, match=r"segments, and no (fitted|validation) slice has a mask"):
        train(Experiment.load(None, RUN), data, str(tmp_path / "out"), fold="1", progress=quiet())
    assert not (tmp_path / "out").exists()


def test_cross_validation_and_its_resume(tiny_phantom: str, tmp_path: Path) -> None:
    experiment = Experiment.load(None, RUN)
    out = tmp_path / "cv"
    summary = crossval(experiment, tiny_phantom, str(out), folds=3, progress=quiet())
    assert set(summary["folds"]) == {"1", "2", "3"}
    assert summary["metrics"]["dice_all"]["n"] == 48
    assert summary["over_folds"]["dice_all"]["sd"] >= 0
    predictions = pq.read_table(out / "predictions.parquet")
    assert sorted(predictions["slice_id"].to_pylist()) == sorted(set(predictions["slice_id"].to_pylist()))
    assert predictions.num_rows == 48
    before = {fold: digest(out / f"fold-{fold}") for fold in "123"}
    times = {fold: (out / f"fold-{fold}" / "state.pt").stat().st_mtime_ns for fold in "123"}
    (out / "summary.json").unlink()
    (out / "fold-2" / "summary.json").unlink()
    progress = quiet()
    moved = shutil.copytree(tiny_phantom, tmp_path / "moved")
    again = crossval(experiment, str(moved), str(out), folds=3, resume=True, progress=progress)
    assert again["data"] == {**summary["data"], "url": str(moved)}
    assert storage.read_json(str(out / "experiment.json"))["data"] == again["data"], "the same slices elsewhere"
    assert {row.epoch for row in progress.rows.values()} == {experiment.training.epochs}, "what was done is shown so"
    assert again["metrics"] == summary["metrics"]
    assert before == {fold: digest(out / f"fold-{fold}") for fold in "123"}
    assert times == {fold: (out / f"fold-{fold}" / "state.pt").stat().st_mtime_ns for fold in "123"}


def test_how_many_slices_show_the_region_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    classes = {"data.classes": ["glioma", "meningioma", "pituitary"], "data.region": "tumour"}
    experiment = Experiment.load(None, {"model.name": "classifier", **TINY, **classes, "training.epochs": 1})
    rows = [
        replace(row, mask_HW=None) if k % 8 == 0 else row
        for k, row in enumerate(phantom_rows(cases=24, slices_per_case=2, size=32, seed=0))
    ]
    data, out = str(tmp_path / "data"), tmp_path / "cv"
    write_dataset(rows, data, name="set", provenance="drawn", licence=None)
    table = load_table(data, experiment.data)
    shown = [name for name, seen in zip(table.slice_id_R, table.shown_R, strict=True) if seen]
    counts = {"shown": len(shown), "slices": 36}
    assert 0 < counts["shown"] < counts["slices"]
    with Progress("crossval") as progress:
        summary = crossval(experiment, data, str(out), folds=2, progress=progress)
    assert f"{len(shown)} of 36 slices show tumour" in capfd.readouterr().err
    assert summary["data"] == {"url": data, "digest": table.digest, **counts}
    assert pq.read_table(out / "predictions.parquet").sort_by("slice_id")["slice_id"].to_pylist() == sorted(shown)
    page = Path(report(str(out), str(tmp_path / "report"))).read_text()
    assert f"tumour, on {len(shown)} of 36 slices" in page


def test_what_another_process_started_for_itself_is_not_joined(tmp_path: Path) -> None:
    """A Ray of its own ends with its process, and would take its guests along."""
    program = "from tiny import quiet; from braintum.connect import connect; import ray; connect(quiet().say); "
    program += "print(ray.get_runtime_context().gcs_address)"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}  # without what `ray start` wrote down
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] != ray.get_runtime_context().gcs_address


def test_a_fold_whose_worker_dies_again_and_again(
    tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cv"
    with dying("_run_fold"):
        code = main(["crossval", "--data", tiny_phantom, "--out", str(out), "--folds", "2", *given(RUN)])
    said = capfd.readouterr().err
    assert code == 1, said
    assert "Traceback" not in said
    lost = rf"braintum: {out}/fold-(\d): fold \1: its worker was lost more often than is retried; .* --resume goes on"
    assert re.match(lost, said.splitlines()[-1]), said


def given(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def started(name: str, data: str, out: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    """A command in a process of its own with a Ray of its own."""
    command = [sys.executable, "-m", "braintum.cli", name, "--data", data, "--out", str(out), *given(settings)]
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["train", pytest.param("crossval", marks=pytest.mark.slow)])
def test_what_is_terminated_ends_like_what_is_interrupted(tiny_phantom: str, tmp_path: Path, name: str) -> None:
    """SIGTERM: how Slurm, Docker and Kubernetes stop a command."""
    out = tmp_path / "out"
    process = started(name, tiny_phantom, out, {**RUN, "training.epochs": 200, "training.early_stopping": "null"})
    wait_for(lambda: any(out.rglob("state.pt")))
    below = psutil.Process(process.pid).children(recursive=True)
    lines = " ".join(word for child in below if child.name() == "raylet" for word in child.cmdline())
    folders = {Path(found) for found in re.findall(r"/tmp/ray\w{8}(?=/)", lines)}
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "braintum: interrupted; what was saved stays" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert folders
    assert not any(folder.exists() for folder in folders)
    assert psutil.wait_procs(below, timeout=20)[1] == []


@pytest.mark.slow
def test_interrupted_run_exits_130_and_resumes(tiny_phantom: str, tmp_path: Path) -> None:
    """The command itself, in a process of its own with a Ray of its own."""
    settings = {**RUN, "training.epochs": 15, "training.early_stopping": "null"}
    out = tmp_path / "run"
    process = started("train", tiny_phantom, out, settings)
    wait_for((out / "state.pt").exists)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not (out / "summary.json").exists()
    seconds = seconds_of_epochs(out)
    experiment = Experiment.load(None, {**settings, "training.early_stopping": None})
    moved = shutil.copytree(tiny_phantom, tmp_path / "moved")
    train(experiment, str(moved), str(out), resume=True, progress=quiet())
    assert storage.read_json(str(out / "experiment.json"))["data"]["url"] == str(moved)
    assert pq.read_table(out / "history.parquet")["epoch"].to_pylist() == list(range(1, 16))
    assert pq.read_table(out / "history.parquet")["seconds"].to_pylist()[: len(seconds)] == seconds, "no epoch again"
