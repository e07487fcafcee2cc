"""Predictions of networks that are known: one draws where the image is bright, one says the class of a slice's mean."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from braintum.config import Experiment
from braintum.data.images import pack_mask
from braintum.data.table import SliceTable
from braintum.evaluation.predict import prediction_schema, prediction_table, selection_metrics, slice_scores
from braintum.models.output import Output

SIDE, NATIVE = 16, 32
EXPERIMENT = Experiment.load(None, {"model.name": "joint_unet", "data.image_size": SIDE, "model.depth": 3})


class Bright(nn.Module):
    """Draws where the image is above one half; says class 1 where less than an eighth of it is."""

    def __init__(self, classify: bool = True, segment: bool = True) -> None:
        super().__init__()
        self.classify, self.segment = classify, segment
        self.dropout = nn.Dropout(0.9)

    def forward(self, image_BCHW: Tensor) -> Output:
        logits_BKHW = self.dropout(20 * (image_BCHW - 0.5))
        share_B = (image_BCHW > 0.5).float().mean(dim=(1, 2, 3))
        class_logits_BN = torch.stack([share_B - 0.125, 0.125 - share_B], dim=1) * 8
        return Output(logits_BKHW if self.segment else None, class_logits_BN if self.classify else None)


def slices(spacing: float = float("nan")) -> SliceTable:
    """Half bright; nothing bright but one corner pixel; half bright without a mask; a healthy slice drawn upon."""
    image_RCHW = np.zeros((4, 1, SIDE, SIDE), dtype=np.uint8)
    image_RCHW[[0, 2, 3], :, :, : SIDE // 2] = 200
    image_RCHW[1, :, 0, 0] = 90
    image_RCHW[1, :, 1, 1] = 200
    mask_RHW = np.zeros((4, SIDE, SIDE), dtype=np.uint8)
    mask_RHW[0, :, : SIDE // 2] = 1
    mask_RHW[1, 8:12, 8:12] = 1
    has_mask_R = np.array([True, True, False, True])
    native = [pack_mask(mask_HW.repeat(2, axis=0).repeat(2, axis=1) > 0) for mask_HW in mask_RHW]
    native[2] = b""
    return SliceTable(
        image_RCHW=image_RCHW, mask_RHW=mask_RHW, part_ends=np.array([4]), has_mask_R=has_mask_R,
        has_tumour_R=mask_RHW.any(axis=(1, 2)), shown_R=np.ones(4, bool),
        label_R=np.array([0, 0, -1, 1]), low_RC=np.zeros((4, 1), np.float32), high_RC=np.full((4, 1), 200, np.float32),
        spacing_R2=np.full((4, 2), spacing, np.float32), slice_id_R=list("abcd"), case_id_R=[None] * 4,
        native_tumour=np.frombuffer(b"".join(native), np.uint8), native_bytes_R=np.array([len(x) for x in native]),
        group_R=list("ABCD"), source_fold_R=[None] * 4,
        picture_R=list("abcd"), perceptual_hash_R=np.zeros(4, np.uint64), classes=("tumour", "none"), masks=("tumour",),
        height=NATIVE, width=NATIVE, digest="",
    )  # fmt: skip


def test_slice_scores_follow_the_rows_asked_for() -> None:
    table = slices()
    scores = slice_scores(Bright(), table, np.array([3, 0, 2, 1]), device="cpu", batch_size=3)
    assert scores["dice"][[0, 1, 3]].tolist() == [0, 1, 0]
    assert np.isnan(scores["dice"][2])
    assert scores["has_tumour"].tolist() == [False, True, False, True]
    assert scores["label"].tolist() == [1, 0, -1, 0]
    assert scores["predicted"].tolist() == [0, 0, 0, 1]


def test_selection_metrics() -> None:
    table = slices()
    metrics = selection_metrics(slice_scores(Bright(), table, np.arange(4), device="cpu"), table.classes)
    assert metrics["dice"] == 0.5
    assert metrics["dice_all"] == pytest.approx(1 / 3)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert 0 < metrics["pixel_accuracy"] < 1


def test_selection_metrics_are_those_of_the_task() -> None:
    table = slices()
    for network, names in (
        (Bright(classify=False), {"dice", "dice_all", "iou", "pixel_accuracy"}),
        (Bright(segment=False), {"accuracy", "macro_f1"}),
    ):
        assert set(selection_metrics(slice_scores(network, table, np.arange(4), device="cpu"), table.classes)) == names


def test_scores_of_shares_join_to_scores_of_all() -> None:
    table = slices()
    shares = [slice_scores(Bright(), table, rows, device="cpu") for rows in (np.array([0, 1]), np.array([2, 3]))]
    whole = slice_scores(Bright(), table, np.arange(4), device="cpu")
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), values)


class Upright(nn.Module):
    """Draws right of the middle whatever the slice; says class 0 as far as the top left corner is bright."""

    def forward(self, image_BCHW: Tensor) -> Output:
        logits_BKHW = torch.full_like(image_BCHW, -1.0)
        logits_BKHW[..., SIDE // 2 :] = 3.0
        corner_B = image_BCHW[:, 0, 0, 0]
        return Output(logits_BKHW, torch.stack([corner_B, torch.zeros_like(corner_B)], dim=1))


@pytest.mark.parametrize(
    ("settings", "share", "corner"),
    [
        ({}, 0.5, 1.0),
        ({"augment.test_time": True, "augment.flip_vertical": 0.0}, 1.0, 0.5),
        ({"augment.test_time": True, "augment.flip_horizontal": 0.0}, 0.5, 1.0),
        ({"augment.test_time": True}, 1.0, 0.5),
    ],
)
def test_predictions_are_averaged_over_the_flips_that_were_trained_with(
    settings: dict[str, object], share: float, corner: float
) -> None:
    """The first slice's left half is bright; logits are −1 left and 3 right, so 1 all over when mirrored."""
    table = slices()
    experiment = EXPERIMENT.with_overrides(settings)
    row = prediction_table(Upright(), experiment, table, np.arange(1), fold=None, device="cpu").to_pylist()[0]
    assert np.asarray(Image.open(io.BytesIO(row["mask_png"]))).mean() == share
    assert row["probability_tumour"] == pytest.approx(1 / (1 + np.exp(-corner)))


