"""The study that tests run: tiny networks, two architectures, three trials each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import yaml
from tiny import TINY

from braintum.tuning.space import SearchSpace

SMALL: dict[str, Any] = {
    "name": "tiny",
    "architectures": ["unet", "joint_unet"],
    "base": "fast",
    "overrides": {**TINY, "training.epochs": 3},
    "folds": 2,
    "trials": 6,
    "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 2},
    "parameters": {"optim.lr": {"log_uniform": [1e-5, 1e-2]}},
}


def space(folder: Path, **changes: Any) -> SearchSpace:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return SearchSpace.load(file)


def studies_of(out: Path) -> dict[str, optuna.Study]:
    url = f"sqlite:///{out}/optuna.db"
    return {name: optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)}


def command(folder: Path, data: str, out: Path | str) -> list[str]:
    file = folder / "space.yaml"
    return [
        sys.executable,
        "-m",
        "braintum.cli",
        "search",
        str(file),
        "--data",
        data,
        "--out",
        str(out),
        "--json",
    ]


def outcome(out: Path) -> list[tuple[Any, ...]]:
    """What a study found, trial by trial."""
    return [
        (name, trial.number, trial.state.name, trial.params, trial.intermediate_values)
        for name, study in sorted(studies_of(out).items())
        for trial in study.trials
    ]


def rows_of(trial: Path) -> list[dict[str, Any]]:
    """A trial's epochs so far, with the times at which they were trained."""
    file = trial / "history.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return rows
