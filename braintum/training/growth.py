"""How large a cluster may become: what its autoscaler may start.

Ray tells nobody, but what its autoscaler reads, a task on the head node can read too: the file with which `ray up`
starts it there, or on Kubernetes the RayCluster, which the head's pod may see where KubeRay's autoscaler runs in it.
Elsewhere a cluster counts as it is, and `resources.max_concurrent` takes a number.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
import yaml

HEAD = "node:__internal_head__"
_OPTION = "--autoscaling-config="
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_log = logging.getLogger(__name__)


def largest_nodes() -> list[dict[str, float]] | None:
    """The resources of every node of the largest cluster that the autoscaler may make, the head's too.

    None where there is no autoscaler, and with a warning where Kubernetes would not tell. Of nodes of several types
    under one limit, those with most GPUs, then CPUs, are counted first.
    """
    own: Any = ray._private.worker._global_node
    if own is not None and own.head:  # a Ray that this process has started does not grow
        return None
    task = ray.remote(num_cpus=0, resources={HEAD: 0.001})(_autoscaler_config)
    config = ray.get(task.remote())
    if isinstance(config, str):
        _log.warning("%s: the cluster counts as it is now; say resources.max_concurrent for one that grows", config)
        return None
    if config is None:
        return None
    types, left = config["available_node_types"], config.get("max_workers", 0)
    heads = [node["Resources"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    nodes = heads
    workers = [kind for name, kind in types.items() if name != config.get("head_node_type")]
    for kind in sorted(workers, key=lambda kind: [kind["resources"].get(r, 0) for r in ("GPU", "CPU")], reverse=True):
        count = min(kind.get("max_workers", left), left)
        nodes, left = [*nodes, *[kind["resources"]] * count], left - count
    return nodes


def _autoscaler_config() -> dict[str, Any] | str | None:
    """What the autoscaler of this head was started with; text: why Kubernetes does not tell."""
    if "RAY_CLUSTER_NAME" in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:  # KubeRay's and Kubernetes' own
        return _of_raycluster(os.environ["RAY_CLUSTER_NAME"])
    own = f"--gcs-address={ray.get_runtime_context().gcs_address}"  # another cluster's may run here too
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended, or is another user's
            continue
        places = [word.removeprefix(_OPTION) for word in words if word.startswith(_OPTION)]
        if places and own in words and any(word.endswith("monitor.py") for word in words):
            config: dict[str, Any] = yaml.safe_load(Path(places[0]).expanduser().read_text())
            return config
    return None


def _of_raycluster(name: str) -> dict[str, Any] | str | None:
    """What KubeRay's autoscaler makes of this pod's RayCluster; None: it has none; text: why it cannot be read."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        namespace = os.environ.get("RAY_CLUSTER_NAMESPACE") or _NAMESPACE.read_text()
        found = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except OSError as error:  # the pod has no account's files; the API refuses, or does not answer
        return f"RayCluster {name}: cannot be read ({error})"
    if not found["spec"].get("enableInTreeAutoscaling"):
        return None
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(found)
    return config
