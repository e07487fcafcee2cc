"""The KubeRay manifests say nothing that Kubernetes or KubeRay does not know, and name nothing that is not there."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kustomize import (
    JOBS,
    KUBERAY,
    OVERLAYS,
    REPOSITORY,
    Document,
    cluster_of,
    containers,
    only,
    pods,
    render,
    render_job,
)

SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
KUBERNETES = "1.29"  # the oldest that cluster/kuberay/README.md names


@pytest.fixture(scope="session")
def schemas() -> dict[str, Document]:
    """KubeRay's own, strict: a field that they do not name is an error, as it is to the API server."""
    if not SCHEMAS.is_dir():
        pytest.skip("no schemas of KubeRay's resources: ../shared/kuberay is not there")
    files = {"RayCluster": "rayclusters.v1.schema.json", "RayJob": "rayjobs.v1.schema.json"}
    return {kind: strict(json.loads((SCHEMAS / name).read_text())) for kind, name in files.items()}


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def check(document: Document, schemas: dict[str, Document]) -> None:
    if document["kind"] in schemas:
        jsonschema.Draft202012Validator(schemas[document["kind"]]).validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_field_exists(scratch: Path, schemas: dict[str, Document]) -> None:
    folders = [render("base"), *(render(f"overlays/{overlay}") for overlay in OVERLAYS)]
    folders += [render_job(job, overlay, scratch) for job in JOBS for overlay in OVERLAYS]
    for text in {json.dumps(document) for documents in folders for document in documents}:  # most are in many
        check(json.loads(text), schemas)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("RayCluster", ["spec"]),
        ("RayCluster", ["spec", "headGroupSpec", "template", "spec", "containers", 0]),
        ("RayCluster", ["spec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0]),
        ("StatefulSet", ["spec", "template", "spec", "containers", 0, "securityContext"]),
        ("PersistentVolumeClaim", ["spec", "resources"]),
    ],
)
def test_a_field_that_does_not_exist_is_found(kind: str, place: list[Any], schemas: dict[str, Document]) -> None:
    document = copy.deepcopy(only(render("overlays/laptop"), kind))
    part = document
    for step in place:
        part = part[step]
    part["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check(document, schemas)


def test_what_is_referred_to_is_there(rendered: list[Document]) -> None:
    there = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    assert len(there) == len(rendered)
    made = set(re.findall(r"kubectl -n braintum create secret generic (\S+) ", (KUBERAY / "README.md").read_text()))
    for pod in [pod for document in rendered for pod in pods(document)]:
        account = pod.get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
            if "secret" in volume:
                assert volume["secret"]["secretName"] in made
        for container in containers(pod):
            for source in container.get("envFrom", []):
                assert "configMapRef" not in source or ("ConfigMap", source["configMapRef"]["name"]) in there
                assert "secretRef" not in source or source["secretRef"]["name"] in made
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claims = {"data"} if container["name"] == "redis" else set()
            assert mounted <= set(volumes) | claims
    cluster = cluster_of(rendered)
    redis = cluster["gcsFaultToleranceOptions"]
    assert ("Service", redis["redisAddress"].partition(":")[0]) in there
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] in made
    assert cluster["authOptions"]["secretName"] in made


def test_all_lies_in_one_namespace(rendered: list[Document]) -> None:
    namespace = only(rendered, "Namespace")["metadata"]["name"]
    assert {document["metadata"].get("namespace", namespace) for document in rendered} == {namespace}


def test_versions_are_those_of_the_package(rendered: list[Document]) -> None:
    constraints = dict(re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))
    assert cluster_of(rendered)["rayVersion"] == constraints["ray"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    images = {container["image"] for document in rendered for pod in pods(document) for container in containers(pod)}
    ours = f"braintum:{project['version']}"
    assert {image for image in images if not image.startswith("redis:")} == {ours}
    dockerfile = (REPOSITORY / "cluster" / "Dockerfile").read_text()
    assert f"-t {ours} " in dockerfile
    assert "pip install --no-cache-dir -c constraints.txt -r requirements.txt" in dockerfile
    assert "ray[" not in dockerfile, "what is installed, and in which version, the package's own files say"


def test_the_groups_of_workers(rendered: list[Document]) -> None:
    cluster = cluster_of(rendered)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no trial runs on the head"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups["cpu"]["minReplicas"] == 0
    for group in [cluster["headGroupSpec"], *groups.values()]:
        pod = group["template"]["spec"]
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        (shared,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shared["medium"] == "Memory"
        assert 0.3 * mebibytes(memory) <= mebibytes(shared["sizeLimit"]) < mebibytes(memory)  # 0.3: Ray's object store
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/api/healthz"


def mebibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"Mi": 1, "Gi": 1024}[unit]


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "laptop"])
def test_a_gpu_worker_goes_where_its_kind_of_gpu_is(overlay: str) -> None:
    group = {group["groupName"]: group for group in cluster_of(render(f"overlays/{overlay}"))["workerGroupSpecs"]}[
        "gpu"
    ]
    assert group["minReplicas"] == 0
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    values = [value for term in required for expression in term["matchExpressions"] for value in expression["values"]]
    assert len(required) == 3
    assert all(overlay in value.lower() for value in values)
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_the_laptop_has_no_gpu_and_all_on_a_volume() -> None:
    documents = render("overlays/laptop")
    cluster = cluster_of(documents)
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["cpu"]
    (store,) = (d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == "braintum-store")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "store", "mountPath": store["data"]["BRAINTUM_STORE"]} in mounts


def test_every_manifest_is_rendered_by_one_of_them() -> None:
    """No file lies there that no kustomization takes."""
    named = set()
    for file in KUBERAY.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(file.read_text())
        entries = [*kustomization.get("resources", []), *kustomization.get("components", [])]
        entries += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        entries += [name for maps in kustomization.get("configMapGenerator", []) for name in maps["files"]]
        named |= {(file.parent / entry).resolve() for entry in entries}
    files = {path for path in KUBERAY.rglob("*") if path.suffix in (".yaml", ".sh")}
    assert {path for path in files if path.name != "kustomization.yaml"} <= named
    assert {Path(path).name for path in named if path.is_dir()} >= {"base", "volume", "own-cluster", "cluster"}
