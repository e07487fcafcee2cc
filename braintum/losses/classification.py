"""Classification terms. B batch, N classes, R rows of a table. Labels are class indices, −1 for none."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from braintum.settings import ConfigError


def cross_entropy_sum(
    logits_BN: Tensor, label_B: Tensor, class_weight_N: Tensor | None, label_smoothing: float
) -> Tensor:
    """Cross-entropy (the U-Net paper, eq. 3) summed over the rows that have a label; weights as in PyTorch's.

    Divided by the sum of the labels' weights (their number, without weights) it is PyTorch's mean. Without any label
    it is a zero that is connected to the graph.
    """
    return F.cross_entropy(
        logits_BN, label_B, class_weight_N, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )


def balanced_class_weights(label_R: NDArray[np.int64], num_classes: int) -> Tensor:
    """Inverse class frequency, float32 [N]: 1 on average over the labels. Labels of −1 are left out.

    Raises ConfigError where a class has no slice.
    """
    count_N = np.bincount(label_R[label_R >= 0], minlength=num_classes)
    absent = np.flatnonzero(count_N == 0)
    if absent.size:
        raise ConfigError(
            f"loss.class_weights: 'balanced' needs a training slice of every class, and class {absent[0]} of "
            f"{num_classes} has none. Set it to none, or leave that class out with data.classes"
        )
    return torch.as_tensor(count_N.sum() / (num_classes * count_N), dtype=torch.float32)
