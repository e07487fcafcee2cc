"""The training loop, without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ports import free_ports
from tiny import TINY

from braintum.config import Experiment
from braintum.data.folds import split
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data
from braintum.training.checkpoint import CheckpointError, load_model, load_state, save_model, save_state
from braintum.training.fit import Diverged, Fit

FIXED_LENGTH = {"schedule__name": "one_cycle", "training__weights": "last", "training__early_stopping": None}
RUN = {"model.name": "joint_unet", **TINY, "training.epochs": 4}
FAST_BALANCING = ["gradnorm"]
SLOW_BALANCING = [
    "uncertainty", "dwa", "pcgrad", "cagrad", "mgda", "imtl_g", "aligned_mtl", "nash_mtl", "upgrad",
]  # fmt: skip
BALANCING = [*FAST_BALANCING, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BALANCING)]


@pytest.fixture(scope="module")
def table(tiny_phantom: str) -> SliceTable:
    return load_table(tiny_phantom, Data(image_size=32))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_few_targets(table: SliceTable) -> SliceTable:
    """Of every three slices one has a mask only, one a label only, one both: small batches lack one or the other."""
    kind_R = np.random.default_rng(0).integers(0, 3, len(table))
    return replace(table, has_mask_R=kind_R != 0, label_R=np.where(kind_R != 1, table.label_R, -1))


def experiment(**overrides: Any) -> Experiment:
    return Experiment.load(None, {**RUN, **{key.replace("__", "."): value for key, value in overrides.items()}})


def file_digest(fit: Fit, folder: Path) -> str:
    url = str(folder / "model.safetensors")
    save_model(
        url,
        fit.kept_weights(),
        fit.experiment,
        in_channels=1,
        classes=fit.table.classes,
        masks=fit.table.masks,
    )
    return hashlib.sha256(Path(url).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule__name": "one_cycle", "training__weights": "average", "training__early_stopping": None},
        {**FIXED_LENGTH, "training__half_size": 0.75},
        {"schedule__name": "cosine", "schedule__warmup_epochs": 1.0, "optim__name": "adamw", "model__norm": "batch"},
        {"optim__name": "sgd", "schedule__name": "constant", "training__weights": "last", "optim__clip_norm": 1.0},
        {"model__name": "classifier", "model__width": 2, "model__depth": 2},
    ],
    ids=["plateau-best", "one_cycle-average", "half_size-last", "cosine-batchnorm", "sgd-last", "classifier-dropout"],
)
def test_resumed_run_has_the_bytes_of_an_undisturbed_one(
    table: SliceTable, tmp_path: Path, settings: dict[str, Any]
) -> None:
    rows = split(table, "1", 3, seed=0).train
    whole = Fit(experiment(**settings), table, rows)
    history = list(whole)
    first = Fit(experiment(**settings), table, rows)
    for _ in range(2):
        first.run_epoch()
    save_state(str(tmp_path / "state.pt"), first.state_dict())
    torch.manual_seed(12345)  # a new process has another random state
    resumed = Fit(experiment(**settings), table, rows)
    state = load_state(str(tmp_path / "state.pt"))
    assert state is not None
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert [row["epoch"] for row in rest] == [3, 4]
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in history]
    assert file_digest(resumed, tmp_path) == file_digest(whole, tmp_path)
    moved = (first.model.state_dict(), whole.model.state_dict())
    assert any(not torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


@pytest.mark.parametrize("balancing", BALANCING)
def test_what_balancing_has_learned_is_resumed(table: SliceTable, tmp_path: Path, balancing: str) -> None:
    """Batches of two, many without a task's targets; dropout, so that a solver may draw no random numbers of it."""
    settings = {"loss__balancing": balancing, "training__batch_size": 2, "optim__clip_norm": 1.0, "model__dropout": 0.5}
    few, rows = with_few_targets(table), split(table, "1", 3, seed=0).train
    whole = Fit(experiment(**FIXED_LENGTH, **settings), few, rows)
    history = list(whole)
    first = Fit(experiment(**FIXED_LENGTH, **settings), few, rows)
    for _ in range(3):  # two are what DWA looks back at
        first.run_epoch()
    save_state(str(tmp_path / "state.pt"), first.state_dict())
    torch.manual_seed(12345)
    resumed = Fit(experiment(**FIXED_LENGTH, **settings), few, rows)
    state = load_state(str(tmp_path / "state.pt"))
    assert state is not None
    resumed.load_state_dict(state)
    list(resumed)
    assert file_digest(resumed, tmp_path) == file_digest(whole, tmp_path)
    said = ("weight_segmentation", "weight_classification", "task_cosine")
    assert [[row[name] for name in said] for row in resumed.history] == [[row[n] for n in said] for row in history]
    assert all(-1 <= row["task_cosine"] <= 1 for row in history)
    assert len({row["weight_segmentation"] for row in history}) > 1


