"""What a result directory holds, read back: a run, a cross-validation, a study or a nested study."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count, takewhile
from typing import Any, Literal, TypeVar

import pyarrow as pa

from braintum import storage
from braintum.data.schema import NAME, DataError
from braintum.data.shards import filesystem
from braintum.evaluation.seeds import Grid, grid, joined, place_of
from braintum.evaluation.summary import summarise
from braintum.tuning.front import RULE, chosen_trials, pareto
from braintum.tuning.importance import importances
from braintum.tuning.location import location_of
from braintum.tuning.records import HISTORY_COLUMNS, SPEC, counts, trials_and_history


@dataclass(frozen=True)
class Entry:
    """One configuration and what it predicted for slices that it was not trained on.

    `about` is its experiment.json: the resolved settings, `fold` and `folds`; of a nested study that of one outer
    fold's winner. `predictions` of several seeds have a column `seed`. `history` has a row per epoch and run.
    """

    name: str
    about: dict[str, Any]
    predictions: pa.Table
    history: pa.Table
    summary: dict[str, Any]

    def metric(self, name: str) -> float | None:
        """The mean over folds."""
        return mean_of(self.summary["over_folds"], name)

    @cached_property
    def scores(self) -> Grid:
        """By metric, every seed's and fold's."""
        return grid(self.predictions)

    @property
    def seeds(self) -> int:
        return len(next(iter(self.scores.values())))


@dataclass(frozen=True)
class Trial:
    """One trial of a study. `score` is a selection score: it chose, it is no result. `epochs`: over all its folds.

    `metrics`: selection metrics and costs of one that finished all folds. `placed`: when it was, wall-clock seconds.
    """

    number: int
    architecture: str
    state: str
    score: float | None
    folds_done: int
    epochs: int
    seconds: float | None
    params: dict[str, Any]
    study: str
    metrics: dict[str, float]
    placed: tuple[float, ...]

    @property
    def name(self) -> str:
        """As `run` in the study's history."""
        return f"{self.architecture}-{self.number}"


@dataclass(frozen=True)
class Study:
    """A search: `history` has a row per trial and epoch (columns run, architecture, epoch, score, began, ended ...)."""

    about: dict[str, Any]
    trials: list[Trial]
    history: pa.Table


Kind = Literal["run", "cross-validation", "study", "nested study"]


@dataclass(frozen=True)
class Results:
    """A result directory. `summary` is its summary.json, `entries` stand best first.

    There is one entry or more, but of a study that has not `finished`: that has the winners that are known and were
    cross-validated, and a summary of what there is. The `study` of a nested one has no trials: they are those of its
    inner studies, each a directory of its own.
    """

    url: str
    kind: Kind
    data_url: str
    data_digest: str
    summary: dict[str, Any]
    entries: list[Entry]
    study: Study | None
    finished: bool = True

    @property
    def name(self) -> str:
        return str(self.study.about["space"]["name"]) if self.study else self.url.rstrip("/").rsplit("/", 1)[-1]


def read_results(url: str) -> Results:
    """Reads a result directory at any fsspec URL. Raises DataError: none there, damaged, or an unfinished training."""
    filesystem(url)  # refuses an unknown protocol
    url = storage.resolve(url)
    is_study = storage.exists(storage.join(url, "study.json"))
    if not is_study and not storage.exists(storage.join(url, "experiment.json")):
        raise DataError(f"{url}: no experiment.json or study.json; give the --out of train, crossval or search")
    finished = storage.exists(storage.join(url, "summary.json"))
    if is_study:
        return _read_study(url) if finished else _read_unfinished(url)
    if not finished:
        raise DataError(f"{url}: not finished, there is no summary.json; go on with --resume, then report")
    return _read_training(url)


def mean_of(over_folds: Mapping[str, Any], metric: str) -> float | None:
    """A metric's mean, where `over_folds` of a summary has it."""
    return over_folds[metric]["mean"] if metric in over_folds else None


def standing(over_folds: Mapping[str, Any]) -> tuple[float, float]:
    """Sorts the best first: by Dice on tumour slices, then by macro F1."""
    dice, f1 = (mean_of(over_folds, metric) for metric in ("dice", "macro_f1"))
    return 1 if dice is None else -dice, 1 if f1 is None else -f1


