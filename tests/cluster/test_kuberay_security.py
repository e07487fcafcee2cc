"""Who may do what in the cluster of the KubeRay manifests: run as root, read a secret, reach a port."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from kustomize import KUBERAY, Document, cluster_of, containers, only, pods, render

HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
WORKER = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
CLEANUP = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "redis-cleanup"}
REDIS = {"app.kubernetes.io/name": "braintum-redis"}
SUBMITTER = {"app.kubernetes.io/name": "braintum-submitter"}
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}


def test_no_container_has_rights_that_it_does_not_need(rendered: list[Document]) -> None:
    assert only(rendered, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = [pod for document in rendered for pod in pods(document)]
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    everything = [container for pod in found for container in containers(pod)]
    for container in [*everything, cluster_of(rendered)["autoscalerOptions"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser"} & set(container["securityContext"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_only_the_head_may_ask_the_kubernetes_api(rendered: list[Document]) -> None:
    mute = {
        document["metadata"]["name"]
        for document in rendered
        if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is False
    }
    head = cluster_of(rendered)["headGroupSpec"]["template"]["spec"]
    asking = [
        pod
        for document in rendered
        for pod in pods(document)
        if pod.get("serviceAccountName") not in mute and pod.get("automountServiceAccountToken") is not False
    ]
    assert asking == [head]


def test_a_secret_is_in_no_manifest(rendered: list[Document]) -> None:
    assert "Secret" not in {document["kind"] for document in rendered}
    for document in rendered:
        assert not re.search(r"PRIVATE KEY|\b[0-9a-f]{32,}\b|AKIA[A-Z0-9]{16}", str(document))
        for name, value in literals(document):
            assert not re.search(r"PASS|SECRET|CREDENTIAL|AUTH|TOKEN", name), f"{name}: {value!r} in {document['kind']}"
    assert set(cluster_of(rendered)["gcsFaultToleranceOptions"]["redisPassword"]) == {"valueFrom"}


def literals(part: Any) -> list[tuple[str, str]]:
    """Names and values of all environment variables whose values stand there, and of all ConfigMaps."""
    if isinstance(part, list):
        return [found for value in part for found in literals(value)]
    if not isinstance(part, dict):
        return []
    own = [(part["name"], part["value"])] if {"name", "value"} == set(part) else []
    own += list(part["data"].items()) if part.get("kind") == "ConfigMap" else []
    return own + [found for value in part.values() for found in literals(value)]


def test_nothing_is_offered_to_the_outside(rendered: list[Document]) -> None:
    assert "Ingress" not in {document["kind"] for document in rendered}
    for document in rendered:
        assert document["kind"] != "Service" or document["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert cluster_of(rendered)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster_of(rendered)["authOptions"]["mode"] == "token"


@pytest.mark.parametrize(
    ("source", "namespace", "target", "port", "may"),
    [
        (HEAD, "braintum", WORKER, 10005, True),
        (WORKER, "braintum", HEAD, 6379, True),
        (HEAD, "braintum", REDIS, 6379, True),
        (CLEANUP, "braintum", REDIS, 6379, True),
        (WORKER, "braintum", REDIS, 6379, False),
        (SUBMITTER, "braintum", REDIS, 6379, False),
        (SUBMITTER, "braintum", HEAD, 8265, True),
        (SUBMITTER, "braintum", HEAD, 6379, False),
        (OPERATOR, "kuberay", HEAD, 8265, True),
        (OPERATOR, "kuberay", HEAD, 6379, False),
        (OPERATOR, "kuberay", WORKER, 52365, False),
        (OPERATOR, "other", HEAD, 8265, False),  # another pod that took the operator's label
        (WORKER, "other", HEAD, 6379, False),
        ({}, "braintum", HEAD, 8265, False),
        ({}, "other", REDIS, 6379, False),
    ],
)
def test_who_reaches_whom(source: dict[str, str], namespace: str, target: dict[str, str], port: int, may: bool) -> None:
    policies = [document["spec"] for document in render("overlays/laptop") if document["kind"] == "NetworkPolicy"]
    of_target = [policy for policy in policies if selects(policy["podSelector"], target)]
    assert of_target, "a pod that no policy selects is open"
    rules = [rule for policy in of_target for rule in policy.get("ingress", [])]
    assert any(admits(rule, source, namespace, port) for rule in rules) == may


def admits(rule: Document, source: dict[str, str], namespace: str, port: int) -> bool:
    if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
        return False
    for peer in rule["from"]:
        ours = {"matchLabels": {"kubernetes.io/metadata.name": "braintum"}}
        where = {"kubernetes.io/metadata.name": namespace}
        if selects(peer.get("namespaceSelector", ours), where) and selects(peer["podSelector"], source):
            return True
    return False


def selects(selector: Document, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    fits = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return fits and all(labels.get(expression["key"]) in expression["values"] for expression in expressions)


def test_a_pods_certificate_is_for_its_own_addresses(tmp_path: Path) -> None:
    """As its init container makes it, from the authority that README.md makes."""
    readme = (KUBERAY / "README.md").read_text().replace("\\\n", "")
    (made,) = re.findall(r"(openssl req -x509 .*?)\|", readme, re.DOTALL)
    authority, folder, service = tmp_path / "ca.pem", tmp_path / "tls", "braintum-head-svc.braintum.svc.cluster.local"
    authority.write_bytes(subprocess.run(["sh", "-c", made], capture_output=True, check=True).stdout)
    authority.chmod(0o400)  # as Kubernetes mounts it
    folder.mkdir()
    of_pod = {"CA": str(authority), "TLS": str(folder), "POD_IP": "10.1.2.3", "FQ_RAY_IP": service}
    script = KUBERAY / "base" / "issue-certificate.sh"
    subprocess.run(["sh", script], env={"PATH": os.environ["PATH"], **of_pod}, capture_output=True, check=True)
    assert {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir()} == dict.fromkeys(
        ["ca.crt", "tls.crt", "tls.key"], 0
    )
    assert "PRIVATE" not in (folder / "ca.crt").read_text()
    for name in ("10.1.2.3", "127.0.0.1", "localhost", service):
        assert greets(folder, name), name
    for name in ("10.1.2.4", "elsewhere.svc.cluster.local"):
        assert not greets(folder, name), name


def greets(folder: Path, name: str) -> bool:
    """Whether two of Ray's processes that have this certificate talk, one having called the other by that name."""
    sides = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        context.verify_mode = ssl.CERT_REQUIRED
        sides.append(context)
    here, there = socket.socketpair()

    def answer() -> None:
        try:
            sides[0].wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        sides[1].wrap_socket(here, server_hostname=name).close()
    except ssl.SSLCertVerificationError:
        here.close()
        return False
    finally:
        thread.join()
    return True
