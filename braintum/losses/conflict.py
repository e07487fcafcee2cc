"""Methods that combine two tasks' gradients where they conflict: torchjd's, by the gradients' inner products alone.

| name | source | weights |
|---|---|---|
| `pcgrad` | Yu et al. 2020, arXiv 2001.06782 | of gradients without what one has against the other |
| `cagrad` | Liu et al. 2021, arXiv 2110.14048 | of what helps the worst-off task, within `cagrad_c` of the mean |
| `mgda` | Désidéri 2012; Sener and Koltun 2018, arXiv 1810.04650 | of the shortest convex combination |
| `imtl_g` | Liu et al. 2021, ICLR | of the combination with equal projections on both; sum 1, may be negative |
| `aligned_mtl` | Senushkin et al. 2023, CVPR | of gradients made orthogonal and equally long |
| `nash_mtl` | Navon et al. 2022, arXiv 2202.01017 | of the Nash bargaining solution, a norm of 1 at most |
| `upgrad` | Quinton and Rey 2024, arXiv 2406.16232 | of the mean of gradients projected so that neither loss rises |
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import aggregation

from braintum.losses.balancing import GradientBalancing
from braintum.models.registry import Task
from braintum.parts import Loss

# Of NashMTL's problem, once a process: that cvxpy will set it up anew every time. benchmarks/balancing.py has the cost.
warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")


class ConflictBalancing(GradientBalancing):
    """A method of torchjd with its defaults (and `loss.cagrad_c`)."""

    def __init__(self, loss: Loss, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int) -> None:
        super().__init__(loss.balancing, tasks, parameters, workers)
        self._weigh = _weighting(loss)

    def weigh(self, gramian_TT: Tensor, loss_T: Tensor) -> Tensor:
        weight_T: Tensor = self._weigh(gramian_TT)
        return weight_T


class NashBalancing(GradientBalancing):
    """Nash-MTL, which goes on from the weights that it found before: they are in the state dict."""

    found_T: Tensor

    def __init__(self, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int) -> None:
        super().__init__("nash_mtl", tasks, parameters, workers)
        self._weigh = aggregation.NashMTL(n_tasks=len(self.tasks)).weighting
        self.register_buffer("found_T", torch.ones(len(self.tasks), dtype=torch.float64))

    def weigh(self, gramian_TT: Tensor, loss_T: Tensor) -> Tensor:
        """Asked with a square root of the inner products: it takes the gradients, and looks at these alone."""
        value_T, vector_TT = torch.linalg.eigh(gramian_TT)
        self._weigh.prvs_alpha = self.found_T.numpy()
        weight_T: Tensor = self._weigh(vector_TT * value_T.clamp(min=0).sqrt())
        self.found_T = torch.as_tensor(self._weigh.prvs_alpha, dtype=torch.float64)
        return weight_T


def _weighting(loss: Loss) -> aggregation.Weighting[Any]:
    match loss.balancing:
        case "pcgrad":
            return aggregation.PCGradWeighting()
        case "cagrad":
            return aggregation.CAGradWeighting(c=loss.option("cagrad_c"))
        case "mgda":
            return aggregation.MGDAWeighting()
        case "imtl_g":
            return aggregation.IMTLGWeighting()
        case "aligned_mtl":
            return aggregation.AlignedMTLWeighting()
        case "upgrad":
            return aggregation.UPGradWeighting()
    raise AssertionError(f"{loss.balancing} is no method of torchjd")
