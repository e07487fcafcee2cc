"""A network that needs a GPU's whole memory: beside a process that holds one too it is out of memory, on any machine.

Processes know of each other by files in the folder GREEDY_ROOM. Only those that hold a GPU of Ray's (or a part of one)
count.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import torch
from torch import Tensor, nn

from braintum.models.output import Output
from braintum.models.registry import SegmenterConfig, register


@register("greedy_net")
class GreedyNetConfig(SegmenterConfig):
    """One convolution. `appetite` 2 is more than any GPU has."""

    SMALL: ClassVar[dict[str, Any]] = {}

    name: str = "greedy_net"
    appetite: int = 1

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        return GreedyNet(self, in_channels, num_masks)


class GreedyNet(nn.Module):
    def __init__(self, config: GreedyNetConfig, in_channels: int, num_masks: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(in_channels, num_masks, 3, padding=1)
        self.appetite, self.since = config.appetite, time.time()
        self.on_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())
        if self.on_gpu:
            self._place(os.getpid()).write_text(str(self.since))

    def forward(self, image_BCHW: Tensor) -> Output:
        if self.on_gpu and (self.appetite > 1 or self._others()):
            self._place(os.getpid()).unlink(missing_ok=True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate all of it")
        return Output(self.mask(image_BCHW), None)

    def _others(self) -> bool:
        files = [file for file in Path(os.environ["GREEDY_ROOM"]).iterdir() if int(file.name) != os.getpid()]
        return any(psutil.pid_exists(int(file.name)) and float(file.read_text()) < self.since for file in files)

    def _place(self, pid: int) -> Path:
        return Path(os.environ["GREEDY_ROOM"]) / str(pid)
