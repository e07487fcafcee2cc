"""What each architecture costs, with default options: parameters, GFLOPs, speed and memory on this machine.

Every architecture is measured in a process of its own, so that its peak of memory is its own. The device, the precision
and the layout are those that a training picks; a training step is forward, objective, backward and Adam, without the
gathering and augmentation of slices.

B batch, C channels, H W, K mask channels, N classes.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from braintum.config import Experiment
from braintum.losses.objective import Objective
from braintum.models.registry import model_config_class
from braintum.settings import ConfigError
from braintum.training.device import autocast_dtype, keep_freed_memory, memory_format, pick_device, processor
from braintum.training.optim import build_optimizer
from braintum.training.progress import Progress

BATCH = 16 if torch.cuda.is_available() else 2
"""The papers' on a GPU; on a CPU that would take minutes a step."""
CHANNELS, CLASSES, MASKS = 1, 3, 1
SECONDS = 3.0 if torch.cuda.is_available() else 10.0
"""How long steps of training, and then of inference, are repeated."""
PATIENCE = 600.0
"""Seconds after which an architecture is given up."""


def benchmark(names: Sequence[str], side: int, progress: Progress) -> dict[str, Any]:
    """Measures architectures one after another on slices of `side` × `side`.

    `architectures` of the result holds by name what `measure` gives, or why there is nothing: `refused`, the size, or
    `failure`. Raises ConfigError for a name that is none.
    """
    for name in names:
        model_config_class(name)
    found = {}
    for name in names:
        progress.say(f"measuring {name}")
        found[name] = _in_a_process(name, side)
    return {
        "side": side,
        "batch": BATCH,
        "channels": CHANNELS,
        "classes": CLASSES,
        "masks": MASKS,
        "architectures": found,
        "machine": machine(),
    }


def measure(name: str, side: int) -> dict[str, Any]:
    """Measures one architecture in this process, whose memory before is left out of `peak_memory_mb`.

    GFLOPs are those of one slice's forward pass, a multiplication and an addition being two. Memory is that of
    training: all that the GPU has had allocated, or else what the process has grown by.
    """
    experiment = _experiment(name, side)
    keep_freed_memory()
    with torch.device("meta"):
        costs = counts(experiment.model.build(CHANNELS, CLASSES, MASKS), torch.empty(1, CHANNELS, side, side))
    before = _resident_bytes()
    training = Steps(experiment)
    train = slices_per_second(training.train, training.wait)
    on_gpu = training.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_bytes() - before
    return {
        "tasks": sorted(experiment.model.tasks),
        **costs,
        "train_slices_per_second": train,
        "inference_slices_per_second": slices_per_second(training.infer, training.wait),
        "peak_memory_mb": peak / 1e6,
    }


def counts(network: nn.Module, image_BCHW: Tensor) -> dict[str, float]:
    """Parameters, and GFLOPs of a forward pass in eval mode by torch's counter (convolutions and matrix products)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image_BCHW)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
    }


class Steps:
    """Steps of training and of inference on a batch of random slices, where and as a training computes."""

    def __init__(self, experiment: Experiment) -> None:
        training, side = experiment.training, experiment.data.image_size
        self.device = pick_device(training)
        self._dtype = autocast_dtype(training, self.device)
        layout = memory_format(self.device, self._dtype)
        torch.manual_seed(training.seed)
        network = experiment.model.build(CHANNELS, CLASSES, MASKS)
        self.network = network.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self._image_BCHW = torch.rand(BATCH, CHANNELS, side, side).to(self.device, memory_format=layout)
        self._targets = _Targets(side, self.device)
        self._objective = Objective(experiment.loss)
        self._optimizer = build_optimizer(network.parameters(), experiment.optim)

    def train(self) -> None:
        with self._autocast():
            output = self.network.train()(self._image_BCHW)
        losses = self._objective(output, self._targets).losses
        self._optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self._optimizer.step()

    def infer(self) -> None:
        with self._autocast(), torch.no_grad():
            self.network.eval()(self._image_BCHW)

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _autocast(self) -> Any:
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)


class _Targets:
    """Every slice with a mask and a label."""

    num_masks = num_labels = BATCH

    def __init__(self, side: int, device: torch.device) -> None:
        self.mask_BKHW = (torch.rand(BATCH, MASKS, side, side, device=device) > 0.5).float()
        self.has_mask_B = torch.ones(BATCH, dtype=torch.bool, device=device)
        self.label_B = self.global_label_B = torch.arange(BATCH, device=device) % CLASSES


def slices_per_second(step: Callable[[], None], wait: Callable[[], None], seconds: float = SECONDS) -> float:
    """Of the median step of BATCH slices: a first one warms up; then as many as fit into `seconds`, at least one."""
    step()
    wait()
    ends = [time.perf_counter()]
    while len(ends) == 1 or (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1) < seconds:
        step()
        wait()
        ends.append(time.perf_counter())
    return BATCH / statistics.median(end - start for start, end in pairwise(ends))


def machine() -> dict[str, Any]:
    """What speed and memory depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    experiment = Experiment()
    dtype = autocast_dtype(experiment.training, pick_device(experiment.training)) or torch.float32
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": gpu or "CPU",
        "precision": str(dtype).removeprefix("torch."),
        "torch": version("torch"),
    }


def _experiment(name: str, side: int) -> Experiment:
    return Experiment.from_dict({"model": {"name": name}, "data": {"image_size": side}}, name)


def _in_a_process(name: str, side: int) -> dict[str, Any]:
    tasks = {"tasks": sorted(Experiment.load(None, {"model.name": name}).model.tasks)}
    try:
        _experiment(name, side)
    except ConfigError as error:  # a size that it does not take
        return {**tasks, "refused": str(error)}
    command = [sys.executable, "-m", __name__, name, str(side)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)  # noqa: S603 - known words
    except subprocess.TimeoutExpired:
        return {**tasks, "failure": f"not done after {PATIENCE:.0f} s"}
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        return {**tasks, "failure": f"ended by {ended}" + ", of too little memory?" * (ended == "SIGKILL")}
    if done.returncode > 0:
        return {**tasks, "failure": done.stderr.strip().splitlines()[-1]}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # before it, whatever a package says
    return measured


def _resident_bytes() -> int:
    """What this process holds in memory."""
    status = _status()
    return status["VmRSS"] if status else _peak_bytes()


def _peak_bytes() -> int:
    """The most that this process has held. On Linux `ru_maxrss` also remembers the process that started this one."""
    status = _status()
    if status:
        return status["VmHWM"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _status() -> dict[str, int]:
    """Linux's own numbers of this process, bytes; empty elsewhere."""
    file = Path("/proc/self/status")
    lines = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
