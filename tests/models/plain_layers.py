"""What a forward written out is made of: plain torch functions over a network's own weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def telling(network: nn.Module) -> nn.Module:
    """The network in double and eval mode, its norms, statistics and biases drawn, so that a swap of any two shows."""
    torch.manual_seed(0)
    for name, tensor in network.double().eval().state_dict().items():
        if tensor.dim() == 1:
            around_zero = name.endswith((".bias", ".running_mean"))
            tensor.copy_(torch.randn(len(tensor)) * 0.3 if around_zero else 0.5 + torch.rand(len(tensor)))
    return network


class PlainLayers:
    """Layers by their name in the state dict `of`. Kernels and strides are the caller's to know."""

    def __init__(self, network: nn.Module) -> None:
        self.of = network.state_dict()

    def conv(self, name: str, x: Tensor, kernel: int | tuple[int, int], stride: int = 1) -> Tensor:
        """Padded by half an odd kernel, not at all by an even one; by groups where the weights are."""
        weight, bias = self.of[f"{name}.weight"], self.of.get(f"{name}.bias")
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        assert weight.shape[2:] == (height, width)
        padding = (height // 2 * (height % 2), width // 2 * (width % 2))
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1] // weight.shape[1])

    def up(self, name: str, x: Tensor, factor: int) -> Tensor:
        """A transposed convolution, `factor` its kernel and its stride."""
        return F.conv_transpose2d(x, self.of[f"{name}.weight"], self.of[f"{name}.bias"], factor)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.of[f"{name}.weight"], self.of.get(f"{name}.bias"))

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self.of[f"{name}.running_mean"], self.of[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, self.of[f"{name}.weight"], self.of[f"{name}.bias"])

    def layer_norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.of[f"{name}.weight"], self.of[f"{name}.bias"], eps)
