"""A study on a cluster of a head without cores, whose autoscaler may add three nodes of one core on this machine."""

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

import pytest
from ports import free_ports
from small_study import SMALL, command, rows_of, space, studies_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
NODES = 3
PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
TYPES = {
    "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": NODES},
}


@pytest.fixture
def growing() -> Iterator[dict[str, str]]:
    """The environment that reaches the cluster."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    gcs, dashboard, client, agent = free_ports(4)
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **token, **fake, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    config = Path(folder) / "autoscaler.json"
    config.write_text(json.dumps({
        "cluster_name": "growing", "max_workers": NODES, "provider": {**PROVIDER, "gcs_address": f"127.0.0.1:{gcs}"},
        "available_node_types": TYPES, "head_node_type": "head", "idle_timeout_minutes": 1, "upscaling_speed": 100,
        "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "docker": {}, "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [],
    }))  # fmt: skip
    start = [BIN / "ray", "start", "--head", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}",
             f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
             f"--autoscaling-config={config}", "--block", "--object-store-memory=200000000"]  # fmt: skip
    with open(Path(folder) / "head.log", "wb") as log:
        process = subprocess.Popen(start, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_study_asks_for_all_nodes_at_once(growing: dict[str, str], tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    epochs = {**SMALL["overrides"], "training.epochs": 40}
    space(tmp_path, architectures=["joint_unet"], overrides=epochs, scheduler={"name": "none"})
    for _ in range(30):  # while the head is coming up
        done = subprocess.run(command(tmp_path, tiny_phantom, out), env=growing, capture_output=True, text=True)
        if "no cluster answers there" not in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stderr
    assert "no node has room for a trial yet: they wait until the cluster grows" in done.stderr
    first = [trial.user_attrs["placed"][0] for trial in studies_of(out)["joint_unet"].trials][:NODES]
    ends = [rows_of(out / "trials" / f"joint_unet-{number}")[-1]["ended"] for number in range(NODES)]
    assert max(first) < min(ends), "three trials were asked for before any had ended, one for each node to come"
    assert json.loads((out / "summary.json").read_text())["trials"]["complete"] == SMALL["trials"]
