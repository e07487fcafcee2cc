"""The RayJobs hand in commands that braintum takes, and go on by themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from kustomize import (
    JOBS,
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    Document,
    add_overlay,
    cluster_of,
    containers,
    only,
    pods,
    render,
    render_job,
)

from braintum.config import Experiment


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> Document:
    spec: Document = only(render(f"jobs/{request.param}"), "RayJob")["spec"]
    return spec


def test_a_driver_that_is_lost_is_started_again(job: Document) -> None:
    assert job["backoffLimit"] > 0
    assert "clusterSelector" not in job, "KubeRay refuses both together"
    assert job["shutdownAfterJobFinishes"] is True
    assert "upgradeStrategy" not in job["rayClusterSpec"], "KubeRay refuses it of a RayJob's cluster"
    assert "--resume" in job["entrypoint"] or "jobs/ingest.py" in job["entrypoint"]  # which always goes on
    assert job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_its_cluster_is_the_overlays(scratch: Path) -> None:
    for overlay in OVERLAYS:
        shared = cluster_of(render(f"overlays/{overlay}"))
        for name in JOBS:
            assert cluster_of(render_job(name, overlay, scratch)) == shared


def test_it_runs_on_a_cluster_of_the_users_own(tmp_path: Path) -> None:
    """The one that README.md shows: image, bucket and size reach all pods of the job."""
    readme = (KUBERAY / "README.md").read_text()
    (ours,) = re.findall(r"^    apiVersion: kustomize.*?(?=\n\n)", readme, re.DOTALL | re.MULTILINE)
    add_overlay("ours", textwrap.dedent(ours), tmp_path)
    documents = render_job("search", "ours", tmp_path)
    job = only(documents, "RayJob")
    images = {container["image"] for pod in pods(job) for container in containers(pod)}
    assert images == {"REGISTRY/braintum:0.1.0"}
    (store,) = (d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "braintum-store")
    assert store["data"] == {"BRAINTUM_STORE": "s3://bucket/braintum"}
    groups = {group["groupName"]: group for group in cluster_of(documents)["workerGroupSpecs"]}
    assert (groups["gpu"]["minReplicas"], groups["gpu"]["maxReplicas"]) == (0, 16)


def test_its_environment_is_that_of_ray_job_submit(job: Document) -> None:
    runtime = yaml.safe_load(job["runtimeEnvYAML"])
    submitted = yaml.safe_load((REPOSITORY / "jobs" / "runtime_env.yaml").read_text())
    assert runtime["env_vars"] == submitted["env_vars"]


def test_its_working_directory_is_in_the_image(job: Document) -> None:
    dockerfile = (REPOSITORY / "cluster" / "Dockerfile").read_text()
    assert f"WORKDIR {yaml.safe_load(job['runtimeEnvYAML'])['working_dir']}\n" in dockerfile
    copied = re.findall(r"^COPY --chown=1000:1000 (\S+) \1$", dockerfile, re.MULTILINE)
    assert "braintum" in copied
    for path in re.findall(r"(?<![\w/}])(\w+)/\S+", job["entrypoint"]):
        assert path in copied, f"{path}: of {job['entrypoint']}"


def test_the_command_is_one_that_braintum_takes(job: Document, tmp_path: Path) -> None:
    """Run as the job's shell would run it, where no data are: that alone is what it says."""
    best = tmp_path / "study" / "best" / "joint_unet.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(yaml.safe_dump(Experiment.load(None, {"model.name": "joint_unet"}).model_dump(mode="json")))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "BRAINTUM_STORE": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", job["entrypoint"]], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    missing = "/mnt/braintum/raw" if "ingest" in job["entrypoint"] else f"{tmp_path}/data"
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"braintum: .*{re.escape(missing)}.*\n", done.stderr), done.stderr
    assert "braintum --help" not in done.stderr
