"""A cluster of many nodes on this machine, and what the doctor says of it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from braintum.cluster.local import LocalCluster

pytestmark = pytest.mark.ray

GROW = """
import ray
from braintum.connect import connect
connect(print)

@ray.remote(num_cpus=1)
class Where:
    def node(self):
        return ray.get_runtime_context().get_node_id()

both = [Where.remote() for _ in range(2)]
print(len(set(ray.get([one.node.remote() for one in both]))))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as made:
        yield made


def run(cluster: LocalCluster, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**cluster.environment, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_nodes_come_when_work_waits_for_them(cluster: LocalCluster) -> None:
    done = run(cluster, "-c", GROW)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2"), done.stderr


GPUS = """
from braintum.connect import connect
from braintum.training.worker import gpus_for
connect(print)
print(gpus_for("auto"), gpus_for("cpu"))
"""


def test_gpus_that_are_still_to_come_count(tmp_path: Path) -> None:
    with LocalCluster(1, gpus=1) as cluster:
        done = run(cluster, "-c", GPUS)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 0"), done.stderr


def test_who_has_no_token_does_not_come_in(cluster: LocalCluster, tmp_path: Path) -> None:
    wrong = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = run(cluster, "-c", GROW, **wrong)
    assert done.returncode != 0
    assert "2" not in done.stdout.splitlines()
    assert "the cluster asks for another token" in done.stderr
    file = tmp_path / "ran"
    submit = ["-m", "ray.scripts.scripts", "job", "submit", "--", "touch", str(file)]
    for mode in ({"RAY_AUTH_MODE": "disabled"}, wrong):
        done = run(cluster, *submit, RAY_ADDRESS=cluster.dashboard, **mode)
        assert done.returncode != 0
        assert "401" in done.stderr or "oken" in done.stderr, done.stderr
        assert not file.exists()
    assert run(cluster, *submit, RAY_ADDRESS=cluster.dashboard).returncode == 0
    assert file.exists(), "with the token it runs"


def test_the_doctor_tries_every_node(cluster: LocalCluster, tmp_path: Path) -> None:
    place = tmp_path / "results"
    place.mkdir()
    done = run(cluster, "-m", "braintum", "cluster", "doctor", "--storage", str(place), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    names = [node["name"] for node in found["nodes"]]
    assert len(names) == len(set(names)) >= 1
    assert all(set(node["storage_mb_s"]) == {"write", "read"} for node in found["nodes"])
    assert all(abs(found["ahead"][name]) < 1 for name in names)
    assert not list(place.iterdir()), "it leaves nothing there"
    (tmp_path / "file").touch()
    done = run(cluster, "-m", "braintum", "cluster", "doctor", "--storage", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "the storage cannot be used: " in done.stdout
    assert "give every node the same credentials" in done.stdout.replace("Give", "give")


def test_a_cluster_that_everybody_may_use_is_refused(tmp_path: Path) -> None:
    """Only Ray's own command starts one; ours does not even where it is told to."""
    command = [sys.executable, "-m", "braintum", "cluster", "local"]
    done = subprocess.run(
        command, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "RAY_AUTH_MODE: disabled: who reaches the ports" in done.stderr


def test_it_ends_with_its_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "braintum", "cluster", "local", "--nodes", "1"]
    made = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert made.stderr is not None
    said = "".join(line for line in iter(made.stderr.readline, "\n"))
    assert "A head and up to 1 nodes of 1 CPU" in said
    family = psutil.Process(made.pid).children(recursive=True)
    assert any("gcs_server" in process.name() for process in family)
    made.send_signal(signal.SIGINT)
    assert made.wait(60) == 0
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
