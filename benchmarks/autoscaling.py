"""A cluster without nodes that Ray's autoscaler makes for two studies and takes away after each: how fast, and where.

    python benchmarks/autoscaling.py [--nodes 3]

`braintum cluster local` on this machine: real raylets, Ray's autoscaler v2, nodes of one core that share the machine's.
First a study of one-worker trials, then one whose trials are DDP trainings on two workers. `to_first_node_seconds` and
`to_all_nodes_seconds` count from when the study's process starts, `to_none_seconds` from when it ends (the autoscaler
is told to wait `idle_seconds`). `nodes_of_trials`: on which of the nodes, in the order in which they came, each trial's
(rank 0's) epochs were trained.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import yaml
from record import record

from braintum.cluster.local import LocalCluster
from braintum.connect import connect
from braintum.data.ingest.phantom import ingest_phantom

IDLE_SECONDS = 10.0
SPACE: dict[str, Any] = {
    "name": "autoscaling",
    "architectures": ["joint_unet"],
    "base": "fast",
    "overrides": {
        "data.image_size": 64, "model.width": 8, "model.depth": 4, "training.epochs": 6, "training.device": "cpu",
        "training.precision": "float32",
    },
    "folds": 2,
    "scheduler": {"name": "none"},
    "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    nodes = parser.parse_args().nodes
    results = {}
    with tempfile.TemporaryDirectory() as name, LocalCluster(nodes, idle_seconds=IDLE_SECONDS) as cluster:
        folder = Path(name)
        ingest_phantom(str(folder / "data"), cases=24, slices_per_case=4, size=64)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect(print)
        seen = Nodes()
        for workers, trials in ((1, 2 * nodes), (2, 2)):
            study = f"{workers}_workers"
            results[study] = one_study(folder, study, seen, {"resources": {"workers": workers}, "trials": trials})
        seen.stop()
        ray.shutdown()
    record("autoscaling", {"nodes": nodes, "idle_seconds": IDLE_SECONDS, **results},
           f"python benchmarks/autoscaling.py --nodes {nodes}")  # fmt: skip


class Nodes:
    """Asks every half second which nodes there are, beside the head."""

    def __init__(self) -> None:
        self.head = {node["NodeID"] for node in ray.nodes()}
        self.counts: list[tuple[float, int]] = []
        self.ever: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def first(self, since: float, count: int) -> float | None:
        """Seconds from `since` until there were so many nodes."""
        found = (when for when, there in self.counts if when >= since and there == count)
        return next((round(when - since, 1) for when in found), None)

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            alive = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self.head]
            self.ever += [node for node in alive if node not in self.ever]
            self.counts.append((time.time(), len(alive)))


def one_study(folder: Path, name: str, seen: Nodes, changes: dict[str, Any]) -> dict[str, Any]:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**SPACE, **changes}))
    began, out = time.time(), folder / name
    command = [sys.executable, "-m", "braintum", "search", str(folder / f"{name}.yaml"), "--data", str(folder / "data")]
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = time.time()
    most = max(count for when, count in seen.counts if when >= began)
    while seen.first(ended, 0) is None:
        time.sleep(0.5)
    rows = {place.parent.name: json.loads(place.read_text()) for place in sorted(out.glob("trials/*/history.json"))}
    return {
        "to_first_node_seconds": seen.first(began, 1),
        "to_all_nodes_seconds": seen.first(began, most),
        "most_nodes": most,
        "to_none_seconds": seen.first(ended, 0),
        "seconds": round(ended - began, 1),
        "nodes_of_trials": {
            trial: sorted({seen.ever.index(row["node"]) for row in epochs}) for trial, epochs in rows.items()
        },
    }


if __name__ == "__main__":
    main()
