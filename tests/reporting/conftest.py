"""Result directories made by really training very small networks on a phantom set."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml

from braintum import storage
from braintum.config import Experiment
from braintum.data.folds import held_out_folds
from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import SliceTable, load_table
from braintum.evaluation.seeds import grid, spread
from braintum.evaluation.summary import summarise
from braintum.reporting.html import report
from braintum.training.run import RunSpec, about_run, prepare_out, run
from braintum.tuning.front import RULE
from braintum.tuning.space import SearchSpace

FOLDS, EPOCHS = 2, 2
ARCHITECTURES = ("unet", "joint_unet", "classifier")
SPACE = {
    "name": "three_small_ones", "architectures": list(ARCHITECTURES), "base": "fast", "folds": FOLDS, "trials": 15,
    "overrides": {"data.image_size": 32, "model.depth": 4, "optim.clip_norm": None}, "scheduler": {"name": "none"},
    "resources": {"max_concurrent": 1},
    "parameters": {
        "optim.lr": {"log_uniform": [1e-4, 1.0]},
        "loss.segmentation": {"choice": ["bce_dice", "dice_ce"], "when": {"tasks": ["segmentation", "both"]}},
        "model.depth": {"int": [1, 2], "when": {"model.name": "unet"}},
    },
}  # fmt: skip

IMPORTANCE = {
    "trials": 5, "best": 3,
    "parameters": {
        "optim.lr": {"importance": 0.7, "low": 0.4, "high": 0.9},
        "loss.segmentation": {"importance": 0.3, "low": 0.1, "high": 0.6},
    },
}  # fmt: skip


def small(architecture: str) -> Experiment:
    width = {"model.width": 4, "model.depth": 2, "model.norm": "instance"}
    return Experiment.load(
        None,
        {"model.name": architecture, **width, "data.image_size": 32, "optim.lr": 1e-2, "training.epochs": EPOCHS,
         "training.precision": "float32", "training.device": "cpu"},
    )  # fmt: skip


def write_run(experiment: Experiment, data_url: str, table: SliceTable, out: str, fold: str | None) -> None:
    spec = RunSpec.of(experiment, data_url, out, fold, FOLDS if fold else None)
    prepare_out(spec.out, about_run(spec, table.digest), resume=False)
    for _ in run(spec, table):
        pass


def write_crossval(experiment: Experiment, data_url: str, table: SliceTable, out: str) -> None:
    names = list(held_out_folds(table, FOLDS, seed=0))
    parts = [storage.join(out, f"fold-{name}") for name in names]
    for name, part in zip(names, parts, strict=True):
        write_run(experiment, data_url, table, part, name)
    for file in ("history.parquet", "predictions.parquet"):
        joined = pa.concat_tables([storage.read_table(storage.join(part, file)) for part in parts])
        storage.write_table(storage.join(out, file), joined)
    whole = RunSpec.of(experiment, data_url, out, None, FOLDS)
    about = about_run(whole, table.digest)
    storage.write_json(storage.join(out, "experiment.json"), about)
    summary = summarise(storage.read_table(storage.join(out, "predictions.parquet")))
    storage.write_json(
        storage.join(out, "summary.json"),
        summary | {"architecture": experiment.model.name, "seconds": 2.0, "data": about["data"]},
    )


def write_study(data_url: str, table: SliceTable, out: str) -> None:
    data = {"url": data_url, "digest": table.digest}
    file = Path(out).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(SPACE))
    space = SearchSpace.load(file)
    settings = space.model_dump(mode="json", by_alias=True, exclude={"trials", "resources"})
    about = {"space": settings, "digest": space.digest, "data": data}
    storage.write_json(storage.join(out, "study.json"), about)
    trials, history = [], []
    for a, architecture in enumerate(ARCHITECTURES):
        write_crossval(small(architecture), data_url, table, storage.join(out, "crossval", architecture))
        for number in range(5):
            epochs = FOLDS * EPOCHS if number % 2 == 0 else EPOCHS
            scores = [0.3 + 0.05 * a + 0.04 * epoch + 0.01 * number for epoch in range(1, epochs + 1)]
            params = {"optim.lr": 10.0 ** (-number), "loss.segmentation": ["bce_dice", "dice_ce"][number % 2]}
            state = "complete" if number % 2 == 0 else "pruned"
            placed = 1e9 + 20.0 * number
            metrics = {"dice": scores[-1], "macro_f1": 1 - scores[-1]} if state == "complete" else {}
            trials.append(
                {"study": architecture, "number": number, "architecture": architecture, "state": state,
                 "score": scores[-1], "folds_done": epochs // EPOCHS, "epochs": epochs, "seconds": 1.0,
                 "params": json.dumps(params), "metrics": json.dumps(metrics), "placed": [placed]}
            )  # fmt: skip
            history += [
                {"run": f"{architecture}-{number}", "architecture": architecture, "epoch": epoch + 1, "score": score,
                 "began": placed + 4 * epoch + 0.5, "ended": placed + 4 * epoch + 4}
                for epoch, score in enumerate(scores)
            ]  # fmt: skip
    storage.write_table(storage.join(out, "trials.parquet"), pa.Table.from_pylist(trials))
    storage.write_table(storage.join(out, "history.parquet"), pa.Table.from_pylist(history))
    best = {}
    for name in ARCHITECTURES:
        found = storage.read_json(storage.join(out, "crossval", name, "summary.json"))
        moved = spread(grid(storage.read_table(storage.join(out, "crossval", name, "predictions.parquet"))))
        optimism = {"selection": 0.5, "crossval": 0.4, "difference": 0.1}
        result = {"crossval": found["over_folds"], "hd_unit": found["hd_unit"], "seeds": moved, "optimism": optimism}
        best[name] = {"trial": 4, "score": 0.5, "experiment": small(name).to_dict(), **result}
    counts = {"complete": 9, "pruned": 6, "failed": 0}
    versions = {"torch": torch.__version__}
    summary = {
        "trials": counts, "best": best, "busy_share": 0.9, "seconds": 75.0, "data": data, "versions": versions,
        "resources": space.resources.model_dump(mode="json"), "importance": {"unet": IMPORTANCE},
        "pareto": {
            "unet": [
                {"trial": n, "dice": 0.46 + n / 100, "macro_f1": 0.54 - n / 100, "chosen": n == 4} for n in (0, 2, 4)
            ]
        },
        "chosen_by": RULE,
    }  # fmt: skip
    storage.write_json(storage.join(out, "summary.json"), summary)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("report") / "phantom")
    ingest_phantom(url, cases=16, slices_per_case=3, size=48)
    return url


@pytest.fixture(scope="session")
def table(phantom: str) -> SliceTable:
    torch.set_num_threads(1)
    return load_table(phantom, small("unet").data)


@pytest.fixture(scope="session")
def study(phantom: str, table: SliceTable) -> Path:
    out = Path(phantom).parent / "study"
    write_study(phantom, table, str(out))
    return out


@pytest.fixture(scope="session")
def study_report(study: Path) -> Path:
    return Path(report(str(study)))


@pytest.fixture(scope="session")
def crossval(study: Path) -> Path:
    return study / "crossval" / "joint_unet"


@pytest.fixture(scope="session")
def single_run(crossval: Path) -> Path:
    return crossval / "fold-1"


@pytest.fixture(scope="session")
def split_run(phantom: str, table: SliceTable) -> Path:
    """A run that no fold was named for."""
    out = Path(phantom).parent / "split"
    write_run(small("joint_unet"), phantom, table, str(out), None)
    return out
