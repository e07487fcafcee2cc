"""Random weights under the names that torchvision's files have, and the layers that compute with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(dict[str, Tensor]):
    """Layers make their weights when they are first used: a network that has run once has filled the state dict.

    Statistics are not those of a fresh network, so that a swap of any two tensors shows.
    """

    def conv(self, name: str, x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        std = (2 / (x.shape[1] * kernel**2)) ** 0.5
        weight = self._made(f"{name}.weight", torch.randn(channels, x.shape[1], kernel, kernel) * std)
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        channels = x.shape[1]
        mean = self._made(f"{name}.running_mean", torch.randn(channels) * 0.1)
        variance = self._made(f"{name}.running_var", 0.5 + torch.rand(channels))
        weight = self._made(f"{name}.weight", 0.5 + torch.rand(channels))
        bias = self._made(f"{name}.bias", torch.randn(channels) * 0.1)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def linear(self, name: str, x: Tensor, channels: int) -> Tensor:
        weight = self._made(f"{name}.weight", torch.randn(channels, x.shape[1]) * x.shape[1] ** -0.5)
        return F.linear(x, weight, self._made(f"{name}.bias", torch.randn(channels)))

    def _made(self, name: str, value: Tensor) -> Tensor:
        return self.setdefault(name, value)
