"""A run's directory, without Ray: what a resume goes on with, and workers that do not see the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ports import free_ports
from tiny import TINY

from braintum import storage
from braintum.config import Experiment
from braintum.data.table import SliceTable, load_table
from braintum.settings import ConfigError
from braintum.training.fit import Diverged, Fit
from braintum.training.run import RunSpec, about_run, prepare_out, refuse_unseen, run, train_epochs

EXPERIMENT = Experiment.load(None, {"model.name": "joint_unet", **TINY, "training.epochs": 3})


@pytest.fixture
def table(tiny_phantom: str) -> SliceTable:
    return load_table(tiny_phantom, EXPERIMENT.data)


def spec_of(url: str, out: Path) -> RunSpec:
    return RunSpec.of(EXPERIMENT, url, str(out), "1", 3)


def test_a_resumed_run_keeps_the_threads_that_it_began_with(
    tiny_phantom: str, table: SliceTable, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, stopped = spec_of(tiny_phantom, tmp_path / "whole"), spec_of(tiny_phantom, tmp_path / "stopped")
        list(run(whole, table))
        list(islice(run(stopped, table), 1))
        torch.set_num_threads(2)  # the cluster has other cores now
        used = [torch.get_num_threads() for _ in run(stopped, table)]
    finally:
        torch.set_num_threads(threads)
    assert used == [1, 1]
    digests = {hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).digest() for n in ("whole", "stopped")}
    assert len(digests) == 1


def test_slices_that_show_nothing_of_the_region_are_neither_trained_on_nor_scored(
    tiny_phantom: str, tmp_path: Path
) -> None:
    classes = ["glioma", "meningioma", "pituitary"]
    changes = {"data.classes": classes, "loss.class_weights": "balanced", "training.epochs": 2}
    whole = Experiment.load(None, {"model.name": "classifier", **TINY, **changes, "model.norm": "batch"})
    tumour = whole.with_overrides({"data.region": "tumour"})
    whole_table, table = (load_table(tiny_phantom, experiment.data) for experiment in (whole, tumour))
    hidden = np.arange(len(table)) % 4 == 1  # every tumour of the phantom is seen: one in four is taken away
    table = replace(table, shown_R=table.shown_R & ~hidden)
    image_RCHW = np.where(hidden[:, None, None, None], 255 - table.image_RCHW, table.image_RCHW)
    digests = set()
    for name, seen in (("as it is", table), ("changed where it is not seen", replace(table, image_RCHW=image_RCHW))):
        spec = RunSpec.of(tumour, tiny_phantom, str(tmp_path / name), "1", 3)
        list(run(spec, seen))
        digests.add(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).digest())
        scored = storage.read_table(str(tmp_path / name / "predictions.parquet"))["slice_id"].to_pylist()
        held_out = [row for row in spec.split(whole_table).held_out if not hidden[row]]
        assert scored == sorted(table.slice_id_R[row] for row in held_out)
        assert len(held_out) < len(spec.split(whole_table).held_out)
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["unet", "joint_unet", "classifier"])
def test_outputs_that_are_no_numbers_are_no_result(
    tiny_phantom: str, table: SliceTable, tmp_path: Path, name: str
) -> None:
    """One step of finite loss to finite weights, too large to compute with."""
    settings = {
        "model.name": name, **TINY, "optim.name": "sgd", "optim.lr": 10.0, "loss.segmentation_weight": 1e30,
        "loss.classification_weight": 1e30, "schedule.name": "constant", "training.batch_size": 64,
        "training.epochs": 1, "training.weights": "last", "training.early_stopping": None,
    }  # fmt: skip
    spec = RunSpec.of(Experiment.load(None, settings), tiny_phantom, str(tmp_path / "run"), "1", 3)
    with pytest.raises(Diverged, match=r"outputs became NaN or infinite by epoch 1: lower optim\.lr"):
        list(run(spec, table))
    assert not (tmp_path / "run" / "predictions.parquet").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_worker_that_does_not_see_the_drivers_directory_says_so(
    tiny_phantom: str, table: SliceTable, tmp_path: Path
) -> None:
    spec = spec_of(tiny_phantom, tmp_path / "run")
    with pytest.raises(ConfigError, match="1 of 1 workers do not see the driver's; --out must be storage that every"):
        refuse_unseen(spec, table)
    prepare_out(spec.out, about_run(spec, table.digest), resume=False)
    refuse_unseen(spec, table)
    with pytest.raises(ConfigError, match="do not see the driver's"):  # but what another run left on this machine
        refuse_unseen(replace(spec, fold="2"), table)


def _refusals(rank: int, port: int, url: str, folder: str) -> None:
    """A rank that looks into a folder of its own, as on a node of its own; rank 1 has lost what was there."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    table = load_table(url, EXPERIMENT.data)
    spec = spec_of(url, Path(folder) / f"node-{rank}")
    rows = spec.split(table)

    def refusal(refuse: Callable[[], Any]) -> str:
        try:
            refuse()
        except ConfigError as error:
            return str(error)
        return ""

    said = [refusal(lambda: refuse_unseen(spec, table, 2))]
    fit = Fit(EXPERIMENT, table, rows.train, rank=rank, world_size=2)
    said.append(refusal(lambda: list(train_epochs(spec, fit))))
    storage.write_json(str(Path(folder) / f"said-{rank}.json"), said)
    dist.destroy_process_group()


def test_workers_on_storage_of_their_own_are_refused_together(
    tiny_phantom: str, table: SliceTable, tmp_path: Path
) -> None:
    spec = spec_of(tiny_phantom, tmp_path / "node-0")
    prepare_out(spec.out, about_run(spec, table.digest), resume=False)
    list(islice(run(spec, table), 1))
    mp.spawn(_refusals, args=(free_ports(1)[0], tiny_phantom, str(tmp_path)), nprocs=2)
    for rank in range(2):
        unseen, unequal = storage.read_json(str(tmp_path / f"said-{rank}.json"))
        assert "1 of 2 workers do not see the driver's; --out must be storage that every node sees" in unseen
        assert "workers read states of 1 and 0 epochs; --out must be storage that every node sees" in unequal
