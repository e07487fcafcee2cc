"""Prints what a benchmark measured and keeps it in benchmarks/results/NAME.json, with machine, versions and commit."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "pyarrow", "ray", "optuna", "monai")
LOAD_BEFORE = round(os.getloadavg()[0], 2)


def _code() -> dict[str, Any] | None:
    """The commit, and whether files differed from it (but recorded results); None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def _git(*arguments: str) -> str:
    repository = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=True).stdout


CODE_BEFORE = _code()


def record(name: str, results: dict[str, Any], command: str) -> Path:
    """Writes and prints what this process measured; see `write`."""
    return write(name, results, command, process=process())


def write(name: str, results: dict[str, Any], command: str, **more: Any) -> Path:
    """Writes and prints `results` (plain JSON: numbers with their units in the keys, ratios first of all).

    `command`: what somebody else types in the repository to measure the same. `more`: what else is known of it.
    """
    about = {
        "name": name,
        "command": command,
        "results": results,
        "code": CODE_BEFORE,
        **more,
        "machine": machine(),
        "versions": versions(),
    }
    text = json.dumps(about, indent=2)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(text + "\n")
    print(text)
    return path


def process() -> dict[str, float]:
    """What the measuring took: since this process started, and the most memory that it held (without its children)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {"seconds": round(time.time() - psutil.Process().create_time(), 1), "peak_memory_mb": round(peak / 1e6)}


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores that may be used, accelerator, system, load before the start."""
    import torch

    from braintum.training.device import processor

    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "load_1_minute_before": LOAD_BEFORE,
    }


def versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{package: version(package) for package in PACKAGES}}
