"""How fast `ingest folder` is, against a plain loop of one process that does the same work.

    python benchmarks/ingest.py --data ../shared/data/cheng [--rounds 5] [--slices 24000]
    python benchmarks/ingest.py --data ../shared/data/cheng --first 200     # a try of the plain set; keeps no result

The plain loop is what one would write with Pillow (https://pillow.readthedocs.io/en/stable/handbook/tutorial.html) and
pyarrow (https://arrow.apache.org/docs/python/parquet.html): for each line of the manifest it decodes image and mask,
checks that they are of one size and of the size of the first, takes the image's SHA-256 and braintum's own perceptual
hash, and writes zstd Parquet shards with as many slices as ours. It fsyncs nothing, checks nothing else, and its set is
used for nothing.

Two sets: the folder as it is, read in one process by both; and repeated to so many slices, with an id of its own and a
few pixels changed in each, written once into a temporary folder, while a Ray cluster of two cores is up. Both take
turns, in this process; the ratio is of medians. The first round of the plain set warms up and is not counted; on the
cluster all are, so ours holds the start of Ray's workers. Files come from the page cache.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from record import record

from braintum.connect import start_local
from braintum.data.images import perceptual_hash
from braintum.data.ingest.folder import ingest_folder
from braintum.data.shards import SHARD_BYTES

COLUMNS = ("slice_id", "image", "mask", "label", "fold")


def plain_loop(root: Path, out: Path) -> int:
    """Writes shards of the folder's slices; returns how many slices."""
    out.mkdir()
    rows: list[dict[str, Any]] = []
    count, size, shards = 0, 0, 0
    shape = None

    def write() -> None:
        pixels = pa.binary(shape[0] * shape[1])
        names = pa.string()
        schema = pa.schema([
            ("slice_id", names), ("label", names), ("fold", names), ("image", pixels), ("mask", pixels),
            ("sha256", names), ("hash", pa.uint64()),
        ])  # fmt: skip
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, out / f"{shards:05d}.parquet", compression="zstd", use_dictionary=["label", "fold"])

    with (root / "manifest.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            image = np.asarray(Image.open(root / line["image"]).convert("L"))
            mask = (np.asarray(Image.open(root / line["mask"]).convert("L")) >= 128).astype(np.uint8)
            shape = shape or image.shape
            if image.shape != mask.shape or image.shape != shape:
                raise ValueError(f"{line['image']}: {image.shape}, {mask.shape}")
            content = image.tobytes()
            rows.append(
                {
                    "slice_id": line["slice_id"], "label": line["label"], "fold": line["fold"], "image": content,
                    "mask": mask.tobytes(), "sha256": hashlib.sha256(content).hexdigest(),
                    "hash": perceptual_hash(image[None]),
                }
            )  # fmt: skip
            count += 1
            size += 2 * image.size
            if size >= SHARD_BYTES:
                write()
                rows, size, shards = [], 0, shards + 1
    if rows:
        write()
    return count


def ours(root: Path, out: Path) -> int:
    return ingest_folder(root, str(out)).num_slices


def seconds(ingest: Callable[[Path, Path], int], root: Path, num_slices: int) -> float:
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        count = ingest(root, Path(place) / "out")
        took = time.perf_counter() - start
    assert count == num_slices
    return round(took, 3)


def compare(root: Path, rounds: int, warm_up: bool) -> dict[str, Any]:
    num_slices = len(read_manifest(root))
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(-1 if warm_up else 0, rounds):
        pairs = [("ours", ours), ("plain", plain_loop)]
        for name, ingest in pairs if turn % 2 else reversed(pairs):
            took = seconds(ingest, root, num_slices)
            if turn >= 0:
                taken[name].append(took)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds_ours_over_plain": round(middle["ours"] / middle["plain"], 3),
        "speed_ours_over_plain": round(middle["plain"] / middle["ours"], 3),
        "slices": num_slices,
        "slices_per_second": {name: round(num_slices / middle[name]) for name in middle},
        "seconds": taken,
    }


def read_manifest(root: Path) -> list[dict[str, str]]:
    with (root / "manifest.csv").open(newline="") as file:
        return [{column: line[column] for column in COLUMNS} for line in csv.DictReader(file)]


def write_manifest(root: Path, lines: list[dict[str, str]]) -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def first(data: Path, count: int, root: Path) -> None:
    """The first slices of a set."""
    lines = read_manifest(data)[:count]
    for line in lines:
        for column in ("image", "mask"):
            (root / line[column]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data / line[column], root / line[column])
    write_manifest(root, lines)


def repeat(data: Path, count: int, root: Path) -> None:
    """As many slices, made of those of a set: the number of a copy stands in the pixels of the first row."""
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    lines = []
    for number, (turn, line) in enumerate(repeated(read_manifest(data), count)):
        pixels = np.array(Image.open(data / line["image"]).convert("L"))
        pixels[0, :16] = [255 * (turn >> bit & 1) for bit in range(16)]
        copy = {**line, "slice_id": f"{line['slice_id']}-{turn}", "image": f"images/{number:06d}.png"}
        copy["mask"] = f"masks/{number:06d}.png"
        Image.fromarray(pixels).save(root / copy["image"])
        shutil.copyfile(data / line["mask"], root / copy["mask"])
        lines.append(copy)
    write_manifest(root, lines)


def repeated(lines: list[dict[str, str]], count: int) -> Iterator[tuple[int, dict[str, str]]]:
    for number in range(count):
        yield number // len(lines), lines[number % len(lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with manifest.csv: slice_id,image,mask,label,fold"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=24_000)
    parser.add_argument("--first", type=int, help="only this many slices of the plain set; nothing is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.first is not None:
            first(given.data, given.first, root)
            print(compare(root, given.rounds, warm_up=True))
            return
        repeat(given.data, given.slices, root)
        plain = compare(given.data, given.rounds, warm_up=True)
        start_local(num_cpus=2)
        os.environ["RAY_ADDRESS"] = "auto"
        cluster = compare(root, given.rounds, warm_up=False)
    results = {
        "seconds_ours_over_plain_on_the_set": plain["seconds_ours_over_plain"],
        "speed_ours_over_plain_on_a_cluster": cluster["speed_ours_over_plain"],
        "set": plain,
        "repeated_on_a_cluster_of_2_cores": cluster,
        "shard_bytes": SHARD_BYTES,
    }
    command = f"python benchmarks/ingest.py --data DATA --rounds {given.rounds} --slices {given.slices}"
    record("ingest", results, command)


if __name__ == "__main__":
    main()
