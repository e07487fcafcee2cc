"""How the losses of two tasks become one gradient (`loss.balancing`). T tasks, segmentation first.

Every method is a weight for each task and step. `fixed`, `uncertainty` and `dwa` know it before the gradient, so that
the weighted sum is differentiated once. `gradnorm` and the methods of torchjd (`braintum/losses/conflict.py`) look at
the gradient of each task on the parameters that both losses reach, the shared ones.

All are the same on any number of workers, and know which tasks have targets in the global batch: one without is neither
weighed nor learned from in that step, and its zero loss changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from braintum.losses.task_gradients import TaskGradients, cosine
from braintum.models.registry import Task
from braintum.parts import Loss
from braintum.settings import ConfigError

LEAST = 1e-3
"""The least weight that GradNorm gives: a task with none could not come back."""


class Balancing(nn.Module):
    """Fills gradients, and remembers the weights of an epoch. What is learned across epochs is in the state dict.

    `parameters` are those of the network without DDP's wrapper; a call's losses may have come through it.
    """

    weight_T: Tensor

    def __init__(self, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.workers = workers
        self._trained = list(parameters)  # a list of parameters is no part of a module's state
        self._weights: list[Tensor] = []
        self._cosines: list[float] = []
        self.register_buffer("weight_T", torch.ones(len(self.tasks)))

    def backward(self, losses: Mapping[Task, Tensor], has_targets: Mapping[Task, bool]) -> Tensor:
        """Gives every parameter the gradient of the global batch; returns this worker's share of the weighted loss.

        It is weighed as parameters that one task alone reaches are (`train_loss` of the history). `losses` are shares
        as of `Objective`; gradients must be None before. Raises ConfigError where the method needs shared parameters
        and there are none.
        """
        loss_T = [losses[task] for task in self.tasks]
        has_T = [has_targets[task] for task in self.tasks]
        weight_T = self._backward(loss_T, has_T)
        has = torch.tensor(has_T, device=weight_T.device)
        self._weights.append(weight_T.where(has, torch.nan))
        return (self._own_T(weight_T).to(loss_T[0]) * torch.stack(loss_T).detach()).sum()

    def after_epoch(self, loss: Mapping[Task, float]) -> dict[str, float]:
        """Given the epoch's mean losses, what to say of two tasks: `weight_<task>`, and `task_cosine`.

        Means over the steps in which the task had targets, or both had: what never was so is left out.
        """
        names = [*(f"weight_{task}" for task in self.tasks), "task_cosine"]
        means = [*torch.stack(self._weights).nanmean(0).tolist(), float(torch.tensor(self._cosines).nanmean())]
        self._weights, self._cosines = [], []
        if len(self.tasks) < 2:
            return {}
        return {name: mean for name, mean in zip(names, means, strict=True) if not math.isnan(mean)}

    def _backward(self, loss_T: list[Tensor], has_T: list[bool]) -> Tensor:
        raise NotImplementedError

    def _own_T(self, weight_T: Tensor) -> Tensor:
        """The weights on parameters that one task alone reaches, given those on the shared ones."""
        return weight_T


class LossBalancing(Balancing):
    """Weights that are known before the gradient: the weighted sum is differentiated once. As it stands: `fixed`."""

    def _backward(self, loss_T: list[Tensor], has_T: list[bool]) -> Tensor:
        if len(loss_T) > 1 and not self._cosines and all(has_T):  # once an epoch: it costs a backward pass
            gradients = TaskGradients.of(loss_T, self._trained, self.workers, keep_graph=True)
            self._cosines.append(cosine(gradients.gramian_TT))
        weight_T = self.weight_T.clone()
        losses_T = torch.stack(loss_T)
        # Losses are shares of a sum over the workers, and DDP averages gradients: times their number makes it one.
        ((weight_T * losses_T).sum() * self.workers).backward()
        self._learn(losses_T.detach(), has_T)
        return weight_T

    def _learn(self, loss_T: Tensor, has_T: list[bool]) -> None:
        """From a step's shares of the losses."""


class Uncertainty(LossBalancing):
    """Σ exp(−s) × loss + s / 2 with a learned log variance s for each task (Kendall et al. 2018, arXiv 1705.07115).

    Both tasks as the paper's eq. 10 has classification. s goes down its slope at a rate of its own, without the
    network's weight decay, momentum and clipping, of which the paper says nothing; it begins at 0, and a weight is
    exp(−s).
    """

    def __init__(
        self, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int, learning_rate: float
    ) -> None:
        super().__init__(tasks, parameters, workers)
        self._learning_rate = learning_rate

    def _learn(self, loss_T: Tensor, has_T: list[bool]) -> None:
        if self.workers > 1:
            loss_T = loss_T.clone()
            dist.all_reduce(loss_T)
        slope_T = (0.5 - self.weight_T * loss_T) * torch.tensor(has_T, device=loss_T.device)
        self.weight_T *= torch.exp(self._learning_rate * slope_T)  # s − rate × slope, in terms of exp(−s)


