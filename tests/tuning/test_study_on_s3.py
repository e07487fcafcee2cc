"""Studies on S3: data, trials, Optuna's file and report at URLs, and servers that die."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from small_study import SMALL, command, outcome, space
from tiny import interrupted_when, quiet, wait_for

from braintum import storage
from braintum.data.ingest.phantom import ingest_phantom
from braintum.reporting.html import report
from braintum.tuning.study import search

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("ray_cluster")]

ONE_BY_ONE: dict[str, Any] = {
    "architectures": ["joint_unet"], "trials": 4, "resources": {"max_concurrent": 1},
    "overrides": {**SMALL["overrides"], "training.epochs": 6},
    "scheduler": {"name": "asha", "grace_epochs": 5, "reduction": 2},
}  # fmt: skip
"""A study that is a function of its seed."""


def rows_of(out: str, number: int) -> list[dict[str, Any]]:
    """A trial's epochs so far."""
    place = f"{out}/trials/joint_unet-{number}/history.json"
    rows: list[dict[str, Any]] = storage.read_json(place) if storage.exists(place) else []
    return rows


def fetched(out: str, folder: Path) -> Path:
    """A local folder with Optuna's file of a study."""
    folder.mkdir()
    (folder / "optuna.db").write_bytes(storage.read_bytes(f"{out}/optuna.db"))
    return folder


def epochs_of(out: str) -> list[tuple[Any, ...]]:
    table = storage.read_table(f"{out}/history.parquet").select(["run", "epoch", "fold", "score", "finished"])
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_there(s3: str, tmp_path: Path) -> None:
    data, out, searched = f"{s3}/study/set", f"{s3}/study/out", space(tmp_path, **{**ONE_BY_ONE, "trials": 2})
    ingest_phantom(data, cases=24, slices_per_case=2, size=32)
    with pytest.raises(KeyboardInterrupt), interrupted_when(lambda: len(rows_of(out, 0)) >= 2):
        search(searched, data, out, progress=quiet())
    assert [state for _, _, state, *_ in outcome(fetched(out, tmp_path / "before"))] == ["RUNNING"]
    done = rows_of(out, 0)
    summary = search(searched, data, out, resume=True, progress=quiet())
    assert rows_of(out, 0)[: len(done)] == done, "no saved epoch is trained again"
    assert summary == storage.read_json(f"{out}/summary.json")
    assert search(searched, data, out, resume=True, progress=quiet()) == summary
    states = [state for _, _, state, *_ in outcome(fetched(out, tmp_path / "after"))]
    assert states[0] == "COMPLETE"
    assert states[1:] in (["COMPLETE"], ["PRUNED"])
    assert not [file for file in storage.files_under(f"{out}/trials") if file.endswith("state.pt")]
    assert report(out) == f"{out}/report/report.html"
    assert b"</html>" in storage.read_bytes(f"{out}/report/report.html")


@pytest.mark.slow
def test_the_server_dies_in_the_middle_of_a_search(
    mortal_s3: tuple[S3Server, str], tiny_phantom: str, tmp_path: Path
) -> None:
    """It comes back 20 s later: the search goes on by itself, and is the undisturbed one.

    In a process of its own with a Ray of its own, whose workers know this server.
    """
    server, s3 = mortal_s3
    data, out = f"{s3}/set", f"{s3}/out"
    for file in storage.files_under(tiny_phantom):
        storage.write_bytes(f"{data}/{file}", storage.read_bytes(f"{tiny_phantom}/{file}"))
    calm = search(space(tmp_path, **ONE_BY_ONE), tiny_phantom, str(tmp_path / "calm"), progress=quiet())
    process = subprocess.Popen(
        command(tmp_path, data, out), env={**os.environ, "RAY_ADDRESS": "local"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(lambda: len(rows_of(out, 1)) >= 2)
        server.kill()
        time.sleep(20)
        server.start()
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert "asking again for 120 s" in stderr
    assert outcome(fetched(out, tmp_path / "there")) == outcome(tmp_path / "calm")
    assert epochs_of(out) == epochs_of(str(tmp_path / "calm"))
    summary = storage.read_json(f"{out}/summary.json")
    assert summary["trials"] == calm["trials"]
    assert (summary["trials"]["failed"], sum(summary["trials"].values())) == (0, 4)
    here, there = calm["best"]["joint_unet"], summary["best"]["joint_unet"]
    assert (there["trial"], there["experiment"], there["crossval"]) == (
        here["trial"], here["experiment"], here["crossval"],
    )  # fmt: skip
