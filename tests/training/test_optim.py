"""Optimisers and learning rates against torch's own, and against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from braintum.config import Experiment
from braintum.training.optim import LearningRate, build_optimizer

EPOCHS, STEPS = 4, 5


def per_step(**schedule: Any) -> list[float]:
    """The learning rate that each step of a training of EPOCHS × STEPS takes, of a peak of 0.5."""
    settings = {"optim.name": "sgd", "optim.lr": 0.5, **{f"schedule.{k}": v for k, v in schedule.items()}}
    experiment = Experiment.load(None, settings)
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], experiment.optim)
    lr = LearningRate(optimizer, experiment.schedule, epochs=EPOCHS, steps_per_epoch=STEPS)
    rates = []
    for step in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr.after_step()
        if (step + 1) % STEPS == 0:
            lr.after_epoch(None)
    return rates


def in_the_middle_of_steps(optimizer: Optimizer, scheduler: LRScheduler) -> list[float]:
    """torch's curve over twice as many points, at every other one: where braintum's steps are."""
    rates = []
    for _ in range(2 * EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates[1::2]


def test_cosine_is_torchs() -> None:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    torchs = CosineAnnealingLR(optimizer, T_max=2 * EPOCHS * STEPS, eta_min=0.05)
    assert per_step(name="cosine", final_fraction=0.1) == pytest.approx(in_the_middle_of_steps(optimizer, torchs))


def test_cosine_rises_linearly_first() -> None:
    rates = per_step(name="cosine", warmup_epochs=1.0)
    assert rates[:STEPS] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45])
    # one step is a fifteenth of what is left: the middle of the fall is the middle of the eighth
    assert rates[STEPS + 7] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.5 - rates[STEPS])
    assert rates[STEPS:] == sorted(rates[STEPS:], reverse=True)


def test_one_cycle_is_torchs() -> None:
    optimizer, points, rise = SGD([nn.Parameter(torch.ones(1))], lr=0.5), 2 * EPOCHS * STEPS + 1, 0.3
    # torch takes off one point from its rise, and one from the whole
    pct_start = (rise * (points - 1) + 1) / points
    torchs = OneCycleLR(optimizer, 0.5, points, pct_start=pct_start, cycle_momentum=False, final_div_factor=1e12)
    rates = per_step(name="one_cycle", warmup_fraction=rise)
    assert rates == pytest.approx(in_the_middle_of_steps(optimizer, torchs))
    assert max(rates) == pytest.approx(0.5, rel=0.01)


def test_constant_is_constant() -> None:
    assert set(per_step(name="constant")) == {0.5}


@pytest.mark.parametrize(
    ("scores", "rates"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], [1.0, 1.0, 1.0, 0.25, 0.25, 0.25]),  # the third without a better one
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 0.25, 0.25, 0.25]),  # as good is not better
        ([0.5, 0.4, 0.4, 0.500001, 0.4, 0.4], [1.0] * 6),  # any gain is
        ([0.5, 0.4, 0.4, 0.4, 0.6, 0.4], [1.0, 1.0, 1.0, 0.25, 0.25, 0.25]),  # and brings nothing back
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], [1.0, 1.0, 1.0, 0.25, 0.25, 0.25, 0.0625]),
    ],
)
def test_plateau_follows_the_scores(scores: list[float], rates: list[float]) -> None:
    settings = {"schedule.factor": 0.25, "schedule.patience": 2, "optim.lr": 1.0}
    experiment = Experiment.load(None, settings)
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], experiment.optim)
    lr = LearningRate(optimizer, experiment.schedule, epochs=9, steps_per_epoch=3)
    found = []
    for score in scores:
        for _ in range(3):
            lr.after_step()
        lr.after_epoch(score)
        found.append(lr.value)
    assert found == rates


@pytest.mark.parametrize(
    ("settings", "build", "options"),
    [
        ({"name": "sgd"}, SGD, {"momentum": 0.9, "nesterov": True}),
        ({"name": "sgd", "momentum": 0.5, "nesterov": False, "weight_decay": 0.1}, SGD,
         {"momentum": 0.5, "weight_decay": 0.1}),
        ({"name": "adam", "beta1": 0.5}, Adam, {"betas": (0.5, 0.999)}),
        ({"name": "adam", "weight_decay": 0.1}, Adam, {"weight_decay": 0.1}),
        ({"name": "adamw"}, AdamW, {"weight_decay": 0.0}),
        ({"name": "adamw", "beta2": 0.9, "weight_decay": 0.1}, AdamW, {"betas": (0.9, 0.9), "weight_decay": 0.1}),
    ],
)  # fmt: skip
def test_optimisers_are_torchs(settings: dict[str, Any], build: type[Optimizer], options: dict[str, Any]) -> None:
    experiment = Experiment.load(None, {"optim.lr": 0.02, **{f"optim.{k}": v for k, v in settings.items()}})
    ours, torchs = (nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    optimizers = build_optimizer([ours], experiment.optim), build([torchs], lr=0.02, **options)
    for step in range(4):
        gradient = torch.tensor([0.3, 0.1, -0.2]) * (step + 1)
        for weights, optimizer in zip((ours, torchs), optimizers, strict=True):
            weights.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, torchs)
