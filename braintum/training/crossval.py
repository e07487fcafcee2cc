"""Cross-validation: one run for every fold, side by side where the cluster has room.

OUT/experiment.json  fold-<name>/ (a run each)  history.parquet  predictions.parquet  summary.json
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import ray
import torch

from braintum import storage
from braintum.config import Experiment
from braintum.connect import connect, end_tasks
from braintum.data.folds import DEFAULT_FOLDS, held_out_folds, region_counts
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.evaluation.summary import summarise
from braintum.settings import ConfigError
from braintum.training.device import keep_freed_memory
from braintum.training.metrics import Metrics
from braintum.training.progress import Progress
from braintum.training.run import (
    RunSpec,
    about_run,
    prepare_out,
    refuse_at_once,
    refuse_unseen,
    refuse_unusable,
    run,
    say_start_of,
)
from braintum.training.worker import (
    GOES_ON,
    MAX_FAILURES,
    Mailbox,
    TrainingFailed,
    cpus_per_worker,
    gpus_for,
    refuse_unplaceable,
    say_region,
    show_epoch,
    shown,
    train_on_workers,
)

T = TypeVar("T")


def crossval(
    experiment: Experiment,
    data_url: str,
    out: str,
    *,
    folds: int | None = None,
    workers: int = 1,
    at_once: int | None = None,
    table_ref: ray.ObjectRef[SliceTable] | None = None,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Trains one run a fold and returns the cross-validation's summary.

    With one worker a run, folds train side by side (`at_once` at most), one GPU (or an equal share of the cores) each;
    with more, one after another. Finished folds are read, not trained again. `table_ref`: the dataset, where it is
    shared already. Raises ConfigError or DataError before anything starts, Diverged, or TrainingFailed.
    """
    refuse_at_once(storage.resolve(data_url), storage.resolve(out), resume=resume)
    with Metrics(storage.resolve(out), progress) as metrics:
        metrics.begin()
        (summary,) = crossvals(
            {out: experiment}, data_url,
            folds=folds, workers=workers, at_once=at_once, table_ref=table_ref, resume=resume, progress=progress,
        )  # fmt: skip
    return summary


