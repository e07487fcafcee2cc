"""How long a training on an S3 URL waits for data before its first step, beside the same from a local folder.

    python benchmarks/s3_first_step.py [--data FOLDER] [--slices 2400] [--size 256] [--rounds 3]

`--data` is a folder with manifest.csv; without it slices of the phantom are repeated. Data time is what
`braintum train` does about data on a Ray that runs: read the card, decode the shards into the object store (one Ray
task each), fetch the table, gather the first batch. Every round is a process and a Ray of its own, whose workers have
imported nothing; the same once more in the same Ray, `warm`, is what a second command on a cluster waits. How long a
new Ray takes until it runs a task that does nothing, `workers_up`, is no data time and stands beside it: a command that
starts its own Ray waits for both. The server is a real one (seaweedfs) on loopback, so there is no network to wait for:
at N MB/s add the dataset's MB / N.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from record import record

from braintum import storage
from braintum.connect import start_local
from braintum.data.batches import Batches
from braintum.data.ingest.folder import ingest_folder
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.shards import read_card, write_dataset
from braintum.data.shared import share_table
from braintum.parts import Augment, Data

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3_server import S3Server

STAGES = ("card", "shared", "fetched", "batch")


def data_seconds(url: str, size: int) -> dict[str, float]:
    """Seconds of each stage, and of all."""
    data = Data(image_size=size)
    times = [time.perf_counter()]
    read_card(url)
    times.append(time.perf_counter())
    reference = share_table(url, data)
    times.append(time.perf_counter())
    table = ray.get(reference)
    times.append(time.perf_counter())
    next(Batches(table, np.arange(len(table)), batch_size=16, seed=0, augment=Augment()).epoch(0))
    times.append(time.perf_counter())
    return {**dict(zip(STAGES, np.diff(times).tolist(), strict=True)), "all": times[-1] - times[0]}


@ray.remote
def nothing() -> None:
    time.sleep(0.2)  # long enough that every core has one


def measure(url: str, size: int) -> None:
    """Prints a process's own two measurements, and how long the bytes alone take to read, one shard after another."""
    start_local()
    begin = time.perf_counter()
    ray.get([nothing.remote() for _ in range(int(ray.cluster_resources()["CPU"]))])
    workers_up = time.perf_counter() - begin - 0.2
    cold, warm = data_seconds(url, size), data_seconds(url, size)
    begin = time.perf_counter()
    for shard in read_card(url).shards:
        storage.read_bytes(storage.join(url, shard.file))
    bytes_alone = time.perf_counter() - begin
    print(json.dumps({"cold": cold, "warm": warm, "bytes_alone": bytes_alone, "workers_up": workers_up}))


def measured(url: str, size: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", url, "--size", str(size)]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(folder: str | None, url: str, slices: int, size: int) -> None:
    if folder is not None:
        ingest_folder(folder, url, size=size)
        return
    few = list(phantom_rows(cases=10, slices_per_case=5, size=size, seed=0))
    rows = (
        type(row)(**{**vars(row), "slice_id": f"{row.slice_id}-{i}"})
        for i in range(-(-slices // len(few)))
        for row in few
    )
    kept = (row for row, _ in zip(rows, range(slices), strict=False))
    write_dataset(kept, url, name="phantom", provenance="drawn, repeated", licence=None)


def summed_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds."""
    stages = {
        when: {stage: round(statistics.median(each[when][stage] for each in rounds), 3) for stage in (*STAGES, "all")}
        for when in ("cold", "warm")
    }
    others = {
        name: round(statistics.median(each[name] for each in rounds), 3) for name in ("bytes_alone", "workers_up")
    }
    return {**stages, **others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--slices", type=int, default=2400)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        measure(given.measure, given.size)
        return
    server = S3Server()
    os.environ.update(server.environment)
    try:
        with tempfile.TemporaryDirectory() as folder:
            urls = {"s3": "s3://braintum/set", "local": f"{folder}/set"}
            for url in urls.values():
                make(given.data, url, given.slices, given.size)
            card = read_card(urls["s3"])
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
            for number in range(given.rounds):
                for name in sorted(urls, reverse=number % 2 == 1):  # in turn, so that both see the same load
                    rounds[name].append(measured(urls[name], given.size))
    finally:
        server.remove()
    seconds = {name: summed_up(found) for name, found in rounds.items()}
    results = {
        "s3_over_local_cold": round(seconds["s3"]["cold"]["all"] / seconds["local"]["cold"]["all"], 2),
        "s3_over_local_warm": round(seconds["s3"]["warm"]["all"] / seconds["local"]["warm"]["all"], 2),
        "median_seconds": seconds,
        "all_cold_seconds": {name: [round(each["cold"]["all"], 2) for each in found] for name, found in rounds.items()},
        "slices": card.num_slices,
        "size": given.size,
        "shards": len(card.shards),
        "megabytes": round(sum(shard.bytes for shard in card.shards) / 1e6, 1),
    }
    of = f"--data {given.data}" if given.data else f"--slices {given.slices}"
    command = f"python benchmarks/s3_first_step.py {of} --size {given.size} --rounds {given.rounds}"
    record("s3_first_step", results, command)


if __name__ == "__main__":
    main()
