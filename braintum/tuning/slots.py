"""How many trials run at a time, and what each of their workers takes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import ray

from braintum.settings import ConfigError
from braintum.training.worker import gpus_for
from braintum.tuning.space import Resources


@dataclass(frozen=True)
class Slots:
    """`count` trials at a time, each of `workers` workers that take `per_worker` (Ray's resources: CPU, GPU)."""

    count: int
    workers: int
    per_worker: dict[str, float]

    @classmethod
    def of(cls, resources: Resources, device: str) -> Self:
        """Resolves `auto` against the cluster as it is, for trials of that `training.device`.

        Raises ConfigError if not even one trial fits.
        """
        cluster = ray.cluster_resources()
        gpus = float(gpus_for(device)) if resources.gpus_per_worker == "auto" else resources.gpus_per_worker
        cpus = resources.cpus_per_worker
        per_worker = {"CPU": 1.0 if cpus == "auto" else cpus}
        if gpus:
            per_worker["GPU"] = gpus / resources.trials_per_gpu
        fit = min(int(cluster.get(kind, 0) / need + 1e-6) for kind, need in per_worker.items() if need)
        count = fit // resources.workers
        if count == 0:
            has = ", ".join(f"{cluster.get(kind, 0):g} {kind}" for kind in per_worker)
            needs = ", ".join(f"{need * resources.workers:g} {kind}" for kind, need in per_worker.items())
            raise ConfigError(f"resources: a trial needs {needs}; the cluster has {has}. Lower resources.workers")
        if resources.max_concurrent != "auto":
            count = min(count, resources.max_concurrent)
        return cls(count, resources.workers, per_worker)

    @property
    def threads(self) -> int:
        """CPU threads of one worker."""
        return max(1, int(self.per_worker["CPU"]))
