"""A cluster of many nodes on this machine: a head that drives, and nodes that Ray's own autoscaler makes and ends.

Every node is a raylet of its own, with workers and an object store of its own; they share the machine's cores. The
provider is the one that Ray tests its autoscaler with.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from braintum.connect import answers, secure
from braintum.settings import ConfigError

HEAD_ID = "f" * 51 + "00000"
"""The id that the provider gives to the head's node."""
HEAD_TYPE = "ray.head.default"
STORE_MB = 200
"""Of each node's object store."""
STARTED = b"Ray runtime started"
"""What `ray start` says once the head is complete."""
START_SECONDS = 120.0
END_SECONDS = 10.0
_SOCKETS = "/tmp"  # noqa: S108 - paths of sockets must be short


class LocalCluster:
    """`with LocalCluster(nodes=3) as cluster:`: up to 3 nodes, none at first. `environment` is what reaches it.

    A node has `cpus` cores and `gpus` GPUs (numbers, whatever the machine has), comes when something waits for one,
    and goes after `idle_seconds` without work. Raises ConfigError where the head does not come up.
    """

    def __init__(self, nodes: int, *, cpus: int = 1, gpus: int = 0, idle_seconds: float = 60.0) -> None:
        self.nodes = nodes
        self._types = {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": cpus, "GPU": gpus, "object_store_memory": STORE_MB * 10**6},
                "node_config": {}, "min_workers": 0, "max_workers": nodes,
            },
        }  # fmt: skip
        self._idle_seconds = idle_seconds
        self._folder = tempfile.mkdtemp(prefix="ray", dir=_SOCKETS)
        self._head: subprocess.Popen[bytes] | None = None
        gcs, dashboard, client, agent = _ports(6379, 8265, 10001, 52365)
        self.address, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self._ports = [
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}

    def __enter__(self) -> Self:
        secure()
        config, log = Path(self._folder, "autoscaler.json"), Path(self._folder, "head.log")
        config.write_text(json.dumps(self._config()))
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0",
            f"--object-store-memory={STORE_MB * 10**6}", f"--temp-dir={self._folder}",
            f"--autoscaling-config={config}", *self._ports,
        ]  # fmt: skip
        v2 = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        environment = {**self.environment, **v2, **fake}
        del environment["RAY_ADDRESS"]
        with log.open("wb") as file:
            self._head = subprocess.Popen(  # noqa: S603 - what is started is ours
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while STARTED not in log.read_bytes() or not answers(self.dashboard.removeprefix("http://")):
            if self._head.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()[-1000:]
                self.__exit__(None, None, None)
                raise ConfigError(f"the head of a local cluster did not come up; it says: {said}")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends every process of the cluster: nodes are nobody's children once the autoscaler that made them is gone."""
        family = {process for process in psutil.process_iter(["cmdline"]) if self._is_ours(process)}
        for process in list(family):  # workers and agents, which have taken titles of their own
            with suppress(psutil.NoSuchProcess):
                family |= set(process.children(recursive=True))
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    end(process)
            deadline = time.monotonic() + END_SECONDS
            while any(_runs(process) for process in family) and time.monotonic() < deadline:
                time.sleep(0.1)
        if self._head is not None:
            self._head.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.pid != os.getpid() and any(self._folder in word for word in process.info["cmdline"] or ())

    def _config(self) -> dict[str, Any]:
        """What `ray up` would hand to the autoscaler, with every field that it reads."""
        nothing: dict[str, Any] = {
            "auth": {}, "file_mounts": {}, "cluster_synced_files": [], "docker": {}, "initialization_commands": [],
            "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
            "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts_sync_continuously": False,
            "rsync_exclude": [], "rsync_filter": [],
        }  # fmt: skip
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "launch_multiple": True, "head_node_id": HEAD_ID, "gcs_address": self.address,
        }  # fmt: skip
        return nothing | {
            "cluster_name": "local", "max_workers": self.nodes, "provider": provider,
            "available_node_types": self._types, "head_node_type": HEAD_TYPE,
            "idle_timeout_minutes": self._idle_seconds / 60, "upscaling_speed": 100,
        }  # fmt: skip


def _ports(*usual: int) -> list[int]:
    """Ports of loopback that nobody listens on: the usual ones where they are free."""
    sockets = []
    for port in usual:
        free = socket.socket()
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            free.bind(("127.0.0.1", 0))
        sockets.append(free)
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one whose parent has not heard of that yet has."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
