"""What `fit` costs over a hand-written loop, and what Ray Train with one worker costs over `fit` in plain Python.

    python benchmarks/training_loop.py [--slices 192] [--size 128] [--width 16] [--epochs 13] [--threads 1]

The hand-written loop is the one of torch's own tutorial (https://docs.pytorch.org/tutorials/beginner/basics/
optimization_tutorial.html) with what the performance guide (https://docs.pytorch.org/tutorials/recipes/recipes/
tuning_guide.html) advises on this device: tensors in memory, `zero_grad(set_to_none=True)`, a fused optimiser, the same
memory format and precision. Same model, batch size, loss and slices, augmentation off in both. `fit` and the loop take
turns epoch by epoch in one process, and their CPU seconds are compared. Ray Train and plain Python take turns too, each
in a process of its own that is stopped (SIGSTOP) while the other trains, because a machine's speed changes more from
minute to minute than they differ; an epoch there is the time from one epoch's end to the next one's, checkpoint and
TensorBoard included in both. In the turns of plain Python all of Ray's processes are stopped, not its worker only; what
the others take of a core in Ray's turns is recorded. A ratio is the median over the pairs of epochs, with a 95 %
bootstrap interval of that median.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from record import record
from torch import Tensor, nn
from torch.nn import functional as F

from braintum.config import Experiment
from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import SliceTable, load_table
from braintum.training.device import keep_freed_memory
from braintum.training.fit import Fit, build_model
from braintum.training.progress import Progress
from braintum.training.run import RunSpec, run

PLAIN = "--plain-run"


def settings(size: int, width: int, epochs: int) -> Experiment:
    return Experiment.load(
        "fast",
        {
            "data.image_size": size,
            "model.width": width,
            "model.depth": 4,
            "training.epochs": epochs,
            "training.weights": "last",
            "training.average_decay": None,
            "training.half_size": 0.0,
            "optim.clip_norm": None,
            "augment.test_time": False,
            **{f"augment.{name}": 0.0 for name in ("flip_horizontal", "flip_vertical", "rotate")},
            **{f"augment.{name}": 0.0 for name in ("scale", "shift", "brightness", "contrast")},
        },
    )


class HandWritten:
    """The minimal loop: everything in tensors, nothing that training does not need."""

    def __init__(self, experiment: Experiment, table: SliceTable, rows: np.ndarray, fit: Fit) -> None:
        image = torch.from_numpy(table.image_RCHW[rows]).float()
        low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
        self.image_RCHW = (image - low) / (high - low)
        self.mask_RKHW = torch.from_numpy(table.mask_RHW[rows]).float()[:, None]
        self.label_R = torch.from_numpy(table.label_R[rows])
        self.model: nn.Module = build_model(experiment, table).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=experiment.optim.lr, weight_decay=experiment.optim.weight_decay, fused=True
        )
        self.weights = experiment.loss.segmentation_weight, experiment.loss.classification_weight
        self.autocast = fit.autocast_dtype
        if self.autocast is not None:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.image_RCHW = self.image_RCHW.contiguous(memory_format=torch.channels_last)

    def loss(self, image: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.autocast, enabled=self.autocast is not None):
            output = self.model(image)
        logits = output.mask_logits_BKHW.float()
        probability = logits.sigmoid()
        both, all_ = (probability * mask).sum(dim=(2, 3)), probability.sum(dim=(2, 3)) + mask.sum(dim=(2, 3))
        dice = 1 - (2 * both + 1) / (all_ + 1)
        segmentation = F.binary_cross_entropy_with_logits(logits, mask) + dice.mean()
        classification = F.cross_entropy(output.class_logits_BN.float(), label)
        return self.weights[0] * segmentation + self.weights[1] * classification

    def epoch(self) -> None:
        total = torch.zeros(())
        for rows in torch.randperm(len(self.label_R)).split(16):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.image_RCHW[rows], self.mask_RKHW[rows], self.label_R[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        if not torch.isfinite(total):
            raise ArithmeticError("diverged")


def against_hand_written(experiment: Experiment, table: SliceTable, epochs: int) -> dict[str, Any]:
    rows = np.arange(len(table))
    fit = Fit(experiment, table, rows)
    plain = HandWritten(experiment, table, rows, fit)
    seconds: dict[str, list[float]] = {"fit": [], "hand_written": []}
    turns = [("fit", fit.run_epoch), ("hand_written", plain.epoch)]
    for _ in range(epochs):
        turns.reverse()
        for name, epoch in turns:
            start = time.process_time()
            epoch()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["fit"][1:], seconds["hand_written"][1:], strict=True)]
    return {
        **median_of("fit_over_hand_written", ratios),
        "fit_slices_per_cpu_second": len(rows) / medians["fit"],
        "hand_written_slices_per_cpu_second": len(rows) / medians["hand_written"],
    }


def median_of(name: str, ratios: list[float]) -> dict[str, Any]:
    """The median of the pairs, where it may lie (2.5 and 97.5 % of 10,000 bootstrap samples), and the pairs."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {name: statistics.median(ratios), f"{name}_95_percent": [low, high], f"{name}_by_epoch": ratios}


