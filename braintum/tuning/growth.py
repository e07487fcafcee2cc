"""How large a cluster may become: what its autoscaler may start.

Ray tells nobody. The autoscaler that `ray up` starts on the head node reads a file there, which its process names; a
task on the head node reads it too. Elsewhere (no autoscaler, or one in a container of its own, as on Kubernetes) a
cluster counts as it is, and `resources.max_concurrent` takes a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import yaml

HEAD = "node:__internal_head__"
_OPTION = "--autoscaling-config="


def largest_nodes() -> list[dict[str, float]] | None:
    """The resources of every node of the largest cluster that the autoscaler may make, the head's too.

    None where there is no autoscaler. Of nodes of several types under one limit, those with most GPUs, then CPUs, are
    counted first.
    """
    task = ray.remote(num_cpus=0, resources={HEAD: 0.001})(_autoscaler_config)
    config = ray.get(task.remote())
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


def _autoscaler_config() -> dict[str, Any] | None:
    """What the autoscaler on this machine was started with."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended, or is another user's
            continue
        places = [word.removeprefix(_OPTION) for word in words if word.startswith(_OPTION)]
        if places and any(word.endswith("monitor.py") for word in words):
            config: dict[str, Any] = yaml.safe_load(Path(places[0]).expanduser().read_text())
            return config
    return None
