"""One joint model, two models side by side, or one after the other: what each scores, weighs and costs to use.

    braintum ingest folder ../shared/data/cheng --out out/cheng
    python benchmarks/joint_or_two.py --data out/cheng --out out/joint_or_two --size 64 --depth 4 --epochs 8

All have the encoder of one U-Net, the same slices, folds, epochs and recipe (`fast`):

- `joint`: masks and classes of one network (`joint_unet`);
- `two`: a `unet` and a `classifier`, both on whole slices;
- `cascade`: the same `unet`, then a `classifier` on the crop around what it found.

The encoder of `classifier` has batch norm, that of the others instance norm: instance norm in front of global average
pooling leaves a classifier at chance (CHANGELOG). Scores are means over folds. What is deployed is measured with the
first fold's networks: an image at the source's own size goes in, a mask of that size and probabilities come out, one
slice at a time on one thread. Time: each slice is given to all in turn. Memory: a fresh process that loads the networks
and predicts, the most that it held minus what it held after its imports and a first convolution (Linux). Results of the
trainings are kept under --out, and are not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from record import record
from torch.nn import functional as F

from braintum import storage
from braintum.config import Experiment
from braintum.data.images import Box, box_around, largest_piece
from braintum.data.table import read_images
from braintum.data.view import view
from braintum.evaluation.cascade import as_one
from braintum.evaluation.predict import decode_mask
from braintum.evaluation.summary import summarise
from braintum.training.cascade import cascade
from braintum.training.checkpoint import load_model
from braintum.training.crossval import crossval
from braintum.training.progress import Progress

PARTS = {  # where under --out the networks of each lie, the one that draws first
    "joint": ("joint",),
    "two": ("cascade/segmenter", "classifier"),
    "cascade": ("cascade/segmenter", "cascade/classifier"),
}
METRICS = ("dice", "accuracy", "macro_f1", "both_right")
SLICES, WARM_UP = 100, 5
Prediction = tuple[NDArray[np.bool_], NDArray[np.float64]]


class Deployed:
    """A contender as it would be used: C,H,W at the source's size in; mask and class probabilities out."""

    def __init__(self, name: str, out: Path, fold: str) -> None:
        self.kept = [load_model(str(out / part / f"fold-{fold}" / "model.safetensors")) for part in PARTS[name]]
        self.crops = name == "cascade"

    @property
    def weights(self) -> int:
        return sum(p.numel() for kept in self.kept for p in kept.model.parameters())

    def __call__(self, image_CHW: NDArray[Any]) -> Prediction:
        first, *second = [self.kept[0], *self.kept[1:]]
        mask, classes = self._logits(first, image_CHW, None)
        mask = F.interpolate(mask[:, :1], image_CHW.shape[1:], mode="bilinear", align_corners=False)
        mask_HW: NDArray[np.bool_] = (mask[0, 0] > 0).numpy()
        for classifier in second:
            margin = classifier.experiment.data.margin
            box = box_around(largest_piece(mask_HW), margin) if self.crops else None
            _, classes = self._logits(classifier, image_CHW, box)
        return mask_HW, classes[0].double().softmax(0).numpy()

    @staticmethod
    def _logits(kept: Any, image_CHW: NDArray[Any], box: Box | None) -> tuple[Any, Any]:
        """The mean over the flips that its Experiment asks for."""
        seen = view(image_CHW, None, kept.experiment.data, box)
        low, span = seen.low_C[:, None, None], np.maximum((seen.high_C - seen.low_C)[:, None, None], 1e-6)
        image = torch.from_numpy(((seen.image_CHW - low) / span).astype(np.float32))[None]
        masks, classes = [], []
        with torch.no_grad():
            for axes in kept.experiment.augment.mirrors:
                output = kept.model(image.flip(axes))
                masks += [] if output.mask_logits_BKHW is None else [output.mask_logits_BKHW.flip(axes)]
                classes += [] if output.class_logits_BN is None else [output.class_logits_BN]
        return tuple(torch.stack(logits).mean(0) if logits else None for logits in (masks, classes))


def trained(a: argparse.Namespace) -> dict[str, pa.Table]:
    """The prediction tables of all contenders over all folds."""
    given: dict[str, Any] = {"data.image_size": a.size, "training.epochs": a.epochs, "training.seed": a.seed}
    given["training.precision"] = "float32"  # what is deployed here is, and must predict what was scored
    encoder = {"model.width": a.width, "model.depth": a.depth, "model.norm": "instance"}

    def network(name: str, **more: Any) -> Experiment:
        return Experiment.load("fast", {"model.name": name, **given, **encoder, **more})

    joint = network("joint_unet", **{"model.dropout": 0.0})
    whole = network("classifier", **{"model.norm": "batch", "model.dropout": 0.0})
    crops = whole.with_overrides({"data.region": "crop"})

    def run(place: str, train: Callable[..., Any], *experiments: Experiment) -> pa.Table:
        out = str(a.out / place)
        with Progress(place) as progress:
            train(*experiments, a.data, out, folds=a.folds, resume=storage.exists(out), progress=progress)
        return storage.read_table(f"{out}/predictions.parquet")

    tables = {
        "joint": run("joint", crossval, joint),
        "cascade": run("cascade", cascade, network("unet"), crops),
    }
    classes = run("classifier", crossval, whole)
    masks = storage.read_table(str(a.out / "cascade" / "segmenter" / "predictions.parquet"))
    tables["two"] = as_one(masks, classes, experiment="two", architecture="two")
    return {name: tables[name] for name in PARTS}


