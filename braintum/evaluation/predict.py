"""What a network predicts for rows of a slice table: quick scores for choices, and the full prediction table.

Shapes: B batch, R rows, C channels, K mask channels, H W pixels, N classes.
Scores of masks are those of the first mask channel, the tumour.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from braintum.config import Experiment
from braintum.data.batches import ordered_batches
from braintum.data.table import SliceTable
from braintum.evaluation.metrics import agreement, hausdorff, overlap
from braintum.models.output import Output

BOTH_RIGHT_DICE = 0.5  # a joint model is right about a slice with the correct class and at least this Dice


def slice_scores(
    model: nn.Module,
    table: SliceTable,
    rows: NDArray[np.int64],
    *,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    mirrors: Sequence[tuple[int, ...]] = ((),),
    batch_size: int = 64,
) -> dict[str, NDArray[np.generic]]:
    """Scores at training resolution, computed on the device, in the order of `rows`: for selection scores.

    `mirrors`: see `Augment.mirrors`; choices are made on one prediction a slice unless told otherwise.

    Each array is R long, so that the scores of several workers' rows are joined by `np.concatenate`.
    With mask logits: `dice`, `iou`, `pixel_accuracy` (nan for a row without a mask) and `has_tumour` (False there too).
    With class logits: `label` (-1 unknown) and `predicted`, indices into the table's classes.
    """
    masks: list[Tensor] = []  # B,4: pixels in both, predicted, true; 1 if the row has a mask
    classes: list[Tensor] = []  # B,2: label, predicted
    num_pixels = 0
    with evaluating(model):
        for batch in ordered_batches(table, rows, batch_size, device):
            output = forward(model, batch.image_BCHW, autocast_dtype, mirrors)
            if output.mask_logits_BKHW is not None:
                predicted_BHW, true_BHW = output.mask_logits_BKHW[:, 0] > 0, batch.mask_BKHW[:, 0] > 0.5
                num_pixels = true_BHW[0].numel()
                counted = [x.sum(dim=(1, 2)) for x in (predicted_BHW & true_BHW, predicted_BHW, true_BHW)]
                masks.append(torch.stack([*counted, batch.has_mask_B.to(torch.int64)], dim=1))
            if output.class_logits_BN is not None:
                classes.append(torch.stack([batch.label_B, output.class_logits_BN.argmax(dim=1)], dim=1))
    scores: dict[str, NDArray[np.generic]] = {}
    if masks:
        both_R, predicted_R, true_R, has_mask_R = torch.cat(masks).cpu().numpy().T
        overlap_scores = overlap(both_R, predicted_R, true_R, num_pixels)
        for name, values_R in zip(("dice", "iou", "pixel_accuracy"), overlap_scores, strict=True):
            scores[name] = np.where(has_mask_R > 0, values_R, np.nan)
        scores["has_tumour"] = (has_mask_R > 0) & (true_R > 0)
    if classes:
        scores["label"], scores["predicted"] = torch.cat(classes).cpu().numpy().T
    return scores


def selection_metrics(scores: Mapping[str, NDArray[np.generic]], classes: Sequence[str]) -> dict[str, float]:
    """Means of `slice_scores`: dice and iou (slices with tumour), dice_all, pixel_accuracy, accuracy, macro_f1.

    Only those that the model has a task for and the rows have targets for.
    """
    metrics = {name: float(values_R[~np.isnan(values_R)].mean()) for name, values_R in _by_slice(scores).items()}
    if "accuracy" in metrics:
        label_R, predicted_R = scores["label"].astype(np.int64), scores["predicted"].astype(np.int64)
        known_R = label_R >= 0
        metrics["macro_f1"] = agreement(label_R[known_R], predicted_R[known_R], len(classes)).values()["macro_f1"]
    return metrics


def score_shares(scores: Mapping[str, NDArray[np.generic]], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Each slice's share in the weighted mean of `selection_metrics`, R long: the mean of the shares is that score.

    Macro F1 is no mean over slices: whether the class is right, whose mean is the accuracy, stands in for it. A slice
    that does not count for a metric (as one without tumour for `dice`) has no share in it.
    """
    by_slice = _by_slice(scores)
    of_metric = {name: by_slice.get("accuracy" if name == "macro_f1" else name) for name in weights}
    known = {name: values_R for name, values_R in of_metric.items() if values_R is not None}
    shares = [
        weights[name] * np.nan_to_num(values_R, nan=0.0) / np.mean(~np.isnan(values_R))
        for name, values_R in known.items()
    ]
    total: NDArray[np.float64] = np.sum(shares, axis=0) / sum(weights[name] for name in known)
    return total


