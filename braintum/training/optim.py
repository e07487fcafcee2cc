"""Optimiser and learning-rate schedule of an Experiment, from torch's own parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from braintum.parts import Optim, Schedule


def build_optimizer(parameters: Iterable[nn.Parameter], optim: Optim) -> Optimizer:
    """Adam (L2 in the gradient), AdamW (decoupled decay) or SGD."""
    if optim.name == "sgd":
        sgd: Optimizer = SGD(
            parameters,
            lr=optim.lr,
            momentum=optim.option("momentum"),
            nesterov=optim.option("nesterov"),
            weight_decay=optim.weight_decay,
        )
        return sgd
    build = {"adam": Adam, "adamw": AdamW}[optim.name]
    betas = (optim.option("beta1"), optim.option("beta2"))
    adam: Optimizer = build(parameters, lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=True)
    return adam


def rate(schedule: Schedule, progress: float, epochs: int) -> float:
    """The learning rate as a share of its peak, `progress` (0 to 1) of the way through `epochs`."""
    if schedule.name == "cosine":
        warmup = schedule.option("warmup_epochs") / epochs
        if progress < warmup:
            return float(progress / warmup)
        final: float = schedule.option("final_fraction")
        return final + (1 - final) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    if schedule.name == "one_cycle":
        rise: float = schedule.option("warmup_fraction")
        if progress < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / rise)) / 2  # torch's div_factor of 25
        return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2
    return 1.0


class LearningRate:
    """Steps a schedule: per optimiser step, or, for plateau, per epoch with the validation score."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule, *, epochs: int, steps_per_epoch: int) -> None:
        self._optimizer = optimizer
        self._plateau: ReduceLROnPlateau | None = None
        self._per_step: LambdaLR | None = None
        if schedule.name == "plateau":
            factor, patience = schedule.option("factor"), schedule.option("patience")
            # No threshold: better is what early stopping and the best epoch call better.
            self._plateau = ReduceLROnPlateau(optimizer, mode="max", factor=factor, patience=patience, threshold=0.0)
        else:
            total = epochs * steps_per_epoch
            self._per_step = LambdaLR(optimizer, lambda step: rate(schedule, min(step + 0.5, total) / total, epochs))

    @property
    def value(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        if self._per_step is not None:
            self._per_step.step()

    def after_epoch(self, score: float | None) -> None:
        if self._plateau is not None and score is not None:
            self._plateau.step(score)

    def state_dict(self) -> dict[str, Any]:
        state = (self._plateau or self._per_step).state_dict()  # type: ignore[union-attr]
        return {key: value for key, value in state.items() if key != "lr_lambdas"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._per_step is not None:
            state = {**state, "lr_lambdas": [None]}
        (self._plateau or self._per_step).load_state_dict(state)  # type: ignore[union-attr]