def test_state_of_another_experiment_is_refused(table: SliceTable) -> None:
    rows = split(table, "1", 3, seed=0).train
    state = Fit(experiment(), table, rows).state_dict()
    with pytest.raises(ValueError, match="belongs to experiment"):
        Fit(experiment(optim__lr=1e-3), table, rows).load_state_dict(state)


def test_nothing_of_the_held_out_fold_reaches_the_weights(table: SliceTable, tmp_path: Path) -> None:
    rows = split(table, "1", 3, seed=0)
    fit = Fit(experiment(), table, rows.train)
    list(fit)
    image_RCHW, label_R, mask_RHW = table.image_RCHW.copy(), table.label_R.copy(), table.mask_RHW.copy()
    image_RCHW[rows.held_out] = 255 - image_RCHW[rows.held_out]
    label_R[rows.held_out] = (label_R[rows.held_out] + 1) % len(table.classes)
    mask_RHW[rows.held_out] = 1 - mask_RHW[rows.held_out]
    other = Fit(experiment(), replace(table, image_RCHW=image_RCHW, label_R=label_R, mask_RHW=mask_RHW), rows.train)
    list(other)
    assert file_digest(other, tmp_path) == file_digest(fit, tmp_path)
    image_RCHW[rows.train] = 255 - image_RCHW[rows.train]
    third = Fit(experiment(), replace(table, image_RCHW=image_RCHW), rows.train)
    list(third)
    assert file_digest(third, tmp_path) != file_digest(fit, tmp_path)


def test_training_learns(table: SliceTable) -> None:
    settings = {
        "training__epochs": 25,
        "training__batch_size": 8,
        "training__weights": "last",
        "training__early_stopping": None,
        "optim__lr": 3e-2,
        "schedule__name": "one_cycle",
        "model__width": 8,
        "model__norm": "batch",
        "model__dropout": 0.0,
    }
    rows = split(table, "1", 3, seed=0)
    fit = Fit(experiment(**settings), table, rows.train)
    history = list(fit)
    for term in ("train_segmentation_loss", "train_classification_loss"):
        assert history[-1][term] < 0.85 * history[0][term], term


def test_first_epochs_are_trained_and_scored_on_slices_of_half_the_side(table: SliceTable) -> None:
    fit = Fit(experiment(**FIXED_LENGTH, training__half_size=0.6, training__epochs=3), table, np.arange(len(table)))
    sides: list[set[int]] = []
    fit.model.encoder.register_forward_hook(lambda module, inputs, outputs: sides[-1].add(inputs[0].shape[-1]))
    while not fit.finished:
        for step in (fit.run_epoch, lambda: fit.score_rows(np.arange(8))):
            sides.append(set())
            step()
    assert sides == [{16}, {16}, {16}, {16}, {32}, {32}]


