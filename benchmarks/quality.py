"""How good is what a search has found after so many seconds: braintum with and without racing, and two of Tune's ways.

    python benchmarks/quality.py --out out/quality [--seeds 4] [--seconds 160]
    python benchmarks/quality.py --out out/quality_cheng --cheng PATH [--seeds 2] [--seconds 300]

On two cores, two trials at a time, slices of 64×64 and 8 channels, over learning rate, weight decay, attention, norm,
dropout, loss and its weights, augmentation. Each arm is a process of its own that is interrupted after `--seconds`,
counted from its start:

- `racing`: braintum's `search` with TPE, ASHA and fold racing; `no_racing`: the same without.
- `documented` and `random`: see `search_peers.py`.

All have the same space, folds, first trial (the base's own settings, with the U-Net paper's learning rate, which is far
too small for eight epochs) and, but for `random`, ASHA with a rung after the first fold. At any time an arm's best is,
of the trials with the most finished folds, that of the highest mean score over them. Selection scores reward luck, so
they are not compared: every setting that was best at some time is trained on all slices of the search with fresh seeds,
and scored on slices that no search has seen (a phantom: other cases; `--cheng`, a folder as `braintum ingest folder`
takes it: its last fold, so that seeds differ in what was searched and trained, not in what is scored).

Score: half Dice, half macro F1. What is compared first, `mean_from_first`: the mean over time, from when every arm of
that seed has a score. Beside it the score at four times (an arm that has none yet counts as 0) and
`first_score_seconds`. Each seed draws its own phantom set; gaps are of the same seed's, with 95 % intervals over the
seeds (Student's t), and `exceeds` says whether a gap is larger than its interval. The same command goes on where it was
stopped; a folder of another commit, space or time is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import yaml
from record import CODE_BEFORE, RESULTS, record
from scipy.stats import t as student
from search_peers import SLOTS, Places, by_braintum, by_tune

from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import load_table
from braintum.tuning.records import HISTORY
from braintum.tuning.samplers import seed_of

ARMS = ("racing", "no_racing", "documented", "random")
CASES, TEST_CASES, SLICES_A_CASE = 24, 60, 4
FRESH = 3
"""Seeds that a setting is trained with anew."""
TIMES = (0.25, 0.5, 0.75, 1.0)
"""Of the whole: when the arms are compared."""
SPACE: dict[str, Any] = {
    "name": "quality",
    "architectures": ["joint_unet"],
    "base": "fast",
    "overrides": {
        "data.image_size": 64, "model.width": 8, "model.depth": 4, "training.epochs": 8, "training.half_size": 0,
        "training.batch_size": 4, "training.average_decay": 0.9, "training.device": "cpu",
        "training.precision": "float32", "optim.lr": 1e-4,
    },
    "folds": 3,
    "trials": 10_000,
    "scheduler": {"name": "asha", "grace_epochs": 8, "reduction": 3},
    "parameters": {
        "optim.lr": {"log_uniform": [1e-4, 3e-2]},
        "optim.weight_decay": {"log_uniform": [1e-5, 1e-1]},
        "model.attention": {"choice": ["none", "gate", "cbam", "se"]},
        "model.norm": {"choice": ["instance", "batch"]},
        "model.dropout": {"uniform": [0.0, 0.6]},
        "loss.segmentation": {"choice": ["bce_dice", "dice_ce"]},
        "loss.classification_weight": {"log_uniform": [0.1, 3.0]},
        "augment.rotate": {"uniform": [0, 45]},
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=160.0)
    parser.add_argument("--cheng", type=Path)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        by_braintum(asked.out) if asked.arm.endswith("racing") else by_tune(asked.arm, asked.out)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out: Path = asked.out.resolve()
    refuse_other(out, {"space": SPACE, "seconds": asked.seconds, "fresh": FRESH, "code": CODE_BEFORE})
    seeds = []
    for seed in range(asked.seeds):
        kept = out / f"{seed}.json"
        if not kept.exists():
            folder = out / str(seed)
            shutil.rmtree(folder, ignore_errors=True)  # of a seed that was stopped
            curves = of_seed(folder, seed, asked.seconds, asked.cheng)
            kept.write_text(json.dumps(curves))
            shutil.rmtree(folder)
        seeds.append(json.loads(kept.read_text()))
        print(seed, json.dumps({arm: of["points"][-1:] for arm, of in seeds[-1].items()}), flush=True)
    name = "quality" if asked.cheng is None else "quality_cheng"
    results = compared(seeds, asked.seconds)
    draw(results, asked.seconds, RESULTS / f"{name}.png")
    more = "" if asked.cheng is None else " --cheng PATH"
    record(
        name,
        results,
        f"python benchmarks/quality.py --seeds {asked.seeds} --seconds {asked.seconds:g}{more} --out DIR",
    )


def refuse_other(out: Path, about: dict[str, Any]) -> None:
    """Writes down what the seeds in `out` are measured with; stops where they were measured otherwise."""
    place = out / "about.json"
    if not place.exists():
        out.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(about, indent=2))
    if json.loads(place.read_text()) != about:
        sys.exit(f"{out}: was measured otherwise, see about.json; give another --out")


def of_seed(folder: Path, seed: int, seconds: float, cheng: Path | None) -> dict[str, Any]:
    """Each arm's `points`: (seconds, score of its best on slices that it never saw), and how much it trained."""
    folder.mkdir(parents=True)
    make_data(folder, seed, cheng)
    order = ARMS[seed % len(ARMS) :] + ARMS[: seed % len(ARMS)]
    found = {arm: run_arm(folder / arm, arm, seed, seconds) for arm in order}
    settings = {json.dumps(values, sort_keys=True) for arm in found.values() for _, values in arm["bests"]}
    with ProcessPoolExecutor(SLOTS, get_context("spawn")) as pool:
        scores = dict(pool.map(retrained, [(folder, seed, one) for one in sorted(settings)]))
    return {
        arm: {
            "points": [(when, scores[json.dumps(values, sort_keys=True)]) for when, values in of.pop("bests")],
            **of,
        }
        for arm, of in found.items()
    }


