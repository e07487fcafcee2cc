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
SETTINGS: list[dict[str, Any]] = [
    {},
    {"segmentation": "dice_ce"},
    {"segmentation": "dice", "class_weights": "balanced", "label_smoothing": 0.1},
    {"segmentation": "tversky", "tversky_beta": 0.8},
    {"segmentation": "focal_tversky"},
    {"segmentation": "boundary", "boundary_weight": 2.0},
]


def total(terms: Terms) -> Tensor:
    return torch.stack(list(terms.losses.values())).sum()


def objective(settings: dict[str, Any]) -> Objective:
    balanced = settings.get("class_weights") == "balanced"
    return Objective(loss(**settings), torch.tensor([0.5, 1.0, 3.0]) if balanced else None)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("cuts", [[slice(0, 3), slice(3, 5)], [slice(i, i + 1) for i in range(5)]])
def test_workers_add_up_to_one(settings: dict[str, Any], cuts: list[slice]) -> None:
    whole_masks, whole_labels = logits(5)
    whole = objective(settings)(Output(whole_masks, whole_labels), ROWS)
    total(whole).backward()

    masks, labels = logits(5)
    parts = [objective(settings)(Output(masks[cut], labels[cut]), share(ROWS, cut)) for cut in cuts]
    for task in whole.losses:
        torch.testing.assert_close(sum(part.losses[task] for part in parts), whole.losses[task])
        torch.testing.assert_close(sum(part.main[task] for part in parts), whole.main[task])
    for part in parts:
        total(part).backward()
    torch.testing.assert_close(masks.grad, whole_masks.grad)
    torch.testing.assert_close(labels.grad, whole_labels.grad)


def test_what_is_looked_at_is_detached() -> None:
    terms = objective({})(Output(*logits(5)), ROWS)
    assert list(terms.losses) == list(terms.main) == ["segmentation", "classification"]
    for task, loss in terms.losses.items():
        assert loss.requires_grad
        assert not terms.main[task].requires_grad
        torch.testing.assert_close(terms.main[task], loss.detach())


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_without_a_target_change_nothing(settings: dict[str, Any]) -> None:
    """The mean over the rows that have a target, whatever the others predict and whatever their mask holds."""
    masks, labels = logits(5)
    terms = objective(settings)(Output(masks, labels), ROWS)
    other = Rows(torch.where(ROWS.has_mask_B[:, None, None, None], ROWS.mask_BKHW, 1.0), ROWS.has_mask_B,
                 ROWS.label_B, ROWS.global_label_B, ROWS.num_masks, ROWS.num_labels)  # fmt: skip
    torch.testing.assert_close(total(objective(settings)(Output(masks, labels), other)), total(terms))

    rows = ROWS.has_mask_B
    kept = Rows(ROWS.mask_BKHW[rows], rows[rows], ROWS.label_B[rows], ROWS.label_B[rows], 3, 2)
    torch.testing.assert_close(
        objective(settings)(Output(masks[rows], labels[rows]), kept).main["segmentation"], terms.main["segmentation"]
    )
    total(terms).backward()
    assert masks.grad is not None
    assert labels.grad is not None
    assert (masks.grad[~ROWS.has_mask_B] == 0).all()
    assert (labels.grad[ROWS.label_B < 0] == 0).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_task_without_targets_is_a_connected_zero(settings: dict[str, Any]) -> None:
    masks, labels = logits(2)
    terms = objective(settings)(Output(masks, labels), batch([False, False], [-1, -1]))
    total(terms).backward()
    assert total(terms).item() == 0
    assert masks.grad is not None
    assert labels.grad is not None
    assert not masks.grad.any()
    assert not labels.grad.any()


def test_a_model_of_one_task_has_one_term() -> None:
    masks, labels = logits(5)
    whole = Objective(loss())(Output(masks, labels), ROWS)
    only_masks, only_labels = (Objective(loss())(o, ROWS) for o in (Output(masks, None), Output(None, labels)))
    assert list(only_masks.losses) == list(only_masks.main) == ["segmentation"]
    assert list(only_labels.losses) == list(only_labels.main) == ["classification"]
    torch.testing.assert_close({**only_masks.losses, **only_labels.losses}, whole.losses)
    torch.testing.assert_close({**only_masks.main, **only_labels.main}, whole.main)


def test_auxiliary_outputs_are_weighted_in() -> None:
    masks, labels = logits(5)
    plain = Objective(loss())(Output(masks, labels), ROWS)
    auxiliary = Output(-masks, None)
    with_aux = Objective(loss())(Output(masks, labels, ((0.25, auxiliary),)), ROWS)
    expected = (plain.losses["segmentation"] + 0.25 * total(Objective(loss())(auxiliary, ROWS))) / 1.25
    torch.testing.assert_close(with_aux.losses["segmentation"], expected)
    torch.testing.assert_close(with_aux.losses["classification"], plain.losses["classification"])
    torch.testing.assert_close(with_aux.main, plain.main)


def test_deep_supervision_leaves_the_balance_of_the_tasks() -> None:
    """Auxiliary outputs that are as good as the main one change nothing."""
    masks, labels = logits(5)
    plain = Objective(loss())(Output(masks, labels), ROWS)
    aux = ((0.5, Output(masks, None)), (0.25, Output(masks, None)))
    torch.testing.assert_close(Objective(loss())(Output(masks, labels, aux), ROWS).losses, plain.losses)


def test_smaller_auxiliary_masks_are_compared_with_smaller_true_ones() -> None:
    """Of four true pixels that an auxiliary pixel stands for, the nearest to its middle; by rows that is the last."""
    masks, _ = logits(5)
    small = masks.detach()[:, :, :4, :4]
    with_aux = Objective(loss())(Output(masks, None, ((1.0, Output(small, None)),)), ROWS)
    shrunken = Rows(ROWS.mask_BKHW[:, :, 1::2, 1::2], *(getattr(ROWS, name) for name in (
        "has_mask_B", "label_B", "global_label_B", "num_masks", "num_labels")))  # fmt: skip
    both = (Objective(loss())(Output(masks, None), ROWS), Objective(loss())(Output(small, None), shrunken))
    torch.testing.assert_close(total(with_aux), sum(total(terms) for terms in both) / 2)


def test_float32_inside_autocast() -> None:
    """bfloat16 logits of many pixels: sums must not be made in 8 bits of mantissa."""
    masks, labels = logits(5)
    with torch.autocast("cpu", torch.bfloat16):
        terms = Objective(loss())(Output(masks.bfloat16(), labels.bfloat16()), ROWS)
    expected = Objective(loss())(Output(masks.bfloat16().float(), labels.bfloat16().float()), ROWS)
    assert total(terms).dtype == torch.float32
    torch.testing.assert_close(terms.losses, expected.losses)


def test_class_weights_come_with_their_setting() -> None:
    with pytest.raises(ValueError, match="must be given"):
        Objective(loss(class_weights="balanced"))
    with pytest.raises(ValueError, match="must not be given"):
        Objective(loss(), torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        (SETTINGS[0], (1.46473, 2.10596)),
        (SETTINGS[1], (1.3423, 2.10596)),
        (SETTINGS[2], (0.64445, 1.74209)),
    ],
)
def test_golden_values(settings: dict[str, Any], golden: tuple[float, float]) -> None:
    """Recorded once: segmentation, classification. A change here changes every training."""
    terms = objective(settings)(Output(*logits(5)), ROWS)
    assert [x.item() for x in terms.losses.values()] == pytest.approx(golden, abs=1e-4)
