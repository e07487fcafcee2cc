"""nnU-Net's 2D network (Isensee et al. 2021), out of the blocks of monai's DynUNet.

B batch, C channels, H W, K mask channels, N classes. Stages are counted from the finest, 0.

nnU-Net v2 builds it as `PlainConvUNet` of dynamic-network-architectures: 33,471,820 parameters at 7 stages, one input
channel and two output channels. This network computes the same with 8,066 fewer: 7,040 biases of convolutions that
stand before an instance norm, which takes them away again, and the 1,026 of the coarsest stage's output, to which
nnU-Net gives weight 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from braintum.models.networks.blocks import class_head, initialise
from braintum.models.nnunet import NnUNetConfig
from braintum.models.output import Output


class NnUNet(nn.Module):
    """Two convolutions a stage, the first of stride 2; transposed convolutions up, skips joined, two convolutions.

    With `config.deep_supervision` stages 1, 2, ... of the decoder have masks of their own in training, of their own
    size and weight 1/2, 1/4, ... to the finest's 1, all but the coarsest; `Objective` divides by the weights' sum, as
    nnU-Net does. With `config.classify` a head reads the deepest features.

    Slices whose sides are no multiples of `config.padded_to` get zeros below and to the right (nnU-Net: all round, but
    so the coarser masks' pixels stay where they were); the masks are cut to the slice again.
    """

    def __init__(self, config: NnUNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        stages = config.option("stages")
        channels = [min(config.width << stage, config.max_width) for stage in range(stages)]
        supervised = stages - 2 if config.deep_supervision else 1
        self.encoder = nn.ModuleList(
            [UnetBasicBlock(2, in_channels, channels[0], 3, 1, **_norm(channels[0]))]
            + [UnetBasicBlock(2, fine, coarse, 3, 2, **_norm(coarse)) for fine, coarse in pairwise(channels)]
        )
        self.decoder = nn.ModuleList(
            UnetUpBlock(2, coarse, fine, 3, 1, 2, trans_bias=True, **_norm(fine)) for fine, coarse in pairwise(channels)
        )
        self.masks = nn.ModuleList(UnetOutBlock(2, channels[stage], num_masks) for stage in range(supervised))
        self.classifier = class_head(config, channels[-1], num_classes)
        self.padded_to = config.padded_to
        initialise(self, _draw)

    def forward(self, image_BCHW: Tensor) -> Output:
        height, width = image_BCHW.shape[2:]
        features = [F.pad(image_BCHW, (0, -width % self.padded_to, 0, -height % self.padded_to))]
        for down in self.encoder:
            features.append(down(features[-1]))
        _, *skips, x = features
        class_logits_BN = None if self.classifier is None else self.classifier(x.mean((2, 3)))
        decoded: list[Tensor] = []  # finest first
        for up, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = up(x, skip)
            decoded.insert(0, x)

        def mask_logits_BKHW(stage: int) -> Tensor:
            logits: Tensor = self.masks[stage](decoded[stage])
            return logits[:, :, : -(-height >> stage), : -(-width >> stage)]

        supervised = range(1, len(self.masks)) if self.training else ()
        aux = tuple((0.5**stage, Output(mask_logits_BKHW(stage), None)) for stage in supervised)
        return Output(mask_logits_BKHW(0), class_logits_BN, aux)


def _norm(channels: int) -> dict[str, Any]:
    """Instance norm as group norm of one channel a group, for speed: see `make_norm` in blocks.py."""
    return {"norm_name": ("group", {"num_groups": channels})}


def _draw(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """As nnU-Net: all as if a LeakyReLU of slope 0.01 stood behind them."""
    nn.init.kaiming_normal_(convolution.weight, a=0.01)
