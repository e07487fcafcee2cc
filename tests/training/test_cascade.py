"""A cascade: two ordinary cross-validations, and what they say together."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tiny import TINY, quiet
from torch import Tensor

from braintum import storage
from braintum.cli import main
from braintum.config import Experiment
from braintum.data.images import resize_image
from braintum.data.table import read_images
from braintum.evaluation.predict import decode_mask
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.training.cascade import cascade
from braintum.training.checkpoint import load_model
from braintum.training.crossval import crossval

LABELS = ["glioma", "meningioma", "no_tumor", "pituitary"]
PARTS = ("segmenter", "classifier")
FOLDS, MARGIN = 2, 0.5
LEARNING: dict[str, Any] = {
    **TINY, "model.width": 4, "optim.lr": 0.01, "training.batch_size": 8, "training.precision": "float32",
    "schedule.name": "constant", "training.weights": "last", "training.early_stopping": None,
}  # fmt: skip
SEGMENTER = Experiment.load(
    None,
    {**LEARNING, "model.name": "unet", "loss.segmentation": "dice", "training.epochs": 25,
     "augment.test_time": True, "augment.flip_vertical": 0.0},
)  # fmt: skip
SEEN_WHOLE = Experiment.load(
    None, {**LEARNING, "model.name": "classifier", "training.epochs": 3, "data.image_size": 16, "model.norm": "batch"}
)
CLASSIFIER = SEEN_WHOLE.with_overrides({"data.region": "crop", "data.margin": MARGIN})


@pytest.fixture(scope="module")
def out(ray_cluster: None, tiny_phantom: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves, given the two as a study's `best/` has them."""
    folder = tmp_path_factory.mktemp("cascade")
    for name, experiment in (("segmenter", SEGMENTER), ("classifier", SEEN_WHOLE)):
        (folder / f"{name}.yaml").write_text(experiment.to_yaml())
    parts = [f"--{name}={folder / name}.yaml" for name in ("segmenter", "classifier")]
    more = ["--folds", str(FOLDS), "--set", f"classifier.data.margin={MARGIN}"]
    assert main(["cascade", "--data", tiny_phantom, "--out", str(folder / "out"), *parts, *more]) == 0
    return folder / "out"


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = storage.read_table(str(out / "predictions.parquet")).to_pylist()
    assert len({row["slice_id"] for row in rows}) == len(rows) == 48
    return {row["slice_id"]: row for row in rows}


def as_trained_on(image_CHW: NDArray[np.uint8]) -> Tensor:
    image = torch.from_numpy(image_CHW.astype(np.float32))[None]
    return (image - image.min()) / (image.max() - image.min())