def make_data(folder: Path, seed: int, cheng: Path | None) -> None:
    """`search`: what the arms see. `all`: that, and what they never see."""
    if cheng is None:
        drawn: dict[str, Any] = {"slices_per_case": SLICES_A_CASE, "size": 64, "seed": seed}
        ingest_phantom(str(folder / "search"), cases=CASES, **drawn)
        ingest_phantom(str(folder / "all"), cases=CASES + TEST_CASES, **drawn)
        return
    shared = folder.parent / "cheng"
    if not (shared / "search" / "card.json").exists():
        ingest_cheng(cheng, shared)
    for name in ("search", "all"):
        (folder / name).symlink_to(shared / name)


def ingest_cheng(source: Path, target: Path) -> None:
    """All of it, and all but its last fold: pictures are linked into folders of their own."""
    import csv

    with (source / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = max(row["fold"] for row in rows)
    for name, kept in (("all", rows), ("search", [row for row in rows if row["fold"] != last])):
        pictures = target / f"{name}_pictures"
        for place in (row[kind] for row in kept for kind in ("image", "mask")):
            (pictures / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / place, pictures / place)
        with (pictures / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(kept)
        command = [sys.executable, "-m", "braintum", "ingest", "folder", str(pictures), "--out", str(target / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(pictures)


def run_arm(folder: Path, arm: str, seed: int, seconds: float) -> dict[str, Any]:
    """Runs an arm for so long. `bests`: when which settings became its best."""
    folder.mkdir()
    (folder / "data").symlink_to(folder.parent / "search")
    racing = {"racing": {"level": 0.05}} if arm == "racing" else {}
    space = {**SPACE, "sampler": {"name": "tpe", "seed": seed}, **racing}
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    began = time.time()
    command = [sys.executable, __file__, "--arm", arm, "--out", str(folder)]
    child = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    assert child.poll() is None, f"{arm} ended with {child.returncode}"
    family = [child, *child.children(recursive=True)]
    os.kill(child.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=5)
    for process in alive:
        process.kill()
    runs = [(rows, values) for rows, values in trials_of(folder, arm)]
    ended = [row for rows, _ in runs for row in rows if row["ended"] <= began + seconds]
    return {
        "bests": list(bests_of(runs, began, seconds)),
        "trials": len(runs),
        "finished": sum(row["finished"] for row in ended),
        "epochs": len(ended),
        "first_step_seconds": min(row["began"] for rows, _ in runs for row in rows) - began,
    }


def trials_of(folder: Path, arm: str) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Every trial's rows and values."""
    if not arm.endswith("racing"):
        for place in sorted(folder.glob(f"trials/*/{HISTORY}")):
            yield json.loads(place.read_text()), json.loads((place.parent / "values.json").read_text())
        return
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study/optuna.db")
    for trial in study.get_trials():
        place = folder / "study" / "trials" / f"joint_unet-{trial.number}" / HISTORY
        if place.exists():
            yield json.loads(place.read_text()), trial.params


def bests_of(
    runs: list[tuple[list[dict[str, Any]], dict[str, Any]]], began: float, seconds: float
) -> Iterator[tuple[float, dict[str, Any]]]:
    """When another trial became the best, and its values. Only the end of a fold counts: then `score` is their mean."""
    events = [(row["ended"] - began, number, row) for number, (rows, _) in enumerate(runs) for row in rows]
    latest: dict[int, tuple[int, float]] = {}
    best = None
    for when, number, row in sorted(events, key=lambda event: event[0]):
        if when > seconds:
            return
        if row["folds_done"] == latest.get(number, (0, 0.0))[0]:
            continue
        latest[number] = row["folds_done"], row["score"]
        now = max(latest, key=lambda trial: latest[trial])
        if now != best:
            best = now
            yield when, runs[now][1]


def retrained(job: tuple[Path, int, str]) -> tuple[str, float]:
    """The mean score of settings on the slices that no search has seen, over trainings with fresh seeds."""
    import torch

    from braintum.evaluation.predict import selection_metrics
    from braintum.training.device import keep_freed_memory
    from braintum.training.fit import Fit, score

    folder, seed, settings = job
    torch.set_num_threads(1)
    keep_freed_memory()
    places = Places(folder / "racing")
    scores = []
    for number in range(FRESH):
        values = {**json.loads(settings), "training.seed": seed_of(seed, "fresh", number)}
        experiment = places.space.experiment(places.name, values)
        seen, whole = (load_table(str(folder / name), experiment.data) for name in ("search", "all"))
        known = set(seen.slice_id_R)
        is_test_R = np.array([slice_id not in known for slice_id in whole.slice_id_R])
        fit = Fit(experiment, whole, np.flatnonzero(~is_test_R))
        for _ in fit:
            pass
        scores.append(
            score(selection_metrics(fit.scores_of(np.flatnonzero(is_test_R)), whole.classes), places.space.score)
        )
    return settings, statistics.mean(scores)


def compared(seeds: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Scores over time and paired gaps to `racing`, with intervals over the seeds."""

    def at(arm: dict[str, Any], when: float) -> float:
        return next((score for since, score in reversed(arm["points"]) if since <= when), 0.0)

    def mean_from_first(seed: dict[str, Any], arm: str) -> float:
        first = max(first_score(of, seconds) for of in seed.values())
        return statistics.mean(at(seed[arm], when) for when in np.linspace(first, seconds, 200))

    measures: dict[str, Callable[[dict[str, Any], str], float]] = {
        "mean_from_first": mean_from_first,
        **{
            f"at_{share * seconds:g}_s": lambda seed, arm, share=share: at(seed[arm], share * seconds)
            for share in TIMES
        },
        "first_score_seconds": lambda seed, arm: first_score(seed[arm], seconds),
    }  # fmt: skip
    by = {name: {arm: [of(seed, arm) for seed in seeds] for arm in ARMS} for name, of in measures.items()}
    gaps = {
        name: {
            arm: interval([a - b for a, b in zip(of["racing"], of[arm], strict=True)])
            for arm in ARMS if arm != "racing"
        }
        for name, of in by.items()
    }  # fmt: skip
    for gap in (gap for of in gaps.values() for gap in of.values() if "interval" in gap):
        gap["exceeds"] = abs(gap["mean"]) > gap["interval"]
    grid = np.linspace(0, seconds, 61)
    return {
        "racing_minus": gaps,
        "scores": {name: {arm: interval(of[arm]) for arm in ARMS} for name, of in by.items()},
        "trained": {
            arm: {
                key: statistics.mean(seed[arm][key] for seed in seeds)
                for key in ("trials", "finished", "epochs", "first_step_seconds")
            }
            for arm in ARMS
        },
        "curves": {
            arm: [[float(when), statistics.mean(at(seed[arm], when) for seed in seeds)] for when in grid]
            for arm in ARMS
        },
        "seeds": seeds,
    }


def first_score(arm: dict[str, Any], seconds: float) -> float:
    """When an arm had a score for the first time; never: at the end."""
    return float(arm["points"][0][0]) if arm["points"] else seconds


def interval(values: list[float]) -> dict[str, Any]:
    """The mean, and half the width of its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return {"mean": mean}
    return {
        "mean": mean,
        "interval": float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5,
    }


def draw(results: dict[str, Any], seconds: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for arm in ARMS:
        when, score = zip(*results["curves"][arm], strict=True)
        (line,) = axes.step(when, score, where="post", label=arm.replace("_", " "))
        for seed in results["seeds"]:
            points = [(0.0, 0.0), *seed[arm]["points"]]
            times, scores = zip(*points, (seconds, points[-1][1]), strict=True)
            axes.step(times, scores, where="post", color=line.get_color(), alpha=0.2, linewidth=0.7)
    axes.set(xlabel="seconds since the start", ylabel="score on slices never seen", xlim=(0, seconds))
    axes.legend(title=f"mean of {len(results['seeds'])} seeds")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
