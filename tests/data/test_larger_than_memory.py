"""Datasets three and nine times as large as Ray's object store are trained on, as if they were in memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_rows import make_row

from braintum.config import Experiment
from braintum.data.shards import write_dataset
from braintum.data.table import load_table
from braintum.training.run import RunSpec, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STORE = 80 * 2**20
SETTINGS = {
    "model.name": "joint_unet",
    "model.width": 2,
    "model.depth": 2,
    "model.norm": "instance",
    "data.image_size": 64,
    "data.window": 300,
    "training.epochs": 6,
    "training.batch_size": 32,
    "training.device": "cpu",
    "training.precision": "float32",
}
TRAIN = """
import json, sys, threading, time
import psutil, ray
from braintum.config import Experiment
from braintum.connect import start_local
from braintum.training.progress import Progress
from braintum.training.worker import train

three, nine, out, store, settings = *sys.argv[1:4], int(sys.argv[4]), json.loads(sys.argv[5])
held, done, name = {"three": [], "nine": []}, threading.Event(), "three"

def watch():
    while not done.wait(0.2):
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    about = open(f"/proc/{process.pid}/smaps_rollup").read()
                    held[name].append(1024 * int(about.split("Pss_Anon:")[1].split()[0]))  # not the store's pages
            except (psutil.Error, OSError):
                pass

start_local(num_cpus=1, object_store_memory=store)
watcher = threading.Thread(target=watch)
watcher.start()
for name, url in (("three", three), ("nine", nine)):
    epochs = {"training.epochs": 6 if name == "three" else 2}  # as many steps: what is freed and kept grows with them
    train(Experiment.load(None, {**settings, **epochs}), url, f"{out}/{name}", progress=Progress("test", quiet=True))
done.set()
watcher.join()
print(json.dumps(held))
"""


def write_set(url: str, num_bytes: int) -> str:
    """Slices of sixteen channels, so that there is much to read and little to compute."""
    rng = np.random.default_rng(0)
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[10:30, 10:30] = 1

    def row(i: int):
        image_CHW = rng.integers(0, 256, (16, 64, 64), np.uint8)
        image_CHW[:, 10:30, 10:30] //= 2
        return make_row(f"s{i:05d}", "ab"[i % 2], group=f"g{i // 8}", image_CHW=image_CHW, mask_HW=mask_HW)

    about = {"name": "large", "provenance": "a test", "licence": None}
    write_dataset(map(row, range(num_bytes // (17 * 64 * 64) + 1)), url, **about, shard_bytes=4 * 2**20)
    return url


def test_it_trains_as_if_it_were_in_memory(tmp_path: Path) -> None:
    three, nine = (write_set(str(tmp_path / f"{times}"), times * STORE) for times in (3, 9))
    command = [sys.executable, "-c", TRAIN, three, nine, str(tmp_path / "out"), str(STORE), json.dumps(SETTINGS)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert shown.returncode == 0, shown.stderr[-2000:]
    held = {name: max(bytes_held) for name, bytes_held in json.loads(shown.stdout.splitlines()[-1]).items()}

    experiment = Experiment.load(None, SETTINGS)
    table = load_table(three, experiment.data)
    assert table.image_RCHW.nbytes + table.mask_RHW.nbytes >= 3 * STORE
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the cluster has cores: sums of other orders end in other bits
    list(run(RunSpec.of(experiment, three, str(tmp_path / "kept"), None), table))
    torch.set_num_threads(threads)
    streamed, kept = (
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for folder in (tmp_path / "out" / "three", tmp_path / "kept")
    )
    assert streamed == kept
    growth = (held["nine"] - held["three"]) / (6 * STORE)
    assert growth < 0.1, f"what a set takes beside the store grows by {growth:.2f} of its size"
