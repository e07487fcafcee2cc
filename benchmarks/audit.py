"""How long `braintum audit` takes for 100,000 slices, and how much of that is reading them.

    python benchmarks/audit.py --data URL [--slices 100000]

The set is made of the given one's slices, changed anew each time (turned by up to 30°, moved, zoomed, mirrored,
brighter or darker), so that there are many look-alikes to tell apart; some are stored once more, as JPEG brought them
back, in another fold. The command runs as a user runs it, in a process of its own. Beside it, in another: decoding the
set once to the size that the audit looks at. Memory: the most that the process of the command held (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import count

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from record import record

from braintum.data.audit import THUMB
from braintum.data.batches import Batches
from braintum.data.schema import Row
from braintum.data.shards import write_dataset
from braintum.data.table import load_table
from braintum.parts import Augment, Data

COPIES = 50
CHANGES = Augment(rotate=30, shift=0.1, scale=0.15, contrast=0.3, brightness=0.2)
READ = f"""
import sys
from braintum.data.table import load_table
from braintum.parts import Data
load_table(sys.argv[1], Data(image_size={THUMB}))
"""


def changed(url: str, num_slices: int) -> Iterator[Row]:
    """So many slices, each the only one of its group, in folds 1 to 5 by turns; copies come last."""
    table = load_table(url, Data(image_size=256))
    batches = Batches(table, np.arange(len(table)), batch_size=16, seed=0, augment=CHANGES)
    copied: list[Row] = []
    number = 0
    for epoch in count():
        for batch in batches.epoch(epoch):
            pixels = zip(batch.image_BCHW.numpy(), batch.mask_BKHW.numpy(), batch.label_B.tolist(), strict=True)
            for image_CHW, mask_KHW, label in pixels:
                image = (255 * image_CHW).round().astype(np.uint8)
                mask = mask_KHW[0].astype(np.uint8)
                row = Row(
                    f"s{number}", f"g{number}", image, mask, table.classes[label], source_fold=f"{number % 5 + 1}"
                )
                if number < COPIES:
                    again = as_jpeg(image)
                    copied.append(Row(f"copy{number}", f"h{number}", again, mask, row.label, source_fold="6"))
                yield row
                number += 1
                if number == num_slices - COPIES:
                    yield from copied
                    return


def as_jpeg(image_CHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = BytesIO()
    Image.fromarray(image_CHW[0]).save(file, "JPEG", quality=80)
    return np.array(Image.open(file))[None]


def measured(command: Sequence[str]) -> tuple[float, int, str]:
    """Seconds, the most bytes held, and what was printed."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.1)
    printed = process.communicate()[0]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed)
    return time.perf_counter() - start, most, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--slices", type=int, default=100_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/set"
        write_dataset(
            changed(args.data, args.slices), url, name="changed", provenance="benchmarks/audit.py", licence=None
        )
        audit = ["-m", "braintum.cli", "audit", url, "--out", f"{folder}/audit", "--json"]
        reading, _, _ = measured(["-c", READ, url])
        seconds, most, printed = measured(audit)
    found = json.loads(printed)
    del found["out"]
    results = {
        "seconds_over_reading_once": round(seconds / reading, 2),
        "minutes": round(seconds / 60, 2),
        "minutes_of_reading_once": round(reading / 60, 2),
        "slices": args.slices,
        "copies_hidden": COPIES,
        "found": found,
        "peak_memory_mb": round(most / 1e6),
    }
    record("audit", results, f"python benchmarks/audit.py --data DATA --slices {args.slices}")


if __name__ == "__main__":
    main()
