"""How many trials run at a time, and what each of their workers takes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import ray

from braintum.settings import ConfigError
from braintum.training.growth import largest_nodes
from braintum.training.worker import gpus_for, may_grow
from braintum.tuning.parts import Resources


@dataclass(frozen=True)
class Slots:
    """`count` trials at a time, each of `workers` workers that take `per_worker` (Ray's resources: CPU, GPU)."""

    count: int
    workers: int
    per_worker: dict[str, float]
    trials_per_gpu: int = 1

    @classmethod
    def of(cls, resources: Resources, device: str) -> Self:
        """Resolves `auto` against the cluster, for trials of that `training.device`: as many as fit.

        Where an autoscaler may add nodes, as many as fit then, so that the cluster grows at once. A number in
        `max_concurrent` stands as it is: what has no room waits until other trials end or the cluster has grown. Raises
        ConfigError if not even one trial fits, unless such a number was given and the cluster may grow.
        """
        gpus = float(gpus_for(device)) if resources.gpus_per_worker == "auto" else resources.gpus_per_worker
        cpus = resources.cpus_per_worker
        per_worker = {"CPU": 1.0 if cpus == "auto" else cpus}
        if gpus:
            per_worker["GPU"] = gpus / resources.trials_per_gpu
        given = resources.max_concurrent
        nodes = largest_nodes() or _alive()
        room = _room(nodes, per_worker) // resources.workers
        if not room and (given == "auto" or not may_grow(per_worker)):
            cluster = ray.cluster_resources()
            has = ", ".join(f"{cluster.get(kind, 0):g} {kind}" for kind in per_worker)
            needs = ", ".join(f"{need:g} {kind}" for kind, need in per_worker.items())
            raise ConfigError(
                f"resources: a trial needs {resources.workers} × ({needs}), and the cluster's nodes have room for less "
                f"({has} in all). Lower resources.workers, or on a cluster that grows set resources.max_concurrent"
            )
        return cls(room if given == "auto" else given, resources.workers, per_worker, resources.trials_per_gpu)

    def gpus(self, sharing: int) -> float:
        """GPUs of a worker where so many trials share one."""
        return self.per_worker.get("GPU", 0.0) * self.trials_per_gpu / sharing

    @property
    def filled(self) -> int:
        """How many of these trials the cluster has room for as it is now."""
        return min(self.count, _room(_alive(), self.per_worker) // self.workers)

    @property
    def threads(self) -> int:
        """CPU threads of one worker."""
        return max(1, int(self.per_worker["CPU"]))


@dataclass(frozen=True)
class Places:
    """How many trials, and trainings of winners, run at a time; GPUs that one of either holds."""

    trials: int = 1
    winners: int = 1
    trial_gpus: float = 0.0
    winner_gpus: float = 0.0

    @classmethod
    def of(cls, slots: Slots) -> Self:
        """Of a cluster as it is now; one that is at rest, as it may become."""
        gpus = slots.workers * slots.per_worker.get("GPU", 0.0)
        trials = slots.filled or slots.count
        if slots.workers > 1:
            return cls(trials, 1, gpus, float(slots.workers * bool(gpus)))
        # Trials may share a GPU; trainings of winners do not.
        return cls(trials, max(1, int(trials * gpus + 1e-6)) if gpus else trials, gpus, float(bool(gpus)))


def alive_nodes() -> int:
    """The cluster's nodes as they are now, the head among them."""
    return len(_alive())


def _alive() -> list[dict[str, float]]:
    """The resources of each node as the cluster is now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(nodes: list[dict[str, float]], per_worker: dict[str, float]) -> int:
    """How many workers nodes hold; a worker lies on one node."""
    return sum(min(int(has.get(kind, 0) / need + 1e-6) for kind, need in per_worker.items()) for has in nodes)