def _read_training(url: str) -> Results:
    entry = _read_entry(url)
    summary = _read_record(url, "summary.json", "seconds")
    kind: Kind = "cross-validation" if "folds" in summary else "run"
    data = entry.about["data"]
    return Results(url, kind, data["url"], data["digest"], summary, [entry], None)


def _read_study(url: str) -> Results:
    about = _read_record(url, "study.json", *_SPACE, *_DATA)
    if about.get("nested") is not None:
        return _read_nested(url, about)
    summary = _read_record(url, "summary.json", "best", "busy_share", "resources", "seconds", *_COUNTS)
    summary = _read_record(url, "summary.json", *(f"best.{name}.seeds.n" for name in summary["best"]))
    entries = [
        _read_seeds(storage.join(url, "crossval", architecture), architecture, best["seeds"]["n"])
        for architecture, best in summary["best"].items()
    ]
    trials = _read_table(url, "trials.parquet", *_TRIAL_COLUMNS).to_pylist()
    study = Study(about, _trials(trials), _read_table(url, "history.parquet", "run", "epoch", "score"))
    return _results(url, summary, entries, study)


def _read_nested(url: str, about: dict[str, Any]) -> Results:
    summary = _read_record(url, "summary.json", "nested", "resources", "seconds", *_COUNTS)
    entries = []
    for name, found in summary["nested"].items():
        places = [
            storage.join(url, f"outer-{fold}", "crossval", winner["architecture"])
            for fold, winner in found["outer"].items()
        ]
        parts = [_read_seeds(place, name, found["seeds"]["n"]) for place in places]
        predictions, history = (
            pa.concat_tables([getattr(part, table) for part in parts], promote_options="default")
            for table in ("predictions", "history")
        )
        entries.append(Entry(name, parts[0].about, predictions, history, summarise(predictions)))
    return _results(url, summary, entries, Study(about, [], pa.table({})), kind="nested study")


def _read_unfinished(url: str) -> Results:
    """What Optuna's storage and the trials' directories hold of a study that runs, or was stopped."""
    about = _read_record(url, "study.json", *_SPACE, *_DATA)
    if about.get("nested") is not None:
        raise DataError(f"{url}: a nested study that is not finished; go on with --resume, or report its outer-<fold>")
    objectives = about["space"].get("objectives", ())
    try:
        with location_of(url).studies() as studies:
            trials, history = trials_and_history(studies, url)
            best, importance = chosen_trials(objectives, studies, trials), importances(studies)
    except FileNotFoundError as error:
        raise DataError(f"{error}: not there, so the study had not begun, or keeps its trials elsewhere") from None
    except ValueError as error:
        raise DataError(f"{error}; there is nothing to report") from None
    entries = []
    for name in about["space"]["architectures"]:
        part = storage.join(url, "crossval", name)
        seeds = _finished_seeds(part)
        if seeds:
            entry = _read_seeds(part, name, seeds)
            winner = json.loads(best[name].user_attrs[SPEC])["experiment"] if name in best else None
            if not about["space"]["parameters"] or _same_but_seed(entry.about["experiment"], winner):
                entries.append(entry)
    times = [(row["began"], row["ended"]) for row in history]
    summary = {
        "trials": counts(trials),
        "failed": {},
        "busy_share": None,
        "seconds": max(ended for _, ended in times) - min(began for began, _ in times) if times else 0.0,
        "importance": importance,
        **({"pareto": pareto(objectives, trials), "chosen_by": RULE} if objectives else {}),
    }
    rows = pa.Table.from_pylist(history) if history else pa.table({name: [] for name in HISTORY_COLUMNS})
    return _results(url, summary, entries, Study(about, _trials(trials), rows), finished=False)


def _results(
    url: str,
    summary: dict[str, Any],
    entries: list[Entry],
    study: Study,
    *,
    kind: Kind = "study",
    finished: bool = True,
) -> Results:
    ranked = sorted(entries, key=lambda entry: standing(entry.summary["over_folds"]))
    data = study.about["data"]
    return Results(url, kind, data["url"], data["digest"], summary, ranked, study, finished)


