"""The files of `ray up`, as Ray prepares them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = ("aws.yaml", "gcp.yaml")


def prepared(name: str) -> dict[str, Any]:
    """With Ray's defaults; asks no cloud. Anchors of YAML are copies, so that a test may change one type."""
    raw = copy.deepcopy(yaml.safe_load((CLUSTER / name).read_text()))
    config: dict[str, Any] = prepare_config(raw)
    return config


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