class DynamicWeightAverage(LossBalancing):
    """T × softmax of (an epoch's mean loss over that of the epoch before) / temperature (Liu et al. 2019, eq. 7).

    arXiv 1803.10704. Equal weights in the first two epochs. A task that falls more slowly weighs more.
    """

    before_T: Tensor

    def __init__(
        self, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int, temperature: float
    ) -> None:
        super().__init__(tasks, parameters, workers)
        self._temperature = temperature
        self.register_buffer("before_T", torch.full((len(self.tasks),), torch.nan))

    def after_epoch(self, loss: Mapping[Task, float]) -> dict[str, float]:
        said = super().after_epoch(loss)
        now_T = torch.tensor([loss[task] for task in self.tasks], device=self.weight_T.device)
        if not self.before_T.isnan().any():
            pace_T = now_T / self.before_T.clamp(min=1e-8)
            self.weight_T = len(self.tasks) * torch.softmax(pace_T / self._temperature, 0)
        self.before_T = now_T
        return said


class GradientBalancing(Balancing):
    """Weights by the tasks' gradients on the shared parameters.

    `weigh` is asked where all tasks have targets, and gradients that are not zero; else each is trained as if it were
    alone. A parameter that one task alone reaches gets that task's gradient as it is.
    """

    def __init__(self, name: str, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], workers: int) -> None:
        super().__init__(tasks, parameters, workers)
        self._name = name

    def _backward(self, loss_T: list[Tensor], has_T: list[bool]) -> Tensor:
        gradients = TaskGradients.of(loss_T, self._trained, self.workers)
        if not gradients.shared:
            raise ConfigError(
                f"loss.balancing: {self._name!r} needs parameters that both losses reach, and this model has none; "
                "set it to fixed, uncertainty or dwa"
            )
        gramian_TT = gradients.gramian_TT
        if all(has_T):
            self._cosines.append(cosine(gramian_TT))
        weight_T = self._alone_T()
        # Gradients that are not finite are written as they are, for the training to be told as diverged.
        if all(has_T) and gramian_TT.isfinite().all() and (gramian_TT.diagonal() > 0).all():
            weight_T = self.weigh(gramian_TT, gradients.loss_T.double().cpu())
        gradients.write(weight_T.tolist(), self._own_T(weight_T).tolist())
        return weight_T

    def weigh(self, gramian_TT: Tensor, loss_T: Tensor) -> Tensor:
        """The weights on the shared parameters, by the gradients' inner products and the losses over all workers."""
        raise NotImplementedError

    def _alone_T(self) -> Tensor:
        return torch.ones(len(self.tasks), dtype=torch.float64)

    def _own_T(self, weight_T: Tensor) -> Tensor:
        return torch.ones_like(weight_T)


class GradNorm(GradientBalancing):
    """Weights that bring the tasks' gradients to norms by how fast they learn (Chen et al. 2018, arXiv 1711.02257).

    Norms are of all shared parameters (the paper takes their last layer, to save time). Weights go down the paper's
    slope in units of the mean norm, so that the rate is the same whatever the losses' scale, and always sum to T.
    """

    first_T: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        parameters: Iterable[nn.Parameter],
        workers: int,
        learning_rate: float,
        asymmetry: float,
    ) -> None:
        super().__init__("gradnorm", tasks, parameters, workers)
        self._learning_rate, self._asymmetry = learning_rate, asymmetry
        self.weight_T = self.weight_T.double()
        self.register_buffer("first_T", torch.full_like(self.weight_T, torch.nan))

    def weigh(self, gramian_TT: Tensor, loss_T: Tensor) -> Tensor:
        weight_T = self.weight_T
        norm_T = gramian_TT.diagonal().sqrt()
        if self.first_T.isnan().any():
            self.first_T = loss_T.clamp(min=1e-8)
        mean = (weight_T * norm_T).mean()
        pace_T = loss_T / self.first_T
        target_T = mean * (pace_T / pace_T.mean().clamp(min=1e-8)) ** self._asymmetry
        slope_T = norm_T / mean * torch.sign(weight_T * norm_T - target_T)
        moved_T = (weight_T - self._learning_rate * slope_T).clamp(min=LEAST)
        self.weight_T = moved_T * len(self.tasks) / moved_T.sum()
        return weight_T

    def _alone_T(self) -> Tensor:
        return self.weight_T

    def _own_T(self, weight_T: Tensor) -> Tensor:
        return weight_T


def balancing_of(
    loss: Loss, tasks: Sequence[Task], parameters: Iterable[nn.Parameter], *, workers: int = 1, device: torch.device
) -> Balancing:
    """What `loss.balancing` names; a single task has nothing to be weighed against."""
    if len(tasks) == 1 or loss.balancing == "fixed":
        fixed = LossBalancing(tasks, parameters, workers)
        given = {"segmentation": loss.segmentation_weight, "classification": loss.classification_weight}
        fixed.weight_T = torch.tensor([1.0 if (w := given[task]) is None else w for task in tasks])
        return fixed.to(device)
    match loss.balancing:
        case "uncertainty":
            return Uncertainty(tasks, parameters, workers, loss.option("balancing_lr")).to(device)
        case "dwa":
            return DynamicWeightAverage(tasks, parameters, workers, loss.option("dwa_temperature")).to(device)
        case "gradnorm":
            rate, asymmetry = loss.option("balancing_lr"), loss.option("gradnorm_asymmetry")
            return GradNorm(tasks, parameters, workers, rate, asymmetry)
    from braintum.losses.conflict import ConflictBalancing, NashBalancing  # their solvers take a while to import

    if loss.balancing == "nash_mtl":
        return NashBalancing(tasks, parameters, workers)
    return ConflictBalancing(loss, tasks, parameters, workers)