def crossvals(
    experiments: Mapping[str, Experiment],
    data_url: str,
    *,
    folds: int | None,
    only: Collection[str] | None = None,
    workers: int = 1,
    at_once: int | None = None,
    table_ref: ray.ObjectRef[SliceTable] | None = None,
    resume: bool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Cross-validates an Experiment with several seeds, each into a directory; returns their summaries.

    All folds of all seeds are one queue. `only`: the folds to hold out, else all. Else as `crossval`.
    """
    experiment = next(iter(experiments.values()))
    wholes = [RunSpec.of(experiment, data_url, out, None, folds) for out, experiment in experiments.items()]
    data_url = wholes[0].data_url
    connect(progress.say)
    refuse_unplaceable(workers, experiment.training.device)  # before reading makes a resting cluster grow
    table_ref = table_ref or share_table(
        data_url, experiment.data, trainings=1 if workers > 1 else at_once or folds or DEFAULT_FOLDS
    )
    table: SliceTable = ray.get(table_ref)
    of_whole = {whole.out: fold_specs(whole, table, workers, only) for whole in wholes}
    specs = [spec for of_seed in of_whole.values() for spec in of_seed]
    say_region(experiment, table, progress)
    say_start_of(specs, table, progress)
    for whole in wholes:
        prepare_out(whole.out, about_run(whole, table.digest), resume=resume)
    todo = {out: of_seed for out, of_seed in of_whole.items() if not _finished(out)}
    waiting = {
        _name(spec, seed, len(wholes)): spec
        for seed, (out, of_seed) in enumerate(of_whole.items(), start=1) if out in todo
        for spec in of_seed
    }  # fmt: skip
    if waiting:
        _train_folds(waiting, table_ref, table.digest, workers, at_once or len(specs), progress)
    for out, of_seed in todo.items():
        speeds = [run["slices_per_second"] for run in _summaries(of_seed)]
        about = {
            "experiment": Experiment.from_dict(of_seed[0].experiment).digest,
            "architecture": experiment.model.name,
            "data": {"url": data_url, "digest": table.digest, **region_counts(table, experiment.data.region)},
            "slices_per_second": sum(speeds) / len(speeds),
        }
        leave_results(out, of_seed, about)
    return [storage.read_json(storage.join(whole.out, "summary.json")) for whole in wholes]


def _finished(out: str) -> bool:
    return storage.exists(storage.join(out, "summary.json"))


def _name(spec: RunSpec, seed: int, seeds: int) -> str:
    """What the terminal calls a run."""
    of_seed = f"-seed-{seed}" if seeds > 1 else ""
    return f"{spec.experiment['model']['name']}{of_seed}-fold-{spec.fold}"


def fold_specs(whole: RunSpec, table: SliceTable, workers: int, only: Collection[str] | None = None) -> list[RunSpec]:
    """The runs of a cross-validation, or `only` those that hold out some of its folds.

    Raises DataError or ConfigError where one could not be trained or scored.
    """
    names = [name for name in held_out_folds(table, whole.folds, seed=0) if only is None or name in only]
    specs = [replace(whole, out=storage.join(whole.out, f"fold-{name}"), fold=name) for name in names]
    for spec in specs:
        refuse_unusable(spec, table, workers)
    return specs


def _train_folds(
    specs: Mapping[str, RunSpec],
    table_ref: ray.ObjectRef[SliceTable],
    digest: str,
    workers: int,
    at_once: int,
    progress: Progress,
) -> None:
    """Trains the runs, by the names that the terminal shows, that are not finished."""
    experiment = Experiment.from_dict(next(iter(specs.values())).experiment)
    todo = {}
    progress.expect(len(specs))
    for name, spec in specs.items():
        progress.update(name, what=experiment.model.name, epoch_costs=experiment.training.epoch_costs)
        if _finished(spec.out):
            _show_complete(progress, name, spec)
        else:
            if not storage.exists(storage.join(spec.out, "experiment.json")):
                storage.remove(spec.out)  # stopped before anything was written
            prepare_out(spec.out, about_run(spec, digest), resume=True)
            todo[name] = spec
    mailbox = Mailbox()
    with shown(mailbox, progress):
        if workers > 1:
            for name, spec in todo.items():
                train_on_workers(spec, table_ref, workers, mailbox, name)
                _show_complete(progress, name, spec)
            return
        gpus, cpus = gpus_for(experiment.training.device), cpus_per_worker(min(at_once, len(specs)))
        task = _run_fold.options(num_gpus=gpus, num_cpus=1 if gpus else cpus)
        running: dict[ray.ObjectRef[None], tuple[str, RunSpec]] = {}
        try:
            while todo or running:
                while todo and len(running) < at_once:
                    name = next(iter(todo))
                    spec = todo.pop(name)
                    running[task.remote(spec, table_ref, mailbox, name, cpus)] = name, spec
                (ready,), _ = ray.wait(list(running), num_returns=1)
                name, spec = running.pop(ready)
                outcome(ready, spec)
                _show_complete(progress, name, spec)
        finally:
            end_tasks(running)


def outcome(task: ray.ObjectRef[T], spec: RunSpec) -> T:
    """What a fold's task returns. Raises its own error, or TrainingFailed where its worker died (memory, lost node)."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        lost = f"fold {spec.fold}: its worker was lost more often than is retried"
        raise TrainingFailed(f"{spec.out}: {lost}; {GOES_ON}: {str(error).splitlines()[0]}") from error


def _show_complete(progress: Progress, name: str, spec: RunSpec) -> None:
    summary = storage.read_json(storage.join(spec.out, "summary.json"))
    progress.update(name, state="complete", epoch=summary["epochs"])


@ray.remote(max_retries=MAX_FAILURES)
def _run_fold(spec: RunSpec, table: SliceTable, mailbox: Mailbox, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    refuse_unseen(spec, table)
    mailbox.put(name, state="training")
    for metrics in run(spec, table):
        show_epoch(mailbox, name, spec, metrics)


def _joined(specs: list[RunSpec], file: str) -> pa.Table:
    """The tables of finished runs, one after another."""
    tables = [storage.read_table(storage.join(spec.out, file)) for spec in specs]
    return pa.concat_tables(tables, promote_options="default")


def _refuse_other_starts(specs: list[RunSpec], runs: list[dict[str, Any]]) -> None:
    """Raises ConfigError where the file at `model.init_from` was another one for some runs of an Experiment."""
    firsts: dict[str, tuple[str, str]] = {}
    for spec, left in zip(specs, runs, strict=True):
        if "init_from" in left:
            sha256 = left["init_from"]["sha256"]
            place, first = firsts.setdefault(left["experiment"], (spec.out, sha256))
            if sha256 != first:
                raise ConfigError(
                    f"model.init_from: {left['init_from']['url']}: has changed between the folds: {place} began with "
                    f"SHA-256 {first[:16]}, {spec.out} with {sha256[:16]}; remove the folder of the wrong one, and go "
                    "on with --resume"
                )


def _summaries(specs: list[RunSpec]) -> list[dict[str, Any]]:
    return [storage.read_json(storage.join(spec.out, "summary.json")) for spec in specs]


def leave_results(out: str, specs: list[RunSpec], about: dict[str, Any], predictions: pa.Table | None = None) -> None:
    """Writes what finished runs make together: their history, predictions (theirs unless given) and a summary.

    `about` begins the summary: what they are, and their data. Raises ConfigError where runs of one Experiment began
    with different weights.
    """
    runs = _summaries(specs)
    _refuse_other_starts(specs, runs)
    predictions = _joined(specs, "predictions.parquet") if predictions is None else predictions
    storage.write_table(storage.join(out, "history.parquet"), _joined(specs, "history.parquet"))
    storage.write_table(storage.join(out, "predictions.parquet"), predictions)
    summary = {
        **about,
        **summarise(predictions),
        "seconds": sum(run["seconds"] for run in runs),
        "versions": runs[0]["versions"],
    }
    storage.write_json(storage.join(out, "summary.json"), summary)
