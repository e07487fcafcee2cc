"""What each balancing of two tasks costs: a training step of each over one with fixed weights.

    python benchmarks/balancing.py [--size 128] [--width 8] [--batch 16] [--rounds 9] [--threads 1]

`joint_unet` as `fast` has it, random slices that all have a mask and a label, float32, on the CPU. Every round takes
one step with each method, in an order that turns from round to round, and a ratio is the median over the rounds of CPU
seconds over those of fixed weights in the same round. `fixed_measuring_cosine` is the one step of an epoch in which
methods that do not need the tasks' gradients ask for them, for `task_cosine`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import get_args

import torch
from record import record
from torch import nn

from braintum.config import Experiment
from braintum.losses.balancing import balancing_of
from braintum.losses.objective import Objective
from braintum.models.registry import Task
from braintum.parts import Loss
from braintum.training.optim import build_optimizer

METHODS: tuple[str, ...] = get_args(Loss.model_fields["balancing"].annotation)
TASKS: tuple[Task, ...] = ("segmentation", "classification")
MEASURING = "fixed_measuring_cosine"


class Targets:
    """Every slice with a mask and a label."""

    def __init__(self, batch: int, side: int) -> None:
        self.num_masks = self.num_labels = batch
        self.mask_BKHW = torch.zeros(batch, 1, side, side)
        self.mask_BKHW[..., side // 4 : side // 2, side // 4 : side // 2] = 1
        self.has_mask_B = torch.ones(batch, dtype=torch.bool)
        self.label_B = self.global_label_B = torch.arange(batch) % 4


class Steps:
    """Training steps with one method, on a network of its own."""

    def __init__(self, name: str, size: int, width: int, batch: int) -> None:
        self.measures = name == MEASURING
        balancing = {"loss.balancing": "fixed" if self.measures else name}
        experiment = Experiment.load("fast", {"data.image_size": size, "model.width": width, **balancing})
        torch.manual_seed(0)
        self.network = experiment.model.build(1, 4, 1).train()
        self.image_BCHW, self.targets = torch.rand(batch, 1, size, size), Targets(batch, size)
        self.objective = Objective(experiment.loss)
        self.optimizer = build_optimizer(self.network.parameters(), experiment.optim)
        self.clip_norm = experiment.optim.clip_norm or 0.0
        self.balancing = balancing_of(experiment.loss, TASKS, self.network.parameters(), device=torch.device("cpu"))

    def cpu_seconds(self) -> float:
        start = time.process_time()
        terms = self.objective(self.network(self.image_BCHW), self.targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.balancing.backward(terms.losses, {"segmentation": True, "classification": True})
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.optimizer.step()
        taken = time.process_time() - start
        if self.measures:
            self.balancing.after_epoch({task: float(loss) for task, loss in terms.main.items()})
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("size", 128), ("width", 8), ("batch", 16), ("rounds", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    names = (*METHODS, MEASURING)
    steps = {name: Steps(name, a.size, a.width, a.batch) for name in names}
    rounds: list[dict[str, float]] = []
    for turn in range(-2, a.rounds):  # the first two warm up
        order = names[turn % len(names) :] + names[: turn % len(names)]
        taken = {name: steps[name].cpu_seconds() for name in order}
        rounds += [taken] if turn >= 0 else []
    ratios = {name: sorted(taken[name] / taken["fixed"] for taken in rounds) for name in names}
    results = {
        "over_fixed": {name: statistics.median(ratio) for name, ratio in ratios.items()},
        "over_fixed_least": {name: ratio[0] for name, ratio in ratios.items()},
        "over_fixed_most": {name: ratio[-1] for name, ratio in ratios.items()},
        "cpu_seconds_a_step": {name: statistics.median(taken[name] for taken in rounds) for name in names},
        "load_1_minute_after": round(os.getloadavg()[0], 2),
    }
    record(
        "balancing", results, " ".join(["python benchmarks/balancing.py", *(f"--{k} {v}" for k, v in vars(a).items())])
    )


if __name__ == "__main__":
    main()