def square_around(mask_HW: NDArray[np.bool_]) -> tuple[slice, slice]:
    if not mask_HW.any():
        return slice(0, 32), slice(0, 32)
    pieces, count = ndimage.label(mask_HW, np.ones((3, 3)))
    y, x = max((np.nonzero(pieces == piece) for piece in range(1, count + 1)), key=lambda found: len(found[0]))
    side = min(math.ceil(max(np.ptp(y) + 1, np.ptp(x) + 1) * (1 + 2 * MARGIN)), 32)
    starts = [min(max((v.min() + v.max() + 1 - side) // 2, 0), 32 - side) for v in (y, x)]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def test_it_is_its_two_parts_run_by_hand(tiny_phantom: str, out: Path) -> None:
    found = rows_of(out)
    images = read_images(tiny_phantom, list(found))
    boxes = set()
    for fold in ("1", "2"):
        first, second = (load_model(str(out / part / f"fold-{fold}" / "model.safetensors")).model for part in PARTS)
        for row in (row for row in found.values() if row["fold"] == fold):
            image = as_trained_on(images[row["slice_id"]])
            with torch.no_grad():
                logits = (first(image).mask_logits_BKHW + first(image.flip(3)).mask_logits_BKHW.flip(3)) / 2
                mask_HW = (logits[0, 0] > 0).numpy()
                box = square_around(mask_HW)
                crop = as_trained_on(resize_image(images[row["slice_id"]][:, *box], 16, 16))
                probability = second(crop).class_logits_BN[0].double().softmax(0)
            boxes.add(tuple((span.start, span.stop) for span in box))
            np.testing.assert_array_equal(decode_mask(row["mask_png"]), mask_HW)
            said = [row[name] for name in row if name.startswith("probability_")]
            np.testing.assert_allclose(said, probability, atol=1e-5)
    assert len(boxes) > 10, "it found something, here and there"


def test_its_parts_are_ordinary_cross_validations(tiny_phantom: str, tmp_path: Path, out: Path) -> None:
    alone = crossval(CLASSIFIER, tiny_phantom, str(tmp_path / "cv"), folds=FOLDS, progress=quiet())
    part = storage.read_json(str(out / "classifier" / "summary.json"))
    assert part["metrics"] == alone["metrics"]
    assert part["experiment"] == CLASSIFIER.digest
    for fold in ("1", "2"):
        files = [folder / f"fold-{fold}" / "model.safetensors" for folder in (tmp_path / "cv", out / "classifier")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_it_leaves_what_a_cross_validation_leaves(out: Path) -> None:
    summary = storage.read_json(str(out / "summary.json"))
    parts = {part: storage.read_json(str(out / part / "summary.json")) for part in PARTS}
    assert summary["architecture"] == "cascade"
    assert set(summary["folds"]) == {"1", "2"}
    assert {"dice", "accuracy", "both_right"} <= summary["metrics"].keys()
    assert summary["metrics"]["dice"] == parts["segmenter"]["metrics"]["dice"], "the classifier has no say in it"
    for part, alone in parts.items():
        keys = ("experiment", "architecture", "metrics", "over_folds", "slices_per_second")
        assert summary["parts"][part] == {key: alone[key] for key in keys}
    assert "slices_per_second" not in summary, "a mean of two networks' speeds is none's"
    assert summary["data"] == parts["segmenter"]["data"]
    assert summary["seconds"] == pytest.approx(sum(alone["seconds"] for alone in parts.values()))
    about = storage.read_json(str(out / "experiment.json"))["experiment"]
    assert Experiment.from_dict(about["segmenter"]) == SEGMENTER
    assert Experiment.from_dict(about["classifier"]) == CLASSIFIER
    rows = rows_of(out)
    assert {(row["experiment"], row["architecture"]) for row in rows.values()} == {(summary["experiment"], "cascade")}
    mask_columns = ("fold", "label", "has_tumour", "dice", "iou", "hd", "hd95", "hd_unit", "false_mask", "mask_png")
    for row in rows_of(out / "segmenter").values():
        assert all(rows[row["slice_id"]][name] == row[name] for name in mask_columns)


def test_a_resume_reads_what_is_finished(tiny_phantom: str, tmp_path: Path, out: Path) -> None:
    again = Path(shutil.copytree(out, tmp_path / "out"))
    with pytest.raises(ConfigError, match="exists; choose another --out, or go on with --resume"):
        cascade(SEGMENTER, CLASSIFIER, tiny_phantom, str(again), folds=FOLDS, progress=quiet())
    other = CLASSIFIER.with_overrides({"optim.lr": 0.5})
    with pytest.raises(ConfigError, match=r"experiment\.classifier\.optim\.lr was 0\.01 there and is 0\.5 now"):
        cascade(SEGMENTER, other, tiny_phantom, str(again), folds=FOLDS, resume=True, progress=quiet())
    before = rows_of(again)
    for file in ("summary.json", "predictions.parquet", "classifier/summary.json", "classifier/fold-2/summary.json"):
        (again / file).unlink()
    states = {file: file.stat().st_mtime_ns for file in again.rglob("state.pt")}
    assert len(states) == 4
    summary = cascade(SEGMENTER, CLASSIFIER, tiny_phantom, str(again), folds=FOLDS, resume=True, progress=quiet())
    assert summary == storage.read_json(str(out / "summary.json"))
    assert rows_of(again) == before
    assert states == {file: file.stat().st_mtime_ns for file in again.rglob("state.pt")}, "nothing is trained again"


@pytest.mark.parametrize("emptied", [False, True])
def test_a_cascade_that_was_stopped_between_its_parts(
    tiny_phantom: str, tmp_path: Path, out: Path, emptied: bool
) -> None:
    again = Path(shutil.copytree(out, tmp_path / "out"))
    for file in ("summary.json", "predictions.parquet", "history.parquet"):
        (again / file).unlink()
    shutil.rmtree(again / "classifier")
    if emptied:
        (again / "classifier").mkdir()
    states = {file: file.stat().st_mtime_ns for file in again.rglob("state.pt")}
    summary = cascade(SEGMENTER, CLASSIFIER, tiny_phantom, str(again), folds=FOLDS, resume=True, progress=quiet())
    timeless(summary, before := storage.read_json(str(out / "summary.json")))
    assert summary == before
    assert rows_of(again) == rows_of(out)
    assert len(states) == 2
    assert states == {file: file.stat().st_mtime_ns for file in states}, "the segmenter is not trained again"


def timeless(*summaries: dict[str, Any]) -> None:
    """Takes out what another training of the same does not repeat."""
    for summary in summaries:
        del summary["seconds"], summary["parts"]["classifier"]["slices_per_second"]


def test_what_only_the_second_part_cannot_do_is_refused_before_the_first_is_trained(
    tiny_phantom: str, tmp_path: Path, out: Path
) -> None:
    merged = {"data.classes": {"any": ["glioma", "meningioma", "pituitary"], "none": ["no_tumor"]}}
    for changes, says in (
        (merged, r"classifier: data\.classes: not the segmenter's, so that folds would differ"),
        ({"data.classes": LABELS[::-1]}, r"classifier: data\.classes: not the segmenter's"),
        ({"model.init_from": str(tmp_path / "none.safetensors")}, r"none\.safetensors"),
        ({"data.classes": LABELS, "training.batch_size": 1}, "leaves some of 2 workers"),  # the same classes, spelt out
        ({"training.batch_size": 1}, "leaves some of 2 workers without a slice"),
    ):
        refused = CLASSIFIER.with_overrides(changes)
        with pytest.raises(ValueError, match=says):
            cascade(SEGMENTER, refused, tiny_phantom, str(tmp_path / "out"), folds=FOLDS, workers=2, progress=quiet())
    assert not (tmp_path / "out").exists()


def test_a_report_of_it(out: Path, tmp_path: Path) -> None:
    page = Path(report(str(out), str(tmp_path / "report")))
    settings = {part: page.parent / "settings" / f"cascade_{part}.yaml" for part in PARTS}
    assert Experiment.load(settings["segmenter"]) == SEGMENTER
    assert Experiment.load(settings["classifier"]) == CLASSIFIER
    files = " ".join(f"--{part} settings/cascade_{part}.yaml" for part in PARTS)
    assert f"braintum cascade {files} --folds 2 --data" in page.read_text()
    curves = {file.name for file in (page.parent / "figures").glob("training_*")}
    assert curves == {"training_cascade_unet.png", "training_cascade_classifier.png"}
    assert "cascade" in (page.parent / "tables" / "leaderboard.md").read_text()
