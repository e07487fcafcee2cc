"""A study on a cluster of a head without cores, whose autoscaler may add three nodes of one core on this machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from small_study import SMALL, command, rows_of, space, studies_of

from braintum.cluster.local import LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODES = 3


def test_a_study_asks_for_all_nodes_at_once(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    epochs = {**SMALL["overrides"], "training.epochs": 40}
    space(tmp_path, architectures=["joint_unet"], overrides=epochs, scheduler={"name": "none"})
    with LocalCluster(NODES) as cluster:
        study = command(tmp_path, tiny_phantom, out)
        done = subprocess.run(study, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no node has room for a trial yet: they wait until the cluster grows" in done.stderr
    first = [trial.user_attrs["placed"][0] for trial in studies_of(out)["joint_unet"].trials][:NODES]
    ends = [rows_of(out / "trials" / f"joint_unet-{number}")[-1]["ended"] for number in range(NODES)]
    assert max(first) < min(ends), "three trials were asked for before any had ended, one for each node to come"
    assert json.loads((out / "summary.json").read_text())["trials"]["complete"] == SMALL["trials"]
