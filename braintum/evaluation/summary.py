"""Averages of a prediction table: over slices, folds, cases and classes. No torch: reporting uses it too.

Shapes: R rows (slices), N classes.

Dice, IoU, HD and HD95 are averaged over slices with tumour, `dice_all` and `pixel_accuracy` over all slices with a
known mask. SDs are sample SDs (n - 1); null where they mean nothing (one value, or a score that is no mean of slices).
Undefined values are null and counted, never averaged in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintum.data.folds import natural_order
from braintum.data.schema import DataError
from braintum.evaluation.metrics import FloatArray, IntArray, agreement, auroc

METRICS = (
    "dice", "dice_all", "iou", "pixel_accuracy", "hd", "hd95", "false_mask_rate",
    "accuracy", "macro_f1", "weighted_f1", "auroc", "sensitivity", "specificity", "both_right",
)  # fmt: skip
UNNAMED_FOLD = "held-out"  # what the held-out part of a run without a named fold (the 80/20 split) is called


@dataclass(frozen=True)
class Scores:
    """The columns of a prediction table as arrays: nan, -1 or None where null. Flags are 1.0, 0.0 or nan.

    `hd_unit`: the unit of all distances, mm or px; None where no mask was predicted.
    """

    classes: tuple[str, ...]
    fold_R: NDArray[np.object_]
    case_R: NDArray[np.object_]
    label_R: IntArray
    predicted_R: IntArray
    probability_RN: FloatArray
    hd_unit: str | None
    values: dict[str, FloatArray]  # has_tumour dice iou pixel_accuracy hd hd95 false_mask both_right, each R long

    @classmethod
    def of(cls, predictions: pa.Table) -> Scores:
        """Reads the columns of `braintum.evaluation.predict.prediction_schema`.

        Raises DataError if distances are in mm on some slices and in px on others: they cannot be averaged.
        """
        prefix = "probability_"
        classes = tuple(name.removeprefix(prefix) for name in predictions.schema.names if name.startswith(prefix))
        index: dict[str | None, int] = {name: n for n, name in enumerate(classes)}
        names = ("has_tumour", "dice", "iou", "pixel_accuracy", "hd", "hd95", "false_mask", "both_right")
        probability = [_floats(predictions[prefix + name]) for name in classes]
        folds = [UNNAMED_FOLD if fold is None else fold for fold in predictions["fold"].to_pylist()]
        units = sorted({unit for unit in predictions["hd_unit"].to_pylist() if unit is not None})
        if len(units) > 1:
            raise DataError(f"hd_unit: predictions hold distances in {' and in '.join(units)}; predict all in one unit")
        return cls(
            classes,
            fold_R=np.array(folds, dtype=object),
            case_R=np.array(predictions["case_id"].to_pylist(), dtype=object),
            label_R=np.array([index.get(x, -1) for x in predictions["label"].to_pylist()], dtype=np.int64),
            predicted_R=np.array([index.get(x, -1) for x in predictions["predicted"].to_pylist()], dtype=np.int64),
            probability_RN=np.stack(probability, axis=1) if classes else np.empty((len(predictions), 0)),
            hd_unit=units[0] if units else None,
            values={name: _floats(predictions[name]) for name in names},
        )

    def take(self, chosen: NDArray[np.bool_] | IntArray) -> Scores:
        """The chosen rows."""
        return Scores(
            self.classes,
            self.fold_R[chosen],
            self.case_R[chosen],
            self.label_R[chosen],
            self.predicted_R[chosen],
            self.probability_RN[chosen],
            self.hd_unit,
            {name: values_R[chosen] for name, values_R in self.values.items()},
        )

    def per_slice(self) -> dict[str, FloatArray]:
        """Metrics that are means over slices: values by slice, nan where the slice does not count."""
        tumour_R = self.values["has_tumour"] == 1
        return {
            "dice": np.where(tumour_R, self.values["dice"], np.nan),
            "dice_all": self.values["dice"],
            "iou": np.where(tumour_R, self.values["iou"], np.nan),
            "pixel_accuracy": self.values["pixel_accuracy"],
            "hd": np.where(tumour_R, self.values["hd"], np.nan),
            "hd95": np.where(tumour_R, self.values["hd95"], np.nan),
            "false_mask_rate": self.values["false_mask"],
            "both_right": self.values["both_right"],
        }

    @property
    def classified_R(self) -> NDArray[np.bool_]:
        return (self.label_R >= 0) & (self.predicted_R >= 0)


def summarise(predictions: pa.Table) -> dict[str, Any]:
    """The summary of one configuration's predictions over one or more folds, of plain JSON types.

    `metrics` {name: {mean, sd, n}} over all slices; `folds` {fold: {name: value}}; `over_folds` {name: {mean, sd, n}},
    n folds; `classes` {class: {slices, precision, sensitivity, specificity, f1, auroc, dice, hd95}};
    `confusion` {labels, counts[true][predicted]} or null; `cases` {cases, metrics, mixed_cases} or null where a case is
    unknown; `hd_unit`; `counts` {slices, with_tumour, without_tumour, hd_undefined}.
    Raises DataError if a slice is predicted twice, as in a table of several configurations, or distances are in
    several units.
    """
    ids = predictions["slice_id"].to_pylist()
    if not ids:
        raise DataError("there are no predictions to summarise")
    if len(set(ids)) != len(ids):
        raise DataError("a slice is predicted twice: summarise the predictions of one configuration at a time")
    scores = Scores.of(predictions)
    metrics = _metrics(scores)
    folds = {
        fold: {name: value["mean"] for name, value in _metrics(scores.take(scores.fold_R == fold)).items()}
        for fold in sorted(set(scores.fold_R), key=natural_order)
    }
    over_folds = {
        name: _mean_sd(np.array([folds[fold][name] for fold in folds if folds[fold].get(name) is not None]))
        for name in metrics
    }
    tumour_R = scores.values["has_tumour"]
    predicted_R = ~np.isnan(scores.values["dice"])
    classified = scores.take(scores.classified_R)
    has_classes = len(classified.label_R) > 0
    confusion_NN = agreement(classified.label_R, classified.predicted_R, len(scores.classes)).confusion_NN
    return {
        "metrics": metrics,
        "folds": folds,
        "over_folds": over_folds,
        "classes": _classes(scores),
        "confusion": {"labels": list(scores.classes), "counts": confusion_NN.tolist()} if has_classes else None,
        "cases": _cases(scores),
        "hd_unit": scores.hd_unit,
        "counts": {
            "slices": len(ids),
            "with_tumour": int((tumour_R == 1).sum()),
            "without_tumour": int((tumour_R == 0).sum()),
            "hd_undefined": int((predicted_R & (tumour_R == 1) & np.isnan(scores.values["hd"])).sum()),
        },
    }


def _metrics(scores: Scores) -> dict[str, dict[str, Any]]:
    """{name: {mean, sd, n}} in the order of METRICS; names without a defined value are left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, values_R in scores.per_slice().items():
        known_R = values_R[~np.isnan(values_R)]
        if len(known_R):
            found[name] = _mean_sd(known_R)
    for name in ("false_mask_rate", "both_right"):  # shares: an SD would only repeat the mean
        if name in found:
            found[name]["sd"] = None
    classified = scores.take(scores.classified_R)
    found |= _classification(classified.label_R, classified.predicted_R, classified.probability_RN)
    return {name: found[name] for name in METRICS if name in found}


