"""What training minimises: the loss of each task. B batch, K mask channels, H W, N classes.

Terms are sums over the rows at hand divided by counts over the whole global batch. So the terms of several workers
add up to the term of one worker that holds all rows. `balancing` makes gradients of them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from braintum.losses.classification import cross_entropy_sum
from braintum.losses.segmentation import segmentation_term
from braintum.models.output import Output
from braintum.models.registry import Task
from braintum.parts import Loss


class Targets(Protocol):
    """What of a batch the objective reads."""

    @property
    def mask_BKHW(self) -> Tensor:
        """float32, 0 or 1; any finite value where a row has no mask."""

    @property
    def has_mask_B(self) -> Tensor:
        """bool."""

    @property
    def label_B(self) -> Tensor:
        """int64, −1 for none."""

    @property
    def global_label_B(self) -> Tensor:
        """The labels of the global batch, all workers' rows."""

    @property
    def num_masks(self) -> int:
        """Rows of the global batch that have a mask."""

    @property
    def num_labels(self) -> int:
        """Rows of the global batch that have a label."""


class Terms(NamedTuple):
    """By task, segmentation first, of the tasks that the model has.

    `losses`: to differentiate, over all outputs. `main`: of the main output alone, detached, to be looked at.
    """

    losses: dict[Task, Tensor]
    main: dict[Task, Tensor]


class Objective(nn.Module):
    """The losses of segmentation and of classification, unweighted, in float32.

    Where there are `aux` outputs a task's loss is the mean over all outputs that have it, the main one of weight 1: so
    a network that is supervised deeply weighs its tasks against each other as one that is not. Where auxiliary masks
    are smaller, the true masks are sampled down to them by nearest neighbour, as nnU-Net does. A row without mask or
    label adds nothing to that task; a task without any target in the batch is a zero that is connected to the graph,
    so that every parameter has a gradient.

    `class_weight_N` (see `balanced_class_weights`) must be given if, and only if, loss.class_weights is not "none".
    """

    class_weight_N: Tensor | None

    def __init__(self, loss: Loss, class_weight_N: Tensor | None = None) -> None:
        super().__init__()
        if (class_weight_N is None) != (loss.class_weights == "none"):
            raise ValueError(f"loss.class_weights is {loss.class_weights!r}, so class_weight_N must "
                             f"{'not ' if class_weight_N is not None else ''}be given")  # fmt: skip
        self.loss = loss
        self._segmentation_term = segmentation_term(loss)
        self.register_buffer("class_weight_N", class_weight_N, persistent=False)

    def forward(self, output: Output, targets: Targets) -> Terms:
        outputs = [(1.0, output), *output.aux]
        masks = [(w, self._segmentation(x, targets)) for w, o in outputs if (x := o.mask_logits_BKHW) is not None]
        labels = [(w, self._classification(x, targets)) for w, o in outputs if (x := o.class_logits_BN) is not None]
        terms: dict[Task, list[tuple[float, Tensor]]] = {"segmentation": masks, "classification": labels}
        if not masks and not labels:
            raise ValueError("an Output needs mask logits or class logits")
        return Terms(
            {task: _mean(found) for task, found in terms.items() if found},
            {task: found[0][1].detach() for task, found in terms.items() if found},
        )

    def _segmentation(self, logits_BKHW: Tensor, targets: Targets) -> Tensor:
        mask_BKHW = targets.mask_BKHW
        if mask_BKHW.shape[2:] != logits_BKHW.shape[2:]:
            mask_BKHW = F.interpolate(mask_BKHW, size=logits_BKHW.shape[2:], mode="nearest-exact")
        loss_B = self._segmentation_term(logits_BKHW.float(), mask_BKHW)
        return loss_B.where(targets.has_mask_B, 0.0).sum() / max(targets.num_masks, 1)

    def _classification(self, logits_BN: Tensor, targets: Targets) -> Tensor:
        loss = cross_entropy_sum(logits_BN.float(), targets.label_B, self.class_weight_N, self.loss.label_smoothing)
        if self.class_weight_N is None:
            return loss / max(targets.num_labels, 1)
        label = targets.global_label_B
        weight = self.class_weight_N[label.clamp(min=0)].where(label >= 0, 0.0).sum()
        # Weights are positive: the sum is zero only when there is no label, and then the loss is zero as well.
        return loss / weight.clamp(min=self.class_weight_N.min())


def _mean(terms: list[tuple[float, Tensor]]) -> Tensor:
    """Of (weight, value) pairs, by weight."""
    total = sum(weight * value for weight, value in terms)
    assert isinstance(total, Tensor)
    return total / sum(weight for weight, _ in terms)
