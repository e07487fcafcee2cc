"""The commands as jobs of a Ray cluster: submitted, stopped, resumed, on a head started by `ray start`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import yaml
from ports import free_ports

from braintum.connect import ENVIRONMENT
from braintum.data.ingest.phantom import ingest_phantom

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SPACE = {
    "name": "job",
    "architectures": ["unet"],
    "base": "fast",
    "overrides": {
        "data.image_size": 32, "model.width": 2, "model.depth": 2, "training.epochs": 60, "training.device": "cpu",
    },
    "folds": 2,
    "trials": 4,
    "resources": {"max_concurrent": 1},
    "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head of two CPUs with ports, a folder and a token of its own; the environment that reaches its dashboard."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    gcs, dashboard, client, agent = free_ports(4)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    activated = {**os.environ, **token, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment = {**activated, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    command = [BIN / "ray", "start", "--head", "--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}",
               f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
               "--block", "--object-store-memory=500000000"]  # fmt: skip
    with open(Path(folder) / "head.log", "wb") as log:
        process = subprocess.Popen(command, env=activated, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield environment
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def ray(environment: dict[str, str], *arguments: str) -> str:
    """Runs `ray job …` and returns what it prints; retried while the head is coming up."""
    for _ in range(60):
        done = subprocess.run(
            [BIN / "ray", "job", *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        if not any(text in done.stderr for text in ("Failed to connect", "try again later")):
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_workers_of_a_job_get_the_environment_that_others_get() -> None:
    job = yaml.safe_load((REPOSITORY / "jobs" / "runtime_env.yaml").read_text())["env_vars"]
    assert {name: value for name, value in job.items() if not name.startswith("RAY_JOB_STOP")} == ENVIRONMENT


@pytest.mark.slow
@pytest.mark.ray
def test_job_is_stopped_with_its_state_saved_and_resumed(head: dict[str, str], tmp_path: Path) -> None:
    data, out, space = tmp_path / "data", tmp_path / "study", tmp_path / "space.yaml"
    ingest_phantom(str(data), cases=16, slices_per_case=2, size=32)
    space.write_text(yaml.safe_dump(SPACE))
    submit = ["submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml"]
    entry = ["--", "python", "jobs/search.py", str(space), "--data", str(data), "--out", str(out)]
    ray(head, *submit, "--no-wait", "--submission-id", "first", *entry)
    second = out / "trials" / "unet-1" / "history.json"
    deadline = time.monotonic() + 180
    while not second.exists() or len(json.loads(second.read_text())) < 2:
        assert time.monotonic() < deadline, ray(head, "logs", "first")
        time.sleep(0.1)
    asked = time.monotonic()
    ray(head, "stop", "first")
    assert time.monotonic() - asked < 15, "RAY_JOB_STOP_WAIT_TIME_S: it is killed then"
    assert "STOPPED" in ray(head, "status", "first").upper()
    assert "what was saved stays" in ray(head, "logs", "first"), "it ended by itself, before it would be killed"
    study = optuna.load_study(study_name="unet", storage=f"sqlite:///{out}/optuna.db")
    assert [trial.state.name for trial in study.trials][:2] == ["COMPLETE", "RUNNING"]
    kept = json.loads(second.read_text())
    first_trial = (out / "trials" / "unet-0" / "history.json").stat().st_mtime_ns
    log = ray(head, *submit, "--submission-id", "again", *entry, "--resume")
    assert "succeeded" in log.lower()
    assert len(kept) >= 2
    assert json.loads(second.read_text())[: len(kept) - 1] == kept[:-1], "no saved epoch again"
    assert first_trial == (out / "trials" / "unet-0" / "history.json").stat().st_mtime_ns
    assert sum(json.loads((out / "summary.json").read_text())["trials"].values()) == 4
