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


def resnet_stages(weights: Weights, x: Tensor, layers: int, width: int) -> list[Tensor]:
    """What comes out of the four stages of torchvision's ResNet of 18 or 50 layers, at strides 4, 8, 16, 32."""
    stages = []
    x = F.relu(weights.norm("bn1", weights.conv("conv1", x, width, 7, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate((2, 2, 2, 2) if layers == 18 else (3, 4, 6, 3)):
        inner = width * 2**stage
        for i in range(count):
            block, stride = f"layer{stage + 1}.{i}", 2 if stage and not i else 1
            if layers == 50:
                y = F.relu(weights.norm(f"{block}.bn1", weights.conv(f"{block}.conv1", x, inner, 1)))
                y = F.relu(weights.norm(f"{block}.bn2", weights.conv(f"{block}.conv2", y, inner, 3, stride)))
                y = weights.norm(f"{block}.bn3", weights.conv(f"{block}.conv3", y, 4 * inner, 1))
            else:
                y = F.relu(weights.norm(f"{block}.bn1", weights.conv(f"{block}.conv1", x, inner, 3, stride)))
                y = weights.norm(f"{block}.bn2", weights.conv(f"{block}.conv2", y, inner, 3))
            if x.shape != y.shape:
                shortcut = weights.conv(f"{block}.downsample.0", x, y.shape[1], 1, stride)
                x = weights.norm(f"{block}.downsample.1", shortcut)
            x = F.relu(x + y)
        stages.append(x)
    return stages
