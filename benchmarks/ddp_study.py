"""A study whose trials are DDP groups of two workers, and what it leaves behind.

    python benchmarks/ddp_study.py [--trials 4]

Recorded: how the trials ended, and, after the search, the placement groups, actors and worker processes of trials that
are still there, those of trials that were stopped early among them (there should be none).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray
import yaml
from ray.util.state import list_actors, list_placement_groups
from record import record

from braintum.connect import start_local
from braintum.data.ingest.phantom import ingest_phantom
from braintum.training.progress import Progress
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

SPACE = {
    "name": "ddp_study",
    "architectures": ["joint_unet"],
    "base": "fast",
    "overrides": {"data.image_size": 32, "model.width": 4, "model.depth": 3, "training.epochs": 6},
    "folds": 2,
    "resources": {"workers": 2},
    "sampler": {"name": "random", "seed": 0},
    "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 2},
    "parameters": {"optim.lr": {"choice": [1e-2, 1e-7]}},
}
SETTLE_SECONDS = 30


def left_behind() -> dict[str, list[str]]:
    """What still lives of the trials: names, so that a count has a reason."""
    titles = []
    for process in psutil.Process().children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    kinds = ("RayTrainWorker", "TrainController", "ImplicitFunc")
    return {
        "placement_groups": [group.name for group in list_placement_groups() if group.state != "REMOVED"],
        "actors": [a.class_name for a in list_actors(limit=1000) if a.state == "ALIVE" and a.class_name in kinds],
        "processes": [title for title in titles if any(kind in title for kind in kinds)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4)
    trials = parser.parse_args().trials
    start_local(num_cpus=2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest_phantom(str(folder / "data"), cases=24, slices_per_case=4, size=32)
        (folder / "space.yaml").write_text(yaml.safe_dump({**SPACE, "trials": trials}))
        space = SearchSpace.load(folder / "space.yaml")
        summary = search(space, str(folder / "data"), str(folder / "study"), progress=Progress("study"))
        time.sleep(SETTLE_SECONDS)
        rows = pq.read_table(folder / "study" / "trials.parquet").to_pylist()
        results = {
            "left_behind": left_behind(),
            "trials": [{key: row[key] for key in ("number", "state", "epochs", "score", "params")} for row in rows],
            "seconds": summary["search_seconds"],
        }
        ray.shutdown()
    record("ddp_study", results, f"python benchmarks/ddp_study.py --trials {trials}")


if __name__ == "__main__":
    main()
