"""Segmentation terms, one value a slice. B batch, K mask channels, H W. Logits and masks are float32.

A slice's value depends on that slice alone, so that sums over workers, or over any cut of a batch, add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1.0
"""ε of the soft Dice, in pixels (the U-Net paper, eq. 2, which gives no value). At one pixel, a healthy slice's Dice
rises to 1 as its predicted mask empties; at 1e-6 it would be 0 until nothing at all is predicted."""


def soft_dice(probability_BKHW: Tensor, mask_BKHW: Tensor) -> Tensor:
    """Soft Dice of each slice and channel, [B, K] (the U-Net paper, eq. 2)."""
    overlap_BK = (probability_BKHW * mask_BKHW).sum((2, 3))
    total_BK = probability_BKHW.sum((2, 3)) + mask_BKHW.sum((2, 3))
    return (2 * overlap_BK + EPSILON) / (total_BK + EPSILON)


def dice(logits_BKHW: Tensor, mask_BKHW: Tensor) -> Tensor:
    """1 − soft Dice, mean over the mask channels, [B]."""
    return 1 - soft_dice(torch.sigmoid(logits_BKHW), mask_BKHW).mean(1)


def bce_dice(logits_BKHW: Tensor, mask_BKHW: Tensor) -> Tensor:
    """Binary cross-entropy (mean over channels and pixels) + 1 − soft Dice, [B] (the U-Net paper, eq. 1)."""
    bce_BKHW = F.binary_cross_entropy_with_logits(logits_BKHW, mask_BKHW, reduction="none")
    return bce_BKHW.mean((1, 2, 3)) + dice(logits_BKHW, mask_BKHW)


def dice_ce(logits_BKHW: Tensor, mask_BKHW: Tensor) -> Tensor:
    """Cross-entropy over background and masks + 1 − soft Dice averaged over both, [B] (the BrainTumNet paper, eq. 6).

    The background's logit is zero, so that one mask channel's softmax is its sigmoid. Mask channels must not overlap.
    """
    logits = torch.cat([torch.zeros_like(logits_BKHW[:, :1]), logits_BKHW], 1)
    target = torch.cat([1 - mask_BKHW.sum(1, keepdim=True), mask_BKHW], 1)
    log_probability = F.log_softmax(logits, 1)
    ce_B = -(target * log_probability).sum(1).mean((1, 2))
    return ce_B + 1 - soft_dice(log_probability.exp(), target).mean(1)
