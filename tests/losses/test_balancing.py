"""Weights and gradients of two tasks against values worked out by hand or by references. T tasks, P parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braintum.config import Experiment
from braintum.losses.balancing import Balancing, balancing_of
from braintum.models.registry import Task
from braintum.settings import ConfigError

TASKS: tuple[Task, ...] = ("segmentation", "classification")
BOTH: dict[Task, bool] = {"segmentation": True, "classification": True}
CONFLICT = np.array([[3.0, 0.0, 1.0], [-2.0, 1.0, 1.0]])
"""Each task's gradient on the shared parameters: lengths √10 and √6, inner product −5."""
AGREEMENT = np.array([[3.0, 0.0, 1.0], [2.0, 1.0, 1.0]])
TORCHJD = ("pcgrad", "cagrad", "mgda", "imtl_g", "aligned_mtl", "nash_mtl", "upgrad")


class TwoTasks(nn.Module):
    """Losses that are linear in shared parameters and in one head each, so that gradients are what is written here."""

    def __init__(self, jacobian_TP: NDArray[np.float64] = CONFLICT, loss_T: tuple[float, float] = (2.0, 1.0)) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(3))
        self.mask, self.label, self.unused = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        self.jacobian_TP, self.loss_T = torch.tensor(jacobian_TP, dtype=torch.float32), loss_T

    def losses(self, scale: float = 1.0) -> dict[Task, Tensor]:
        shared_T = self.jacobian_TP @ self.shared
        heads = (5 * self.mask + self.loss_T[0], 7 * self.label + self.loss_T[1])
        return {task: scale * (shared_T[i] + heads[i].sum()) for i, task in enumerate(TASKS)}

    def gradients(self) -> tuple[list[float], float | None, float | None]:
        """Of the shared parameters and of both heads; all are None again afterwards."""
        mask, label = (None if p.grad is None else p.grad.item() for p in (self.mask, self.label))
        shared = [] if self.shared.grad is None else self.shared.grad.tolist()
        assert self.unused.grad is None
        self.zero_grad(set_to_none=True)
        return shared, mask, label


def balancing(network: nn.Module, name: str, tasks: tuple[Task, ...] = TASKS, **options: Any) -> Balancing:
    loss = Experiment.load(None, {"loss.balancing": name, **{f"loss.{k}": v for k, v in options.items()}}).loss
    return balancing_of(loss, tasks, network.parameters(), device=torch.device("cpu"))


def after(name: str, jacobian_TP: NDArray[np.float64], **options: Any) -> tuple[NDArray[np.float64], dict[str, float]]:
    """The shared gradient of one step, and what is said of the epoch."""
    network = TwoTasks(jacobian_TP)
    method = balancing(network, name, **options)
    method.backward(network.losses(), BOTH)
    shared, mask, label = network.gradients()
    assert (mask, label) == (5, 7), "heads get their own task's gradient"
    said = method.after_epoch({"segmentation": 2.0, "classification": 1.0})
    weights = np.array([said["weight_segmentation"], said["weight_classification"]])
    np.testing.assert_allclose(shared, weights @ jacobian_TP, rtol=1e-4, atol=1e-5)
    return np.array(shared), said


