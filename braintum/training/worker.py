"""Runs on Ray: the cluster that a command uses, and Ray Train's DDP workers.

The checkpoint is the run's own `state.pt`, written by rank 0 after every epoch: a worker group that Ray Train starts
again after a failure goes on from it, as `--resume` does.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
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
from ray._private.services import find_bootstrap_address
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from braintum import storage
from braintum.config import Experiment
from braintum.data.folds import region_counts
from braintum.data.schema import DataError
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.settings import ConfigError
from braintum.training.checkpoint import CheckpointError
from braintum.training.device import keep_freed_memory
from braintum.training.fit import Diverged, Fit
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

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report reaches the controller in 20 ms instead of up to 2 s
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # without it, a rank that dies between reports hangs the others for ever
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray Train trains in a thread, whose own arena glibc would give back whatever `keep_freed_memory` says.
    "MALLOC_ARENA_MAX": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # braintum writes history.parquet and TensorBoard itself
    "RAY_AIR_NEW_OUTPUT": "0",  # the progress table is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # nothing of Tune's own state is needed: an interrupt ends at once
}
MAX_FAILURES = 3
GOES_ON = "the same command with --resume goes on from what was saved"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_SOCKETS = "/tmp"  # noqa: S108 - paths of sockets must be short


class TrainingFailed(RuntimeError):
    """Workers failed for a reason of their own more often than is retried."""


def connect(progress: Progress) -> None:
    """Joins the cluster that RAY_ADDRESS or `ray start` gives, or starts one on this machine. Raises ConfigError.

    Ray's own "auto" would also join a Ray that another process has started for itself, and that ends with it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"RAY_ADDRESS: {address}: is for `ray job`; unset it, or give HOST:6379, auto or local")
    if address != "local" and (address != "auto" or find_bootstrap_address(None) is not None):
        inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # its runtime_env is set by `ray job submit`
        try:
            _init(  # None: what `ray start` wrote down, with its token
                address=None if address == "auto" else address,
                runtime_env=None if inside_job else {"env_vars": ENVIRONMENT},
            )
            progress.say(f"on the Ray cluster at {ray.get_runtime_context().gcs_address}")
            return
        except ConnectionError as error:
            if address != "auto":
                raise ConfigError(f"RAY_ADDRESS: {address}: no cluster answers there") from error
        except ValueError as error:
            if address == "auto":
                raise
            raise ConfigError(f"RAY_ADDRESS: {address!r}: {error}; give HOST:6379, auto or local") from error
    start_local()


def start_local(**options: Any) -> None:
    """Starts a Ray on this machine, which ends with this process; `options` are those of `ray.init`.

    Its folder and the address of its dashboard are its own and known to its workers. By Ray's defaults they look for
    the machine's cluster, and where that is another or a dead one, the workers of a stopped trial are not found and
    keep their cores.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir=_SOCKETS)
    atexit.register(_leave, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    _init(
        address="local",
        include_dashboard=True,
        dashboard_port=port,
        runtime_env={"env_vars": {**ENVIRONMENT, **dashboard}},
        _temp_dir=folder,
        _system_config={"worker_niceness": 0},  # by default 15, so that any other process takes the core from training
        **options,
    )


def _init(**options: Any) -> None:
    """`ray.init`, after which SIGTERM does what it did before: Ray's own handlers abort the process (134)."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**_QUIET, **options)
    except SystemExit:  # what one of them raises
        raise KeyboardInterrupt from None
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _leave(folder: str) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def gpus_for(device: str) -> int:
    """GPUs for one worker by its `training.device`: one where the cluster has any, unless the CPU is asked for.

    Raises ConfigError where one is asked for and the cluster has none.
    """
    has = ray.cluster_resources().get("GPU", 0) >= 1
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
    connect(progress)
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
        with shown(mailbox, progress):
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
            name="train",
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
