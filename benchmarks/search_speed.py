"""Twenty short trials, two at a time: how much of the machine trains, in braintum's search and in three others.

    python benchmarks/search_speed.py [--rounds 3] [--trials 20]

The same space, folds, first trial and early stopping (ASHA, one rung after a fold) in each, and the same work an epoch.
All sample by Optuna's TPE: braintum multivariate, grouped and minding what runs, the others by its defaults. Each arm
is a process of its own, timed from its start; on two cores, two trials at a time, one thread each:

- `braintum`: `search`, with Optuna's file, trials' records and progress as always. The cross-validations that follow
  are no part of what is measured: every arm's time ends with its last epoch.
- `documented` and `function`: see `search_peers.py`.
- `optuna`: two processes with `study.optimize`, one journal file and SuccessiveHalvingPruner, as Optuna's tutorial on
  parallel optimisation advises; each loads the table itself.

`busy` is the time in which epochs ran over wall time × 2; from the first step on, the wall time begins with the first
epoch of all. `cpu` is the CPU time of all of an arm's processes over the same. `idle` is the time between the end of a
trial and the first step of the next in the same slot. Epochs an hour compare engines: which trials are stopped early
differs from arm to arm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from record import record
from search_peers import SLOTS, Places, by_braintum, by_tune

ARMS = ("braintum", "documented", "function", "optuna")
EPOCHS, FOLDS, GRACE, REDUCTION = 4, 3, 4, 3
SPACE = {
    "name": "search_speed",
    "architectures": ["joint_unet"],
    "base": "fast",
    "overrides": {
        "data.image_size": 64, "model.width": 8, "model.depth": 4, "training.epochs": EPOCHS, "training.device": "cpu",
        "training.precision": "float32",
    },
    "folds": FOLDS,
    "scheduler": {"name": "asha", "grace_epochs": GRACE, "reduction": REDUCTION},
    "parameters": {
        "optim.lr": {"log_uniform": [1e-4, 3e-2]},
        "loss.classification_weight": {"uniform": [0.1, 2.0]},
    },
}  # fmt: skip


def make(folder: Path, trials: int) -> None:
    """The dataset and the space that every arm uses."""
    from braintum.data.ingest.phantom import ingest_phantom

    ingest_phantom(str(folder / "data"), cases=30, slices_per_case=4, size=64)
    (folder / "space.yaml").write_text(yaml.safe_dump({**SPACE, "trials": trials}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        run_arm(asked.arm, asked.folder, asked.trials, asked.worker)
        return
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(asked.rounds):
        for arm in ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]:
            with tempfile.TemporaryDirectory() as name:
                make(Path(name), asked.trials)
                measured[arm].append(measure(arm, Path(name), asked.trials))
            print(arm, json.dumps(measured[arm][-1]), flush=True)
    medians = {
        arm: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for arm, rounds in measured.items()
    }
    ours = measured["braintum"]

    def ratios(key: str, peer: str) -> list[float]:
        return [mine[key] / other[key] for mine, other in zip(ours, measured[peer], strict=True)]

    results = {
        **{
            f"braintum_over_{peer}{suffix}": statistics.median(ratios(f"epochs_an_hour{suffix}", peer))
            for suffix in ("", "_from_first_step")
            for peer in ARMS[1:]
        },
        "braintum_over_documented_each_round": ratios("epochs_an_hour", "documented"),
        "braintum_over_optuna_from_first_step_each_round": ratios("epochs_an_hour_from_first_step", "optuna"),
        "medians": medians,
    }
    record(
        "search_speed", results, f"python benchmarks/search_speed.py --rounds {asked.rounds} --trials {asked.trials}"
    )


def measure(arm: str, folder: Path, trials: int) -> dict[str, float]:
    """Runs an arm in a process of its own and says what its epochs' times make."""
    began, spent, used = time.time(), {}, []
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), "--trials", str(trials)]
    child = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while child.poll() is None:
        for process in [child, *child.children(recursive=True)]:
            try:
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
            except psutil.Error:
                continue
        used.append((time.time(), sum(spent.values())))
        time.sleep(0.25)
    assert child.returncode == 0, f"{arm} ended with {child.returncode}"
    runs = [json.loads(place.read_text()) for place in sorted(folder.glob("**/history.json"))]
    assert trials <= len(runs) < trials + SLOTS, f"{arm}: {len(runs)} instead of {trials} trials have trained"
    epochs = [row for rows in runs for row in rows]
    first, last = min(row["began"] for row in epochs), max(row["ended"] for row in epochs)
    trained = sum(row["ended"] - row["began"] for row in epochs)
    wall, (moments, cpu) = last - began, zip(*used, strict=True)
    cpu_first, cpu_last = np.interp([first, last], moments, cpu).tolist()
    idle = between(sorted((rows[0]["began"], rows[-1]["ended"]) for rows in runs))
    return {
        "epochs_an_hour": 3600 * len(epochs) / wall,
        "epochs_an_hour_from_first_step": 3600 * len(epochs) / (last - first),
        "busy": trained / (wall * SLOTS),
        "busy_from_first_step": trained / ((last - first) * SLOTS),
        "cpu": cpu_last / (wall * SLOTS),
        "cpu_from_first_step": (cpu_last - cpu_first) / ((last - first) * SLOTS),
        "idle_between_trials_seconds": statistics.median(idle),
        "idle_between_trials_seconds_max": max(idle),
        "first_step_seconds": first - began,
        "wall_seconds": wall,
        "epochs": len(epochs),
        "seconds_a_trial": trained / len(runs),
    }


