"""Runs on Ray Train: DDP workers.

The checkpoint is the run's own `state.pt`, written by rank 0 after every epoch: a worker group that Ray Train starts
again after a failure goes on from it, as `--resume` does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import fsspec
import pyarrow.fs
import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from braintum import storage
from braintum.config import Experiment
from braintum.connect import connect
from braintum.data.folds import region_counts
from braintum.data.schema import DataError
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.settings import ConfigError
from braintum.training.checkpoint import CheckpointError
from braintum.training.device import keep_freed_memory
from braintum.training.fit import Diverged, Fit
from braintum.training.growth import largest_nodes
from braintum.training.metrics import Metrics
from braintum.training.progress import Progress
from braintum.training.run import (
    RunSpec,
    about_run,
    finish_run,
    prepare_out,
    refuse_at_once,
    refuse_unseen,
    refuse_unusable,
    say_start_of,
    train_epochs,
)

MAX_FAILURES = 3
GOES_ON = "the same command with --resume goes on from what was saved"


class TrainingFailed(RuntimeError):
    """Workers failed for a reason of their own more often than is retried."""


def gpus_for(device: str) -> int:
    """GPUs for one worker by its `training.device`: one where the cluster has any, unless the CPU is asked for.

    A cluster that grows counts as large as it may become. Raises ConfigError where one is asked for and there is none.
    """
    has = ray.cluster_resources().get("GPU", 0) >= 1
    if not has and device != "cpu":
        has = any(node.get("GPU", 0) >= 1 for node in largest_nodes() or [])
    if device == "cuda" and not has:
        raise ConfigError("training.device: 'cuda': the cluster has no GPU; use auto or cpu")
    return int(has and device != "cpu")


def refuse_unplaceable(workers: int, device: str) -> None:
    """Raises ConfigError for more workers than the cluster has GPUs, or cores, for: Ray would wait for ever."""
    kind = "GPU" if gpus_for(device) else "CPU"
    has = ray.cluster_resources().get(kind, 0)
    if has < workers and not may_grow([kind]):
        raise ConfigError(f"workers: {workers} need {workers} {kind}s, and the cluster has {has:g}; use fewer workers")


def may_grow(kinds: Iterable[str]) -> bool:
    """Whether the cluster has none yet of one of these kinds of resources: then it may be one that grows."""
    has = ray.cluster_resources()
    return not all(has.get(kind, 0) for kind in kinds)


def cpus_per_worker(workers: int) -> int:
    """CPU cores for each of `workers` so that all fit at once: the smallest node's, shared among its workers."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = [count for count in cores if count > 0]
    if not cores:
        return 1  # an autoscaling cluster at rest
    return max(1, min(cores) // -(-workers // len(cores)))


class Mailbox:
    """Carries progress from workers to the driver's `Progress`."""

    def __init__(self) -> None:
        self._queue = Queue(actor_options={"num_cpus": 0})

    def put(self, name: str, **fields: Any) -> None:
        self._queue.actor.put_nowait.remote((name, fields))  # type: ignore[attr-defined]  # nobody waits

    def read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What arrives, until the mailbox is closed. Waits without asking again and again: that would cost training."""
        while (message := self._queue.get()) is not None:
            yield message

    def close(self) -> None:
        self._queue.put(None)

    def remove(self) -> None:
        self._queue.shutdown(force=True)


def show_epoch(mailbox: Mailbox, name: str, spec: RunSpec, metrics: dict[str, float]) -> None:
    """Sends one epoch's progress: its validation score where there is one."""
    mailbox.put(
        name,
        state="training",
        fold=spec.fold or "",
        epoch=int(metrics["epoch"]),
        score=metrics.get("validation_score"),
        slices_per_second=metrics["slices_per_second"],
    )


def train(
    experiment: Experiment,
    data_url: str,
    out: str,
    *,
    fold: str | None = None,
    folds: int | None = None,
    workers: int = 1,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """One run on `workers` DDP workers of Ray Train; returns its summary.

    Raises ConfigError or DataError before anything starts, Diverged, or TrainingFailed.
    """
    if folds is not None and fold is None:
        raise ConfigError(f"folds: {folds} has no effect without a fold to hold out; name one with --fold")
    spec = RunSpec.of(experiment, data_url, out, fold, folds)
    refuse_at_once(spec.data_url, spec.out, resume=resume)
    connect(progress.say)
    refuse_unplaceable(workers, experiment.training.device)  # before reading makes a resting cluster grow
    table_ref = share_table(spec.data_url, experiment.data)
    table: SliceTable = ray.get(table_ref)
    refuse_unusable(spec, table, workers)
    say_region(experiment, table, progress)
    say_start_of([spec], table, progress)
    prepare_out(spec.out, about_run(spec, table.digest), resume=resume)
    summary_url = storage.join(spec.out, "summary.json")
    if not storage.exists(summary_url):
        mailbox = Mailbox()
        name = f"fold {fold}" if fold else "run"
        costs = experiment.training.epoch_costs
        progress.update(name, what=experiment.model.name, state="waiting", epoch_costs=costs)
        with shown(mailbox, progress), Metrics(spec.out, progress) as metrics:
            metrics.begin()
            train_on_workers(spec, table_ref, workers, mailbox, name)
        progress.update(name, state="complete")
    summary: dict[str, Any] = storage.read_json(summary_url)
    return summary


def say_region(experiment: Experiment, table: SliceTable, progress: Progress) -> None:
    """Says how many slices show the region, where not every slice does by itself."""
    counts = region_counts(table, experiment.data.region)
    if counts:
        progress.say(f"{counts['shown']:,} of {counts['slices']:,} slices show {experiment.data.region}")


def train_on_workers(
    spec: RunSpec, table_ref: ray.ObjectRef[SliceTable], workers: int, mailbox: Mailbox, name: str
) -> None:
    """Runs `spec` to its end on a Ray Train worker group. Raises Diverged, ConfigError or TrainingFailed."""
    experiment = Experiment.from_dict(spec.experiment)
    gpus = gpus_for(experiment.training.device)
    filesystem, path = ray_storage(storage.join(spec.out, "ray"))
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # typed as returning nothing; what rank 0 returns is in the Result
        train_loop_config={
            "spec": asdict(spec), "table": table_ref, "mailbox": mailbox, "name": name,
            "threads": cpus_per_worker(workers),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": 1, "GPU": 1} if gpus else {"CPU": cpus_per_worker(workers)},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name="-".join([experiment.model.name, *(["fold", spec.fold] if spec.fold else [])]),  # in Ray's dashboard
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )  # fmt: skip
    interrupts = signal.getsignal(signal.SIGINT)
    try:
        error = trainer.fit().return_value  # type: ignore[attr-defined]  # of Ray Train's own Result
    except SystemExit:  # Ray Train's own SIGINT handler stops the workers, and then ends the process with 1
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as failure:
        reason = " ".join(str(failure).split())[-300:]
        raise TrainingFailed(f"{spec.out}: workers failed {MAX_FAILURES + 1} times; {GOES_ON}: {reason}") from failure
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupts)  # Ray's would stay, and keep the controller's actor alive
        storage.remove(storage.join(spec.out, "ray"))
    if error is not None:
        raise error


def _work(config: dict[str, Any]) -> Exception | None:
    """What every DDP worker does. Returns an error after which starting again would end the same."""
    spec = RunSpec(**config["spec"])
    experiment = Experiment.from_dict(spec.experiment)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    table: SliceTable = ray.get(config["table"])
    try:
        refuse_unseen(spec, table, world_size)
        rows = spec.split(table)
        if rank == 0:
            config["mailbox"].put(config["name"], state="training")
        fit = Fit(experiment, table, rows.train, rank=rank, world_size=world_size)
        for metrics in train_epochs(spec, fit):
            ray.train.report(metrics)
            if rank == 0:
                show_epoch(config["mailbox"], config["name"], spec, metrics)
        finish_run(spec, fit, rows)
    except (Diverged, ConfigError, DataError, CheckpointError) as error:
        return error
    return None


def ray_storage(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """A URL as Ray's pair of filesystem and path, for its own bookkeeping."""
    filesystem, path = fsspec.core.url_to_fs(url)
    if "://" not in url:
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextmanager
def shown(mailbox: Mailbox, progress: Progress) -> Iterator[None]:
    """Shows what workers send while the body blocks."""

    def show() -> None:
        for name, fields in mailbox.read():
            progress.update(name, **fields)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        mailbox.close()
        thread.join()
        mailbox.remove()
