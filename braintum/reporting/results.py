"""What a result directory holds, read back: a run, a cross-validation or a study."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from braintum import storage
from braintum.data.schema import DataError
from braintum.evaluation.summary import summarise


@dataclass(frozen=True)
class Entry:
    """One configuration and what it predicted for slices that it was not trained on.

    `history` has a row per epoch and fold; `experiment` are the resolved settings.
    """

    name: str
    experiment: dict[str, Any]
    predictions: pa.Table
    history: pa.Table
    summary: dict[str, Any]

    def metric(self, name: str) -> float | None:
        """The mean over folds."""
        found = self.summary["over_folds"].get(name)
        return None if found is None else found["mean"]


@dataclass(frozen=True)
class Trial:
    """One trial of a study. `score` is a selection score: it chose, it is no result. `epochs`: over all its folds."""

    number: int
    architecture: str
    state: str
    score: float | None
    folds_done: int
    epochs: int
    seconds: float | None
    params: dict[str, Any]

    @property
    def name(self) -> str:
        """As `run` in the study's history."""
        return f"{self.architecture}-{self.number}"


@dataclass(frozen=True)
class Study:
    """A search: `history` has a row per trial and epoch (columns run, architecture, epoch, score, ...)."""

    about: dict[str, Any]
    summary: dict[str, Any]
    trials: list[Trial]
    history: pa.Table


@dataclass(frozen=True)
class Results:
    """A result directory. Entries are ranked: best Dice on tumour slices first, then best macro F1."""

    url: str
    kind: Literal["run", "cross-validation", "study"]
    data_url: str
    data_digest: str
    entries: list[Entry]
    study: Study | None

    @property
    def name(self) -> str:
        return str(self.study.about["space"]["name"]) if self.study else self.url.rstrip("/").rsplit("/", 1)[-1]


def read_results(url: str) -> Results:
    """Reads a result directory at any fsspec URL. Raises DataError where there is none, or an unfinished one."""
    if storage.exists(storage.join(url, "study.json")):
        return _read_study(url)
    if not storage.exists(storage.join(url, "experiment.json")):
        raise DataError(f"{url}: no experiment.json or study.json; give the --out of train, crossval or search")
    if not storage.exists(storage.join(url, "summary.json")):
        raise DataError(f"{url}: not finished, there is no summary.json; go on with --resume, then report")
    entry = _read_entry(url, None)
    kind: Literal["run", "cross-validation"] = "run" if _is_run(url) else "cross-validation"
    data = storage.read_json(storage.join(url, "experiment.json"))["data"]
    return Results(url, kind, data["url"], data["digest"], [entry], None)


def _read_study(url: str) -> Results:
    about = storage.read_json(storage.join(url, "study.json"))
    if not storage.exists(storage.join(url, "summary.json")):
        raise DataError(f"{url}: not finished, there is no summary.json; go on with --resume, then report")
    summary = storage.read_json(storage.join(url, "summary.json"))
    entries = [
        _read_entry(storage.join(url, "crossval", architecture), architecture)
        for architecture in summary["best"]
        if storage.exists(storage.join(url, "crossval", architecture, "summary.json"))
    ]
    trials = [
        Trial(**{**row, "params": json.loads(row["params"])})
        for row in storage.read_table(storage.join(url, "trials.parquet")).select(_TRIAL_COLUMNS).to_pylist()
    ]
    study = Study(about, summary, trials, storage.read_table(storage.join(url, "history.parquet")))
    ranked = sorted(entries, key=lambda entry: (-(entry.metric("dice") or -1), -(entry.metric("macro_f1") or -1)))
    return Results(url, "study", about["data"]["url"], about["data"]["digest"], ranked, study)


_TRIAL_COLUMNS = ["number", "architecture", "state", "score", "folds_done", "epochs", "seconds", "params"]


def _read_entry(url: str, name: str | None) -> Entry:
    experiment = storage.read_json(storage.join(url, "experiment.json"))["experiment"]
    predictions = storage.read_table(storage.join(url, "predictions.parquet"))
    return Entry(
        name or experiment["model"]["name"],
        experiment,
        predictions,
        storage.read_table(storage.join(url, "history.parquet")),
        summarise(predictions),
    )


def _is_run(url: str) -> bool:
    """A run's summary names its one fold; a cross-validation's has all of them."""
    return "folds" not in storage.read_json(storage.join(url, "summary.json"))
