"""What the settings of a training do to its weights, one at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY
from torch import Tensor

from braintum.config import Experiment
from braintum.data.folds import split, validation_split
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data
from braintum.training.device import autocast_dtype
from braintum.training.fit import Fit

Weights = dict[str, Tensor]
ONE_STEP = {
    "optim.name": "sgd",
    "optim.momentum": 0.0,
    "optim.nesterov": False,
    "schedule.name": "constant",
    "training.batch_size": 64,  # more than there are slices: an epoch is a step
    "training.weights": "last",
    "training.early_stopping": None,
}
"""Plain gradient descent: a step is -lr × gradient, and nothing else."""
UP_AND_DOWN = {"optim.lr": 0.03, "training.epochs": 6, "training.seed": 1}
"""A training whose validation score rises, and falls again."""


@pytest.fixture(scope="module")
def table(tiny_phantom: str) -> SliceTable:
    return load_table(tiny_phantom, Data(image_size=32))


def fit_of(table: SliceTable, settings: dict[str, Any]) -> Fit:
    experiment = Experiment.load(
        None, {"model.name": "joint_unet", **TINY, "training.precision": "float32", **settings}
    )
    return Fit(experiment, table, split(table, "1", 3, seed=0).train)


def copied(weights: Weights) -> Weights:
    return {name: value.clone() for name, value in weights.items()}


def weights_by_epoch(fit: Fit) -> list[Weights]:
    """The current weights before the first epoch and after each."""
    return [copied(fit.model.state_dict()), *(copied(fit.model.state_dict()) for _ in fit)]


def trainable(fit: Fit, weights: Weights) -> Tensor:
    return torch.cat([weights[name].flatten() for name, _ in fit.model.named_parameters()])


def assert_equal(weights: Weights, others: Weights) -> None:
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def equal(weights: Weights, others: Weights) -> bool:
    return all(torch.equal(value, others[name]) for name, value in weights.items())


def test_gradients_are_clipped_to_their_norm(table: SliceTable) -> None:
    def step(clip_norm: float | None) -> Tensor:
        settings = {**ONE_STEP, "training.epochs": 1, "optim.lr": 0.1, "optim.clip_norm": clip_norm}
        fit = fit_of(table, settings)
        before, after = weights_by_epoch(fit)
        return trainable(fit, after) - trainable(fit, before)

    free, clipped, loose = step(None), step(0.1), step(1e6)
    assert free.norm() > 2 * 0.1 * 0.1
    assert clipped.norm() == pytest.approx(0.1 * 0.1, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-4)
    assert torch.equal(free, loose)


def test_weight_decay_takes_its_share_of_the_weights(table: SliceTable) -> None:
    settings = {**ONE_STEP, "training.epochs": 1, "optim.lr": 0.1}
    plain, decayed = (fit_of(table, {**settings, "optim.weight_decay": decay}) for decay in (0.0, 0.5))
    before, without = weights_by_epoch(plain)
    _, after = weights_by_epoch(decayed)
    expected = trainable(plain, without) - 0.1 * 0.5 * trainable(plain, before)
    torch.testing.assert_close(trainable(decayed, after), expected)


def test_averaged_weights_are_those_worked_out_by_hand(table: SliceTable) -> None:
    """A plain mean at first, until that would forget more slowly than the decay does."""
    settings = {**ONE_STEP, "training.epochs": 4, "optim.lr": 0.1, "model.norm": "batch"}
    fit = fit_of(table, {**settings, "training.weights": "average", "training.average_decay": 0.6})
    _, first, second, third, fourth = weights_by_epoch(fit)
    kept = fit.kept_weights()
    for name, last in fourth.items():
        if not last.is_floating_point():  # the count of batches seen
            assert torch.equal(kept[name], last)
            continue
        mean = (first[name] + second[name]) / 2
        for value in (third[name], last):
            mean = 0.6 * mean + 0.4 * value
        torch.testing.assert_close(kept[name], mean, msg=name)
        assert not torch.equal(mean, last) or not last.any(), name


def test_scored_are_the_averaged_weights(table: SliceTable) -> None:
    settings = {**ONE_STEP, "training.epochs": 3, "optim.lr": 0.1, "training.weights": "average"}
    fit = fit_of(table, settings)
    list(fit)
    rows = np.arange(len(table))
    scores = fit.score_rows(rows)
    fit.model.load_state_dict(fit.kept_weights())
    assert fit.score_rows(rows) == scores


def test_best_weights_are_those_of_the_epoch_that_scored_best(table: SliceTable) -> None:
    settings = {**UP_AND_DOWN, "training.early_stopping": None, "schedule.name": "constant"}
    fit = fit_of(table, settings)
    by_epoch = weights_by_epoch(fit)
    scores = [row["validation_score"] for row in fit.history]
    best = int(np.argmax(scores)) + 1
    assert 1 < best < 6, "the first or last is the best: another seed is needed to tell them apart"
    assert fit.kept_epoch == best
    assert_equal(fit.kept_weights(), by_epoch[best])
    assert not equal(by_epoch[best], by_epoch[-1])
    fit.model.load_state_dict(fit.kept_weights())
    _, validation = validation_split(table, split(table, "1", 3, seed=0).train, 0.2, seed=1)
    assert fit.score_rows(validation)["dice"] == fit.history[best - 1]["validation_dice"]


def test_last_weights_are_those_of_the_last_epoch(table: SliceTable) -> None:
    fit = fit_of(table, {**ONE_STEP, "training.epochs": 2, "optim.lr": 0.1})
    assert_equal(fit.kept_weights(), weights_by_epoch(fit)[-1])
    assert fit.kept_epoch == 2


def test_plateau_goes_by_the_validation_score(table: SliceTable) -> None:
    settings = {**UP_AND_DOWN, "schedule.factor": 0.5, "schedule.patience": 0}
    history = list(fit_of(table, settings))
    scores = [row["validation_score"] for row in history]
    better = [score > max(scores[:epoch], default=-1) for epoch, score in enumerate(scores)]
    assert any(better[1:])
    assert not all(better)
    lr = 0.03
    for row, is_better in zip(history, better, strict=True):
        assert row["lr"] == pytest.approx(lr)
        lr *= 1 if is_better else 0.5


def test_the_learning_rate_follows_the_steps(table: SliceTable) -> None:
    """32 slices in batches of 8: four steps an epoch, of twelve in all."""
    settings = {**ONE_STEP, "training.batch_size": 8, "training.epochs": 3, "optim.lr": 0.1, "schedule.name": "cosine"}
    starts = [row["lr"] for row in fit_of(table, settings)]
    assert starts == pytest.approx([0.1 * (1 + math.cos(math.pi * (4 * k + 0.5) / 12)) / 2 for k in range(3)])


def test_nothing_is_learned_from_the_validation_part(table: SliceTable) -> None:
    settings = {**ONE_STEP, "training.early_stopping": 9, "training.epochs": 3, "optim.lr": 0.1}
    fitted, validation = validation_split(table, split(table, "1", 3, seed=0).train, 0.2, seed=0)
    assert not set(fitted) & set(validation)

    def with_other(rows: np.ndarray) -> Fit:
        image_RCHW, mask_RHW = table.image_RCHW.copy(), table.mask_RHW.copy()
        image_RCHW[rows], mask_RHW[rows] = 255 - image_RCHW[rows], 1 - mask_RHW[rows]
        fit = fit_of(replace(table, image_RCHW=image_RCHW, mask_RHW=mask_RHW), settings)
        list(fit)
        return fit

    undisturbed, other, of_one_slice = with_other(fitted[:0]), with_other(validation), with_other(fitted[:1])
    assert_equal(other.kept_weights(), undisturbed.kept_weights())
    assert [row["validation_score"] for row in other.history] != [
        row["validation_score"] for row in undisturbed.history
    ]
    assert not equal(of_one_slice.kept_weights(), undisturbed.kept_weights())


def test_precision_is_that_of_the_computation(table: SliceTable) -> None:
    def computed_in(precision: str) -> set[torch.dtype]:
        fit = fit_of(table, {**ONE_STEP, "training.epochs": 1, "training.precision": precision})
        found: set[torch.dtype] = set()
        for module in fit.model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
        fit.run_epoch()
        trained = set(found)
        fit.score_rows(np.arange(4))
        assert found == trained, "scored as it is trained"
        assert {value.dtype for value in fit.model.parameters()} == {torch.float32}
        return found

    assert computed_in("float32") == {torch.float32}
    assert computed_in("bfloat16") == {torch.bfloat16}
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        gains = {"amx_tile", "avx512_bf16"} & set(flags.read_text().split())
        assert computed_in("auto") == {torch.bfloat16 if gains else torch.float32}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("precision", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_a_precision_asked_for_is_taken(device: str, precision: str, dtype: torch.dtype | None) -> None:
    training = Experiment.load(None, {"training.precision": precision}).training
    assert autocast_dtype(training, torch.device(device)) == dtype


@pytest.mark.gpu
def test_gpus_that_have_it_train_in_bfloat16(table: SliceTable) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    has = torch.cuda.get_device_capability() >= (8, 0)
    for precision, dtype in (("auto", torch.bfloat16 if has else None), ("float32", None)):
        fit = fit_of(table, {"training.device": "auto", "training.precision": precision})
        assert (fit.device.type, fit.autocast_dtype) == ("cuda", dtype)
