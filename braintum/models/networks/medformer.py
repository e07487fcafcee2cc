"""MedFormer in 2D (Gao et al. 2022, "A Data-scalable Transformer for Medical Image Segmentation", arXiv 2203.00131).

Where the paper is silent the sizes and the order of layers are those of the authors' public 2D code. Weights start as
PyTorch's layers do, as theirs. Left out is what they build and nothing reads: the maps that leave the last attending
stage, and with them the values that they would be made of.

B batch, C channels, H W, M tokens of a semantic map, K mask channels, N classes; `coarse` features and maps are the
decoder's of the next stage down.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.medformer import MedFormerConfig
from braintum.models.networks.blocks import class_head
from braintum.models.networks.medformer_blocks import AttentionBlock, BasicBlock, MapFusion, MapGeneration, PatchMerging
from braintum.models.output import Output


class MedFormer(nn.Module):
    """Convolutions at full and half side, below them attention between features and semantic maps, and back up.

    With `config.deep_supervision` a second mask, read where the attention ends and interpolated to full side, counts
    in training as much as the last: a half each, as the authors have it. Height and width must be multiples of 16.
    """

    def __init__(self, config: MedFormerConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        full, half, quarter, eighth, sixteenth = (config.width * 2**stage for stage in range(5))
        self.stem = nn.Sequential(nn.Conv2d(in_channels, full, 3, padding=1, bias=False), BasicBlock(full))
        self.convolve_down = nn.Sequential(PatchMerging(full), *(BasicBlock(half) for _ in range(config.conv_blocks)))
        self.encoder = nn.ModuleList(Down(channels, config) for channels in (quarter, eighth, sixteenth))
        self.fusion = MapFusion([quarter, eighth, sixteenth], config)
        self.decoder = nn.ModuleList([Up(eighth, config), Up(quarter, config, last=True)])
        self.convolve_up = nn.ModuleList(ConvUp(channels, config) for channels in (half, full))
        self.mask = nn.Conv2d(full, num_masks, 1)
        self.auxiliary = nn.Conv2d(quarter, num_masks, 1) if config.deep_supervision else None
        self.classifier = class_head(config, sixteenth, num_classes)

    def forward(self, image_BCHW: Tensor) -> Output:
        skips = [self.stem(image_BCHW)]
        skips.append(self.convolve_down(skips[-1]))
        maps = []
        for down in self.encoder:
            x, map_BCM = down(skips[-1])
            skips.append(x)
            maps.append(map_BCM)
        x = skips.pop()
        class_logits_BN = None if self.classifier is None else self.classifier(x.mean((2, 3)))
        *maps, map_BCM = self.fusion(maps)
        for up in self.decoder:
            x, map_BCM = up(x, skips.pop(), map_BCM, maps.pop())
        aux: tuple[tuple[float, Output], ...] = ()
        if self.auxiliary is not None and self.training:
            aux = ((1.0, Output(resize(self.auxiliary(x), image_BCHW), None)),)
        for convolve in self.convolve_up:
            x = convolve(x, skips.pop())
        return Output(self.mask(x), class_logits_BN, aux)


class Down(nn.Module):
    """Halves the side to `channels`, makes a semantic map of the features, and lets the two attend to one another."""

    def __init__(self, channels: int, config: MedFormerConfig) -> None:
        super().__init__()
        self.merge = PatchMerging(channels // 2)
        self.map = MapGeneration(channels, config.map_size)
        self.blocks = nn.ModuleList(AttentionBlock(channels, config) for _ in range(config.transformer_blocks))

    def forward(self, fine_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = self.merge(fine_BCHW)
        map_BCM = self.map(x)
        for block in self.blocks:
            x, map_BCM = block(x, map_BCM)
        return x, map_BCM


class Up(nn.Module):
    """Joins features and maps of the stage below with those of the encoder, and lets them attend.

    After the `last` such stage nothing reads the map: it comes out as it went into the last block.
    """

    def __init__(self, channels: int, config: MedFormerConfig, last: bool = False) -> None:
        super().__init__()
        self.join = Join(channels)
        self.map = nn.Conv1d(3 * channels, channels, 1, bias=False)
        reads_map = [True] * (config.transformer_blocks - 1) + [not last]
        self.blocks = nn.ModuleList(AttentionBlock(channels, config, updates_map=reads) for reads in reads_map)

    def forward(
        self, coarse_BCHW: Tensor, skip_BCHW: Tensor, coarse_map_BCM: Tensor, skip_map_BCM: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self.join(coarse_BCHW, skip_BCHW)
        map_BCM = self.map(torch.cat([coarse_map_BCM, skip_map_BCM], 1))
        for block in self.blocks:
            x, map_BCM = block(x, map_BCM)
        return x, map_BCM


class ConvUp(nn.Module):
    """Joins the features of the stage below with the encoder's, and convolves."""

    def __init__(self, channels: int, config: MedFormerConfig) -> None:
        super().__init__()
        self.join = Join(channels)
        self.blocks = nn.Sequential(*(BasicBlock(channels) for _ in range(config.conv_blocks)))

    def forward(self, coarse_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        convolved: Tensor = self.blocks(self.join(coarse_BCHW, skip_BCHW))
        return convolved


class Join(nn.Module):
    """The coarse features at the skip's size beside the skip, normed and reduced to the skip's `channels`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3 * channels)
        self.reduce = nn.Conv2d(3 * channels, channels, 1, bias=False)

    def forward(self, coarse_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        joined: Tensor = self.reduce(self.norm(torch.cat([resize(coarse_BCHW, skip_BCHW), skip_BCHW], 1)))
        return joined


def resize(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """`x_BCHW` interpolated to the other's height and width."""
    return F.interpolate(x_BCHW, size=like_BCHW.shape[2:], mode="bilinear", align_corners=True)