def _finished_seeds(url: str) -> int:
    """With how many seeds, from the first on, a winner has been cross-validated."""
    places = (place_of(url, number) for number in count(1))
    return sum(1 for _ in takewhile(lambda place: storage.exists(storage.join(place, "summary.json")), places))


def _same_but_seed(a: dict[str, Any], b: dict[str, Any] | None) -> bool:
    """Whether a cross-validation is of these settings: it has a seed of its own."""
    seeds = [{**of, "training": {**of["training"], "seed": None}} for of in (a, b) if of is not None]
    return len(seeds) == 2 and seeds[0] == seeds[1]


def _trials(rows: list[dict[str, Any]]) -> list[Trial]:
    return [
        Trial(
            **{name: row[name] for name in _TRIAL_COLUMNS if name != "params"},
            params=json.loads(row["params"]),
            metrics=json.loads(row.get("metrics") or "{}"),  # studies of earlier versions have neither
            placed=tuple(row.get("placed") or ()),
        )
        for row in rows
    ]


_DATA = ("data.url", "data.digest")
_COUNTS = ("trials.complete", "trials.pruned", "trials.failed")
_SPACE = ("space.name", "space.architectures", "space.parameters", "space.scheduler")
_TRIAL_COLUMNS = ("study", "number", "architecture", "state", "score", "folds_done", "epochs", "seconds", "params")
_PREDICTION_COLUMNS = (
    "fold", "slice_id", "case_id", "group", "label", "predicted", "has_tumour", "dice", "iou", "pixel_accuracy",
    "hd", "hd95", "hd_unit", "false_mask", "both_right", "mask_png",
)  # fmt: skip


def _read_entry(url: str) -> Entry:
    about = _read_record(url, "experiment.json", "experiment.model.name", "fold", "folds", *_DATA)
    predictions = _read_table(url, "predictions.parquet", *_PREDICTION_COLUMNS)
    history = _read_table(url, "history.parquet", "architecture")
    name = str(about["experiment"]["model"]["name"])
    if not NAME.fullmatch(name):  # files of the report are called by it
        raise DataError(f"{storage.join(url, 'experiment.json')}: model.name: {name!r} is no architecture")
    return Entry(name, about, predictions, history, summarise(predictions))


def _read_seeds(url: str, name: str, seeds: int) -> Entry:
    """A study's winner, by what its space calls it, as trained with each seed."""
    if not re.fullmatch(r"[\w-]+", name):  # files of the report are called by it
        raise DataError(f"{url}: {name!r} is no architecture")
    parts = [_read_entry(place_of(url, number)) for number in range(1, seeds + 1)]
    predictions = joined([part.predictions for part in parts])
    history = pa.concat_tables([part.history for part in parts], promote_options="default")
    return Entry(name, parts[0].about, predictions, history, summarise(predictions))


_T = TypeVar("_T")


def _read(reader: Callable[[str], _T], url: str, file: str) -> _T:
    """Raises DataError for a file that is missing or damaged."""
    place = storage.join(url, file)
    try:
        return reader(place)
    except (OSError, ValueError) as error:  # Arrow's and JSON's errors are ValueErrors
        raise DataError(f"{place}: cannot be read, so there is nothing to report: {error}") from None


def _read_record(url: str, file: str, *paths: str) -> dict[str, Any]:
    """A JSON object that has these dotted paths. Raises DataError, also for one that lacks them."""
    record = _read(storage.read_json, url, file)
    for path in paths:
        found = record
        for name in path.split("."):
            if not isinstance(found, dict) or name not in found:
                raise DataError(f"{storage.join(url, file)}: {path} is not there: damaged, or of another version")
            found = found[name]
    return dict(record)


def _read_table(url: str, file: str, *columns: str) -> pa.Table:
    """A table that has these columns. Raises DataError, also for one that lacks them."""
    table = _read(storage.read_table, url, file)
    for column in columns:
        if column not in table.schema.names:
            raise DataError(f"{storage.join(url, file)}: no column {column!r}: damaged, or of another version")
    return table
