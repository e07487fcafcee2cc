"""How long a trial of a study waits between being placed and its first step.

    python benchmarks/trial_start.py [--trials 12]

One-worker trials reuse their actor: only the first of each slot pays for a process. `start_seconds` is what every study
writes into its summary: from the moment in which Tune asks for a trial, because a slot is free, to its first training
step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import ray
import yaml
from record import record

from braintum.connect import start_local
from braintum.data.ingest.phantom import ingest_phantom
from braintum.training.progress import Progress
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

SLOTS = 2
SPACE = {
    "name": "trial_start",
    "architectures": ["joint_unet"],
    "base": "fast",
    "overrides": {"data.image_size": 64, "model.width": 8, "model.depth": 4, "training.epochs": 2},
    "folds": 2,
    "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 3},
    "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=12)
    trials = parser.parse_args().trials
    start_local(num_cpus=SLOTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest_phantom(str(folder / "data"), cases=40, slices_per_case=4, size=64)
        (folder / "space.yaml").write_text(yaml.safe_dump({**SPACE, "trials": trials}))
        space = SearchSpace.load(folder / "space.yaml")
        summary = search(space, str(folder / "data"), str(folder / "study"), progress=Progress("study", quiet=True))
    ray.shutdown()
    first, later = summary["start_seconds"][:SLOTS], summary["start_seconds"][SLOTS:]
    results = {
        "later_over_first": statistics.median(later) / statistics.median(first),
        "later_seconds_median": statistics.median(later),
        "later_seconds_max": max(later),
        "first_seconds_median": statistics.median(first),
        "trials": summary["trials"],
    }
    record("trial_start", results, f"python benchmarks/trial_start.py --trials {trials}")


if __name__ == "__main__":
    main()
