"""What `fast`, a plain loop and monai's residual U-Net reach on a held-out fold in the same minutes of a core.

    braintum ingest folder ../shared/data/cheng --out out/cheng
    python benchmarks/equal_time.py --data out/cheng --out out/equal_time --fold 4 --minutes 20

Every contender trains on the same slices at the same size and is scored by the same function. Each is a process of its
own on one thread, as many at a time as there are cores; its epochs are as many as the minutes hold at the speed of its
first steps, so that its learning-rate cycle ends with them. CPU seconds are counted, so that pauses and neighbours
cost nobody anything. What a contender reached is kept under --out: one that is there is not run again.

- `braintum`: the recipe `fast`, its length set, predictions averaged over flips as it says; and not averaged.
- `plain_batch`, `plain_instance`: the usual loop of torch's tutorials (https://docs.pytorch.org/tutorials/beginner/
  basics/optimization_tutorial.html) with our joint U-Net of 16 base channels, AdamW, torch's OneCycleLR to 3e-3, flips
  and rotations in batch; BatchNorm and Dice over the batch, or InstanceNorm and Dice per slice.
- `monai`: the U-Net of monai's tutorial (https://github.com/Project-MONAI/tutorials/blob/main/2d_segmentation/torch/
  unet_training_array.py) with InstanceNorm, masks only, trained by that plain loop with monai's DiceCELoss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from record import record
from torch import Tensor, nn
from torch.nn import functional as F

from braintum.config import Experiment
from braintum.data.folds import split
from braintum.data.table import SliceTable, load_table
from braintum.evaluation.predict import selection_metrics, slice_scores
from braintum.models.output import Output
from braintum.training.device import keep_freed_memory
from braintum.training.fit import Fit

CONTENDERS = ("braintum", "plain_instance", "plain_batch", "monai")
BATCH, PEAK = 16, 3e-3
TIMED_SLICES, TIMED_EPOCHS = 128, 3  # that a contender's speed is measured on first


class MaskOnly(nn.Module):
    """monai's network, with the outputs that our scoring reads."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2),
            num_res_units=2, norm="INSTANCE",
        )  # fmt: skip

    def forward(self, image_BCHW: Tensor) -> Output:
        return Output(self.network(image_BCHW), None)


