"""A run: one Experiment trained with one fold held out, and the directory that it leaves.

    OUT/experiment.json  model.safetensors  state.pt  history.parquet  predictions.parquet  summary.json  tensorboard/
        init.json (with model.init_from: the names of the tensors that were taken, left fresh, and not used; which share
        of the weights that is; what the file was trained on, as far as it says)

`state.pt` is written after every epoch; a run that finds one goes on from it. `summary.json` is written last, so that
a directory without it is a run that was never finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Self

import pyarrow as pa
import torch

from braintum import __version__, storage
from braintum.config import Experiment
from braintum.data.folds import Rows, Split, region_counts, split
from braintum.data.schema import Card
from braintum.data.shards import read_card
from braintum.data.table import SliceTable
from braintum.evaluation.predict import prediction_table
from braintum.evaluation.summary import summarise
from braintum.settings import ConfigError
from braintum.training.checkpoint import MODEL, STATE, load_state, save_model, save_state
from braintum.training.events import Events
from braintum.training.fit import Fit, build_model, gathered, refuse_without_targets, usable_rows
from braintum.training.pretrained import initialise
from braintum.training.progress import Progress
from braintum.training.provenance import Provenance, TrainedOn, name_of, provenance_of, refuse_seen

INIT = "init.json"
MOST_TOLD = 5
"""Settings that one message names."""
SHARED = "--out must be storage that every node sees: a shared folder or a URL"


@dataclass(frozen=True)
class RunSpec:
    """What a run is: plain values, so that it travels to workers. `fold` None: the 80/20 split."""

    experiment: dict[str, Any]
    data_url: str
    out: str
    fold: str | None = None
    folds: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, data_url: str, out: str, fold: str | None, folds: int | None = None) -> Self:
        return cls(experiment.to_dict(), storage.resolve(data_url), storage.resolve(out), fold, folds)

    def split(self, table: SliceTable) -> Split:
        """The rows to train on and those held out; the same on every machine."""
        return split(table, self.fold, self.folds, seed=0)


def refuse_at_once(data_url: str, out: str, *, resume: bool) -> Card:
    """What can be refused before a cluster is joined: a dataset without a card, an output that exists.

    Returns the card. Raises DataError or ConfigError.
    """
    card = read_card(data_url)
    refuse_existing(out, resume=resume)
    return card


def refuse_existing(out: str, *, resume: bool) -> None:
    if not resume and storage.exists(out):
        raise ConfigError(f"{out}: exists; choose another --out, or go on with --resume")


def refuse_unusable(spec: RunSpec, table: SliceTable, workers: int) -> None:
    """Raises DataError or ConfigError where the run's split could not be trained on or scored."""
    experiment, rows = Experiment.from_dict(spec.experiment), spec.split(table)
    usable_rows(experiment, table, rows.train, workers)
    refuse_without_targets(experiment, table, rows.held_out, f"held-out{f' (fold {spec.fold})' if spec.fold else ''}")


def say_start(experiment: Experiment, table: SliceTable, progress: Progress, parts: Sequence[Rows] = ()) -> None:
    """Says what a training will take from `model.init_from`, if anything is asked of it.

    `parts`: the rows to train on of every run; none where a training is of all folds in turn. Raises ConfigError where
    the file cannot be read, nothing in it fits, or it may have seen what is held out.
    """
    if experiment.model.init_from is not None:
        with torch.device("meta"):
            network = build_model(experiment, table)
        found = initialise(network, experiment.model, table.image_RCHW.shape[1])
        refuse_seen(found.url, found.trained_on, table, parts)
        progress.say(str(found))


def say_start_of(specs: Sequence[RunSpec], table: SliceTable, progress: Progress) -> None:
    """`say_start` of runs of one Experiment, unless all of them have begun: those no longer need the file."""
    if not all(storage.exists(storage.join(spec.out, STATE)) for spec in specs):
        parts = [spec.split(table).train for spec in specs]
        say_start(Experiment.from_dict(specs[0].experiment), table, progress, parts)