def test_early_stopping_ends_a_run_that_no_longer_improves(table: SliceTable) -> None:
    rows = split(table, "1", 3, seed=0).train
    fit = Fit(experiment(training__epochs=50, training__early_stopping=2, optim__lr=1e-9), table, rows)
    epochs = len(list(fit))
    assert epochs == fit.best_epoch + 2 < 50


def test_diverged_loss_names_epoch_and_step(table: SliceTable) -> None:
    rows = split(table, "1", 3, seed=0).train
    settings = {"optim__name": "sgd", "optim__lr": 10.0, "model__norm": "batch", "loss__segmentation_weight": 1e30}
    with pytest.raises(Diverged, match=r"epoch \d+, step \d+"):
        list(Fit(experiment(**settings), table, rows))


@pytest.mark.parametrize("weights", ["last", "average"])
@pytest.mark.parametrize("name", ["unet", "joint_unet"])
def test_weights_that_the_last_step_broke_are_no_result(table: SliceTable, name: str, weights: str) -> None:
    """The only step's loss is finite: no other would tell."""
    settings = {
        "model__name": name, "optim__name": "sgd", "optim__lr": 10.0, "loss__segmentation_weight": 1e38,
        "schedule__name": "constant", "training__batch_size": 64, "training__epochs": 1,
        "training__weights": weights, "training__early_stopping": None,
    }  # fmt: skip
    fit = Fit(experiment(**settings), table, split(table, "1", 3, seed=0).train)
    with pytest.raises(Diverged, match=r"weights became NaN or infinite at epoch 1: lower optim\.lr"):
        fit.run_epoch()