def between(runs: list[tuple[float, float]]) -> list[float]:
    """Between the end of a trial and the start of the next in its slot: the earliest that was free takes the next."""
    free: list[float] = []
    waits = []
    for number, (start, end) in enumerate(runs):
        if number >= SLOTS:
            ended = min(free)
            free.remove(ended)
            waits.append(start - ended)
        free.append(end)
    return waits


def run_arm(arm: str, folder: Path, trials: int, worker: int | None) -> None:
    """What an arm's process does."""
    if arm == "braintum":
        by_braintum(folder)
    elif arm == "optuna":
        by_optuna(folder, trials, worker)
    else:
        by_tune(arm, folder)


def by_optuna(folder: Path, trials: int, worker: int | None) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    if worker is None:
        study = optuna.create_study(storage=storage, study_name="speed", direction="maximize")
        places = Places(folder)
        study.enqueue_trial(places.space.defaults(places.name))
        command = [sys.executable, __file__, "--arm", "optuna", "--folder", str(folder), "--trials", str(trials)]
        workers = [subprocess.Popen([*command, "--worker", str(number)]) for number in range(SLOTS)]
        assert [one.wait() for one in workers] == [0] * SLOTS
        return
    import torch
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    from braintum.data.table import load_table
    from braintum.training.device import keep_freed_memory
    from braintum.tuning.trial import trial_epochs

    torch.set_num_threads(1)
    keep_freed_memory()
    places = Places(folder)
    table = load_table(str(folder / "data"), places.space.experiment(places.name, {}).data)

    def objective(trial: optuna.Trial) -> float:
        values = {
            "optim.lr": trial.suggest_float("optim.lr", 1e-4, 3e-2, log=True),
            "loss.classification_weight": trial.suggest_float("loss.classification_weight", 0.1, 2.0),
        }
        for row in trial_epochs(places.spec(str(trial.number), values), table):
            trial.report(row["score"], row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(row["score"])

    study = optuna.load_study(
        storage=storage,
        study_name="speed",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=GRACE, reduction_factor=REDUCTION),
    )
    every = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    study.optimize(objective, n_trials=trials, callbacks=[MaxTrialsCallback(trials, states=every)])


if __name__ == "__main__":
    main()
