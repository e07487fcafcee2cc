"""What several trials on one GPU are worth: epochs an hour of a search with as many trials side by side as are named.

    python benchmarks/packing.py [--per-gpu 1 4] [--trials 12]

Twelve random trials of two folds, without early stopping, of a small network (`fast`, 8 channels, slices of 128×128)
and of one of 32 channels on slices of 256×256, on a phantom set. Each search is a process of its own; its rate counts
from the first step to the last, over the epochs that all of its trials trained, and a ratio is to the first one named.
`busy` is the time in which epochs ran over that of all places, so that what is missing to 1 is the time between trials.

Last, three trials of batches so large that two of them have no room on the GPU, two side by side: those that run out
of memory are trained again alone, and all finish.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from record import record

from braintum.tuning.records import HISTORY

SIZES: dict[str, dict[str, Any]] = {
    "small": {"data.image_size": 128, "training.epochs": 6},
    "full": {"data.image_size": 256, "model.width": 32, "model.depth": 4, "training.epochs": 4},
    "crowded": {
        "data.image_size": 256, "model.width": 64, "model.depth": 4, "training.epochs": 2, "training.batch_size": 256,
        "training.half_size": 0,
    },
}  # fmt: skip


def space_of(size: str, per_gpu: int, trials: int) -> dict[str, Any]:
    return {
        "name": "packing",
        "architectures": ["joint_unet"],
        "base": "fast",
        "overrides": SIZES[size],
        "folds": 2,
        "trials": trials,
        "resources": {"trials_per_gpu": per_gpu},
        "sampler": {"name": "random"},
        "scheduler": {"name": "none"},
        "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
    }


def measure(folder: Path, size: str, per_gpu: int, trials: int) -> dict[str, Any]:
    """Searches in a process of its own and says what its epochs' times make."""
    study = folder / f"{size}-{per_gpu}"
    (folder / "space.yaml").write_text(yaml.safe_dump(space_of(size, per_gpu, trials)))
    command = [sys.executable, __file__, "--search", str(folder / "space.yaml"), str(folder / "data"), str(study)]
    subprocess.run(command, check=True)
    runs = [json.loads(place.read_text()) for place in study.glob(f"trials/*/{HISTORY}")]
    assert len(runs) == trials
    rows = [row for run in runs for row in run]
    wall = max(row["ended"] for row in rows) - min(row["began"] for row in rows)
    summary = json.loads((study / "summary.json").read_text())
    return {
        "epochs_an_hour": 3600 * len(rows) / wall,
        "busy": sum(row["ended"] - row["began"] for row in rows) / (wall * per_gpu),
        "slices_per_second_of_one": sum(row["slices_per_second"] for row in rows) / len(rows),
        "trials": summary["trials"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-gpu", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--search", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.search:
        search_here(*asked.search)
        return
    from braintum.data.ingest.phantom import ingest_phantom

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest_phantom(str(folder / "data"), cases=150, slices_per_case=8, size=256)
        results: dict[str, Any] = {}
        for size in ("small", "full"):
            found = {per: measure(folder, size, per, asked.trials) for per in asked.per_gpu}
            first = found[asked.per_gpu[0]]["epochs_an_hour"]
            ratios = {str(per): one["epochs_an_hour"] / first for per, one in found.items()}
            results[size] = {"epochs_an_hour_over_first": ratios, **{str(per): one for per, one in found.items()}}
            print(size, json.dumps(results[size]), flush=True)
        results["crowded"] = measure(folder, "crowded", 2, 3)
    per_gpu = " ".join(map(str, asked.per_gpu))
    record("packing", results, f"python benchmarks/packing.py --per-gpu {per_gpu} --trials {asked.trials}")


def search_here(space: str, data: str, out: str) -> None:
    from braintum.connect import start_local
    from braintum.training.progress import Progress
    from braintum.tuning.space import SearchSpace
    from braintum.tuning.study import search

    start_local()
    search(SearchSpace.load(Path(space)), data, out, progress=Progress("packing", quiet=True))


if __name__ == "__main__":
    main()
