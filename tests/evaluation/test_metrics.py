"""Metrics against hand-made cases and the libraries that others use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from braintum.evaluation.metrics import agreement, auroc, hausdorff, overlap

EMPTY = np.zeros((8, 9), dtype=bool)


def square(y: int, x: int, side: int) -> np.ndarray:
    mask_HW = EMPTY.copy()
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def blob(seed: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4) > 0.05


def test_overlap_of_two_squares() -> None:
    found = overlap(np.array([4]), np.array([9]), np.array([16]), 72)
    assert found.dice_R[0] == pytest.approx(8 / 25)
    assert found.iou_R[0] == pytest.approx(4 / 21)
    assert found.pixel_accuracy_R[0] == pytest.approx((72 - 5 - 12) / 72)


def test_overlap_of_empty_masks() -> None:
    found = overlap(np.array([0, 0, 0]), np.array([0, 5, 0]), np.array([0, 0, 5]), 72)
    assert found.dice_R.tolist() == found.iou_R.tolist() == [1, 0, 0]
    assert found.pixel_accuracy_R == pytest.approx([1, 67 / 72, 67 / 72])


def test_dice_and_iou_are_one_another() -> None:
    both, extra, missed = np.random.default_rng(0).integers(1, 50, (3, 20))
    found = overlap(both, both + extra, both + missed, 1000)
    assert found.dice_R == pytest.approx(2 * found.iou_R / (1 + found.iou_R))


def test_hausdorff_of_empty_masks() -> None:
    assert hausdorff(EMPTY, EMPTY) == (0, 0)
    for masks in ((EMPTY, square(1, 1, 3)), (square(1, 1, 3), EMPTY)):
        assert np.isnan(hausdorff(*masks)).all()


def test_hausdorff_is_in_the_unit_of_the_spacing() -> None:
    first, second = square(1, 1, 3), square(3, 1, 3)
    assert hausdorff(first, second).hd == 2
    assert hausdorff(first, second, (0.5, 9.0)).hd == 1
    assert hausdorff(first, first, (0.5, 9.0)) == (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_hausdorff_is_monais(seed: int) -> None:
    first, second, spacing = blob(seed), blob(seed + 100), (0.7, 1.3)
    found = hausdorff(first, second, spacing)
    for value, percentile in zip(found, (None, 95), strict=True):
        theirs = compute_hausdorff_distance(
            torch.from_numpy(first)[None, None],
            torch.from_numpy(second)[None, None],
            include_background=True,
            percentile=percentile,
            spacing=spacing,
        )
        assert value == pytest.approx(float(theirs), rel=1e-5)


def test_hausdorff_of_a_box_is_that_of_the_whole_image() -> None:
    mask, moved = square(0, 0, 3), square(0, 2, 3)
    far = [np.pad(m, ((20, 7), (3, 40))) for m in (mask, moved)]
    assert hausdorff(mask, moved) == hausdorff(far[0], far[1])


def test_agreement_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    label = generator.integers(0, 4, 300)
    predicted = np.where(generator.random(300) < 0.6, label, generator.integers(0, 4, 300))
    found = agreement(label, predicted, 4)
    values = found.values()
    assert values["accuracy"] == pytest.approx(accuracy_score(label, predicted))
    assert values["macro_f1"] == pytest.approx(f1_score(label, predicted, average="macro"))
    assert values["weighted_f1"] == pytest.approx(f1_score(label, predicted, average="weighted"))
    assert values["sensitivity"] == pytest.approx(recall_score(label, predicted, average="macro"))
    rest = [recall_score(label != n, predicted != n) for n in range(4)]
    assert values["specificity"] == pytest.approx(np.mean(rest))
    assert found.precision_N == pytest.approx(precision_score(label, predicted, average=None))
    assert found.confusion_NN.sum() == 300


def test_a_class_that_does_not_occur_counts_in_no_mean() -> None:
    label, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    with_third, without = agreement(label, predicted, 3), agreement(label, predicted, 2)
    assert np.isnan(with_third.f1_N[2])
    assert with_third.values()["macro_f1"] == without.values()["macro_f1"]
    assert with_third.values()["sensitivity"] == without.values()["sensitivity"] == 0.75


def test_auroc_is_scikit_learns_and_undefined_without_both_kinds() -> None:
    generator = np.random.default_rng(2)
    label, probability = generator.integers(0, 3, 200), generator.dirichlet(np.ones(3), 200)
    theirs = roc_auc_score(label, probability, multi_class="ovr", average="macro")
    assert auroc(label, probability).mean() == pytest.approx(theirs)
    assert np.isnan(auroc(np.zeros(5, dtype=np.int64), probability[:5])).all()
