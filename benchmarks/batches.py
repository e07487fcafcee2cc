"""Ready batches (gathered, augmented, in [0, 1]) a second on two cores, against monai, torch's DataLoader, Ray Data.

    python benchmarks/batches.py [--slices 1500] [--size 256] [--rounds 5]

One process asks for batches of 16, as a training does, and every loader may use both cores for them as its
documentation advises (`batch_peers.py`): monai's CacheDataset with the equivalent dictionary transforms; a DataLoader
that decodes PNG files every epoch; Ray Data's `iter_torch_batches`. The last two bring no augmentation: it is written
in batch, which is faster than a sample at a time, with torch's documented functions. They are measured a second time
with braintum's own changes lent to them, which tells what is left when everybody augments with the same code.
All keep freed memory (`keep_freed_memory`) and run in the environment of braintum's workers.

A round is an epoch of every setting, one after another, in an order that turns from round to round; each waits until
the cores are idle, a few seconds at most. Each loader's best setting is the one with the best median; a ratio is the
median over the rounds of the quotient in one round. In an epoch before, which is not timed, every setting is checked:
all slices come once, shapes, types and ranges are right, no image is a stored one (nor its mirror image), and images,
masks and what lies under the masks have the means that ours have.

Gathering alone: rows in random order out of a table larger than the caches, as a batch takes them, against copying the
same bytes in order into the same buffers (the faster of numpy's copyto and torch's copy_), on as many threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from batch_checks import check_all, stored_digests
from batch_peers import (
    BATCH_SIZE,
    WORKERS,
    Setting,
    by_braintum,
    by_torch,
    monai_settings,
    ours,
    png_settings,
    ray_settings,
    stored_blocks,
)
from PIL import Image
from record import record

from braintum.connect import ENVIRONMENT, start_local
from braintum.data.batches import gather_rows
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.shards import write_dataset
from braintum.data.table import load_table
from braintum.parts import Augment, Data
from braintum.training.device import keep_freed_memory

SLICES_A_CASE = 5
GATHERED_BYTES = 1 << 30
LENT = "_with_braintums_augmentation"
IDLE_PERCENT, WAITED_SECONDS = 10.0, 5.0
T = TypeVar("T")


class Speed(NamedTuple):
    """Slices a second over a whole epoch and after its first batch; percent of the cores that others took before."""

    whole: float
    after_the_first: float
    busy_before: float


def slices_per_second(setting: Setting, number: int, num_slices: int) -> Speed:
    """Every batch is taken and dropped."""
    torch.set_num_threads(setting.threads)
    busy = wait_until_idle()
    start = time.perf_counter()
    batches = setting.epoch(number)
    first = len(next(batches)[0])
    began = time.perf_counter()
    for _ in batches:
        pass
    end = time.perf_counter()
    return Speed(num_slices / (end - start), (num_slices - first) / (end - began), busy)


def wait_until_idle() -> float:
    """Waits until other programs leave the cores alone, or WAITED_SECONDS; percent of the cores that they took last."""
    end = time.perf_counter() + WAITED_SECONDS
    while (busy := psutil.cpu_percent(interval=1)) > IDLE_PERCENT and time.perf_counter() < end:
        pass
    return busy


def gather_speeds(size: int, rounds: int) -> dict[str, Any]:
    """Gigabytes a second of gathering and of copying, by number of threads."""
    num_rows = GATHERED_BYTES // (2 * size**2)
    rng = np.random.default_rng(0)
    table = {name: rng.integers(0, 256, (num_rows, size**2), np.uint8) for name in ("image", "mask")}
    tensors = {name: torch.from_numpy(array) for name, array in table.items()}
    starts = range(0, num_rows - BATCH_SIZE + 1, BATCH_SIZE)
    order = torch.from_numpy(rng.permutation(num_rows))
    buffers = {name: torch.empty(BATCH_SIZE, size**2, dtype=torch.uint8) for name in table}

    def gathered() -> None:
        for start in starts:
            for name, tensor in tensors.items():
                gather_rows(tensor, order[start : start + BATCH_SIZE], buffers[name])

    def numpy_copy() -> None:
        for start in starts:
            for name, array in table.items():
                np.copyto(buffers[name].numpy(), array[start : start + BATCH_SIZE])

    def torch_copy() -> None:
        for start in starts:
            for name, tensor in tensors.items():
                buffers[name].copy_(tensor[start : start + BATCH_SIZE])

    num_bytes = len(starts) * BATCH_SIZE * 2 * size**2
    speeds: dict[str, Any] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ways: dict[str, Callable[[], None]] = {"gather": gathered, "numpy": numpy_copy, "torch": torch_copy}
        taken = rounds_of({name: _seconds(way) for name, way in ways.items()}, rounds)
        gigabytes = {name: [num_bytes / seconds / 1e9 for seconds in values] for name, values in taken.items()}
        copy = max(("numpy", "torch"), key=lambda name: statistics.median(gigabytes[name]))
        speeds[named(threads)] = {
            "gather_over_memory_copy": quotient(gigabytes["gather"], gigabytes[copy]),
            "gigabytes_per_second": {name: round(statistics.median(values), 2) for name, values in gigabytes.items()},
        }
    return speeds


def _seconds(run: Callable[[], None]) -> Callable[[int], float]:
    def seconds(_: int) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def rounds_of(runs: dict[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """What each run gives in each round, which it is told (from 0); they take turns. A first round is not kept."""
    names = list(runs)
    kept: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            value = runs[name](turn + 1)
            if turn >= 0:
                kept[name].append(value)
    return kept


def quotient(one: list[float], other: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 2)


def named(threads: int) -> str:
    return "1_thread" if threads == 1 else f"{threads}_threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("slices", 1500), ("size", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    keep_freed_memory()
    gathering = gather_speeds(given.size, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/set"
        cases = -(-given.slices // SLICES_A_CASE)
        drawn = phantom_rows(cases=cases, slices_per_case=SLICES_A_CASE, size=given.size, seed=0)
        rows = list(islice(drawn, given.slices))
        write_dataset(rows, url, name="phantom", provenance="drawn", licence=None)
        for i, row in enumerate(rows):
            assert row.mask_HW is not None
            Image.fromarray(row.image_CHW[0]).save(f"{folder}/image{i}.png")
            Image.fromarray(row.mask_HW).save(f"{folder}/mask{i}.png")
        del rows
        table, augment = load_table(url, Data(image_size=given.size)), Augment()
        loaders = {
            "ours": ours(table, augment),
            "monai": monai_settings(table, augment),
            "torch_png": png_settings(Path(folder), len(table), augment, by_torch),
            f"torch_png{LENT}": png_settings(Path(folder), len(table), augment, by_braintum),
        }
        stored = stored_digests(table)
        check_all(loaders, table, stored)  # forks the workers, before Ray has threads
        start_local(num_cpus=WORKERS)
        blocks = stored_blocks(url, table)
        with_ray = {
            "ray_data": ray_settings(blocks, augment, by_torch),
            f"ray_data{LENT}": ray_settings(blocks, augment, by_braintum),
        }
        check_all({"ours": loaders["ours"], **with_ray}, table, stored)
        loaders |= with_ray
        results = compared(loaders, len(table), given.rounds)
    results |= {
        "gather_over_memory_copy": {name: speed.pop("gather_over_memory_copy") for name, speed in gathering.items()},
        **results,
        "gathering_gigabytes_per_second": {name: speed["gigabytes_per_second"] for name, speed in gathering.items()},
        "gathered_bytes": GATHERED_BYTES,
        "slices": len(table),
        "size": given.size,
        "batch_size": BATCH_SIZE,
        "rounds": given.rounds,
    }
    command = " ".join(["python benchmarks/batches.py", *(f"--{name} {value}" for name, value in vars(given).items())])
    record("batches", results, command)


def compared(loaders: dict[str, dict[str, Setting]], num_slices: int, rounds: int) -> dict[str, Any]:
    def run(setting: Setting) -> Callable[[int], Speed]:
        return lambda turn: slices_per_second(setting, turn + 1, num_slices)

    runs = {(loader, name): run(setting) for loader, settings in loaders.items() for name, setting in settings.items()}
    taken = rounds_of(runs, rounds)
    whole = {key: [speed.whole for speed in speeds] for key, speeds in taken.items()}
    middle = {key: statistics.median(speeds) for key, speeds in whole.items()}
    best = {loader: max((key for key in runs if key[0] == loader), key=lambda key: middle[key]) for loader in loaders}

    def fastest(peers: list[str]) -> str:
        return max(peers, key=lambda loader: middle[best[loader]])

    peers = [loader for loader in loaders if loader != "ours"]
    first, first_lent = fastest([loader for loader in peers if not loader.endswith(LENT)]), fastest(peers)
    over = {loader: quotient(whole[best["ours"]], whole[best[loader]]) for loader in peers}
    return {
        "ours_over_monai": over["monai"],
        "ours_over_the_best_of_them": over[first],
        "the_best_of_them": first,
        "with_braintums_augmentation_lent": {
            "ours_over_the_best_of_them": over[first_lent],
            "the_best_of_them": first_lent.removesuffix(LENT),
        },
        "ours_over_each": over,
        "best_settings": {loader: name for loader, (_, name) in best.items()},
        "slices_per_second": {
            loader: {name: round(middle[loader, name]) for name in settings} for loader, settings in loaders.items()
        },
        "slices_per_second_after_the_first_batch": {
            loader: round(statistics.median(speed.after_the_first for speed in taken[best[loader]])) for loader in best
        },
        "slices_per_second_in_each_round": {loader: [round(speed) for speed in whole[best[loader]]] for loader in best},
        "percent_of_cores_that_others_took_before_each_round": {
            loader: [round(speed.busy_before) for speed in taken[best[loader]]] for loader in best
        },
    }


if __name__ == "__main__":
    if not ENVIRONMENT.items() <= os.environ.items():  # libraries read it when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    main()
