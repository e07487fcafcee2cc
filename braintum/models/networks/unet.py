"""The U-Net family as one network (the U-Net paper, section II-D a, b, d).

B batch, C channels, H W, K mask channels, N classes; `coarse` is the decoder's map of the next stage down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from braintum.models.networks.blocks import ATTENTION, ConvBlock, Encoder, class_head, initialise
from braintum.models.output import Output
from braintum.models.unet import UNetConfig


class UNet(nn.Module):
    """Encoder, skips (filtered by `config.attention`), decoder, and with `config.classify` a head on the bottleneck.

    Height and width must be multiples of `config.divisor`. Works in either memory format.
    """

    def __init__(self, config: UNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, config.width, config.depth, config.norm)
        skip_channels = self.encoder.channels[:-1]
        self.decoder = nn.ModuleList(Up(channels, config) for channels in reversed(skip_channels))
        self.mask = nn.Conv2d(config.width, num_masks, 1)
        self.classifier = class_head(config, self.encoder.channels[-1], num_classes)
        initialise(self)

    def forward(self, image_BCHW: Tensor) -> Output:
        *skips, x = self.encoder(image_BCHW)
        class_logits_BN = None if self.classifier is None else self.classifier(x.mean((2, 3)))
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            x = up(x, skip)
        return Output(self.mask(x), class_logits_BN)


class Up(nn.Module):
    """Doubles the side by a transposed convolution, joins the skip, convolves: `channels` at the skip's size."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.attention: nn.Module | None = None
        if config.attention != "none":
            self.attention = ATTENTION[config.attention](channels, config.attention_width)
        self.convolve = ConvBlock(2 * channels, channels, config.norm)

    def forward(self, coarse_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        if self.attention is not None:
            skip_BCHW = self.attention(skip_BCHW, coarse_BCHW)
        joined: Tensor = self.convolve(torch.cat([skip_BCHW, self.up(coarse_BCHW)], 1))
        return joined
