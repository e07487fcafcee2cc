"""The parts of a search space: what a trial takes, what proposes trials, what stops them. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from braintum.settings import Part, PartWithOptions

COSTS = ("latency", "parameters", "energy")
"""What a prediction costs, all the better the smaller, and known when a trial ends: seconds a slice, their number, and
joules a slice. See `braintum/training/costs.py`."""


class Resources(Part):
    """What a trial takes and how many run at a time; `auto` looks at the cluster when the study starts."""

    workers: int = Field(1, ge=1, description="DDP workers of a trial")
    gpus_per_worker: Literal["auto"] | float = Field("auto", description="auto: one where the cluster has GPUs")
    cpus_per_worker: Literal["auto"] | float = Field("auto", description="auto: one")
    trials_per_gpu: int = Field(1, ge=1, description="one-worker trials that share a GPU")
    max_concurrent: Literal["auto"] | int = Field("auto", description="auto: as many as fit; more wait for room")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for field, least in (("gpus_per_worker", 0), ("cpus_per_worker", 0.01), ("max_concurrent", 1)):
            value = getattr(self, field)
            if value != "auto" and value < least:
                raise ValueError(f"{field}: {value}: expected auto or a number from {least}")
        if self.trials_per_gpu > 1 and self.workers > 1:
            raise ValueError("trials_per_gpu: trials share a GPU only with workers: 1")
        return self


class Sampler(Part):
    """What proposes trials (`braintum/tuning/samplers.py`). `seed` is that of the search, not of the trainings.

    `tpe` and `gp` model the score, `cmaes` and `nsga2` breed what was good, `sobol` covers the space evenly, `grid`
    takes every combination of choices and integers once, in a random order.
    """

    name: Literal["tpe", "random", "gp", "cmaes", "nsga2", "sobol", "grid"] = "tpe"
    seed: int = Field(0, ge=0)


class Scheduler(PartWithOptions):
    """What stops trials early. `asha`: rungs at grace_epochs × reduction^k; the best 1/reduction of a rung go on.
    `median`: from grace_epochs on, a trial whose best score is below the median of the averages of min_trials others.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "name": {
            "asha": {"grace_epochs": 5, "reduction": 3},
            "median": {"grace_epochs": 5, "min_trials": 5},
            "none": {},
        }
    }
    name: Literal["asha", "median", "none"] = "asha"
    grace_epochs: int | None = Field(None, ge=1)
    reduction: int | None = Field(None, ge=2)
    min_trials: int | None = Field(None, ge=1, description="others that a trial is compared with, at least")


class Racing(Part):
    """Stops trials at the end of a fold; see `braintum/tuning/racing.py`."""

    level: float = Field(
        0.05, gt=0, lt=1, description="how likely a trial that is as good as the best is stopped, over all its folds"
    )


LIMITS = ("hours", "gpu_hours", "cost")


class Budget(Part):
    """What a study may take over all its starts, the cross-validation of its winners included.

    No trial is placed that would not end within it, run through all its folds; see `braintum/tuning/budget.py`.
    """

    hours: float | None = Field(None, gt=0, description="of wall time")
    gpu_hours: float | None = Field(None, gt=0, description="hours × GPUs that are held")
    cost: float | None = Field(
        None, gt=0, description="of nodes, at price_per_node_hour, for as long as they are alive"
    )
    price_per_node_hour: float | None = Field(None, gt=0, description="of one node, in the unit of `cost`")

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.cost is not None and self.price_per_node_hour is None:
            raise ValueError(f"cost: {self.cost:g}: what does a node cost? Set budget.price_per_node_hour in the space")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Those that are set, by their name."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    @property
    def given(self) -> dict[str, float]:
        """All that is set."""
        return self.model_dump(exclude_none=True)

    def share(self, spent: Mapping[str, float | None], parts: int) -> Self:
        """An equal part of what is left."""
        left = {name: (most - (spent[name] or 0.0)) / parts for name, most in self.limits.items()}
        return self.model_copy(update=left)
