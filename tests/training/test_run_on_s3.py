"""Runs on S3: interrupted, gone on with, and the server gone."""

from __future__ import annotations

import hashlib
import threading
from itertools import islice
from pathlib import Path

import pytest
from s3_server import S3Server
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tiny import TINY, quiet

from braintum import storage
from braintum.config import Experiment
from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import load_table
from braintum.reporting.html import report
from braintum.training.run import RunSpec, about_run, prepare_out, run
from braintum.training.worker import train

pytestmark = pytest.mark.s3

EXPERIMENT = Experiment.load(None, {"model.name": "joint_unet", **TINY, "training.epochs": 12})


def epochs_shown(url: str, folder: Path) -> set[int]:
    """Epochs of the training loss in the event files of a run."""
    steps = set()
    for file in storage.files_under(url):
        (folder / file).write_bytes(storage.read_bytes(f"{url}/{file}"))
        for event in EventFileLoader(str(folder / file)).Load():
            if any(value.tag == "train_loss" for value in event.summary.value):
                steps.add(event.step)
    return steps


@pytest.mark.usefixtures("ray_cluster")
def test_an_interrupted_training_goes_on_there(s3: str) -> None:
    data, out = f"{s3}/train/set", f"{s3}/train/run"
    ingest_phantom(data, cases=24, slices_per_case=2, size=32)
    spec = RunSpec.of(EXPERIMENT, data, out, None)
    table = load_table(data, EXPERIMENT.data)
    prepare_out(out, about_run(spec, table.digest), resume=False)
    seconds = [metrics["seconds"] for metrics in islice(run(spec, table), 3)]
    assert not storage.exists(f"{out}/summary.json")
    summary = train(EXPERIMENT, data, out, resume=True, progress=quiet())
    history = storage.read_table(f"{out}/history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, summary["epochs"] + 1))
    assert [row["seconds"] for row in history][:3] == seconds, "no saved epoch is trained again"
    assert train(EXPERIMENT, data, out, resume=True, progress=quiet()) == summary
    assert report(out) == f"{out}/report/report.html"
    assert b"</html>" in storage.read_bytes(f"{out}/report/report.html")


def test_the_server_dies_in_the_middle_of_a_run(
    mortal_s3: tuple[S3Server, str], tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It comes back a moment later; nothing of the run is lost, and the epochs that TensorBoard shows are all there."""
    server, s3 = mortal_s3
    table = load_table(tiny_phantom, EXPERIMENT.data)
    here, there = (RunSpec.of(EXPERIMENT, tiny_phantom, out, "1", 3) for out in (str(tmp_path / "run"), f"{s3}/run"))
    list(run(here, table))
    for number, _ in enumerate(run(there, table), start=1):
        if number == 2:
            server.kill()
            threading.Timer(2, server.start).start()
    assert f"{s3}/run/tensorboard/events" in capfd.readouterr().err
    digests = {hashlib.sha256(storage.read_bytes(f"{spec.out}/model.safetensors")).digest() for spec in (here, there)}
    assert len(digests) == 1
    (tmp_path / "events").mkdir()
    assert epochs_shown(f"{s3}/run/tensorboard", tmp_path / "events") == set(range(1, number + 1))