def _by_slice(scores: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float64]]:
    """Metrics that are means over slices: nan where a slice does not count; only those for which some slice does."""
    found: dict[str, NDArray[np.float64]] = {}
    if "dice" in scores:
        has_tumour_R = scores["has_tumour"].astype(bool)
        dice_R, iou_R = scores["dice"].astype(np.float64), scores["iou"].astype(np.float64)
        found["dice"], found["dice_all"] = np.where(has_tumour_R, dice_R, np.nan), dice_R
        found["iou"] = np.where(has_tumour_R, iou_R, np.nan)
        found["pixel_accuracy"] = scores["pixel_accuracy"].astype(np.float64)
    if "predicted" in scores:
        found["accuracy"] = np.where(scores["label"].astype(int) >= 0, scores["label"] == scores["predicted"], np.nan)
    return {name: values_R for name, values_R in found.items() if not np.isnan(values_R).all()}


def prediction_table(
    model: nn.Module,
    experiment: Experiment,
    table: SliceTable,
    rows: NDArray[np.int64],
    *,
    fold: str | None,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    batch_size: int = 64,
) -> pa.Table:
    """One row per slice of `rows`, scored at the source's own resolution (`prediction_schema` names the columns).

    Mask logits are resized bilinearly to the source's height and width and cut at probability 0.5. Distances are in mm
    where every slice of `table` with a mask has a pixel spacing, else all in pixels, so that those of all folds
    compare; `hd_unit` says which. `hd` and `hd95` are null where exactly one of the masks is empty, all mask scores
    where the true mask is unknown. `false_mask` is null for a slice with tumour, `both_right` unless class and mask are
    known and predicted.
    """
    schema = prediction_schema(table.classes)
    columns: dict[str, list[object]] = {name: [] for name in schema.names}
    in_mm = bool(np.isfinite(table.spacing_R2[table.has_mask_R]).all())
    position = 0
    with evaluating(model):
        for batch in ordered_batches(table, rows, batch_size, device):
            output = forward(model, batch.image_BCHW, autocast_dtype, experiment.augment.mirrors)
            mask_BHW = _native_masks(output, table.height, table.width)
            probability_BN = _probabilities(output)
            for b in range(len(batch.label_B)):
                row = int(rows[position])
                position += 1
                label = int(table.label_R[row])
                values: dict[str, object] = {
                    "experiment": experiment.digest,
                    "architecture": experiment.model.name,
                    "fold": fold,
                    "slice_id": table.slice_id_R[row],
                    "case_id": table.case_id_R[row],
                    "group": table.group_R[row],
                    "label": table.classes[label] if label >= 0 else None,
                }
                if probability_BN is not None:
                    values["predicted"] = table.classes[int(probability_BN[b].argmax())]
                    for name, probability in zip(table.classes, probability_BN[b], strict=True):
                        values[f"probability_{name}"] = float(probability)
                if mask_BHW is not None:
                    values["mask_png"] = encode_mask(mask_BHW[b])
                true_HW = table.native_tumour_HW(row)
                if true_HW is not None:
                    values["has_tumour"] = bool(true_HW.any())
                    if mask_BHW is not None:
                        scores = _mask_scores(mask_BHW[b], true_HW, table.spacing_R2[row] if in_mm else None)
                        values |= scores._asdict()
                        values["both_right"] = both_right(values["label"], values.get("predicted"), scores.dice)
                for name, column in columns.items():
                    column.append(values.get(name))
    return pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in schema}, schema=schema)


def both_right(label: object, predicted: object, dice: float | None) -> bool | None:
    """Whether a slice has its class and a Dice of `BOTH_RIGHT_DICE`; None unless all three are known."""
    if label is None or predicted is None or dice is None:
        return None
    return predicted == label and dice >= BOTH_RIGHT_DICE


