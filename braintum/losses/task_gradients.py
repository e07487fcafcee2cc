"""Each task's gradient, side by side. T tasks.

Gradients are asked of autograd, not accumulated, which passes DDP's averaging by: they are summed over workers here.
Losses are shares of a sum over the global batch (`Objective`), so every worker ends with the gradients that one worker
would have of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class TaskGradients:
    """`loss_T`: over the global batch. `of_shared`: for each task a gradient for each of the `shared` parameters, those
    that all losses reach. `own`: for each task the parameters that it alone reaches, with their gradients.
    """

    loss_T: Tensor
    shared: list[nn.Parameter]
    of_shared: list[list[Tensor]]
    own: list[list[tuple[nn.Parameter, Tensor]]]

    @classmethod
    def of(
        cls, loss_T: Sequence[Tensor], parameters: Sequence[nn.Parameter], workers: int, *, keep_graph: bool = False
    ) -> TaskGradients:
        """Of each loss by all parameters that it reaches. `keep_graph`: the losses will be differentiated once more."""
        found = [
            torch.autograd.grad(
                loss, parameters, retain_graph=keep_graph or task < len(loss_T) - 1, allow_unused=True
            )
            for task, loss in enumerate(loss_T)
        ]  # fmt: skip
        by_all = {i: None for i in range(len(parameters)) if all(gradients[i] is not None for gradients in found)}
        owners = [[i for i, g in enumerate(gradients) if g is not None and i not in by_all] for gradients in found]
        losses = torch.stack([loss.detach() for loss in loss_T])
        of_shared = [[gradients[i] for i in by_all] for gradients in found]
        of_own = [[gradients[i] for i in owned] for gradients, owned in zip(found, owners, strict=True)]
        if workers > 1:
            [losses], *summed = _summed_over_workers([[losses], *of_shared, *of_own])
            of_shared, of_own = summed[: len(found)], summed[len(found) :]
        return cls(
            losses,
            [parameters[i] for i in by_all],
            of_shared,
            [
                [(parameters[i], g) for i, g in zip(*of_task, strict=True)]
                for of_task in zip(owners, of_own, strict=True)
            ],
        )

    @property
    def gramian_TT(self) -> Tensor:
        """Inner products of the tasks' gradients on the shared parameters, float64 on the CPU."""
        rows = [torch.stack([_inner(a, b) for b in self.of_shared]) for a in self.of_shared]
        return torch.stack(rows).cpu()

    def write(self, shared_weight_T: Sequence[float], own_weight_T: Sequence[float]) -> None:
        """Gives every parameter its gradient: shared ones the tasks' weighted sum, others their task's, weighted."""
        # In the parameters' own memory format, as backward() would: fused optimisers walk through both in step.
        for parameter in [*self.shared, *(parameter for of_task in self.own for parameter, _ in of_task)]:
            parameter.grad = torch.zeros_like(parameter)
        totals = [grad for parameter in self.shared if (grad := parameter.grad) is not None]
        for weight, gradients in zip(shared_weight_T, self.of_shared, strict=True):
            torch._foreach_add_(totals, gradients, alpha=weight)
        for weight, of_task in zip(own_weight_T, self.own, strict=True):
            for parameter, gradient in of_task:
                parameter.grad.add_(gradient, alpha=weight)  # type: ignore[union-attr]


def cosine(gramian_TT: Tensor) -> float:
    """Of the angle between two tasks' gradients; NaN where one of them is zero."""
    norm_T = gramian_TT.diagonal().sqrt()
    return float(gramian_TT[0, 1] / (norm_T[0] * norm_T[1]))


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Summed over parameters in float64, so that a few large ones do not swallow the others."""
    products = [torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in zip(a, b, strict=True)]
    return torch.stack(products).double().sum() if products else torch.zeros((), dtype=torch.float64)


def _summed_over_workers(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """By one message."""
    tensors = [tensor for group in groups for tensor in group]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    pieces = iter(flat.split([tensor.numel() for tensor in tensors]))
    return [[next(pieces).view(tensor.shape) for tensor in group] for group in groups]
