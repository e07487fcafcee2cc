"""Progressive resizing: a network of slices, trained on slices of half the side at first.

Such an epoch costs about a quarter (fast.ai's entry to DAWNBench 2018; Composer's ProgressiveResizing).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.output import Output


class Resized(nn.Module):
    """Brings slices to `side` × `side` by averaging pixels, and mask logits back to the slice's size bilinearly."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, image_BCHW: Tensor) -> Output:
        output: Output = self.network(F.adaptive_avg_pool2d(image_BCHW, self.side))
        return _masks_of_size(image_BCHW.shape[2:], output)


def _masks_of_size(size: torch.Size, output: Output) -> Output:
    logits_BKHW = output.mask_logits_BKHW
    if logits_BKHW is not None:
        logits_BKHW = F.interpolate(logits_BKHW, size=size, mode="bilinear", align_corners=False)
    aux = tuple((weight, _masks_of_size(size, auxiliary)) for weight, auxiliary in output.aux)
    return Output(logits_BKHW, output.class_logits_BN, aux)
