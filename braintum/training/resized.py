"""Progressive resizing: a network of slices, trained on slices of half the side at first.

Such an epoch costs about a quarter (fast.ai's entry to DAWNBench 2018; Composer's ProgressiveResizing).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.output import Output


class Resized(nn.Module):
    """Brings slices to `side` × `side` by averaging pixels, and mask logits back to the slice's size bilinearly.

    Those of auxiliary outputs stay as they are: the true masks are brought to their size.
    """

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, image_BCHW: Tensor) -> Output:
        output: Output = self.network(F.adaptive_avg_pool2d(image_BCHW, self.side))
        if output.mask_logits_BKHW is None:
            return output
        size = image_BCHW.shape[2:]
        masks_BKHW = F.interpolate(output.mask_logits_BKHW, size=size, mode="bilinear", align_corners=False)
        return output._replace(mask_logits_BKHW=masks_BKHW)