class PlainLoop:
    """Everything in tensors; a random order, flips and rotations, a step."""

    def __init__(self, name: str, experiment: Experiment, table: SliceTable, rows: np.ndarray, epochs: int) -> None:
        torch.manual_seed(experiment.training.seed)
        image = torch.from_numpy(table.image_RCHW[rows]).float()
        low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
        self.image_RCHW = (image - low) / (high - low)
        self.mask_R1HW = torch.from_numpy(table.mask_RHW[rows]).float()[:, None]
        self.label_R = torch.from_numpy(table.label_R[rows])
        self.epochs = epochs
        self.dice_over = (0, 2, 3) if name == "plain_batch" else (2, 3)
        self.dice_ce = DiceCELoss(sigmoid=True) if name == "monai" else None
        self.model: nn.Module
        if name == "monai":
            self.model = MaskOnly()
        else:
            paper = {"model.width": 16, "model.depth": 4, "model.norm": name.removeprefix("plain_")}
            self.model = experiment.with_overrides(paper).model.build(1, len(table.classes), 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK, fused=True)
        steps = epochs * math.ceil(len(rows) / BATCH)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=PEAK, total_steps=steps)

    def __iter__(self) -> Iterator[None]:
        for _ in range(self.epochs):
            self.model.train()
            for rows in torch.randperm(len(self.label_R)).split(BATCH):
                image, mask = self.augmented(self.image_RCHW[rows], self.mask_R1HW[rows])
                self.optimizer.zero_grad(set_to_none=True)
                self.loss(self.model(image), mask, self.label_R[rows]).backward()
                self.optimizer.step()
                self.schedule.step()
            yield

    def augmented(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        angle = (torch.rand(len(image)) * 2 - 1) * math.radians(15)
        flip = torch.randint(2, (2, len(image))) * 2 - 1
        zero = torch.zeros(len(image))
        row_x, row_y = [angle.cos() * flip[0], -angle.sin(), zero], [angle.sin(), angle.cos() * flip[1], zero]
        theta = torch.stack([torch.stack(row_x, 1), torch.stack(row_y, 1)], 1)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        sampled = [
            F.grid_sample(x, grid, how, align_corners=False) for x, how in ((image, "bilinear"), (mask, "nearest"))
        ]
        return sampled[0], sampled[1]

    def loss(self, output: Output, mask: Tensor, label: Tensor) -> Tensor:
        logits, classes = output.mask_logits_BKHW, output.class_logits_BN
        if self.dice_ce is not None or classes is None:
            return self.dice_ce(logits, mask)
        probability = logits.sigmoid()
        both, all_ = (probability * mask).sum(self.dice_over), (probability + mask).sum(self.dice_over)
        dice = 1 - ((2 * both + 1) / (all_ + 1)).mean()
        return F.binary_cross_entropy_with_logits(logits, mask) + dice + F.cross_entropy(classes, label)


def trained(name: str, experiment: Experiment, table: SliceTable, rows: np.ndarray, epochs: int) -> tuple[Any, float]:
    """A contender after its epochs, and the CPU seconds that they took."""
    start = time.process_time()
    if name == "braintum":
        training = Fit(experiment.with_overrides({"training.epochs": epochs}), table, rows)
    else:
        training = PlainLoop(name, experiment, table, rows, epochs)
    for _ in training:
        print(".", end="", file=sys.stderr, flush=True)
    return training, time.process_time() - start


def contend(name: str, data: str, fold: str, minutes: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    keep_freed_memory()
    experiment = Experiment.load("fast", {"training.seed": seed})
    table = load_table(data, experiment.data)
    rows = split(table, fold, None, seed=0)
    few = rows.train[:: len(rows.train) // TIMED_SLICES]
    for _ in ("warm up", "measure"):
        _, seconds = trained(name, experiment, table, few, TIMED_EPOCHS)
    epochs = max(1, int(minutes * 60 / (seconds / TIMED_EPOCHS / len(few) * len(rows.train))))
    training, seconds = trained(name, experiment, table, rows.train, epochs)

    def reached(mirrors: list[tuple[int, ...]]) -> dict[str, float]:
        scores = slice_scores(training.model, table, rows.held_out, device="cpu", mirrors=mirrors)
        means = selection_metrics(scores, table.classes)
        return {key: means[key] for key in ("dice", "accuracy", "macro_f1") if key in means}

    one_prediction = [()]
    if name == "braintum":
        training.model.load_state_dict(training.kept_weights())
        scores = {**reached(experiment.augment.mirrors), "without_flips": reached(one_prediction)}
    else:
        scores = reached(one_prediction)
    return {
        **scores,
        "epochs": epochs,
        "cpu_minutes": seconds / 60,
        "slices_per_cpu_second": len(rows.train) * epochs / seconds,
        "weights": sum(p.numel() for p in training.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--fold", default="4")
    parser.add_argument("--minutes", type=float, default=20.0, help="of one core, for each contender")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--only", choices=CONTENDERS, help="one contender, in this process; nothing is recorded")
    a = parser.parse_args()
    if a.only:
        a.out.mkdir(parents=True, exist_ok=True)
        reached = contend(a.only, a.data, a.fold, a.minutes, a.seed)
        (a.out / f"{a.only}.json").write_text(json.dumps(reached))
        return

    def reached_by(name: str) -> dict[str, Any]:
        if not (a.out / f"{name}.json").exists():
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)
        return json.loads((a.out / f"{name}.json").read_text())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(a.contenders, pool.map(reached_by, a.contenders), strict=True))
    arguments = f"--data DATA --out OUT --fold {a.fold} --minutes {a.minutes:g} --seed {a.seed} --contenders "
    arguments += " ".join(a.contenders)
    record("equal_time", results, f"python benchmarks/equal_time.py {arguments}")


if __name__ == "__main__":
    main()
