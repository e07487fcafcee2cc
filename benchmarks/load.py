"""Five hundred trials of a few steps in one study, and 32 at a time: does anything grow that should not?

    python benchmarks/load.py [--trials 500] [--at-once 32]

On two cores. First `--trials` trials two at a time: memory of the driver (RSS, its own and not its workers'), seconds a
trial and bytes of the study's directory and of Ray's logs, over blocks of fifty trials. Then a study of `--at-once`
trials at a time on as many simulated CPUs, two trials a slot: how many ran at once, and whether all ended.

`driver_memory_last_over_second`: of the last block over that of the second, as the first one still loads code.
`seconds_a_trial_last_over_second`: the same of the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from record import record

from braintum import storage
from braintum.connect import start_local
from braintum.data.ingest.phantom import ingest_phantom
from braintum.training.progress import LIVING, Progress
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

BLOCK = 50
SPACE: dict[str, Any] = {
    "name": "load",
    "architectures": ["unet"],
    "base": "fast",
    "overrides": {
        "data.image_size": 32, "model.width": 2, "model.depth": 2, "training.epochs": 2, "training.half_size": 0,
        "training.device": "cpu", "training.precision": "float32",
    },
    "folds": 2,
    "score": {"dice": 1.0},
    "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 3},
    "parameters": {
        "optim.lr": {"log_uniform": [1e-4, 1e-1]},
        "optim.weight_decay": {"log_uniform": [1e-5, 1e-1]},
        "augment.rotate": {"uniform": [0, 45]},
    },
}  # fmt: skip


class Counting(Progress):
    """Notes when each trial ended, the driver's memory then, and how many trained at once."""

    def __init__(self) -> None:
        super().__init__("load", quiet=True)
        self.ended: list[tuple[float, float]] = []
        self.most = 0

    def update(self, name: str, **given: Any) -> None:
        super().update(name, **given)
        self.most = max(self.most, sum(row.state == "training" and row.epoch > 0 for row in self.rows.values()))
        if given.get("state") not in (None, *LIVING):
            self.ended.append((time.monotonic(), psutil.Process().memory_info().rss / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=32)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest_phantom(str(folder / "data"), cases=12, slices_per_case=2, size=32)
        long = of_many(folder, asked.trials)
        wide = at_once(folder, asked.at_once)
    record(
        "load", {**long, "at_once": wide},
        f"python benchmarks/load.py --trials {asked.trials} --at-once {asked.at_once}",
    )  # fmt: skip


def run(folder: Path, name: str, **changes: Any) -> tuple[dict[str, Any], Counting]:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**SPACE, **changes}))
    progress = Counting()
    summary = search(
        SearchSpace.load(folder / f"{name}.yaml"), str(folder / "data"), str(folder / name), progress=progress
    )
    return summary, progress


def of_many(folder: Path, trials: int) -> dict[str, Any]:
    start_local(num_cpus=2)
    logs = Path(ray.get_runtime_context().get_temp_dir()) / "session_latest" / "logs"
    sizes: list[dict[str, float]] = []
    done = threading.Event()

    def measure() -> None:
        while not done.wait(5):
            sizes.append({"study_mb": megabytes(folder / "many"), "logs_mb": megabytes(logs)})

    watching = threading.Thread(target=measure)
    watching.start()
    try:
        summary, progress = run(folder, "many", trials=trials)
    finally:
        done.set()
        watching.join()
    ends = progress.ended
    blocks = [
        {
            "trials": last,
            "driver_mb": statistics.median(mb for _, mb in ends[last - BLOCK : last]),
            "seconds_a_trial": (ends[last - 1][0] - ends[last - BLOCK][0]) / (BLOCK - 1),
        }
        for last in range(BLOCK, len(ends) + 1, BLOCK)
    ]
    size = {"study_mb": megabytes(folder / "many"), "logs_mb": megabytes(logs)}
    kept = [place for place in storage.files_under(str(folder / "many")) if place.endswith("state.pt")]
    ray.shutdown()
    return {
        "driver_memory_last_over_second": blocks[-1]["driver_mb"] / blocks[1]["driver_mb"],
        "seconds_a_trial_last_over_second": blocks[-1]["seconds_a_trial"] / blocks[1]["seconds_a_trial"],
        "kb_of_study_a_trial": 1000 * size["study_mb"] / len(ends),
        "kb_of_logs_a_trial": 1000 * size["logs_mb"] / len(ends),
        "most_study_mb": max(of["study_mb"] for of in sizes),
        "checkpoints_left": len(kept),
        "trials": summary["trials"],
        "search_seconds": summary["search_seconds"],
        "start_seconds_median": statistics.median(summary["start_seconds"][2:]),
        "blocks": blocks,
    }


def at_once(folder: Path, slots: int) -> dict[str, Any]:
    start_local(num_cpus=slots)
    summary, progress = run(folder, "wide", trials=2 * slots, scheduler={"name": "none"})
    memory = psutil.Process().memory_info().rss / 1e6
    ray.shutdown()
    return {
        "slots": slots,
        "most_training": progress.most,
        "trials": summary["trials"],
        "search_seconds": summary["search_seconds"],
        "driver_mb": memory,
    }


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
