"""What fold racing saves, and whether it finds the same winner: phantom studies of as many seeds.

    python benchmarks/racing.py --out out/racing [--seeds 10] [--live 2]

Of each seed (of the data, the search and the trainings) all folds of all trials are trained once, which is the study
without racing. Proposals are random draws, so those of a study with racing are the same, and what it would have done
is replayed by the study's own `Race`, trial by trial, at several levels and also in other orders of the trials. The
first `--live` seeds are searched with racing too, by `search` on Ray, one trial at a time, to show that it does the
same.

Recorded: the share of epochs that racing leaves out; in how many seeds the winner is the same; and, where it is not,
how far the one that racing finds lies behind in selection score over all folds (`regret`). The same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from record import record

from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import load_table
from braintum.training.device import keep_freed_memory
from braintum.tuning.budget import Allowance
from braintum.tuning.racing import Race
from braintum.tuning.samplers import seed_of
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.slots import Places, Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending
from braintum.tuning.trial import HISTORY, TrialSpec, trial_epochs

NAME = "joint_unet"
LEVELS = (0.01, 0.05, 0.2, 0.5)
LEVEL, FOLDS, EPOCHS, TRIALS, ORDERS = 0.05, 4, 6, 12, 20
SPACE: dict[str, Any] = {
    "name": "racing",
    "architectures": [NAME],
    "base": "fast",
    "overrides": {
        "data.image_size": 32, "model.width": 8, "model.depth": 3, "model.norm": "instance", "training.epochs": EPOCHS,
        "training.batch_size": 4, "training.average_decay": 0.9, "training.half_size": 0, "training.device": "cpu",
        "training.precision": "float32",
    },
    "folds": FOLDS,
    "trials": TRIALS,
    "resources": {"max_concurrent": 1},
    "sampler": {"name": "random"},
    "scheduler": {"name": "none"},
    "parameters": {
        "optim.lr": {"log_uniform": [5e-4, 3e-2]},
        "optim.weight_decay": {"log_uniform": [1e-4, 1e-1]},
        "augment.rotate": {"uniform": [0, 30]},
        "loss.classification_weight": {"uniform": [0.1, 2.0]},
    },
}  # fmt: skip


def space_of(folder: Path, seed: int, **more: Any) -> SearchSpace:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SPACE, "sampler": {"name": "random", "seed": seed}, **more}))
    return SearchSpace.load(file)


def train(folder: Path, seed: int) -> list[TrialSpec]:
    """Trains all folds of all trials, as `search` without racing would."""
    data = folder / "data"
    if not (data / "card.json").exists():
        ingest_phantom(str(data), cases=72, slices_per_case=2, size=64, seed=seed)
    space = space_of(folder, seed)
    torch.set_num_threads(1)
    keep_freed_memory()
    table = load_table(str(data), space.experiment(NAME, {}).data)

    def place(architecture: str, number: int, name: str, values: dict[str, Any]) -> TrialSpec:
        own = {"training.seed": seed_of(seed, name, number)}
        settings = space.experiment(architecture, {**own, **values}).to_dict()
        out = str(folder / "trials" / f"{name}-{number}")
        return TrialSpec(architecture, number, settings, "", out, FOLDS, space.score)

    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(space.defaults(NAME))
    allowance = Allowance(space, {NAME: study}, Spending(str(folder)), Places, FOLDS)
    searcher = OptunaSearcher(space, {NAME: study}, place, allowance, Slots(1, 1, {"CPU": 1.0}))
    specs = []
    for number in range(TRIALS):
        proposed = searcher.suggest(str(number))
        assert proposed is not None
        specs.append(TrialSpec(**proposed["trial"]))
        *_, last = trial_epochs(specs[-1], table)
        searcher.on_trial_complete(str(number), last)
    return specs


def rows_of(spec: TrialSpec) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((Path(spec.out) / HISTORY).read_text())
    return rows


def replay(specs: list[TrialSpec], level: float) -> dict[str, Any]:
    """What racing makes of trials that come in this order, one at a time."""
    race = Race(level, FOLDS)
    stopped: dict[int, int] = {}
    for spec in specs:
        for row in rows_of(spec):
            lost = race.lost(spec, row)
            if lost is not None:
                race.drop(spec.number)
                stopped[spec.number] = lost.folds
                break
    scores = {spec.number: rows_of(spec)[-1]["score"] for spec in specs}
    found = max((number for number in scores if number not in stopped), key=lambda number: scores[number])
    best = max(scores, key=lambda number: scores[number])
    return {
        "saved_share": sum(FOLDS - folds for folds in stopped.values()) / (FOLDS * len(specs)),
        "same_winner": found == best,
        "regret": scores[best] - scores[found],
        "stopped": stopped,
        "winner": found,
    }


def live(folder: Path, seed: int) -> dict[str, Any]:
    """The study with racing, by `search`: which trials it stopped after which fold, and its winner."""
    import ray

    from braintum.connect import start_local
    from braintum.training.progress import Progress
    from braintum.tuning.study import search

    if not ray.is_initialized():
        start_local(num_cpus=1)
    out = folder / "live"
    space = space_of(folder, seed, racing={"level": LEVEL})
    summary = search(
        space, str(folder / "data"), str(out), resume=out.exists(), progress=Progress("study", quiet=True)
    )  # fmt: skip
    return {
        "stopped": {trial["trial"]: trial["folds"] for trial in summary["racing"]["stopped"]},
        "winner": summary["best"][NAME]["trial"],
        "saved_share": summary["racing"]["epochs"]["saved"] / summary["racing"]["epochs"]["all"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--live", type=int, default=2)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    replays: dict[float, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    shuffled: dict[float, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    spread, lives = [], []
    for seed in range(asked.seeds):
        folder = asked.out.resolve() / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        specs = train(folder, seed)
        scores = sorted(rows_of(spec)[-1]["score"] for spec in specs)
        spread.append({"best": scores[-1], "second": scores[-2], "median": statistics.median(scores)})
        draw = random.Random(seed)
        orders = [draw.sample(specs, len(specs)) for _ in range(ORDERS)]
        for level in LEVELS:
            replays[level].append(replay(specs, level))
            shuffled[level] += [replay(order, level) for order in orders]
        print(seed, json.dumps(spread[-1]), json.dumps(replays[LEVEL][-1]), flush=True)
        if seed < asked.live:
            found = live(folder, seed)
            lives.append({"seed": seed, **found, "as_replayed": found.items() <= replays[LEVEL][-1].items()})
            print(seed, json.dumps(lives[-1]), flush=True)
    results = {
        "level": LEVEL,
        **summary(replays[LEVEL]),
        "live_as_replayed": all(one["as_replayed"] for one in lives),
        "at_level": {str(level): summary(found) for level, found in replays.items()},
        "at_level_in_other_orders": {str(level): summary(found) for level, found in shuffled.items()},
        "trials": TRIALS,
        "folds": FOLDS,
        "epochs_a_fold": EPOCHS,
        "seeds": [
            {"scores": of_seed, **{key: found[key] for key in ("saved_share", "same_winner", "regret", "stopped")}}
            for of_seed, found in zip(spread, replays[LEVEL], strict=True)
        ],
        "live": lives,
    }
    record("racing", results, f"python benchmarks/racing.py --seeds {asked.seeds} --live {asked.live} --out DIR")


def summary(replays: list[dict[str, Any]]) -> dict[str, float]:
    """Means over replays."""
    return {
        "saved_share": statistics.mean(one["saved_share"] for one in replays),
        "same_winner_share": statistics.mean(one["same_winner"] for one in replays),
        "regret": statistics.mean(one["regret"] for one in replays),
        "regret_max": max(one["regret"] for one in replays),
    }


if __name__ == "__main__":
    main()
