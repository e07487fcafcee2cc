"""How large a network is, without memory for its weights."""

from __future__ import annotations

import torch
from torch import nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment


def on_meta(
    name: str, in_channels: int = 1, num_classes: int = 4, num_masks: int = 1, side: int = 256, **options: object
) -> nn.Module:
    """The network for slices of `side` pixels, as published but for `options`, on the meta device."""
    config = Experiment.from_dict({"data": {"image_size": side}, "model": {"name": name, **options}}).model
    with torch.device("meta"):
        return config.build(in_channels, num_classes, num_masks)


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