def test_the_prediction_table_scores_at_the_sources_resolution() -> None:
    table = slices()
    found = prediction_table(Bright(), EXPERIMENT, table, np.arange(4), fold="2", device="cpu")
    assert found.schema == prediction_schema(table.classes)
    first, second, unmasked, healthy = found.to_pylist()
    assert first["experiment"] == EXPERIMENT.digest
    assert (first["architecture"], first["fold"], first["group"]) == ("joint_unet", "2", "A")
    assert (first["dice"], first["hd"], first["hd_unit"]) == (1.0, 0.0, "px")
    assert (first["label"], first["predicted"], first["both_right"], first["false_mask"]) == (
        "tumour",
        "tumour",
        True,
        None,
    )
    assert first["probability_tumour"] + first["probability_none"] == pytest.approx(1)
    assert second["dice"] == 0
    assert second["hd"] > 10
    assert second["both_right"] is False
    assert unmasked["dice"] is unmasked["has_tumour"] is unmasked["label"] is unmasked["both_right"] is None
    assert (healthy["dice"], healthy["hd"], healthy["false_mask"]) == (0.0, None, True)
    drawn = np.asarray(Image.open(io.BytesIO(unmasked["mask_png"])))
    assert drawn.shape == (NATIVE, NATIVE)
    assert drawn[:, : NATIVE // 2].all()
    assert not drawn[:, NATIVE // 2 :].any()


def test_distances_are_in_mm_where_the_spacing_is_known() -> None:
    table = slices(spacing=0.5)
    in_mm = prediction_table(Bright(), EXPERIMENT, table, np.array([1]), fold=None, device="cpu").to_pylist()[0]
    table = slices()
    in_px = prediction_table(Bright(), EXPERIMENT, table, np.array([1]), fold=None, device="cpu").to_pylist()[0]
    assert (in_mm["hd_unit"], in_px["hd_unit"]) == ("mm", "px")
    assert in_mm["hd95"] == pytest.approx(in_px["hd95"] / 2)


def test_one_mask_of_unknown_spacing_puts_all_distances_in_pixels() -> None:
    """Whichever rows are predicted: folds are averaged with one another."""
    table = slices(spacing=0.5)
    table.spacing_R2[3] = np.nan
    found = prediction_table(Bright(), EXPERIMENT, table, np.array([1]), fold="1", device="cpu").to_pylist()[0]
    all_px = slices()
    px = prediction_table(Bright(), EXPERIMENT, all_px, np.array([1]), fold="1", device="cpu").to_pylist()[0]
    assert (found["hd_unit"], found["hd95"]) == ("px", px["hd95"])
    table = slices(spacing=0.5)
    table.spacing_R2[2] = np.nan  # has no mask, so that no distance needs it
    found = prediction_table(Bright(), EXPERIMENT, table, np.array([1]), fold="1", device="cpu").to_pylist()[0]
    assert found["hd_unit"] == "mm"


def test_a_model_without_a_task_leaves_its_columns_empty() -> None:
    table = slices()
    segmenter, classifier = (
        prediction_table(network, EXPERIMENT, table, np.arange(4), fold="1", device="cpu")
        for network in (Bright(classify=False), Bright(segment=False))
    )
    for name in ("predicted", "probability_none", "both_right"):
        assert segmenter[name].null_count == 4
    for name in ("dice", "hd", "mask_png", "false_mask", "hd_unit", "both_right"):
        assert classifier[name].null_count == 4
    assert classifier["has_tumour"].to_pylist() == [True, True, None, False]


def test_prediction_leaves_the_model_in_the_mode_it_was_in() -> None:
    table = slices()
    for training in (True, False):
        network = Bright().train(training)
        slice_scores(network, table, np.arange(4), device="cpu")
        prediction_table(network, EXPERIMENT, table, np.arange(4), fold=None, device="cpu")
        assert network.training is training
