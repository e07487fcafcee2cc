"""The terms against other libraries' and against values worked out by hand. B batch, K mask channels, N classes."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss, TverskyLoss

from braintum.losses.classification import balanced_class_weights, cross_entropy_sum
from braintum.losses.segmentation import (
    EPSILON,
    Term,
    bce_dice,
    bce_dice_boundary,
    boundary,
    dice,
    dice_ce,
    focal_tversky,
    signed_distance,
    tversky,
)
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


@pytest.mark.parametrize("num_masks", [1, 2])
@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_tversky_is_monais_and_the_focal_one_its_root(num_masks: int, beta: float) -> None:
    logits, mask = logits_and_mask(num_masks)
    smooth = {"smooth_nr": EPSILON / 2, "smooth_dr": EPSILON / 2}
    monai = TverskyLoss(sigmoid=True, alpha=1 - beta, beta=beta, reduction="none", **smooth)(logits, mask).flatten(1)
    torch.testing.assert_close(tversky(logits, mask, beta), monai.mean(1))
    torch.testing.assert_close(focal_tversky(logits, mask, beta, 4 / 3), monai.pow(0.75).mean(1))
    torch.testing.assert_close(focal_tversky(logits, mask, beta, 1.0), monai.mean(1))


def test_tversky_of_one_half_is_dice() -> None:
    torch.testing.assert_close(tversky(*logits_and_mask(2), beta=0.5), dice(*logits_and_mask(2)))


def test_a_large_beta_weighs_missed_pixels_more_than_false_ones() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    missing, false = (mask * 20 - 10).clone(), (mask * 20 - 10).clone()
    missing[..., 1], false[..., 2] = -10, 10
    assert tversky(missing, mask, 0.9) > tversky(false, mask, 0.9) > tversky(false, mask, 0.99)
    assert tversky(missing, mask, 0.1) < tversky(false, mask, 0.1)


def test_signed_distances_are_those_to_the_nearest_pixel_of_the_other_side() -> None:
    """Against all pairs of pixels; inside one less, as the paper's authors have it."""
    _, mask = logits_and_mask(2)
    mask[1] = 0
    mask[2] = 1
    expected = np.zeros(mask.shape)
    pixels = np.argwhere(np.ones((8, 8)))
    for at in np.ndindex(4, 2):
        inside = mask[at].numpy() > 0
        if not inside.any() or inside.all():
            continue
        for y, x in pixels:
            others = pixels[(inside != inside[y, x])[tuple(pixels.T)]]
            nearest = np.linalg.norm(others - [y, x], axis=1).min()
            expected[at][y, x] = 1 - nearest if inside[y, x] else nearest
    assert expected.any()
    np.testing.assert_allclose(signed_distance(mask.numpy()), expected / 8, rtol=1e-6)


def test_boundary_by_hand() -> None:
    """One tumour pixel at the left of a row of four, every probability 1/2: (0·−½ + 1·½ + 2·½ + 3·½) / 4 pixels / 4."""
    mask = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    assert boundary(torch.zeros(1, 1, 1, 4), mask).item() == pytest.approx(3 / 16)
    far, near = torch.tensor([[-9.0, -9.0, -9.0, 9.0]]), torch.tensor([[-9.0, 9.0, -9.0, -9.0]])
    assert boundary(far[None, None], mask) > boundary(near[None, None], mask)
    assert boundary(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)).item() == 0, "a healthy slice has no outline"
    torch.testing.assert_close(
        bce_dice_boundary(far[None, None], mask, 0.5),
        bce_dice(far[None, None], mask) + 0.5 * boundary(far[None, None], mask),
    )


def test_boundary_is_the_same_at_another_size() -> None:
    """A half plane, so that the outline is where it was: distances are in shares of the side."""
    losses = []
    for side in (32, 64, 128):
        mask = torch.zeros(1, 1, side, side)
        mask[..., : side // 2] = 1
        losses.append(boundary(torch.zeros_like(mask), mask).item())
    assert losses == pytest.approx([0.125] * 3, rel=0.05)


@pytest.mark.parametrize(
    "term",
    [
        dice,
        bce_dice,
        dice_ce,
        partial(tversky, beta=0.7),
        partial(focal_tversky, beta=0.7, gamma=4 / 3),
        partial(bce_dice_boundary, weight=1.0),
    ],
)
def test_certain_logits_are_finite_and_ordered(term: Term) -> None:
    _, mask = logits_and_mask()
    logits = ((mask * 2 - 1) * 200).requires_grad_()
    right, wrong = term(logits, mask), term(-logits, mask)
    (right + wrong).sum().backward()
    assert torch.allclose(right, torch.zeros(4), atol=1e-4)
    assert (right >= 0).all()
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
