"""Segmentation terms, one value a slice. B batch, K mask channels, H W. Logits and masks are float32.

A slice's value depends on that slice alone, so that sums over workers, or over any cut of a batch, add up. None is
negative, and the best is zero: methods that weigh tasks by their losses need both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from braintum.parts import Loss

EPSILON = 1.0
"""ε of the soft Dice, in pixels (the U-Net paper, eq. 2, which gives no value). At one pixel, a healthy slice's Dice
rises to 1 as its predicted mask empties; at 1e-6 it would be 0 until nothing at all is predicted."""

Term = Callable[[Tensor, Tensor], Tensor]
"""Of logits and masks, both [B, K, H, W], to [B]."""


def segmentation_term(loss: Loss) -> Term:
    """The term that `loss.segmentation` names, with its options."""
    match loss.segmentation:
        case "tversky":
            return functools.partial(tversky, beta=loss.option("tversky_beta"))
        case "focal_tversky":
            beta, gamma = loss.option("tversky_beta"), loss.option("focal_gamma")
            return functools.partial(focal_tversky, beta=beta, gamma=gamma)
        case "boundary":
            return functools.partial(bce_dice_boundary, weight=loss.option("boundary_weight"))
    return {"bce_dice": bce_dice, "dice_ce": dice_ce, "dice": dice}[loss.segmentation]


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


def _not_tversky(logits_BKHW: Tensor, mask_BKHW: Tensor, beta: float) -> Tensor:
    """1 − Tversky index of each slice and channel, [B, K]."""
    probability_BKHW = torch.sigmoid(logits_BKHW)
    found_BK = (probability_BKHW * mask_BKHW).sum((2, 3))
    missed_BK = ((1 - probability_BKHW) * mask_BKHW).sum((2, 3))
    false_BK = (probability_BKHW * (1 - mask_BKHW)).sum((2, 3))
    wrong_BK = (1 - beta) * false_BK + beta * missed_BK
    return wrong_BK / (found_BK + wrong_BK + EPSILON / 2)


def tversky(logits_BKHW: Tensor, mask_BKHW: Tensor, beta: float) -> Tensor:
    """1 − Tversky index, mean over the mask channels, [B] (Salehi et al. 2017, arXiv 1706.05721, eq. 4, α = 1 − β).

    `beta` 0.5 is `dice`, ε included; above that missed pixels weigh more than false ones.
    """
    return _not_tversky(logits_BKHW, mask_BKHW, beta).mean(1)


def focal_tversky(logits_BKHW: Tensor, mask_BKHW: Tensor, beta: float, gamma: float) -> Tensor:
    """(1 − Tversky index)^(1/γ), mean over the mask channels, [B] (Abraham and Khan 2018, arXiv 1810.07842, eq. 4).

    The root's slope is infinite at zero: a slice that is right to a millionth teaches nothing more.
    """
    return _not_tversky(logits_BKHW, mask_BKHW, beta).clamp(min=1e-6).pow(1 / gamma).mean(1)


def bce_dice_boundary(logits_BKHW: Tensor, mask_BKHW: Tensor, weight: float) -> Tensor:
    """`bce_dice` + weight × `boundary`, [B]. The paper adds the boundary to a regional term as well."""
    return bce_dice(logits_BKHW, mask_BKHW) + weight * boundary(logits_BKHW, mask_BKHW)


def boundary(logits_BKHW: Tensor, mask_BKHW: Tensor) -> Tensor:
    """Mean over channels and pixels of signed distance × (probability − mask), [B] (Kervadec et al. 2019, eq. 5).

    arXiv 1812.07032. The mask is subtracted, which the paper leaves out as it is constant: so no value is negative.
    """
    distance_BKHW = torch.from_numpy(signed_distance(mask_BKHW.cpu().numpy())).to(logits_BKHW.device)
    return (distance_BKHW * (torch.sigmoid(logits_BKHW) - mask_BKHW)).mean((1, 2, 3))


def signed_distance(mask_BKHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each pixel is from the mask's outline, [B, K, H, W]: positive outside, zero or negative inside.

    By scipy's Euclidean distance transform, as the paper's authors do: pixels at the outline are 1 outside, 0 inside.
    Given in shares of the slice's longer side (the paper: in pixels), so that `data.image_size` and epochs at half size
    do not change the term. Zero where a mask is empty or full: there is no outline.
    """
    distance_BKHW: NDArray[np.float32] = np.zeros(mask_BKHW.shape, dtype=np.float32)
    for at in np.ndindex(mask_BKHW.shape[:2]):
        inside_HW = mask_BKHW[at] > 0.5
        if inside_HW.any() and not inside_HW.all():
            within_HW = np.maximum(distance_transform_edt(inside_HW) - 1, 0)
            distance_BKHW[at] = distance_transform_edt(~inside_HW) - within_HW
    distance_BKHW /= max(mask_BKHW.shape[2:])
    return distance_BKHW