def plain_run(data: str, out: str, size: int, width: int, epochs: int, threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    experiment = settings(size, width, epochs)
    list(run(RunSpec.of(experiment, data, out, None), load_table(data, experiment.data)))


class Turns(threading.Thread):
    """Lets the plain run and Ray's train an epoch each in turn, from the second on, and takes the time."""

    def __init__(self, plain: subprocess.Popen[bytes], plain_out: Path, ray_out: Path, epochs: int) -> None:
        super().__init__(daemon=True)
        self._plain, self._outs, self._epochs = psutil.Process(plain.pid), (plain_out, ray_out), epochs
        self.seconds: list[tuple[float, float]] = []  # of an epoch: plain Python, Ray Train
        self.background_cores = 0.0  # what Ray's other processes took in its turns

    def run(self) -> None:
        self._until_next_epoch_ends(self._outs[0])
        self._plain.suspend()
        self._until_next_epoch_ends(self._outs[1])
        rays = [child for child in psutil.Process().children(recursive=True) if child.pid != self._plain.pid]
        of_others = [child for child in rays if "RayTrainWorker" not in " ".join(child.cmdline())]
        each_running(rays, psutil.Process.suspend)
        used = cpu_seconds(of_others)
        for _ in range(1, self._epochs):
            self.seconds.append((self._epoch([self._plain], self._outs[0]), self._epoch(rays, self._outs[1])))
        self.background_cores = (cpu_seconds(of_others) - used) / sum(ray_ for _, ray_ in self.seconds)
        each_running([self._plain, *rays], psutil.Process.resume)

    def _epoch(self, processes: list[psutil.Process], out: Path) -> float:
        start = time.perf_counter()
        each_running(processes, psutil.Process.resume)
        self._until_next_epoch_ends(out)
        each_running(processes, psutil.Process.suspend)
        return time.perf_counter() - start

    def _until_next_epoch_ends(self, out: Path) -> None:
        before = epochs_ended(out)
        while epochs_ended(out) == before:
            time.sleep(0.005)


def each_running(processes: list[psutil.Process], change: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            change(process)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def epochs_ended(out: Path) -> int:
    """Epochs that TensorBoard's file knows; it is flushed after each."""
    return sum(file.read_bytes().count(b"train_loss") for file in (out / "tensorboard").glob("*"))


def against_ray_train(data: str, folder: Path, size: int, width: int, epochs: int, threads: int) -> dict[str, Any]:
    from braintum.connect import start_local
    from braintum.training.worker import train

    start_local(num_cpus=threads)
    plain_out, ray_out = folder / "plain", folder / "ray"
    arguments = [PLAIN, data, str(plain_out), *map(str, (size, width, epochs, threads))]
    plain = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL)
    turns = Turns(plain, plain_out, ray_out, epochs)
    turns.start()
    train(settings(size, width, epochs), data, str(ray_out), progress=Progress("ray", quiet=True))
    turns.join()
    plain.wait()
    ray.shutdown()
    plain_seconds, ray_seconds = zip(*turns.seconds, strict=True)
    ratios = [ray_ / plain_ for plain_, ray_ in turns.seconds]
    return {
        **median_of("ray_train_over_plain_python", ratios),
        "ray_train_epoch_seconds": statistics.median(ray_seconds),
        "plain_python_epoch_seconds": statistics.median(plain_seconds),
        "cores_that_ray_takes_beside": turns.background_cores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("slices", 192), ("size", 128), ("width", 16), ("epochs", 13), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = str(folder / "phantom")
        ingest_phantom(data, cases=a.slices // 6, slices_per_case=6, size=a.size)
        experiment = settings(a.size, a.width, a.epochs)
        results = {
            **against_hand_written(experiment, load_table(data, experiment.data), a.epochs),
            **against_ray_train(data, folder, a.size, a.width, a.epochs, a.threads),
        }
    command = " ".join(["python benchmarks/training_loop.py", *(f"--{k} {v}" for k, v in vars(a).items())])
    record("training_loop", results, command)


if __name__ == "__main__":
    if sys.argv[1:2] == [PLAIN]:
        plain_run(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main()
