"""How many trials run at a time where KubeRay's autoscaler may add workers, told by the Kubernetes API of this test."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kustomize import KUBERAY, only, render
from ports import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
ASK = """
import json
from braintum.connect import connect
from braintum.training.growth import largest_nodes
from braintum.tuning.parts import Resources
from braintum.tuning.slots import Slots

connect(lambda text: None)
nodes = largest_nodes()
wanted = {"cpu": Resources(max_concurrent="auto"), "gpu": Resources(gpus_per_worker=1, max_concurrent="auto")}
print(json.dumps(nodes and {
    "nodes": len(nodes), **{kind: Slots.of(resources, "auto").count for kind, resources in wanted.items()},
}))
"""


class Api(ThreadingHTTPServer):
    """Answers for one RayCluster, to who shows the account's certificate; with 403 while it `refuses`."""

    refuses = False

    def __init__(self, folder: Path, raycluster: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.raycluster = raycluster
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Api)
        known = self.path == "/apis/ray.io/v1/namespaces/braintum/rayclusters/braintum" and not self.server.refuses
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.raycluster).encode() if known else b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Path]]:
    """The API of a cluster to which base/raycluster.yaml was applied, and the folder of its certificates."""
    folder = tmp_path_factory.mktemp("tls")
    ca = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=ca",
    ]
    made = subprocess.run([*ca, "-keyout", "/dev/stdout", "-out", "/dev/stdout"], capture_output=True, check=True)
    (folder / "ca.pem").write_bytes(made.stdout)
    paths = {"CA": str(folder / "ca.pem"), "TLS": str(folder), "POD_IP": "127.0.0.1", "FQ_RAY_IP": "head"}
    issue = ["sh", KUBERAY / "base" / "issue-certificate.sh"]
    subprocess.run(issue, env={**os.environ, **paths}, capture_output=True, check=True)
    server = Api(folder, only(render("base"), "RayCluster"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, folder
    server.shutdown()


@pytest.fixture(scope="module")
def environment(api: tuple[Api, Path]) -> Iterator[dict[str, str]]:
    """That of a driver beside a head without cores, which runs with what Kubernetes and KubeRay set in its pod."""
    server, tls = api
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    gcs, dashboard, client, agent = free_ports(4)
    pod = {
        "RAY_CLUSTER_NAME": "braintum", "RAY_CLUSTER_NAMESPACE": "braintum",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
        "RAY_KUBERAY_CA_CERT_PATH": str(tls / "ca.crt"), "RAY_KUBERAY_CLIENT_CERT_PATH": str(tls / "tls.crt"),
        "RAY_KUBERAY_CLIENT_KEY_PATH": str(tls / "tls.key"),
    }  # fmt: skip
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    activated = {**os.environ, **token, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    start = [BIN / "ray", "start", "--head", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}",
             f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
             "--block", "--object-store-memory=100000000"]  # fmt: skip
    with open(Path(folder) / "head.log", "wb") as log:
        process = subprocess.Popen(start, env={**activated, **pod}, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield {**activated, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def ask(environment: dict[str, str]) -> tuple[Any, str]:
    """What a search would be told, and what it says meanwhile."""
    for _ in range(30):  # while the head is coming up
        done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)
        if "no cluster answers there" not in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_trials_are_counted_on_all_workers_that_may_come(api: tuple[Api, Path], environment: dict[str, str]) -> None:
    found, _ = ask(environment)
    assert found == {
        "nodes": 1 + 8 + 4,
        "cpu": 8 * 4 + 4 * 6,  # a core each, of both groups
        "gpu": 4,
    }


def test_a_refusal_is_said(api: tuple[Api, Path], environment: dict[str, str]) -> None:
    api[0].refuses = True
    found, said = ask(environment)
    assert found is None
    assert "RayCluster braintum: cannot be read (403 Client Error: Forbidden" in said
    assert "the cluster counts as it is now; say resources.max_concurrent for one that grows" in said
