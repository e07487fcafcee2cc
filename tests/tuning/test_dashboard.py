"""`braintum dashboard`: a real server in a process of its own, asked by HTTP."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from command_line import refused
from postgres_server import PASSWORD, PostgresServer
from tiny import wait_for

from braintum import storage
from braintum.tuning.dashboard import FETCH_SECONDS
from braintum.tuning.location import Location
from braintum.tuning.records import RECORD


@contextmanager
def served(study: str, shown: str | None = None) -> Iterator[str]:
    """The address at which a study is shown, under that name. It ends with 0 when it is interrupted."""
    command = [sys.executable, "-m", "braintum.cli", "dashboard", study, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f" shows {shown or study};" in line, process.communicate()[1]
        yield line.split("/dashboard/")[0]
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.communicate()[1]) == (0, "")
    finally:
        process.kill()
        process.wait()


def asked(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/{path}", timeout=30) as answer:
        return json.load(answer)


def trials_of(address: str) -> int:
    (study,) = asked(address, "studies")["study_summaries"]
    assert study["study_name"] == "unet"
    return len(asked(address, f"studies/{study['study_id']}?after=0")["trials"])


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    found = optuna.create_study(storage=f"sqlite:///{tmp_path}/optuna.db", study_name="unet", direction="maximize")
    found.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=3)
    return found


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}/optuna.db"])
def test_a_study_is_shown_while_it_runs(study: optuna.Study, tmp_path: Path, form: str) -> None:
    with served(form.format(tmp_path)) as address:
        assert trials_of(address) == 3
        study.optimize(lambda trial: 1.0, n_trials=1)
        wait_for(lambda: trials_of(address) == 4)
        with urllib.request.urlopen(f"{address}/dashboard/", timeout=30) as page:
            assert b"Optuna Dashboard" in page.read()


def test_a_remote_study_is_a_copy_that_is_fetched_again(study: optuna.Study, tmp_path: Path) -> None:
    with served(f"file://{tmp_path}") as address:
        assert trials_of(address) == 3
        study.optimize(lambda trial: 1.0, n_trials=1)
        wait_for(lambda: trials_of(address) == 4, 10 * FETCH_SECONDS)


@pytest.mark.postgres
def test_studies_in_a_database(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its URL, of which the password is not said, and by a directory whose study keeps its trials there."""
    location = Location.of(postgres.url_with_password, str(tmp_path))
    storage.write_json(str(tmp_path / RECORD), {"storage": location.shown})
    with location.open() as store:
        optuna.create_study(storage=store.storage, study_name=location.name("unet"), direction="maximize")
    with served(postgres.url_with_password, postgres.url) as address:
        assert location.name("unet") in {known["study_name"] for known in asked(address, "studies")["study_summaries"]}
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with served(str(tmp_path), postgres.url) as address:
        assert location.name("unet") in {known["study_name"] for known in asked(address, "studies")["study_summaries"]}


def test_a_journal_is_shown(tmp_path: Path) -> None:
    journal = str(tmp_path / "optuna.log")
    with Location.of(journal, None).open() as store:
        found = optuna.create_study(storage=store.storage, study_name="unet", direction="maximize")
        found.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=2)
    with served(journal) as address:
        assert trials_of(address) == 2


def test_what_cannot_be_shown(study: optuna.Study, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    refused(capfd, ["dashboard", str(empty)], f"{empty}/optuna.db: not there; give the --out of a search")
    refused(capfd, ["dashboard", f"file://{empty}"], f"file://{empty}/optuna.db: not there")
    refused(capfd, ["dashboard", f"sqlite:///{empty}.db"], f"there is no file {empty}.db")
    refused(capfd, ["dashboard", "nosuch://bucket/study"], "nosuch")
    refused(capfd, ["dashboard", "postgresql://me:s3cret@127.0.0.1:1/x"], "cannot be used as", without="s3cret")
    refused(capfd, ["dashboard", "mysql://me:s3cret@127.0.0.1:1/x"], "mysql://...: expected post", without="s3cret")
    refused(capfd, ["dashboard", f"{tmp_path}/none.log"], f"{tmp_path}/none.log: not there; a search writes it")
    damaged.mkdir()
    (damaged / "optuna.db").write_bytes(b"no database" * 100)
    for form in ("{}", "file://{}"):
        refused(capfd, ["dashboard", form.format(damaged)], "optuna.db: cannot be ")
    empty.mkdir()
    optuna.storages.RDBStorage(f"sqlite:///{empty}/optuna.db")
    refused(capfd, ["dashboard", str(empty)], "holds no trials")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(capfd, ["dashboard", str(tmp_path), "--port", port], f"--port {port}: Address already in use; choose")
