"""A cascade of networks that are known: one draws where a slice is bright, one says how bright a crop is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braintum.config import Experiment
from braintum.data.images import resize_image
from braintum.data.schema import DataError, Row
from braintum.data.shards import write_dataset
from braintum.data.table import load_table
from braintum.evaluation.cascade import as_one, classified_crops
from braintum.evaluation.predict import prediction_schema, prediction_table
from braintum.models.output import Output

SIDE, SMALL = 32, 16
SEGMENTER = Experiment.load(None, {"model.depth": 2, "data.image_size": SIDE})
CROPS = {"model.name": "classifier", "model.depth": 2, "data.image_size": SMALL, "data.region": "crop"}
CLASSIFIER = Experiment.load(None, {**CROPS, "data.margin": 0.5})


class Bright(nn.Module):
    """Draws where it is bright, and nothing where that is most of the slice."""

    def forward(self, image_BCHW: Tensor) -> Output:
        bright_BCHW = (image_BCHW > 0.5).float()
        few_B111 = (bright_BCHW.mean(dim=(1, 2, 3), keepdim=True) < 0.5).float()
        return Output(bright_BCHW * few_B111 - 0.5, None)


class Mean(nn.Module):
    """Says the first class as far as a slice is bright on average, more so if its upper half is."""

    def forward(self, image_BCHW: Tensor) -> Output:
        half = image_BCHW.shape[2] // 2
        share_B = image_BCHW.mean(dim=(1, 2, 3)) + image_BCHW[:, :, :half].mean(dim=(1, 2, 3))
        return Output(None, torch.stack([share_B, torch.zeros_like(share_B)], dim=1))


def image(name: str, seed: int) -> NDArray[np.uint8]:
    """Noise, brighter in a part or two."""
    image_CHW = np.random.default_rng(seed).integers(0, 100, (1, SIDE, SIDE), np.uint8)
    for bright in (PLACES[name], *([SPECK] if name == "twice" else [])):
        image_CHW[:, *bright] += 150
    return image_CHW


PLACES = {
    "middle": (slice(10, 16), slice(8, 18)),
    "corner": (slice(26, 32), slice(28, 32)),
    "nothing found": (slice(4, 32), slice(0, 32)),
    "twice": (slice(10, 16), slice(8, 18)),
}
SPECK = slice(30, 31), slice(1, 3)
"""Bright too in the slice that has it twice: the smaller of two, far from the other."""
FOUND = {  # the longer side and half of it on either side, moved into the slice
    "middle": (slice(3, 23), slice(3, 23)),
    "corner": (slice(20, 32), slice(20, 32)),
    "nothing found": (slice(0, 32), slice(0, 32)),
    "twice": (slice(3, 23), slice(3, 23)),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Slices whose true masks say nothing about what is found: tumour at the top left."""
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    mask_HW[:3, :5] = 1
    rows = [Row(name, name, image(name, seed), mask_HW, "ab"[seed % 2]) for seed, name in enumerate(PLACES)]
    url = str(tmp_path_factory.mktemp("cascade") / "set")
    write_dataset(rows, url, name="set", provenance="drawn", licence=None, shard_bytes=1)
    return url


@pytest.fixture(scope="module")
def masks(url: str) -> pa.Table:
    table = load_table(url, SEGMENTER.data)
    return prediction_table(Bright(), SEGMENTER, table, np.array([2, 3, 0, 1]), fold="1", device="cpu")


def test_the_classifier_sees_the_crop_that_was_found(url: str, masks: pa.Table) -> None:
    classes = classified_crops(masks, Mean(), CLASSIFIER, url, fold="1", device="cpu")
    assert classes["slice_id"].to_pylist() == list(PLACES)
    for seed, row in enumerate(classes.to_pylist()):
        box = FOUND[row["slice_id"]]
        crop_HW = resize_image(image(row["slice_id"], seed)[:, *box], SMALL, SMALL)[0].astype(float)
        crop_HW = (crop_HW - crop_HW.min()) / (crop_HW.max() - crop_HW.min())
        logit = crop_HW.mean() + crop_HW[: SMALL // 2].mean()
        assert row["probability_a"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
        assert (row["fold"], row["label"]) == ("1", "ab"[seed % 2])


def test_a_classifier_that_was_trained_with_flips_is_asked_with_flips(url: str, masks: pa.Table) -> None:
    flips = CLASSIFIER.with_overrides({"augment.test_time": True, "augment.flip_horizontal": 0.0})
    once, twice = (
        classified_crops(masks, Mean(), experiment, url, fold="1", device="cpu")["probability_a"].to_numpy()
        for experiment in (CLASSIFIER, flips)
    )
    assert np.abs(once - twice).min() > 1e-3


def test_masks_of_one_and_classes_of_the_other_are_one_models(url: str, masks: pa.Table) -> None:
    classes = classified_crops(masks, Mean(), CLASSIFIER, url, fold="1", device="cpu")
    found = as_one(masks, classes, experiment="0123", architecture="cascade")
    assert found.schema == prediction_schema(("a", "b"))
    assert found["slice_id"].to_pylist() == sorted(PLACES)
    first = {row["slice_id"]: row for row in masks.to_pylist()}
    second = {row["slice_id"]: row for row in classes.to_pylist()}
    for row in found.to_pylist():
        ours = {"experiment": "0123", "architecture": "cascade", "both_right": False}
        of_classifier = {
            name: second[row["slice_id"]][name] for name in ("predicted", "probability_a", "probability_b")
        }
        assert row == {**first[row["slice_id"]], **ours, **of_classifier}


@pytest.mark.parametrize(
    ("label", "predicted", "dice", "both"),
    [
        ("a", "a", 0.5, True),
        ("a", "a", 0.49, False),
        ("a", "b", 0.9, False),
        (None, "a", 0.9, None),
        ("a", "a", None, None),
    ],
)
def test_both_right_needs_the_masks_dice_and_the_classifiers_class(
    label: str | None, predicted: str, dice: float | None, both: bool | None
) -> None:
    schema = prediction_schema(("a", "b"))
    empty = {**dict.fromkeys(schema.names), "slice_id": "s"}
    masks = pa.Table.from_pylist([{**empty, "dice": dice, "label": label}], schema)
    classes = pa.Table.from_pylist([{**empty, "predicted": predicted, "label": label}], schema)
    assert as_one(masks, classes, experiment="", architecture="")["both_right"].to_pylist() == [both]


def test_parts_that_saw_different_slices_are_not_one(masks: pa.Table) -> None:
    with pytest.raises(DataError, match="cascade: its parts predict different slices, 4 and 3"):
        as_one(masks, masks.slice(1), experiment="", architecture="cascade")


def test_the_crops_of_a_dataset_that_is_gone(tmp_path: Path, masks: pa.Table) -> None:
    with pytest.raises(DataError, match=r"no card\.json"):
        classified_crops(masks, Mean(), CLASSIFIER, str(tmp_path), fold="1", device="cpu")
