"""Winners trained with several seeds, on real Ray: what is finished is read, and every seed is in the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import SMALL
from tiny import TINY, interrupted_when, quiet

from braintum import storage
from braintum.evaluation.summary import summarise
from braintum.reporting.html import report
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def compared(folder: Path, **changes: Any) -> SearchSpace:
    """Two settings of one architecture, as in an ablation."""
    kept = {field: value for field, value in SMALL.items() if field not in ("parameters", "trials", "scheduler")}
    file = folder / "space.yaml"
    entries = {"joint_unet": {}, "slow": {"model.name": "joint_unet", "optim.lr": 1e-6}}
    settings = {**kept, "architectures": entries, "overrides": {**TINY, "training.epochs": 1}, **changes}
    file.write_text(yaml.safe_dump(settings))
    return SearchSpace.load(file)


def test_more_seeds_go_on_from_one_and_are_told_apart(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    alone = search(compared(tmp_path), tiny_phantom, str(out), progress=quiet())
    assert alone["best"]["slow"]["seeds"]["n"] == 1
    asked = compared(tmp_path, seeds=3)
    trained = out / "crossval" / "joint_unet" / "seed-2" / "fold-1" / "summary.json"
    with pytest.raises(KeyboardInterrupt), interrupted_when(trained.exists):
        search(asked, tiny_phantom, str(out), resume=True, progress=quiet())
    assert not (out / "crossval" / "slow" / "seed-2").exists(), "it was stopped before the next architecture"
    times = {file: file.stat().st_mtime_ns for file in out.rglob("fold-*/summary.json")}
    assert len(times) >= 5, "two folds of two architectures, and one of another seed"
    summary = search(asked, tiny_phantom, str(out), resume=True, progress=quiet())
    assert times == {file: file.stat().st_mtime_ns for file in times}, "no training is repeated"
    assert len(list(out.rglob("fold-*/summary.json"))) == 2 * 2 * 3
    numbers = {
        storage.read_json(str(file))["experiment"]["training"]["seed"]
        for file in (out / "crossval" / "slow").rglob("experiment.json")
    }
    assert len(numbers) == 3, "seeds of their own"
    predictions = storage.read_table(str(out / "predictions.parquet"))
    assert set(predictions["seed"].to_pylist()) == {1, 2, 3}
    assert len(predictions) == 2 * 3 * 48
    best = summary["best"]["joint_unet"]
    of_it = predictions.slice(0, 3 * 48)
    assert best["crossval"] == summarise(of_it)["over_folds"]
    assert best["seeds"]["over_seeds"]["dice_all"]["n"] == 3
    assert best["seeds"]["over_runs"]["dice_all"]["n"] == 6
    assert search(asked, tiny_phantom, str(out), resume=True, progress=quiet()) == summary
    report(str(out))
    tables = {file.stem for file in (out / "report" / "tables").glob("*.csv")}
    assert {"seeds", "leads", "metrics_joint_unet", "metrics_slow"} <= tables
    assert yaml.safe_load((out / "report" / "space.yaml").read_text())["seeds"] == 3