def projected(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """`a` without what it has against `b`."""
    result: NDArray[np.float64] = a - min(a @ b, 0) / (b @ b) * b
    return result


def reference(name: str, jacobian_TP: NDArray[np.float64]) -> NDArray[np.float64]:
    """The combined gradient by each paper's definition."""
    a, b = jacobian_TP
    mean = (a + b) / 2
    match name:
        case "pcgrad":
            return projected(a, b) + projected(b, a)
        case "upgrad":
            return (projected(a, b) + projected(b, a)) / 2
        case "mgda":
            share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
            return np.asarray(share * a + (1 - share) * b)
        case "imtl_g":  # (share × a + (1 − share) × b) has as much along a's direction as along b's
            apart = a / np.linalg.norm(a) - b / np.linalg.norm(b)
            share = (b @ apart) / ((b - a) @ apart)
            return np.asarray(share * a + (1 - share) * b)
        case "cagrad":  # c = 0.4: the dual, by trying
            radius = 0.4 * np.linalg.norm(mean)
            tried = [w * a + (1 - w) * b for w in np.linspace(0, 1, 100_001)]
            values = np.array(tried) @ mean + radius * np.linalg.norm(tried, axis=1)
            worst = tried[int(values.argmin())]
            return np.asarray(mean + radius * worst / np.linalg.norm(worst))
        case "aligned_mtl":
            left, lengths, right = np.linalg.svd(jacobian_TP, full_matrices=False)
            return np.asarray(lengths[-1] * (left @ right).mean(0))
    raise AssertionError(name)


@pytest.mark.parametrize("jacobian_TP", [CONFLICT, AGREEMENT], ids=["conflict", "agreement"])
@pytest.mark.parametrize("name", [name for name in TORCHJD if name != "nash_mtl"])
def test_gradient_methods_are_what_their_papers_say(name: str, jacobian_TP: NDArray[np.float64]) -> None:
    shared, _ = after(name, jacobian_TP)
    np.testing.assert_allclose(shared, reference(name, jacobian_TP), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("jacobian_TP", [CONFLICT, AGREEMENT], ids=["conflict", "agreement"])
def test_nash_bargaining_gives_both_tasks_the_same_utility(jacobian_TP: NDArray[np.float64]) -> None:
    """G α = 1 / α: a task's weight times what it gains is the same for both; and the step's length is 1."""
    shared, said = after("nash_mtl", jacobian_TP)
    weights = np.array([said["weight_segmentation"], said["weight_classification"]])
    utilities = weights * (jacobian_TP @ shared)
    assert utilities[0] == pytest.approx(utilities[1], rel=0.02)
    assert np.linalg.norm(shared) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("name", TORCHJD)
def test_in_a_conflict_a_gradient_method_is_not_the_sum_and_hurts_neither_task(name: str) -> None:
    """The plain sum, (1, 1, 2), is against the second task no more than −0; so the first one's is made longer."""
    jacobian_TP = CONFLICT * np.array([[3.0], [1.0]])
    fixed, said = after("fixed", jacobian_TP)
    np.testing.assert_allclose(fixed, jacobian_TP.sum(0))
    assert said["task_cosine"] == pytest.approx(-5 / math.sqrt(60))
    assert (jacobian_TP @ fixed).min() < -1
    shared, said = after(name, jacobian_TP)
    assert said["task_cosine"] == pytest.approx(-5 / math.sqrt(60))
    apart = 1 - shared @ fixed / np.linalg.norm(shared) / np.linalg.norm(fixed)
    assert apart > 0.01, "another direction"
    if name != "cagrad":  # which with a small c bounds the harm only
        assert (jacobian_TP @ shared).min() > -0.01


@pytest.mark.parametrize("name", ["fixed", "uncertainty", "dwa", "gradnorm", *TORCHJD])
@pytest.mark.parametrize("alone", TASKS)
def test_a_task_without_targets_changes_nothing(name: str, alone: Task) -> None:
    """Its loss is a zero that is connected to the graph; nothing is learned from it either."""
    network = TwoTasks()
    method = balancing(network, name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    losses = network.losses()
    other = next(task for task in TASKS if task != alone)
    losses[other] = losses[other] * 0.0
    method.backward(losses, {**BOTH, other: False})
    shared, mask, label = network.gradients()
    np.testing.assert_allclose(shared, CONFLICT[TASKS.index(alone)], rtol=1e-6)
    assert (mask, label) == ((5, 0) if alone == "segmentation" else (0, 7))
    if name != "uncertainty":
        torch.testing.assert_close(dict(method.state_dict()), before, equal_nan=True)
    else:
        changed = method.state_dict()["weight_T"] != before["weight_T"]
        assert changed.tolist() == [task == alone for task in TASKS]
    said = method.after_epoch({"segmentation": 1.0, "classification": 1.0})
    assert set(said) == {f"weight_{alone}"}


def test_fixed_weights_weigh() -> None:
    network = TwoTasks()
    method = balancing(network, "fixed", segmentation_weight=0.5, classification_weight=0.25)
    total = method.backward(network.losses(), BOTH)
    assert total.item() == pytest.approx(0.5 * 2 + 0.25 * 1)
    shared, mask, label = network.gradients()
    np.testing.assert_allclose(shared, 0.5 * CONFLICT[0] + 0.25 * CONFLICT[1])
    assert (mask, label) == (2.5, 1.75)
    said = method.after_epoch({"segmentation": 2.0, "classification": 1.0})
    assert said == pytest.approx(
        {"weight_segmentation": 0.5, "weight_classification": 0.25, "task_cosine": -5 / math.sqrt(60)}
    )


@pytest.mark.parametrize("name", ["fixed", "mgda", "uncertainty"])
def test_a_single_task_is_trained_as_it_is(name: str) -> None:
    network = TwoTasks()
    method = balancing(network, name, ("classification",))
    method.backward({"classification": network.losses()["classification"]}, BOTH)
    shared, mask, label = network.gradients()
    np.testing.assert_allclose(shared, CONFLICT[1])
    assert (mask, label) == (None, 7)
    assert method.after_epoch({"classification": 1.0}) == {}


def test_uncertainty_is_kendalls_objective_by_gradient_descent() -> None:
    network, s_T = TwoTasks(), torch.zeros(2, requires_grad=True)
    method = balancing(network, "uncertainty", balancing_lr=0.3)
    for _ in range(5):
        weight_T = torch.exp(-s_T.detach())
        method.backward(network.losses(), BOTH)
        shared, mask, label = network.gradients()
        np.testing.assert_allclose(shared, weight_T.numpy() @ CONFLICT, rtol=1e-5)
        assert (mask, label) == pytest.approx((5 * weight_T[0].item(), 7 * weight_T[1].item()))
        (torch.exp(-s_T) * torch.tensor([2.0, 1.0]) + s_T / 2).sum().backward()
        s_T = (s_T - 0.3 * s_T.grad).detach().requires_grad_()
    for _ in range(200):
        method.backward(network.losses(), BOTH)
        network.gradients()
    torch.testing.assert_close(method.weight_T, torch.tensor([1 / 4, 1 / 2]), rtol=1e-4, atol=0)  # 1 / (2 × loss)


def test_dwa_weighs_what_falls_more_slowly() -> None:
    network, method = TwoTasks(), None
    method = balancing(network, "dwa", dwa_temperature=2.0)
    epochs = [(4.0, 4.0), (2.0, 4.0), (1.9, 1.0), (1.0, 1.0)]
    weights = []
    for losses in epochs:
        method.backward(network.losses(), BOTH)
        network.gradients()
        said = method.after_epoch(dict(zip(TASKS, losses, strict=True)))
        weights.append((said["weight_segmentation"], said["weight_classification"]))
    third = [2 * math.exp(r / 2) / (math.exp(0.5 / 2) + math.exp(1.0 / 2)) for r in (0.5, 1.0)]
    fourth = [2 * math.exp(r / 2) / (math.exp(0.95 / 2) + math.exp(0.25 / 2)) for r in (0.95, 0.25)]
    assert weights == [pytest.approx(w, rel=1e-5) for w in ([1, 1], [1, 1], third, fourth)]


def test_gradnorm_is_the_papers_loss_by_gradient_descent() -> None:
    """In units of the mean norm, and renormalised; the classification loss has fallen to half, the other has not."""
    network = TwoTasks(CONFLICT * np.array([[4.0], [1.0]]), (2.0, 1.0))
    method = balancing(network, "gradnorm", balancing_lr=0.1, gradnorm_asymmetry=1.5)
    norm_T, weight_T = torch.tensor([4 * math.sqrt(10), math.sqrt(6)]), torch.ones(2)
    for label_loss in (1.0, 0.5, 0.5):
        network.loss_T = (2.0, label_loss)
        method.backward(network.losses(), BOTH)
        shared, mask, label = network.gradients()
        np.testing.assert_allclose(shared, weight_T.numpy() @ network.jacobian_TP.numpy(), rtol=1e-5)
        assert (mask, label) == pytest.approx((5 * weight_T[0].item(), 7 * weight_T[1].item())), "heads too"
        weight_T = weight_T.clone().requires_grad_()
        length_T = weight_T * norm_T
        pace_T = torch.tensor([1.0, label_loss])
        target_T = (length_T.mean() * (pace_T / pace_T.mean()) ** 1.5).detach()
        (length_T - target_T).abs().sum().backward()
        weight_T = weight_T.detach() - 0.1 * weight_T.grad / length_T.mean().detach()
        weight_T = 2 * weight_T / weight_T.sum()
    assert weight_T[0] < 1 < weight_T[1], "the longer gradient is made shorter"
    torch.testing.assert_close(method.weight_T, weight_T.double(), rtol=1e-5, atol=0)


def test_gradnorms_weights_stay_above_zero() -> None:
    network = TwoTasks(CONFLICT * np.array([[1000.0], [1.0]]))
    method = balancing(network, "gradnorm", balancing_lr=1.0)
    for _ in range(20):
        method.backward(network.losses(), BOTH)
        network.gradients()
        assert (method.weight_T > 0).all()
        assert method.weight_T.sum().item() == pytest.approx(2)


class Apart(TwoTasks):
    """Nothing is shared."""

    def losses(self, scale: float = 1.0) -> dict[Task, Tensor]:
        return {"segmentation": self.mask.sum() + self.shared.sum(), "classification": self.label.sum()}


@pytest.mark.parametrize("name", ["gradnorm", "mgda"])
def test_without_shared_parameters_there_is_nothing_to_combine(name: str) -> None:
    network = Apart()
    with pytest.raises(ConfigError, match=f"loss.balancing: '{name}' needs parameters that both losses reach"):
        balancing(network, name).backward(network.losses(), BOTH)
    method = balancing(network, "fixed")
    method.backward(network.losses(), BOTH)
    assert "task_cosine" not in method.after_epoch({"segmentation": 1.0, "classification": 1.0})


@pytest.mark.parametrize("name", TORCHJD)
@pytest.mark.parametrize("jacobian_TP", [[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [-1, 0, 0]], [[0, 0, 0], [0, 0, 0]],
                                         [[1e-12, 0, 0], [0, 1e6, 0]]])  # fmt: skip
def test_degenerate_gradients_stay_finite(name: str, jacobian_TP: list[list[float]]) -> None:
    network = TwoTasks(np.array(jacobian_TP))
    method = balancing(network, name)
    for _ in range(2):
        method.backward(network.losses(), BOTH)
        shared, _, _ = network.gradients()
        assert np.isfinite(shared).all()


@pytest.mark.parametrize("name", ["fixed", "gradnorm", *TORCHJD])
def test_a_loss_that_is_not_finite_is_told_as_such(name: str) -> None:
    """Whoever drives the training says so with epoch and step; a solver's error would say nothing."""
    network = TwoTasks()
    total = balancing(network, name).backward(network.losses(math.nan), BOTH)
    assert not total.isfinite()
