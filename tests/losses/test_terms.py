"""The terms against other libraries' and against values worked out by hand. B batch, K mask channels, N classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss

from braintum.losses.classification import balanced_class_weights, cross_entropy_sum
from braintum.losses.segmentation import EPSILON, bce_dice, dice, dice_ce
from braintum.settings import ConfigError


def logits_and_mask(num_masks: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and masks that do not overlap; the last slice is healthy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, num_masks, 8, 8, generator=generator)
    index_B1HW = torch.randint(0, num_masks + 1, (4, 8, 8), generator=generator)
    mask = F.one_hot(index_B1HW, num_masks + 1)[..., 1:].permute(0, 3, 1, 2).float()
    mask[3] = 0
    return logits, mask


@pytest.mark.parametrize("num_masks", [1, 2])
def test_dice_is_monais_with_the_same_smoothing(num_masks: int) -> None:
    logits, mask = logits_and_mask(num_masks)
    monai = DiceLoss(sigmoid=True, smooth_nr=EPSILON, smooth_dr=EPSILON, reduction="none")(logits, mask)
    torch.testing.assert_close(dice(logits, mask), monai.flatten(1).mean(1))


@pytest.mark.parametrize("num_masks", [1, 2])
def test_dice_ce_is_monais_with_a_zero_background_logit(num_masks: int) -> None:
    logits, mask = logits_and_mask(num_masks)
    with_background = torch.cat([torch.zeros(4, 1, 8, 8), logits], 1)
    target = torch.cat([1 - mask.sum(1, keepdim=True), mask], 1)
    monai = DiceCELoss(softmax=True, smooth_nr=EPSILON, smooth_dr=EPSILON)(with_background, target)
    torch.testing.assert_close(dice_ce(logits, mask).mean(), monai)


def test_bce_dice_is_pytorchs_cross_entropy_and_monais_dice() -> None:
    logits, mask = logits_and_mask()
    bce = F.binary_cross_entropy(torch.sigmoid(logits), mask)
    monai = DiceLoss(sigmoid=True, smooth_nr=EPSILON, smooth_dr=EPSILON)(logits, mask)
    torch.testing.assert_close(bce_dice(logits, mask).mean(), bce + monai)


def test_terms_by_hand() -> None:
    """Two tumour pixels of four, every probability 1/2: Dice (2·1 + 1)/(2 + 2 + 1) = 0.6, cross-entropy ln 2."""
    logits, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert dice(logits, mask).item() == pytest.approx(0.4)
    assert bce_dice(logits, mask).item() == pytest.approx(0.4 + math.log(2))
    assert dice_ce(logits, mask).item() == pytest.approx(0.4 + math.log(2))  # the background's Dice is 0.6 as well


@pytest.mark.parametrize("term", [dice, bce_dice, dice_ce])
def test_certain_logits_are_finite_and_ordered(term: object) -> None:
    assert callable(term)
    _, mask = logits_and_mask()
    logits = ((mask * 2 - 1) * 200).requires_grad_()
    right, wrong = term(logits, mask), term(-logits, mask)
    wrong.sum().backward()
    assert torch.allclose(right, torch.zeros(4), atol=1e-6)
    assert torch.isfinite(wrong).all()
    assert (wrong > 0.5).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_healthy_slice_is_taught_to_stay_empty() -> None:
    """Soft Dice alone pulls every pixel of an empty mask down."""
    logits = torch.full((1, 1, 8, 8), -4.0, requires_grad=True)
    dice(logits, torch.zeros(1, 1, 8, 8)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 1e-4).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs_mean(weighted: bool, smoothing: float) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, -1, 1, -1])
    weight = torch.tensor([0.5, 1.0, 2.0]) if weighted else None
    divisor = 4.5 if weighted else 4
    expected = F.cross_entropy(logits[label >= 0], label[label >= 0], weight, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy_sum(logits, label, weight, smoothing) / divisor, expected)


def test_balanced_weights_are_inverse_frequencies() -> None:
    label = np.array([0, 0, 0, 1, -1, 2, 2, -1])
    weight = balanced_class_weights(label, 3)
    torch.testing.assert_close(weight, torch.tensor([6 / 9, 2.0, 1.0]))
    assert weight[label[label >= 0]].mean().item() == pytest.approx(1)


def test_balanced_weights_need_every_class() -> None:
    with pytest.raises(ConfigError, match="class 1 of 3 has none"):
        balanced_class_weights(np.array([0, 2, -1]), 3)
