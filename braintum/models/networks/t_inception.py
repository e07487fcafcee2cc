"""T-InceptionNet, the classifier of BrainTumNet (the BrainTumNet paper, section 2.2).

Stated: it "extracts tumor region features from segmentation results"; "multiple T-Inception Blocks with parallel
convolution modules (1x1, 3x3, 1x3, 3x1)"; an "Inception-Transformer module"; a head that "consists of pooling, fully
connected, and Dropout layers". Chosen here, where the paper is silent:

- It reads the encoder's two deepest scales on the finer one's grid (8 pixels a cell at a depth of 4), where small
  tumours still have a cell of their own, and keeps that grid: two blocks, each of a quarter of the channels for every
  kernel.
- Each block's transformer is a BT Block (the paper has no other); its masks are the guide, where there is one and
  attention is masked at all. No patch is dropped: where nothing is predicted the guide is the same everywhere, and
  which patches are the most important would be chance.
- Batch norm, whatever the segmenter has: norms within a slice level the means that a classifier pools.
- One hidden layer of the channels' width, dropout before the last, its rate that of the other heads.
- Logits, not the "Softmax activation": the loss and the prediction apply it.

B batch, C channels, H W, K mask channels, N classes, T patches (tokens).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.braintumnet import BrainTumNetConfig
from braintum.models.networks.blocks import ConvNormReLU
from braintum.models.networks.masked_transformer import BTBlock, to_grid

BLOCKS = 2

NOWHERE = 0.01
"""The probability of a tumour below which a slice has none to look at."""


def guide_from(mask_logits_BKHW: Tensor, stride: int) -> Tensor:
    """Where to look on the grid of `stride` pixels, in (0, 1], [B, 1, H, W]: 1 at the likeliest tumour of the slice.

    The probability p of the first mask is averaged over each cell, and the guide is (p + 0.01) / (max p + 0.01). So
    the surroundings of a predicted tumour weigh about 0.01, however small it is or unsure its mask. Where nothing is
    predicted, on a healthy slice or early in a training, the guide is about 1 everywhere: the classifier sees the
    whole slice, not zeros, and can learn what no tumour looks like. Nothing is detached: the classification
    loss moves the mask.
    """
    probability_B1HW = F.avg_pool2d(torch.sigmoid(mask_logits_BKHW[:, :1].float()), stride) + NOWHERE
    return probability_B1HW / probability_B1HW.amax((2, 3), keepdim=True)


def guided_mean(x_BCHW: Tensor, guide_B1HW: Tensor | None) -> Tensor:
    """The mean over a map, weighed by the guide where there is one, [B, C]."""
    if guide_B1HW is None:
        return x_BCHW.mean((2, 3))
    return (x_BCHW * guide_B1HW).sum((2, 3)) / guide_B1HW.sum((2, 3))


class TInceptionNet(nn.Module):
    """Class logits [B, N] from the encoder's last but one and its deepest features and, where one is given, a guide.

    The guide, on the grid of the last but one, scales the features that come in, the pooling and, with
    `adaptive_mask`, the keys of the blocks' attention.
    """

    def __init__(self, config: BrainTumNetConfig, channels: int, num_classes: int) -> None:
        """`channels` of the last but one features; the deepest have twice as many."""
        super().__init__()
        self.join = ConvNormReLU(3 * channels, channels, 1)
        self.blocks = nn.ModuleList(TInceptionBlock(config, channels) for _ in range(BLOCKS))
        self.head = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5 if config.dropout is None else config.dropout),
            nn.Linear(channels, num_classes),
        )

    def forward(self, fine_BCHW: Tensor, deepest_BCHW: Tensor, guide_B1HW: Tensor | None) -> Tensor:
        grid = (fine_BCHW.shape[2], fine_BCHW.shape[3])
        x_BCHW = torch.cat([fine_BCHW, to_grid(deepest_BCHW, grid)], 1)
        if guide_B1HW is not None:
            x_BCHW = x_BCHW * guide_B1HW.to(x_BCHW.dtype)
        x_BCHW = self.join(x_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW, guide_B1HW)
        logits_BN: Tensor = self.head(guided_mean(x_BCHW, guide_B1HW))
        return logits_BN


class TInceptionBlock(nn.Module):
    """Parallel convolutions, side by side in the channels and added to what came in; then a transformer, if any.

    With `adaptive_mask` the guide, where there is one, scales the transformer's keys.
    """

    def __init__(self, config: BrainTumNetConfig, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNormReLU(channels, channels // 4, kernel) for kernel in ((1, 1), (3, 3), (1, 3), (3, 1))
        )
        self.transformer = BTBlock(channels, config, keep_ratio=1.0) if config.transformer else None
        self.masked = bool(config.adaptive_mask)

    def forward(self, x_BCHW: Tensor, guide_B1HW: Tensor | None) -> Tensor:
        x_BCHW = x_BCHW + torch.cat([branch(x_BCHW) for branch in self.branches], 1)
        if self.transformer is None:
            return x_BCHW
        grid = (x_BCHW.shape[2], x_BCHW.shape[3])
        log_mask_BAT = None
        if self.masked and guide_B1HW is not None:
            log_mask_BAT = guide_B1HW.log().flatten(2).expand(-1, self.transformer.attention.heads, -1)
        x_BTC = self.transformer(x_BCHW.flatten(2).transpose(1, 2), grid, log_mask_BAT)
        map_BCHW: Tensor = x_BTC.transpose(1, 2).unflatten(2, grid)
        return map_BCHW
