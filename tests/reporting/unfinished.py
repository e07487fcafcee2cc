"""A study's directory as it is in the middle of a search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from braintum import storage
from braintum.tuning.records import HISTORY, PLACED, SPEC


def write_unfinished(study: Path, out: Path) -> dict[str, optuna.Study]:
    """Writes to `out` what is in a finished study before that: a complete, a stopped and an open trial of each.

    The settings of the complete ones are those of its winners, of which one has been cross-validated.
    """
    shutil.copytree(study, out, ignore=shutil.ignore_patterns("report", "*.parquet", "summary.json", "crossval"))
    names = [path.name for path in sorted((study / "crossval").iterdir())]
    studies = {}
    for name in names:
        studies[name] = optuna.create_study(storage=f"sqlite:///{out}/optuna.db", study_name=name, direction="maximize")
        settings = storage.read_json(str(study / "crossval" / name / "experiment.json"))["experiment"]
        for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)):
            tell_trial(studies[name], out, number, settings, state)
    shutil.copytree(study / "crossval" / "unet", out / "crossval" / "unet")
    return studies


def tell_trial(
    study: optuna.Study, out: Path, number: int, settings: dict[str, Any], state: TrialState, score: float = 0.4
) -> None:
    """Leaves what the search would: a trial in Optuna's storage, and its epochs in its directory."""
    name, placed = study.study_name, 1e9 + 10 * number
    experiment = {**settings, "training": {**settings["training"], "seed": number}}
    study.add_trial(create_trial(
        state=state, value=score if state.is_finished() else None, intermediate_values={1: 0.3, 2: score},
        params={"optim.lr": 10.0 ** (-1 - number)}, distributions={"optim.lr": FloatDistribution(1e-9, 1.0, log=True)},
        user_attrs={SPEC: json.dumps({"architecture": name, "experiment": experiment}), PLACED: [placed]},
    ))  # fmt: skip
    rows = [
        {"epoch": epoch, "score": 0.3, "fold": "1", "folds_done": 0, "epoch_in_fold": epoch, "kept_epoch": epoch,
         "began": placed + epoch, "ended": placed + epoch + 0.9, "selection_dice": 0.4}
        for epoch in (1, 2)
    ]  # fmt: skip
    storage.write_json(str(out / "trials" / f"{name}-{number}" / HISTORY), rows)