def _classification(label_R: IntArray, predicted_R: IntArray, probability_RN: FloatArray) -> dict[str, dict[str, Any]]:
    """Pooled scores; `auroc` is the mean over classes, one against the rest."""
    if not len(label_R):
        return {}
    values = agreement(label_R, predicted_R, probability_RN.shape[1]).values()
    area_N = auroc(label_R, probability_RN)
    if not np.isnan(area_N).all():
        values["auroc"] = float(np.nanmean(area_N))
    return {name: {"mean": x, "sd": None, "n": len(label_R)} for name, x in values.items() if not np.isnan(x)}


def _classes(scores: Scores) -> dict[str, dict[str, Any]]:
    classified = scores.take(scores.classified_R)
    found = agreement(classified.label_R, classified.predicted_R, len(scores.classes))
    area_N = auroc(classified.label_R, classified.probability_RN)
    per_slice = scores.per_slice()
    table: dict[str, dict[str, Any]] = {}
    for n, name in enumerate(scores.classes):
        of_class_R = scores.label_R == n
        per_class = {
            "precision": found.precision_N[n],
            "sensitivity": found.sensitivity_N[n],
            "specificity": found.specificity_N[n],
            "f1": found.f1_N[n],
            "auroc": area_N[n],
        }
        for metric in ("dice", "hd95", "false_mask_rate"):
            values = per_slice[metric][of_class_R]
            values = values[~np.isnan(values)]
            per_class[metric] = values.mean() if len(values) else np.nan
        table[name] = {"slices": int(of_class_R.sum())} | {
            metric: None if np.isnan(value) else float(value) for metric, value in per_class.items()
        }
    return table


def _cases(scores: Scores) -> dict[str, Any] | None:
    """Averages over cases: a case's score is the mean of its slices', its class that of the mean probability.

    A case whose slices have several labels (healthy slices beside tumour slices) has no one true class: it is counted
    in `mixed_cases` and left out of the classification scores.
    """
    if any(case is None for case in scores.case_R):
        return None
    names, case_R = np.unique(scores.case_R.astype(str), return_inverse=True)
    metrics: dict[str, dict[str, Any]] = {}
    for name, values_R in scores.per_slice().items():
        known_R = ~np.isnan(values_R)
        if known_R.any() and name not in ("false_mask_rate", "both_right"):
            cases = np.unique(case_R[known_R])
            metrics[name] = _mean_sd(np.array([values_R[known_R & (case_R == case)].mean() for case in cases]))
    labels, probabilities, mixed = [], [], 0
    for case in range(len(names)):
        chosen_R = (case_R == case) & scores.classified_R
        if len(set(scores.label_R[chosen_R])) > 1:
            mixed += 1
        elif chosen_R.any():
            labels.append(scores.label_R[chosen_R][0])
            probabilities.append(scores.probability_RN[chosen_R].mean(axis=0))
    if labels:
        probability = np.stack(probabilities)
        metrics |= _classification(np.array(labels, dtype=np.int64), probability.argmax(axis=1), probability)
    return {
        "cases": len(names),
        "metrics": {name: metrics[name] for name in METRICS if name in metrics},
        "mixed_cases": mixed,
    }


def _mean_sd(values: FloatArray) -> dict[str, Any]:
    n = len(values)
    sd = float(values.std(ddof=1)) if n > 1 else None
    return {"mean": float(values.mean()) if n else None, "sd": sd, "n": n}


def _floats(column: pa.ChunkedArray) -> FloatArray:
    """Numbers or flags as float64, nan where null."""
    return np.array([np.nan if x is None else float(x) for x in column.to_pylist()], dtype=np.float64)
