"""What all studies of one space on one dataset have in common: the cluster's places for trials, and the tables."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import optuna
import ray
import torch

from braintum.connect import connect
from braintum.data.audit import refuse_leaks, whole_view
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.settings import ConfigError
from braintum.training.energy import EnergyCounter, EnergyUnknown
from braintum.training.progress import Progress
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.views import view, views_of


@dataclass(frozen=True)
class Shared:
    """`tables`: by view, in the object store. `leaks`: copies on two sides of a split."""

    data_url: str
    tables: dict[str, ray.ObjectRef[SliceTable]]
    slots: Slots
    leaks: int


def share(space: SearchSpace, data_url: str, *, allow_leak: bool, progress: Progress) -> Shared:
    """Joins a cluster and reads the dataset into it. Raises ConfigError or DataError for what cannot be searched."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    views = views_of(space)
    connect(progress.say)
    slots = Slots.of(space.resources, space.experiment(next(iter(space.architectures)), {}).training.device)
    if not slots.filled:
        progress.say("no node has room for a trial yet: they wait until the cluster grows")
    refuse_unmeasurable(space, slots)
    if space.budget.gpu_hours is not None and "GPU" not in slots.per_worker:
        raise ConfigError(
            f"budget.gpu_hours: {space.budget.gpu_hours:g}: a budget of GPU hours has no effect without GPUs, and "
            "trials take none here; leave it out, or give hours"
        )
    tables = {name: share_table(data_url, data, trainings=slots.count) for name, data in views.items()}
    whole = whole_view(views.values())
    leaks = refuse_leaks(ray.get(tables.get(view(whole)) or share_table(data_url, whole)), allow=allow_leak)
    return Shared(data_url, tables, slots, leaks)


def refuse_unmeasurable(space: SearchSpace, slots: Slots) -> None:
    """Raises ConfigError where a trial's device does not report an objective."""
    if "energy" not in space.objectives:
        return
    task = ray.remote(num_cpus=slots.per_worker["CPU"], num_gpus=slots.per_worker.get("GPU", 0))(_why_unknown)
    reason = ray.get(task.remote("GPU" in slots.per_worker))
    if reason:
        raise ConfigError(f"objectives: energy: {reason}; leave it out, or search where GPUs report it")


def _why_unknown(on_gpu: bool) -> str | None:
    try:
        EnergyCounter(torch.device("cuda" if on_gpu else "cpu"))
    except EnergyUnknown as error:
        return str(error)
    return None
