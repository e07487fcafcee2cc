"""Every way in which the manifests of cluster/kuberay are meant to be applied, rendered."""

from __future__ import annotations

from pathlib import Path

import pytest
from kustomize import JOBS, OVERLAYS, Document, render, render_job


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kuberay")


@pytest.fixture(
    scope="session",
    params=[*(f"overlays/{overlay}" for overlay in OVERLAYS), *(f"{job}-{at}" for job in JOBS for at in OVERLAYS)],
)
def rendered(request: pytest.FixtureRequest, scratch: Path) -> list[Document]:
    """An overlay, or a job on the cluster of one."""
    if request.param.startswith("overlays/"):
        return render(request.param)
    job, _, overlay = request.param.partition("-")
    return render_job(job, overlay, scratch)
