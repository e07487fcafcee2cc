"""TransUNet's ResNet: BiT's of weight-standardised convolutions and group norm, as in ViT's hybrid.

B batch, C channels, H W. Parameters have timm's names.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """BiT's ResNet without its last stage (Kolesnikov et al. 2020), as in ViT's hybrid: [B, 16 width, H/16, W/16].

    Also returns the skips, finest first: `skip_channels` at 1/2, 1/4, 1/8 of the side. As in the public code the
    pooling is not padded, so that the first stage lacks a row and a column, which its skip gets as zeros.
    """

    def __init__(self, in_channels: int, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.skip_channels = (width, 4 * width, 8 * width)
        self.stem = StdConvNorm(in_channels, width, 7, stride=2)
        channels = (width, *(4 * width << stage for stage in range(len(blocks))))
        self.stages = nn.ModuleList(
            ResNetStage(channels[i], channels[i + 1], num_blocks, stride=1 if i == 0 else 2)
            for i, num_blocks in enumerate(blocks)
        )

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        stem_BCHW = F.relu(self.stem(image_BCHW))
        features = [F.max_pool2d(stem_BCHW, 3, stride=2)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        _, quarter_BCHW, eighth_BCHW, last_BCHW = features
        return last_BCHW, [stem_BCHW, F.pad(quarter_BCHW, (0, 1, 0, 1)), eighth_BCHW]


class ResNetStage(nn.Sequential):
    """Bottlenecks, the first of which changes channels and stride."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, stride: int) -> None:
        first = Bottleneck(in_channels, out_channels, stride)
        others = (Bottleneck(out_channels, out_channels, 1) for _ in range(num_blocks - 1))
        super().__init__(OrderedDict(blocks=nn.Sequential(first, *others)))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, ReLU after each and after the sum; a quarter inside."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1, self.norm1 = StdConv2d(in_channels, inner, 1), group_norm(inner)
        self.conv2, self.norm2 = StdConv2d(inner, inner, 3, stride), group_norm(inner)
        self.conv3, self.norm3 = StdConv2d(inner, out_channels, 1), group_norm(out_channels)
        self.downsample: StdConvNorm | None = None
        if in_channels != out_channels or stride != 1:
            self.downsample = StdConvNorm(in_channels, out_channels, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        x_BCHW = F.relu(self.norm2(self.conv2(x_BCHW)))
        return F.relu(self.norm3(self.conv3(x_BCHW)) + shortcut_BCHW)


class StdConvNorm(nn.Sequential):
    """A convolution and its norm, no ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        conv = StdConv2d(in_channels, out_channels, kernel_size, stride)
        super().__init__(OrderedDict(conv=conv, norm=group_norm(out_channels)))


class StdConv2d(nn.Conv2d):
    """A convolution whose weights are standardised per output channel (Qiao et al. 2019, eq. 11); ε as in public code.

    No bias; sides are divided by `stride`, rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x_BCHW, weight, None, self.stride, self.padding)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or the largest power of two below that divides the channels.

    TransUNet's public code has one channel a group on shortcuts, and loads there weights trained with 32 groups (ViT's
    hybrid); here they meet the groups they were trained with.
    """
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)
