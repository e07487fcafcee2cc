"""Blocks and initial weights that several architectures share.

B batch, C channels, H W; `coarse` is a feature map of the next stage down: twice the channels, half the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.registry import SegmenterConfig

Norm = Literal["batch", "instance", "group"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """An affine norm. `group` has 8 groups, or the largest power of two below that divides the channels.

    `instance` is a group norm of one channel a group: the same numbers and weights as InstanceNorm2d, which copies
    each map into another layout and back in channels_last, and repeats its weights for every slice.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels if norm == "instance" else math.gcd(8, channels), channels)


class ConvNormReLU(nn.Sequential):
    """A convolution that keeps height and width (odd kernels), norm, ReLU. The norm makes a convolution bias idle."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], norm: Norm = "batch"
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, (height, width), padding=padding, bias=False),
            make_norm(norm, out_channels),
            nn.ReLU(inplace=True),
        )


class ConvBlock(nn.Sequential):
    """(3×3 convolution, norm, ReLU) twice."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(
            *ConvNormReLU(in_channels, out_channels, 3, norm), *ConvNormReLU(out_channels, out_channels, 3, norm)
        )


class Encoder(nn.Module):
    """`depth` + 1 stages with max-pooling between them: `width`, 2 `width`, ... channels.

    Returns the feature maps of all stages, finest first; the last is the bottleneck.
    """

    def __init__(self, in_channels: int, width: int, depth: int, norm: Norm) -> None:
        super().__init__()
        self.channels = [width * 2**stage for stage in range(depth + 1)]
        self.stages = nn.ModuleList(
            ConvBlock(c_in, c_out, norm)
            for c_in, c_out in zip([in_channels, *self.channels], self.channels, strict=False)
        )

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        features = [self.stages[0](image_BCHW)]
        for stage in self.stages[1:]:
            features.append(stage(F.max_pool2d(features[-1], 2)))
        return features


class AttentionGate(nn.Module):
    """Additive attention gate (Oktay et al. 2018, "Attention U-Net", eq. 1 and 2).

    As in the paper the skip is sampled down to the grid of the gating signal (their code: a 2×2 convolution of
    stride 2), and the coefficients in (0, 1) are interpolated back up. `share`: inner channels as a share of the
    skip's, 0.5 when None.
    """

    def __init__(self, channels: int, share: float | None) -> None:
        super().__init__()
        inner = max(1, round(channels * (0.5 if share is None else share)))
        self.skip = nn.Conv2d(channels, inner, 2, stride=2, bias=False)
        self.gate = nn.Conv2d(2 * channels, inner, 1)
        self.coefficient = nn.Conv2d(inner, 1, 1)

    def forward(self, skip_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        joint = F.relu(self.skip(skip_BCHW) + self.gate(coarse_BCHW), inplace=True)
        attention_B1HW = torch.sigmoid(self.coefficient(joint))
        return skip_BCHW * F.interpolate(attention_B1HW, scale_factor=2.0, mode="bilinear", align_corners=False)


def _bottleneck(channels: int, share: float | None) -> int:
    """Inner units of a channel attention: the papers' sixteenth when `share` is None, but no fewer than 8.

    All of few ReLUs can be dead from the start (channel means hardly differ from slice to slice), and stay so.
    """
    return max(8, channels // 16) if share is None else max(1, round(channels * share))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what all channels' means say (Hu et al. 2018, section 3). `coarse` is not looked at."""

    def __init__(self, channels: int, share: float | None) -> None:
        super().__init__()
        inner = _bottleneck(channels, share)
        self.scale = nn.Sequential(
            nn.Linear(channels, inner), nn.ReLU(inplace=True), nn.Linear(inner, channels), nn.Sigmoid()
        )

    def forward(self, skip_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        scale_BC: Tensor = self.scale(skip_BCHW.mean((2, 3)))
        return skip_BCHW * scale_BC[:, :, None, None]


class CBAM(nn.Module):
    """Channel, then spatial attention (Woo et al. 2018, eq. 1 to 3). `coarse` is not looked at."""

    def __init__(self, channels: int, share: float | None) -> None:
        super().__init__()
        inner = _bottleneck(channels, share)
        self.channel = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(inplace=True), nn.Linear(inner, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, skip_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        scale_BC = torch.sigmoid(self.channel(skip_BCHW.mean((2, 3))) + self.channel(skip_BCHW.amax((2, 3))))
        skip_BCHW = skip_BCHW * scale_BC[:, :, None, None]
        pooled_B2HW = torch.cat([skip_BCHW.mean(1, keepdim=True), skip_BCHW.amax(1, keepdim=True)], 1)
        return skip_BCHW * torch.sigmoid(self.spatial(pooled_B2HW))


ATTENTION: dict[str, type[AttentionGate | SqueezeExcitation | CBAM]] = {
    "gate": AttentionGate,
    "se": SqueezeExcitation,
    "cbam": CBAM,
}


def class_head(config: SegmenterConfig, channels: int, num_classes: int) -> nn.Module | None:
    """Dropout and a linear layer on the means of the deepest features [B, channels]; None without `classify`.

    The U-Net paper names dropout in its dense layers without a rate (section II-F): 0.5 unless told.
    """
    if not config.classify:
        return None
    return nn.Sequential(
        nn.Dropout(0.5 if config.dropout is None else config.dropout), nn.Linear(channels, num_classes)
    )


def draw_convolution(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """As the U-Net's stand: 3×3 convolutions before a ReLU (gain 2), all others not (gain 1).

    A transposed 2×2 convolution of stride 2 has one tap per input channel and output pixel.
    """
    if isinstance(convolution, nn.ConvTranspose2d):
        nn.init.normal_(convolution.weight, std=convolution.in_channels**-0.5)
    else:
        followed_by_relu = convolution.kernel_size == (3, 3)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu" if followed_by_relu else "linear")


def initialise(network: nn.Module, draw: Callable[[nn.Conv2d | nn.ConvTranspose2d], object] = draw_convolution) -> None:
    """Keeps the variance of activations (He et al. 2015): `draw` sets a convolution's weights, and has to know what
    stands behind it; dense layers have gain 1; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            draw(module)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