def slices_of(a: argparse.Namespace, predictions: pa.Table) -> tuple[str, list[str]]:
    """The first fold, and some of the slices that it holds out."""
    fold = predictions["fold"][0].as_py()
    ids = [row["slice_id"] for row in predictions.select(["slice_id", "fold"]).to_pylist() if row["fold"] == fold]
    return fold, ids[:: max(1, len(ids) // SLICES)][:SLICES]


def latency(a: argparse.Namespace, tables: dict[str, pa.Table]) -> dict[str, dict[str, float]]:
    """Milliseconds a slice, medians; asserts that what is timed predicts what was scored."""
    fold, ids = slices_of(a, tables["joint"])
    images = read_images(a.data, ids)
    deployed = {name: Deployed(name, a.out, fold) for name in PARTS}
    scored = {name: {row["slice_id"]: row for row in table.to_pylist()} for name, table in tables.items()}
    wall: dict[str, list[float]] = {name: [] for name in PARTS}
    cpu: dict[str, list[float]] = {name: [] for name in PARTS}
    same: dict[str, list[bool]] = {name: [] for name in PARTS}
    for image_CHW in [images[name] for name in ids[:WARM_UP]]:
        for predict in deployed.values():
            predict(image_CHW)
    for i, slice_id in enumerate(ids):
        for name in [*PARTS][i % 3 :] + [*PARTS][: i % 3]:
            clock, busy = time.perf_counter(), time.process_time()
            mask_HW, probability_N = deployed[name](images[slice_id])
            wall[name].append(time.perf_counter() - clock)
            cpu[name].append(time.process_time() - busy)
            row = scored[name][slice_id]
            said = [value for key, value in row.items() if key.startswith("probability_")]
            same_mask = (decode_mask(row["mask_png"]) != mask_HW).mean() < 1e-3
            same[name].append(bool(same_mask and np.allclose(said, probability_N, atol=1e-3)))
    # a pixel at the threshold may fall to either side, and move a crop's edge
    assert all(np.mean(found) >= 0.95 for found in same.values()), "what is timed is not what was scored"
    return {
        name: {
            "ms_a_slice": round(1e3 * float(np.median(wall[name])), 2),
            "cpu_ms_a_slice": round(1e3 * float(np.median(cpu[name])), 2),
            "weights": deployed[name].weights,
        }
        for name in PARTS
    }


def memory(a: argparse.Namespace, name: str) -> float:
    """Megabytes that loading and predicting add to this process at their most."""
    torch.set_num_threads(1)
    torch.nn.Conv2d(1, 8, 3)(torch.zeros(1, 1, 64, 64))
    fold, ids = slices_of(a, storage.read_table(str(a.out / "joint" / "predictions.parquet")))
    images = read_images(a.data, ids[:WARM_UP])
    Path("/proc/self/clear_refs").write_text("5")  # the most held so far is forgotten
    before = _status("VmRSS")
    predict = Deployed(name, a.out, fold)
    for image_CHW in images.values():
        predict(image_CHW)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """A field of this process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def measured_memory(name: str, runs: int = 3) -> float:
    command = [sys.executable, *sys.argv, "--memory-of", name]
    found = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs)]
    return round(float(np.median(found)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--folds", type=int, help="the source's own, else 5")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-of", choices=PARTS, help="measured in this process and printed, unrecorded")
    a = parser.parse_args()
    if a.memory_of:
        print(memory(a, a.memory_of))
        return
    tables = trained(a)
    torch.set_num_threads(1)
    used = latency(a, tables)
    results: dict[str, Any] = {}
    for name, table in tables.items():
        over_folds = summarise(table)["over_folds"]
        results[name] = {
            **{metric: {key: over_folds[metric][key] for key in ("mean", "sd")} for metric in METRICS},
            **used[name],
            "memory_mb": measured_memory(name),
        }
    found = storage.read_json(str(a.out / "cascade" / "summary.json"))
    accuracy = found["parts"]["classifier"]["over_folds"]["accuracy"]
    results["classifier_of_crops_on_true_crops"] = {"accuracy": {key: accuracy[key] for key in ("mean", "sd")}}
    given = {name: value for name, value in vars(a).items() if value is not None and name not in ("data", "out")}
    options = " ".join(f"--{name} {value}" for name, value in given.items())
    record("joint_or_two", results, f"python benchmarks/joint_or_two.py --data DATA --out OUT {options}")
    print(as_table(results))


def as_table(results: dict[str, Any]) -> str:
    """The contenders as rows, in Markdown."""
    columns = [*METRICS, "weights", "ms_a_slice", "cpu_ms_a_slice", "memory_mb"]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in PARTS:
        cells = [
            f"{v['mean']:.3f} ± {v['sd']:.3f}" if isinstance(v := results[name][column], dict) else f"{v:,}"
            for column in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
