"""What a prediction is worth: overlap and distance of masks, agreement of classes. Numpy only, no torch.

Shapes: R rows (slices), N classes, H W pixels.

Empty masks: both empty gives Dice = IoU = 1 and HD = 0; one empty gives Dice = IoU = 0 and an undefined HD (nan).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from sklearn.metrics import roc_auc_score

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Overlap(NamedTuple):
    """One value a slice."""

    dice_R: FloatArray
    iou_R: FloatArray
    pixel_accuracy_R: FloatArray


def overlap(intersection_R: IntArray, predicted_R: IntArray, true_R: IntArray, num_pixels: int) -> Overlap:
    """Dice, IoU and pixel accuracy from numbers of pixels: in both masks, in the predicted, in the true one."""
    both, predicted, true = (np.asarray(x, dtype=np.float64) for x in (intersection_R, predicted_R, true_R))
    total, union = predicted + true, predicted + true - both
    empty = total == 0
    return Overlap(
        dice_R=np.where(empty, 1.0, 2 * both / np.maximum(total, 1)),
        iou_R=np.where(empty, 1.0, both / np.maximum(union, 1)),
        pixel_accuracy_R=1 - (union - both) / num_pixels,
    )


class Distance(NamedTuple):
    """Hausdorff distances of one slice in the unit of the spacing; nan where one mask is empty."""

    hd: float
    hd95: float


def hausdorff(
    predicted_HW: NDArray[np.bool_], true_HW: NDArray[np.bool_], spacing: tuple[float, float] = (1.0, 1.0)
) -> Distance:
    """Hausdorff distance between the outlines of two masks, and its robust form.

    `spacing` is the size of a pixel (y, x). An outline is the mask's own pixels that touch the background by a side or
    the border of the image. `hd95` is the larger of the two directed 95th percentiles (linear interpolation), as in
    MONAI; medpy pools both directions before it takes the percentile. The distance transform is of the box around both
    masks: the same value as of the whole image, several times faster.
    """
    union_HW = predicted_HW | true_HW
    if not union_HW.any():
        return Distance(0.0, 0.0)
    if not predicted_HW.any() or not true_HW.any():
        return Distance(float("nan"), float("nan"))
    rows, columns = np.flatnonzero(union_HW.any(axis=1)), np.flatnonzero(union_HW.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    outlines = [mask[box] & ~binary_erosion(mask[box]) for mask in (predicted_HW, true_HW)]
    directed = [
        distance_transform_edt(~to, sampling=spacing)[outline]
        for outline, to in (outlines, outlines[::-1])
    ]  # fmt: skip
    return Distance(
        hd=float(max(d.max() for d in directed)),
        hd95=float(max(np.percentile(d, 95) for d in directed)),
    )


class Agreement(NamedTuple):
    """Classification: `confusion_NN[i, j]` counts rows of true class i predicted as j. Per class, nan if undefined."""

    confusion_NN: IntArray
    precision_N: FloatArray
    sensitivity_N: FloatArray
    specificity_N: FloatArray
    f1_N: FloatArray

    def values(self) -> dict[str, float]:
        """accuracy, macro_f1, weighted_f1, sensitivity, specificity (the last two are means over classes, one
        against the rest). A class that occurs neither among the labels nor the predictions counts in no mean."""
        support = self.confusion_NN.sum(axis=1)
        with np.errstate(invalid="ignore"):
            weighted = np.nansum(self.f1_N * support) / support.sum()
        return {
            "accuracy": float(np.trace(self.confusion_NN) / support.sum()),
            "macro_f1": float(np.nanmean(self.f1_N)),
            "weighted_f1": float(weighted),
            "sensitivity": _mean_or_nan(self.sensitivity_N),
            "specificity": _mean_or_nan(self.specificity_N),
        }


def agreement(label_R: IntArray, predicted_R: IntArray, num_classes: int) -> Agreement:
    """Compares class indices; needs at least one row."""
    confusion = np.bincount(label_R * num_classes + predicted_R, minlength=num_classes**2)
    confusion_NN = confusion.reshape(num_classes, num_classes).astype(np.int64)
    hit, support, predicted = np.diag(confusion_NN), confusion_NN.sum(axis=1), confusion_NN.sum(axis=0)
    rest = confusion_NN.sum() - support
    with np.errstate(invalid="ignore", divide="ignore"):
        return Agreement(
            confusion_NN,
            precision_N=hit / predicted,
            sensitivity_N=hit / support,
            specificity_N=(rest - predicted + hit) / rest,
            f1_N=2 * hit / (support + predicted),
        )


def auroc(label_R: IntArray, probability_RN: FloatArray) -> FloatArray:
    """Area under the ROC curve of each class against the rest; nan for a class that has no row, or all rows."""
    values = np.full(probability_RN.shape[1], np.nan)
    for n in range(probability_RN.shape[1]):
        positive_R = label_R == n
        if positive_R.any() and not positive_R.all():
            values[n] = roc_auc_score(positive_R, probability_RN[:, n])
    return values


def _mean_or_nan(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
