"""GoogLeNet (Szegedy et al. 2015) with batch norm. Modules have torchvision's names, so that its weights fit.

B batch, C channels, H W, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.googlenet import GoogLeNetConfig
from braintum.models.networks.blocks import initialise
from braintum.models.output import Output

AUXILIARY_WEIGHT = 0.3
"""To the last head's 1. The paper adds 0.3 of each to the loss; `Objective` divides that sum by 1.6."""

AUXILIARY_DROPOUT = 0.7


class GoogLeNet(nn.Module):
    """Channels from table 1 of the paper. Batch norm replaces its local response normalisation.

    Initial weights (the paper is silent): He et al. 2015 for convolutions; dense layers keep the variance; biases zero.
    """

    def __init__(self, config: GoogLeNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()

        def scaled(*channels: int) -> list[int]:
            return [max(1, round(c * config.width / 64)) for c in channels]

        stem, reduced, grown, auxiliary, hidden = scaled(64, 64, 192, 128, 1024)
        self.conv1 = BasicConv2d(in_channels, stem, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True) if config.max_pool else nn.Identity()
        self.conv2 = BasicConv2d(stem, reduced, 1)
        self.conv3 = BasicConv2d(reduced, grown, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(grown, *scaled(64, 96, 128, 16, 32, 32))
        self.inception3b = Inception(self.inception3a.channels, *scaled(128, 128, 192, 32, 96, 64))
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(self.inception3b.channels, *scaled(192, 96, 208, 16, 48, 64))
        self.inception4b = Inception(self.inception4a.channels, *scaled(160, 112, 224, 24, 64, 64))
        self.inception4c = Inception(self.inception4b.channels, *scaled(128, 128, 256, 24, 64, 64))
        self.inception4d = Inception(self.inception4c.channels, *scaled(112, 144, 288, 32, 64, 64))
        self.inception4e = Inception(self.inception4d.channels, *scaled(256, 160, 320, 32, 128, 128))
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(self.inception4e.channels, *scaled(256, 160, 320, 32, 128, 128))
        self.inception5b = Inception(self.inception5a.channels, *scaled(384, 192, 384, 48, 128, 128))
        self.aux1: nn.Module | None = None
        self.aux2: nn.Module | None = None
        if config.auxiliary:
            self.aux1 = AuxiliaryHead(self.inception4a.channels, auxiliary, hidden, num_classes)
            self.aux2 = AuxiliaryHead(self.inception4d.channels, auxiliary, hidden, num_classes)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(self.inception5b.channels, num_classes)
        initialise(self, _draw)

    def forward(self, image_BCHW: Tensor) -> Output:
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(image_BCHW))))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x4a = self.inception4a(self.maxpool3(x))
        x4d = self.inception4d(self.inception4c(self.inception4b(x4a)))
        x = self.maxpool4(self.inception4e(x4d))
        x = self.inception5b(self.inception5a(x))
        logits_BN = self.fc(self.dropout(x.mean((2, 3))))
        if self.aux1 is None or self.aux2 is None or not self.training:
            return Output(None, logits_BN)
        auxiliary = (Output(None, self.aux1(x4a)), Output(None, self.aux2(x4d)))
        return Output(None, logits_BN, tuple((AUXILIARY_WEIGHT, output) for output in auxiliary))

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under torchvision's names, which are ours.

        Without the auxiliary heads: torchvision says that those in its file were never trained.
        """
        own = self.state_dict()
        return {key: value for key, value in weights.items() if key in own and not key.startswith("aux")}


class BasicConv2d(nn.Module):
    """Convolution that keeps the side (at stride 1), batch norm, ReLU. Epsilon as in torchvision's public weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side (figure 2 b of the paper); `channels` come out.

    The 5×5 convolution is a 3×3, as in the public networks: that is what their weights were trained as.
    """

    def __init__(
        self,
        in_channels: int,
        conv1x1: int,
        reduce3x3: int,
        conv3x3: int,
        reduce5x5: int,
        conv5x5: int,
        pool_projection: int,
    ) -> None:
        super().__init__()
        self.channels = conv1x1 + conv3x3 + conv5x5 + pool_projection
        self.branch1 = BasicConv2d(in_channels, conv1x1, 1)
        self.branch2 = nn.Sequential(BasicConv2d(in_channels, reduce3x3, 1), BasicConv2d(reduce3x3, conv3x3, 3))
        self.branch3 = nn.Sequential(BasicConv2d(in_channels, reduce5x5, 1), BasicConv2d(reduce5x5, conv5x5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), BasicConv2d(in_channels, pool_projection, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x_BCHW) for branch in branches], 1)


class AuxiliaryHead(nn.Module):
    """Classes out of maps halfway (section 5 of the paper), pooled to 4×4 at any size of slice."""

    def __init__(self, in_channels: int, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.conv = BasicConv2d(in_channels, channels, 1)
        self.fc1 = nn.Linear(channels * 4 * 4, hidden)
        self.dropout = nn.Dropout(AUXILIARY_DROPOUT)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x_BCHW, 4)).flatten(1)
        logits_BN: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))
        return logits_BN


def _draw(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """A ReLU stands behind every one."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