def prediction_schema(classes: tuple[str, ...]) -> pa.Schema:
    """Columns of the prediction table; every score is nullable."""
    text, number, flag = pa.string(), pa.float64(), pa.bool_()
    return pa.schema(
        [("experiment", text), ("architecture", text), ("fold", text), ("slice_id", text), ("case_id", text)]
        + [("group", text), ("label", text), ("predicted", text)]
        + [(f"probability_{name}", number) for name in classes]
        + [("has_tumour", flag), ("dice", number), ("iou", number), ("pixel_accuracy", number)]
        + [("hd", number), ("hd95", number), ("hd_unit", text), ("false_mask", flag), ("both_right", flag)]
        + [("mask_png", pa.binary())]
    )


def encode_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """A mask as a 1-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_mask(png: bytes) -> NDArray[np.bool_]:
    """The mask of `encode_mask`."""
    return np.asarray(Image.open(io.BytesIO(png))).astype(bool)


class _MaskScores(NamedTuple):
    dice: float
    iou: float
    pixel_accuracy: float
    hd: float | None
    hd95: float | None
    hd_unit: str
    false_mask: bool | None


def _mask_scores(
    predicted_HW: NDArray[np.bool_], true_HW: NDArray[np.bool_], spacing_mm: NDArray[np.float32] | None
) -> _MaskScores:
    both, predicted, true = (
        np.array([np.count_nonzero(mask)], dtype=np.int64)
        for mask in (predicted_HW & true_HW, predicted_HW, true_HW)
    )  # fmt: skip
    dice, iou, pixel_accuracy = (float(x[0]) for x in overlap(both, predicted, true, true_HW.size))
    spacing = (1.0, 1.0) if spacing_mm is None else (float(spacing_mm[0]), float(spacing_mm[1]))
    hd, hd95 = (None if np.isnan(x) else x for x in hausdorff(predicted_HW, true_HW, spacing))
    false_mask = None if true_HW.any() else bool(predicted_HW.any())
    return _MaskScores(dice, iou, pixel_accuracy, hd, hd95, "px" if spacing_mm is None else "mm", false_mask)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode without gradients, and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def forward(
    model: nn.Module, image_BCHW: Tensor, autocast_dtype: torch.dtype | None, mirrors: Sequence[tuple[int, ...]]
) -> Output:
    """The mean logits over the mirrored slices, masks flipped back (as nnU-Net does by default).

    Raises FloatingPointError for logits that are NaN or infinite: a mask of them would be an empty one.
    """
    with torch.autocast(image_BCHW.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        outputs: list[Output] = [model(image_BCHW.flip(axes) if axes else image_BCHW) for axes in mirrors]
    masks = [
        o.mask_logits_BKHW.flip(a) for o, a in zip(outputs, mirrors, strict=True) if o.mask_logits_BKHW is not None
    ]
    classes = [o.class_logits_BN for o in outputs if o.class_logits_BN is not None]
    mask_logits_BKHW, class_logits_BN = (torch.stack(logits).mean(0) if logits else None for logits in (masks, classes))
    if not all(logits.isfinite().all() for logits in (mask_logits_BKHW, class_logits_BN) if logits is not None):
        raise FloatingPointError("the network's outputs are NaN or infinite")
    return Output(mask_logits_BKHW, class_logits_BN)


def _native_masks(output: Output, height: int, width: int) -> NDArray[np.bool_] | None:
    """The first mask's logits at the source's size, cut at zero (probability 0.5)."""
    if output.mask_logits_BKHW is None:
        return None
    logits_B1HW = output.mask_logits_BKHW[:, :1].float()
    if logits_B1HW.shape[2:] != (height, width):
        logits_B1HW = F.interpolate(logits_B1HW, size=(height, width), mode="bilinear", align_corners=False)
    mask_BHW: NDArray[np.bool_] = (logits_B1HW[:, 0] > 0).cpu().numpy()
    return mask_BHW


def _probabilities(output: Output) -> NDArray[np.float64] | None:
    if output.class_logits_BN is None:
        return None
    probability_BN: NDArray[np.float64] = output.class_logits_BN.double().softmax(dim=1).cpu().numpy()
    return probability_BN
