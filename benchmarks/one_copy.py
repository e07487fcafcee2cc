"""How often a node holds the pixels of a set on which eight trials of a study train at the same time.

    python benchmarks/one_copy.py --data URL [--trials 8] [--size 128]

A real search with as many slots as trials; the memory of all its processes is read from Linux while it runs.
`RssShmem` of a trial counts every page of shared memory that it has read, as if it were its own; `Pss_Shmem` shares a
page's bytes among those who map it, so that its sum over all processes is what the machine really holds. The search is
stopped as soon as every trial has read nearly all of the table. All pages of the object store count, also those of no
table.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import ray
import yaml
from record import record

from braintum.connect import start_local
from braintum.data.shards import read_card
from braintum.data.table import table_bytes
from braintum.parts import Data
from braintum.training.progress import Progress
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

READ = 0.95
"""Share of the table that every trial must have read."""


class Moment(NamedTuple):
    """Bytes. `trials`: shared memory that each trial has read; `held`: what all processes hold of it together."""

    trials: list[int]
    held: int
    private: list[int]


def kilobytes(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


def look() -> Moment:
    trials, private, held = [], [], 0
    for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
        folder = Path("/proc") / str(process.pid)
        try:
            held += 1024 * kilobytes(folder / "smaps_rollup", "Pss_Shmem:")
            if "ResourceTrainable" in " ".join(process.cmdline()):  # Tune's name for a trial
                trials.append(1024 * kilobytes(folder / "status", "RssShmem:"))
                private.append(1024 * kilobytes(folder / "smaps_rollup", "Pss_Anon:"))
        except (psutil.Error, OSError, StopIteration):  # it has ended
            continue
    return Moment(trials, held, private)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    start_local(num_cpus=args.trials)
    settings = {
        "name": "one_copy",
        "architectures": ["joint_unet"],
        "base": "fast",
        "overrides": {"data.image_size": args.size, "model.width": 2, "model.depth": 2, "training.epochs": 1},
        "folds": 2,
        "scheduler": {"name": "none"},
        "trials": args.trials,
        "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
    }
    table = table_bytes(read_card(args.data), Data(image_size=args.size))
    seen: list[Moment] = []

    def watch() -> None:
        while not seen:
            time.sleep(2)
            moment = look()
            if len(moment.trials) == args.trials and min(moment.trials) > READ * table:
                seen.append(moment)
        _thread.interrupt_main()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        (Path(name) / "space.yaml").write_text(yaml.safe_dump(settings))
        space = SearchSpace.load(Path(name) / "space.yaml")
        search(space, args.data, str(Path(name) / "study"), progress=Progress("study", quiet=True))
    ray.shutdown()
    (moment,) = seen  # or the search ended before all trials had read the table
    results = {
        "trials": len(moment.trials),
        "shared_memory_held_over_table": round(moment.held / table, 3),
        "read_by_all_trials_over_table": round(sum(moment.trials) / table, 3),
        "table_mb": round(table / 1e6, 1),
        "read_by_a_trial_mb": [round(value / 1e6, 1) for value in sorted(moment.trials)],
        "private_to_a_trial_mb": [round(value / 1e6, 1) for value in sorted(moment.private)],
    }
    record("one_copy", results, f"python benchmarks/one_copy.py --data DATA --trials {args.trials} --size {args.size}")


if __name__ == "__main__":
    main()