def prepare_out(out: str, about: dict[str, Any], *, resume: bool, record: str = "experiment.json") -> None:
    """Claims an output directory by writing what it will hold.

    Raises ConfigError if it exists and `resume` is not asked for, or if it holds another experiment or dataset. A
    dataset is its digest: one that has moved since is the same, and is recorded where it is now.
    """
    refuse_existing(out, resume=resume)
    found = recorded(out, record)
    if found is not None:
        refuse_another(storage.join(out, record), found, about)
        about = {**found, **about}
    if found != about:
        storage.write_json(storage.join(out, record), about)


def recorded(out: str, record: str) -> dict[str, Any] | None:
    """What an output directory says that it holds; None where there is no directory.

    Raises ConfigError for one that was not begun by the command that writes `record`.
    """
    place = storage.join(out, record)
    if not storage.exists(out):
        return None
    if not storage.exists(place):
        raise ConfigError(f"{place}: not there, so {out} is nothing that can be resumed; choose another --out")
    found: dict[str, Any] = storage.read_json(place)
    return found


def refuse_another(place: str, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raises ConfigError, with what differs, where `place` records another experiment or dataset than `about`.

    A dataset is its digest: where it lies may be another place.
    """
    moved = {**found, "data": {**found.get("data", {}), "url": about["data"]["url"]}}
    told = difference(moved, about)
    if told:
        raise ConfigError(f"{place}: {told}; choose another --out")


def difference(found: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """In which settings one record differs from another, with the values of both; "" where in none.

    Looks at what the second has. What `digest` sums up is mostly told by itself.
    """
    different = [line for key in about for line in _differences(key, found.get(key), about[key])]
    told = [line for line in different if not line.startswith("digest ")] or different
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return ", ".join(told[:MOST_TOLD]) + more


def refuse_unseen(spec: RunSpec, table: SliceTable, world_size: int = 1) -> None:
    """Raises ConfigError, on every worker, where one of them does not find what the driver has claimed (`prepare_out`).

    It would start afresh while others go on, and write where nobody looks.
    """
    place = storage.join(spec.out, "experiment.json")
    seen = gathered(storage.exists(place) and storage.read_json(place) == about_run(spec, table.digest), world_size)
    if not all(seen):
        raise ConfigError(f"{place}: {seen.count(False)} of {world_size} workers do not see the driver's; {SHARED}")


def refuse_unequal(state_url: str, epochs: int, world_size: int) -> None:
    """Raises ConfigError, on every worker, where they read states of different numbers of epochs."""
    found = gathered(epochs, world_size)
    if len(set(found)) > 1:
        raise ConfigError(f"{state_url}: workers read states of {' and '.join(map(str, found))} epochs; {SHARED}")


def train_epochs(spec: RunSpec, fit: Fit) -> Iterator[dict[str, float]]:
    """Trains to the end, from the saved state where there is one; saves after every epoch (rank 0).

    Yields each new epoch's metrics. A finished run yields nothing. A resumed one computes with as many threads as it
    began with: another number adds in another order. Raises ConfigError where workers read different states.
    """
    state_url = storage.join(spec.out, STATE)
    state = load_state(state_url)
    if state is not None:
        fit.load_state_dict(state)
        torch.set_num_threads(state["threads"])
    refuse_unequal(state_url, fit.epoch, fit.world_size)
    if fit.rank != 0:
        yield from fit
    elif not fit.finished:
        with Events(storage.join(spec.out, "tensorboard"), first_epoch=fit.epoch + 1) as events:
            for metrics in fit:
                events.write(fit.epoch, metrics)  # before the state that says this epoch is done
                write_initialised(spec.out, fit)
                save_state(state_url, {**fit.state_dict(), "threads": torch.get_num_threads()})
                yield metrics


def write_initialised(out: str, fit: Fit) -> None:
    """Writes `init.json` after the first epoch that `fit` trained from `model.init_from`."""
    if fit.initialised is not None and fit.epoch == 1:
        storage.write_json(storage.join(out, INIT), asdict(fit.initialised))


def finish_run(spec: RunSpec, fit: Fit, rows: Split) -> dict[str, Any] | None:
    """Scores the held-out fold, once, by the kept weights, and writes what the run leaves.

    Returns the run's summary on rank 0. Raises Diverged before anything is written.
    """
    table, experiment = fit.table, fit.experiment
    fit.model.load_state_dict(fit.kept_weights())
    share = rows.held_out[fit.rank :: fit.world_size]
    shares = fit.gathered_outputs(
        lambda: prediction_table(
            fit.model,
            experiment,
            table,
            share,
            fold=spec.fold,
            device=fit.device,
            autocast_dtype=fit.autocast_dtype,
        )
    )
    predictions = pa.concat_tables(shares)
    if fit.rank != 0:
        return None
    trained_on: Provenance = (TrainedOn(table.digest, name_of(table, rows.train), spec.fold, spec.folds),)
    begun = {}
    if experiment.model.init_from is not None:
        begun = storage.read_json(storage.join(spec.out, INIT))
        trained_on += provenance_of(begun)
    save_model(
        storage.join(spec.out, MODEL),
        fit.kept_weights(),
        experiment,
        in_channels=table.image_RCHW.shape[1],
        classes=table.classes,
        masks=table.masks,
        trained_on=trained_on,
    )
    run_of = {"run": experiment.digest, "architecture": experiment.model.name, "fold": spec.fold}
    storage.write_table(storage.join(spec.out, "predictions.parquet"), predictions.sort_by("slice_id"))
    storage.write_rows(storage.join(spec.out, "history.parquet"), [{**run_of, **metrics} for metrics in fit.history])
    seconds = sum(row["seconds"] for row in fit.history)
    scores = summarise(predictions)
    summary = {
        "experiment": experiment.digest,
        "architecture": experiment.model.name,
        "fold": spec.fold,
        "epochs": fit.epoch,
        "best_epoch": fit.kept_epoch,
        "metrics": {name: value["mean"] for name, value in scores["metrics"].items()},
        "hd_unit": scores["hd_unit"],
        "seconds": seconds,
        "slices_per_second": sum(r["slices_per_second"] * r["seconds"] for r in fit.history) / seconds,
        "data": {"url": spec.data_url, "digest": table.digest, **region_counts(table, experiment.data.region)},
        "versions": versions(),
    }
    if begun:
        names = ("taken", "fresh", "unused")
        summary["init_from"] = {key: len(value) if key in names else value for key, value in begun.items()}
    storage.write_json(storage.join(spec.out, "summary.json"), summary)
    return summary


def run(spec: RunSpec, table: SliceTable) -> Iterator[dict[str, float]]:
    """A whole run in this process, without Ray: yields each epoch's metrics, and leaves the directory."""
    rows = spec.split(table)
    fit = Fit(Experiment.from_dict(spec.experiment), table, rows.train)
    yield from train_epochs(spec, fit)
    finish_run(spec, fit, rows)


def about_run(spec: RunSpec, table_digest: str) -> dict[str, Any]:
    """What `experiment.json` says; a run is resumed only with the same, wherever its dataset lies now."""
    about = {**asdict(spec), "data": {"url": spec.data_url, "digest": table_digest}}
    return {key: about[key] for key in ("experiment", "data", "fold", "folds")}


def versions(*packages: str) -> dict[str, str]:
    """What a result was made with: braintum, Ray, torch and further packages."""
    return {"braintum": __version__, **{name: version(name) for name in ("ray", "torch", *packages)}}


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """Every setting below `path` that was another one there."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in {**old, **new}:
            if key not in old:
                lines.append(f"{path}.{key} was not there and is {new[key]!r} now")
            elif key not in new:
                lines.append(f"{path}.{key} was {old[key]!r} there and is not there now")
            else:
                lines += _differences(f"{path}.{key}", old[key], new[key])
        return lines
    return [] if old == new else [f"{path} was {old!r} there and is {new!r} now"]
