"""What `fast`, a plain loop and monai's residual U-Net reach on a held-out fold in the same minutes of a core.

    braintum ingest folder ../shared/data/cheng --out out/cheng
    python benchmarks/equal_time.py --data out/cheng --out out/equal_time --fold 4 --minutes 4 20

Every contender trains on the same slices at the same size and is scored by the same function. Each is a process of its
own on one thread, as many at a time as there are cores; its steps (ours: epochs) are as many as the minutes hold at
the speed of its first steps, so that its learning-rate cycle ends with them. CPU seconds are counted, so that pauses
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
from itertools import islice, product
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

CONTENDERS = ("braintum", "monai", "plain_instance", "plain_batch")
BATCH, PEAK = 16, 3e-3
TIMED_SLICES, TIMED_EPOCHS = 256, 4  # that a contender is timed on first; ours: as many at half size as not


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

    def __init__(self, name: str, experiment: Experiment, table: SliceTable, rows: np.ndarray, steps: int) -> None:
        torch.manual_seed(experiment.training.seed)
        image = torch.from_numpy(table.image_RCHW[rows]).float()
        low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
        self.image_RCHW = (image - low) / (high - low)
        self.mask_R1HW = torch.from_numpy(table.mask_RHW[rows]).float()[:, None]
        self.label_R = torch.from_numpy(table.label_R[rows])
        self.steps = steps
        self.dice_over = (0, 2, 3) if name == "plain_batch" else (2, 3)
        self.dice_ce = DiceCELoss(sigmoid=True) if name == "monai" else None
        self.model: nn.Module
        if name == "monai":
            self.model = MaskOnly()
        else:
            paper = {"model.width": 16, "model.depth": 4, "model.norm": name.removeprefix("plain_")}
            self.model = experiment.with_overrides(paper).model.build(1, len(table.classes), 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=PEAK, total_steps=steps)

    def run(self) -> None:
        self.model.train()
        for rows in islice(self.batches(), self.steps):
            image, mask = self.augmented(self.image_RCHW[rows], self.mask_R1HW[rows])
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(self.model(image), mask, self.label_R[rows]).backward()
            self.optimizer.step()
            self.schedule.step()

    def batches(self) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(self.label_R)).split(BATCH)

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


def trained(name: str, experiment: Experiment, table: SliceTable, rows: np.ndarray, epochs: float) -> tuple[Any, float]:
    """A contender after its epochs, and the CPU seconds that they took."""
    start = time.process_time()
    if name == "braintum":
        training = Fit(experiment.with_overrides({"training.epochs": max(1, int(epochs))}), table, rows)
        for _ in training:
            print(".", end="", file=sys.stderr, flush=True)
    else:
        training = PlainLoop(name, experiment, table, rows, max(1, int(epochs * math.ceil(len(rows) / BATCH))))
        training.run()
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
    epochs = minutes * 60 / (seconds / TIMED_EPOCHS / len(few) * len(rows.train))
    training, seconds = trained(name, experiment, table, rows.train, epochs)

    def reached(mirrors: list[tuple[int, ...]]) -> dict[str, float]:
        scores = slice_scores(training.model, table, rows.held_out, device="cpu", mirrors=mirrors)
        means = selection_metrics(scores, table.classes)
        return {key: means[key] for key in ("dice", "accuracy", "macro_f1") if key in means}

    one_prediction = [()]
    if name == "braintum":
        epochs = training.epoch
        training.model.load_state_dict(training.kept_weights())
        scores = {**reached(experiment.augment.mirrors), "without_flips": reached(one_prediction)}
    else:
        scores = reached(one_prediction)
    return {
        "contender": name,
        "minutes": minutes,
        "seed": seed,
        **scores,
        "epochs": round(epochs, 2),
        "cpu_minutes": seconds / 60,
        "slices_per_cpu_second": len(rows.train) * epochs / seconds,
        "weights": sum(p.numel() for p in training.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--fold", default="4")
    parser.add_argument("--minutes", type=float, nargs="+", default=[20.0], help="of one core, for each contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--one-here", action="store_true", help="the first of all runs, in this process, unrecorded")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)

    def file_of(name: str, minutes: float, seed: int) -> Path:
        return a.out / f"{name}-{minutes:g}-minutes-seed-{seed}.json"

    def reached_by(name: str, minutes: float, seed: int) -> dict[str, Any]:
        file = file_of(name, minutes, seed)
        if not file.exists():
            one = ["--contenders", name, "--minutes", f"{minutes:g}", "--seeds", str(seed), "--one-here"]
            where = ["--data", a.data, "--out", str(a.out), "--fold", a.fold]
            subprocess.run([sys.executable, sys.argv[0], *where, *one], check=True)
        return json.loads(file.read_text())

    runs = list(product(a.contenders, a.minutes, a.seeds))
    if a.one_here:
        file_of(*runs[0]).write_text(json.dumps(contend(runs[0][0], a.data, a.fold, *runs[0][1:])))
        return
    runs.sort(key=lambda run: run[1:])  # contenders of the same minutes and seed side by side
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda run: reached_by(*run), runs))
    arguments = f"--data DATA --out OUT --fold {a.fold} --minutes {' '.join(f'{m:g}' for m in a.minutes)}"
    arguments += f" --seeds {' '.join(map(str, a.seeds))} --contenders {' '.join(a.contenders)}"
    record("equal_time", {"runs": results}, f"python benchmarks/equal_time.py {arguments}")


if __name__ == "__main__":
    main()
