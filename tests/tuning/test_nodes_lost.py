"""A study whose nodes go in the middle: nothing is lost or trained twice, and it finds what an undisturbed one does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_study import SMALL, command, rows_of, space, studies_of

from braintum.cluster.local import LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS, EPOCHS = 4, 100
LEAVE_SECONDS = 5
NODES = """
import json, ray
from braintum.connect import connect
connect(lambda text: None)
print(json.dumps([node for node in ray.nodes() if node["Alive"]]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, idle_seconds=20) as made:
        yield made


@pytest.fixture(scope="module")
def calm(cluster: LocalCluster, tiny_phantom: str, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What the study finds where nothing happens."""
    folder = tmp_path_factory.mktemp("calm")
    asked = begin(folder, tiny_phantom, cluster)
    assert asked.wait(600) == 0
    return found(folder)


def begin(folder: Path, data: str, cluster: LocalCluster) -> subprocess.Popen[bytes]:
    """The same trials whatever ends first: a Sobol sequence."""
    space(
        folder,
        architectures=["joint_unet"],
        overrides={**SMALL["overrides"], "training.epochs": EPOCHS},
        trials=TRIALS,
        scheduler={"name": "none"},
        sampler={"name": "sobol", "seed": 0},
    )
    log = (folder / "log").open("wb")
    return subprocess.Popen(
        command(folder, data, folder / "study"), env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
    )


def found(folder: Path) -> list[tuple[Any, ...]]:
    summary = json.loads((folder / "study" / "summary.json").read_text())
    trials = studies_of(folder / "study")["joint_unet"].trials
    winner = summary["best"]["joint_unet"]
    return [(trial.state.name, trial.params, trial.value) for trial in trials] + [(winner["trial"], winner["score"])]


def alive(cluster: LocalCluster) -> list[dict[str, Any]]:
    said = subprocess.run([sys.executable, "-c", NODES], env=cluster.environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    nodes: list[dict[str, Any]] = json.loads(said.stdout.splitlines()[-1])
    return nodes


def kill(cluster: LocalCluster, node: dict[str, Any]) -> None:
    """As where the machine's power is cut: its raylet, and its workers with it."""
    (raylet,) = (
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "raylet"
        and any(node["RayletSocketName"] in word for word in process.info["cmdline"])
    )
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()


def drain(cluster: LocalCluster, node: dict[str, Any]) -> None:
    """As a cloud gives notice of a spot machine: it is gone `LEAVE_SECONDS` later."""
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    which = ["--address", cluster.address, "--node-id", node["NodeID"], "--deadline-remaining-seconds"]
    subprocess.run(
        [Path(sys.executable).parent / "ray", "drain-node", *which, str(LEAVE_SECONDS), *why],
        env=cluster.environment,
        check=True,
        capture_output=True,
    )
    time.sleep(LEAVE_SECONDS)
    if any(node["NodeID"] == other["NodeID"] for other in alive(cluster)):
        kill(cluster, node)


@pytest.mark.parametrize("leave", [kill, drain])
def test_a_node_that_goes_takes_nothing_with_it(
    cluster: LocalCluster,
    calm: list[tuple[Any, ...]],
    leave: Callable[[LocalCluster, dict[str, Any]], None],
    tiny_phantom: str,
    tmp_path: Path,
) -> None:
    asked = begin(tmp_path, tiny_phantom, cluster)
    trials = [tmp_path / "study" / "trials" / f"joint_unet-{number}" for number in range(TRIALS)]
    deadline = time.monotonic() + 300
    while min(len(rows_of(trial)) for trial in trials[:2]) < 3:
        assert time.monotonic() < deadline
        assert asked.poll() is None, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.2)
    kept = rows_of(trials[0])
    (node,) = (node for node in alive(cluster) if node["NodeID"] == kept[-1]["node"])
    leave(cluster, node)
    assert asked.wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    assert found(tmp_path) == calm
    rows = rows_of(trials[0])
    assert rows[: len(kept)] == kept, "no saved epoch was trained again"
    assert [row["epoch"] for row in rows] == list(range(1, 2 * EPOCHS + 1))
    assert rows[-1]["node"] != node["NodeID"], "it went on elsewhere"