@pytest.mark.parametrize("balancing", ["fixed", *BALANCING])
def test_bfloat16_and_clipping_go_with_every_balancing(table: SliceTable, balancing: str) -> None:
    """Plain gradient descent at rate 1/2: n steps move no further than n/2 times the norm that is cut to."""
    settings = {
        **FIXED_LENGTH,
        "loss__balancing": balancing,
        "training__precision": "bfloat16",
        "training__batch_size": 16,
        "optim__clip_norm": 1e-3,
        "optim__name": "sgd",
        "optim__lr": 0.5,
        "optim__momentum": 0.0,
        "optim__nesterov": False,
        "schedule__name": "constant",
    }
    rows = split(table, "1", 3, seed=0).train
    fit = Fit(experiment(**settings), table, rows)
    before = torch.cat([p.detach().flatten() for p in fit.model.parameters()])
    metrics = fit.run_epoch()
    assert np.isfinite(list(metrics.values())).all()
    moved = (torch.cat([p.detach().flatten() for p in fit.model.parameters()]) - before).norm().item()
    assert 0 < moved <= 0.5 * 1e-3 * -(-len(rows) // 16) * 1.01


def _worker(
    rank: int, world_size: int, port: int, url: str, out: str, settings: dict[str, Any], few_targets: bool
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    table = load_table(url, Data(image_size=32))
    table = with_few_targets(table) if few_targets else table
    fit = Fit(experiment(**settings), table, split(table, "1", 3, seed=0).train, rank=rank, world_size=world_size)
    list(fit)
    labels = fit.scores_of(np.arange(7))["label"].tolist() if "classification" in fit.experiment.model.tasks else []
    save_state(f"{out}.{rank}", {"history": fit.history, "weights": fit.kept_weights(), "labels": labels})
    dist.destroy_process_group()


def on_two_workers(url: str, folder: Path, settings: dict[str, Any], few_targets: bool = False) -> list[dict[str, Any]]:
    """What each of two DDP workers has at the end: its history and the weights that it would keep."""
    mp.spawn(_worker, args=(2, free_ports(1)[0], url, str(folder / "end"), settings, few_targets), nprocs=2)
    states = [load_state(str(folder / f"end.{rank}")) for rank in range(2)]
    return [state for state in states if state is not None]


@pytest.mark.parametrize("weights", ["best", "average"])
def test_two_workers_score_the_weights_that_are_saved(tiny_phantom: str, tmp_path: Path, weights: str) -> None:
    """Batch statistics are each worker's own while it trains; scored and saved are rank 0's, by all."""
    settings = {
        "model__norm": "batch", "training__epochs": 2, "training__weights": weights, "optim__lr": 0.01,
    }  # fmt: skip
    mine, theirs = on_two_workers(tiny_phantom, tmp_path, settings)
    assert any("running_mean" in name for name in mine["weights"])
    for name, value in mine["weights"].items():
        assert torch.equal(value, theirs["weights"][name]), name


def test_two_workers_train_what_one_does(tiny_phantom: str, table: SliceTable, tmp_path: Path) -> None:
    """Same batches, same losses over global counts: only the order of sums differs (dropout aside)."""
    settings = {
        "training__precision": "float32",  # in bfloat16, which some CPUs have, the order of sums is seen
        "model__dropout": 0.0,
        "loss__class_weights": "balanced",
        "training__epochs": 2,
        "optim__name": "sgd",
        "optim__lr": 0.01,
    }
    two, _ = on_two_workers(tiny_phantom, tmp_path, settings)
    one = Fit(experiment(**settings), table, split(table, "1", 3, seed=0).train)
    list(one)
    assert two["labels"] == table.label_R[:7].tolist(), "scores stand in the order of the rows"
    for mine, theirs in zip(one.history, two["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert mine["validation_score"] == pytest.approx(theirs["validation_score"], abs=0.02)
    for name, weights in one.kept_weights().items():
        torch.testing.assert_close(two["weights"][name], weights, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("balancing", BALANCING)
def test_two_workers_balance_tasks_as_one_does(
    tiny_phantom: str, table: SliceTable, tmp_path: Path, balancing: str
) -> None:
    """Two rows a worker and step, so that a worker often has no target of a task, and sometimes none has."""
    settings = {
        **FIXED_LENGTH,
        "training__precision": "float32",
        "model__dropout": 0.0,
        "loss__balancing": balancing,
        "training__batch_size": 4,
        "training__epochs": 3,
        "schedule__name": "constant",
        "optim__name": "sgd",
        "optim__lr": 0.01,
        "optim__clip_norm": 1.0,
    }
    two, other = on_two_workers(tiny_phantom, tmp_path, settings, few_targets=True)
    few = with_few_targets(table)
    one = Fit(experiment(**settings), few, split(few, "1", 3, seed=0).train)
    list(one)
    names = ["train_loss", "weight_segmentation", "weight_classification", "task_cosine"]
    for mine, theirs in zip(one.history, two["history"], strict=True):
        assert [mine[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-3, abs=1e-4)
    for name, weights in one.kept_weights().items():
        torch.testing.assert_close(two["weights"][name], weights, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(two["weights"][name], other["weights"][name]), "workers stay as one"


def test_checkpoint_predicts_after_loading(table: SliceTable, tmp_path: Path) -> None:
    fit = Fit(experiment(training__epochs=1), table, split(table, "1", 3, seed=0).train)
    list(fit)
    file_digest(fit, tmp_path)
    loaded = load_model(str(tmp_path / "model.safetensors"))
    assert (loaded.experiment, loaded.classes) == (fit.experiment, table.classes)
    image = torch.rand(2, 1, 32, 32)
    fit.model.load_state_dict(fit.kept_weights())
    torch.testing.assert_close(loaded.model(image)[0], fit.model.eval()(image)[0], rtol=1e-4, atol=1e-4)


def test_files_that_are_no_checkpoint_are_refused_and_run_nothing(tmp_path: Path) -> None:
    import pickle

    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return (Path.write_text, (marker, "x"))  # type: ignore[return-value]

    for name in ("model.safetensors", "state.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "zip.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_model(str(tmp_path / "model.safetensors"))
    for name in ("state.pt", "zip.pt"):
        with pytest.raises(CheckpointError, match="not a readable"):
            load_state(str(tmp_path / name))
    assert not marker.exists()
