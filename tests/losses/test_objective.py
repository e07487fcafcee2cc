"""Sums over global counts: any cut of a batch among workers gives the same terms and the same gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from braintum.config import Experiment
from braintum.losses.objective import Objective, Terms
from braintum.models.output import Output
from braintum.parts import Loss

NUM_CLASSES = 3


@dataclass(frozen=True)
class Rows:
    """The rows of one worker and the counts of all."""

    mask_BKHW: Tensor
    has_mask_B: Tensor
    label_B: Tensor
    global_label_B: Tensor
    num_masks: int
    num_labels: int


def loss(**settings: Any) -> Loss:
    return Experiment.from_dict({"loss": settings}).loss


def batch(has_mask: list[bool], label: list[int], seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(len(label), 1, 8, 8, generator=generator) > 0.7).float()
    return Rows(mask, torch.tensor(has_mask), torch.tensor(label), torch.tensor(label),
                sum(has_mask), sum(x >= 0 for x in label))  # fmt: skip


def share(rows: Rows, cut: slice) -> Rows:
    return Rows(rows.mask_BKHW[cut], rows.has_mask_B[cut], rows.label_B[cut], rows.global_label_B,
                rows.num_masks, rows.num_labels)  # fmt: skip


def logits(num_rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(num_rows, 1, 8, 8, generator=generator, requires_grad=True),
        torch.randn(num_rows, NUM_CLASSES, generator=generator, requires_grad=True),
    )


ROWS = batch([True, False, True, True, False], [0, 2, -1, 1, 2])
SETTINGS = [
    {},
    {"segmentation": "dice_ce", "segmentation_weight": 0.5, "classification_weight": 0.7},
    {"segmentation": "dice", "class_weights": "balanced", "label_smoothing": 0.1},
]


def objective(settings: dict[str, Any]) -> Objective:
    balanced = settings.get("class_weights") == "balanced"
    return Objective(loss(**settings), torch.tensor([0.5, 1.0, 3.0]) if balanced else None)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("cuts", [[slice(0, 3), slice(3, 5)], [slice(i, i + 1) for i in range(5)]])
def test_workers_add_up_to_one(settings: dict[str, Any], cuts: list[slice]) -> None:
    whole_masks, whole_labels = logits(5)
    whole = objective(settings)(Output(whole_masks, whole_labels), ROWS)
    whole.total.backward()

    masks, labels = logits(5)
    parts = [objective(settings)(Output(masks[cut], labels[cut]), share(ROWS, cut)) for cut in cuts]
    for name in Terms._fields:
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    for part in parts:
        part.total.backward()
    torch.testing.assert_close(masks.grad, whole_masks.grad)
    torch.testing.assert_close(labels.grad, whole_labels.grad)


@pytest.mark.parametrize("settings", SETTINGS)
def test_total_is_the_weighted_sum(settings: dict[str, Any]) -> None:
    terms = objective(settings)(Output(*logits(5)), ROWS)
    config = loss(**settings)
    assert terms.segmentation is not None
    assert terms.classification is not None
    expected = config.segmentation_weight * terms.segmentation + config.classification_weight * terms.classification
    torch.testing.assert_close(terms.total, expected)
    assert not terms.segmentation.requires_grad
    assert not terms.classification.requires_grad


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_without_a_target_change_nothing(settings: dict[str, Any]) -> None:
    """The mean over the rows that have a target, whatever the others predict and whatever their mask holds."""
    masks, labels = logits(5)
    terms = objective(settings)(Output(masks, labels), ROWS)
    other = Rows(torch.where(ROWS.has_mask_B[:, None, None, None], ROWS.mask_BKHW, 1.0), ROWS.has_mask_B,
                 ROWS.label_B, ROWS.global_label_B, ROWS.num_masks, ROWS.num_labels)  # fmt: skip
    torch.testing.assert_close(objective(settings)(Output(masks, labels), other).total, terms.total)

    rows = ROWS.has_mask_B
    kept = Rows(ROWS.mask_BKHW[rows], rows[rows], ROWS.label_B[rows], ROWS.label_B[rows], 3, 2)
    torch.testing.assert_close(
        objective(settings)(Output(masks[rows], labels[rows]), kept).segmentation, terms.segmentation
    )
    terms.total.backward()
    assert masks.grad is not None
    assert labels.grad is not None
    assert (masks.grad[~ROWS.has_mask_B] == 0).all()
    assert (labels.grad[ROWS.label_B < 0] == 0).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_task_without_targets_is_a_connected_zero(settings: dict[str, Any]) -> None:
    masks, labels = logits(2)
    terms = objective(settings)(Output(masks, labels), batch([False, False], [-1, -1]))
    terms.total.backward()
    assert terms.total.item() == 0
    assert masks.grad is not None
    assert labels.grad is not None
    assert not masks.grad.any()
    assert not labels.grad.any()


def test_a_model_of_one_task_has_one_term() -> None:
    masks, labels = logits(5)
    whole = Objective(loss())(Output(masks, labels), ROWS)
    only_masks, only_labels = (Objective(loss())(o, ROWS) for o in (Output(masks, None), Output(None, labels)))
    assert only_masks.classification is None
    assert only_labels.segmentation is None
    torch.testing.assert_close(only_masks.segmentation, whole.segmentation)
    torch.testing.assert_close(only_labels.classification, whole.classification)
    torch.testing.assert_close(only_masks.total + only_labels.total, whole.total)


def test_auxiliary_outputs_are_weighted_in() -> None:
    masks, labels = logits(5)
    plain = Objective(loss())(Output(masks, labels), ROWS)
    auxiliary = Output(-masks, None)
    with_aux = Objective(loss())(Output(masks, labels, ((0.25, auxiliary),)), ROWS)
    expected = (plain.segmentation + 0.25 * Objective(loss())(auxiliary, ROWS).total) / 1.25 + plain.classification
    torch.testing.assert_close(with_aux.total, expected)
    torch.testing.assert_close(with_aux.segmentation, plain.segmentation)


def test_deep_supervision_leaves_the_balance_of_the_tasks() -> None:
    """Auxiliary outputs that are as good as the main one change nothing."""
    masks, labels = logits(5)
    plain = Objective(loss(classification_weight=0.3))(Output(masks, labels), ROWS)
    aux = ((0.5, Output(masks, None)), (0.25, Output(masks, None)))
    torch.testing.assert_close(
        Objective(loss(classification_weight=0.3))(Output(masks, labels, aux), ROWS).total, plain.total
    )


def test_smaller_auxiliary_masks_are_compared_with_smaller_true_ones() -> None:
    """Of four true pixels that an auxiliary pixel stands for, the nearest to its middle; by rows that is the last."""
    masks, _ = logits(5)
    small = masks.detach()[:, :, :4, :4]
    with_aux = Objective(loss())(Output(masks, None, ((1.0, Output(small, None)),)), ROWS)
    shrunken = Rows(ROWS.mask_BKHW[:, :, 1::2, 1::2], *(getattr(ROWS, name) for name in (
        "has_mask_B", "label_B", "global_label_B", "num_masks", "num_labels")))  # fmt: skip
    both = (Objective(loss())(Output(masks, None), ROWS), Objective(loss())(Output(small, None), shrunken))
    torch.testing.assert_close(with_aux.total, sum(terms.total for terms in both) / 2)


def test_float32_inside_autocast() -> None:
    """bfloat16 logits of many pixels: sums must not be made in 8 bits of mantissa."""
    masks, labels = logits(5)
    with torch.autocast("cpu", torch.bfloat16):
        terms = Objective(loss())(Output(masks.bfloat16(), labels.bfloat16()), ROWS)
    expected = Objective(loss())(Output(masks.bfloat16().float(), labels.bfloat16().float()), ROWS)
    assert terms.total.dtype == torch.float32
    torch.testing.assert_close(terms.total, expected.total)


def test_class_weights_come_with_their_setting() -> None:
    with pytest.raises(ValueError, match="must be given"):
        Objective(loss(class_weights="balanced"))
    with pytest.raises(ValueError, match="must not be given"):
        Objective(loss(), torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        (SETTINGS[0], (3.57068, 1.46473, 2.10596)),
        (SETTINGS[1], (2.14532, 1.3423, 2.10596)),
        (SETTINGS[2], (2.38653, 0.64445, 1.74209)),
    ],
)
def test_golden_values(settings: dict[str, Any], golden: tuple[float, float, float]) -> None:
    """Recorded once: total, segmentation, classification. A change here changes every training."""
    terms = objective(settings)(Output(*logits(5)), ROWS)
    assert [x.item() for x in terms if x is not None] == pytest.approx(golden, abs=1e-4)
