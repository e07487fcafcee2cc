"""What a search left, as rows: trials and epochs.

Read from Optuna's storage and the trials' directories; needs neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from braintum import storage
from braintum.tuning.parts import COSTS

Records = list[dict[str, Any]]
SPEC = "spec"
"""Optuna's user attribute that holds a trial's TrialSpec."""
LOST = "lost"
"""The one of a trial that racing stopped: the fields of `racing.Lost`."""
WARM_START = "warm_start"
"""The one of a trial that another study trained: that study, and the trial in it. It only teaches the sampler."""
REPEATS = "repeats"
"""The one of a proposal that was not trained, as another trial of the study has its settings: that trial's number."""
OBJECTIVES = "objectives"
"""That of a complete trial where the space has objectives: what it came to in each of them that it has."""
PLACED = "placed"
"""The one that holds when a trial was placed, and placed again by drivers that resumed: wall-clock seconds."""
ALONE = "alone"
"""That of a trial that was out of memory beside others on its GPU: it has one to itself from then on."""
RECORD = "study.json"
"""The file in a study's directory that says what it is, and the attribute of its Optuna studies that says the same."""
HISTORY = "history.json"
"""The file in a trial's directory that has a row per epoch."""
TRIAL_COLUMNS = (
    "study", "number", "architecture", "state", "score", "epochs", "folds_done", "seconds", "params", "metrics",
    "lost_to", "failure", "directory", "start", "end", "placed",
)  # fmt: skip
"""Of `trials.parquet`, which a comparison leaves empty."""
HISTORY_COLUMNS = ("run", "architecture", "epoch", "score")
"""Of `history.parquet`, the least."""
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def own_trials(study: Study, *states: TrialState) -> list[FrozenTrial]:
    """The trials that a study trains, in these states (any, if none is named)."""
    return [trial for trial in study.get_trials(deepcopy=False, states=states or None) if is_own(trial)]


def is_own(trial: FrozenTrial) -> bool:
    """Whether its study trains it: not one that was taken from another study, nor a proposal that was known."""
    return not trial.user_attrs.keys() & {WARM_START, REPEATS}


def trials_and_history(studies: dict[str, Study], out: str) -> tuple[Records, Records]:
    """`trials.parquet`, a row per trial (`score` is a selection score), and `history.parquet`, a row per epoch.

    `out` is the study's directory. `metrics` of a trial that finished all folds: see `metrics_of`; `lost_to`: the
    number of the trial by which racing stopped it; `placed`: see PLACED.
    """
    trials: Records = []
    epochs: Records = []
    for name, study in studies.items():
        for trial in own_trials(study):
            if SPEC not in trial.user_attrs:
                continue
            architecture = json.loads(trial.user_attrs[SPEC])["architecture"]
            directory = storage.join(out, "trials", f"{name}-{trial.number}")
            place = storage.join(directory, HISTORY)
            rows = storage.read_json(place) if storage.exists(place) else []
            about = {"run": f"{architecture}-{trial.number}", "architecture": architecture}
            epochs += [{**about, **row} for row in rows]
            epoch = max(trial.intermediate_values, default=0)
            complete = trial.state is TrialState.COMPLETE
            trials.append(
                {
                    "study": name,
                    "number": trial.number,
                    "architecture": architecture,
                    "state": _STATES.get(trial.state, "open"),
                    "score": trial.intermediate_values.get(epoch),
                    "epochs": epoch,
                    "folds_done": rows[-1]["folds_done"] if rows else 0,
                    "seconds": trial.duration.total_seconds() if trial.duration else None,
                    "params": json.dumps(trial.params),
                    "metrics": json.dumps(metrics_of(rows) if complete else {}),
                    "lost_to": trial.user_attrs.get(LOST, {}).get("to"),
                    "failure": trial.user_attrs.get("failure"),
                    "directory": directory,
                    "start": trial.datetime_start,
                    "end": trial.datetime_complete,
                    "placed": trial.user_attrs.get(PLACED),
                }
            )
    return trials, epochs


def metrics_of(rows: Records) -> dict[str, float]:
    """Selection metrics, means over folds by the weights that each fold kept, and COSTS, which were measured once."""
    last = {row["fold"]: row["kept_epoch"] for row in rows}
    kept = [row for row in rows if row["epoch_in_fold"] == last[row["fold"]]]
    names = [name for name in rows[0] if name.startswith("selection_")] if rows else []
    means = {
        name.removeprefix("selection_"): sum(row[name] for row in kept) / len(kept)
        for name in names
        if all(name in row for row in kept)
    }
    return means | {cost: row[cost] for row in rows[-1:] for cost in COSTS if cost in row}


def best_trials(studies: Mapping[str, Study]) -> dict[str, FrozenTrial]:
    """The complete trial with the best selection score, of each architecture that has one."""
    best: dict[str, FrozenTrial] = {}
    for study in studies.values():
        for trial in own_trials(study, TrialState.COMPLETE):
            name = json.loads(trial.user_attrs[SPEC])["architecture"]
            if name not in best or (trial.value or 0.0) > (best[name].value or 0.0):
                best[name] = trial
    return best


def ended_by_state(studies: Mapping[str, Study]) -> dict[str, int]:
    """How many trials are complete, pruned and failed."""
    states = [trial.state for study in studies.values() for trial in own_trials(study)]
    return {name: states.count(state) for state, name in _STATES.items()}


def counts(trials: Records) -> dict[str, int]:
    states = [trial["state"] for trial in trials]
    return {state: states.count(state) for state in _STATES.values()}
