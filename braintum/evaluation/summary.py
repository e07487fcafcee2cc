"""Averages of a prediction table: over slices, folds, cases and classes. No torch: reporting uses it too.

Shapes: R rows (slices), N classes, S seeds.

Of several seeds (`scores`) the mean comes first: a slice's score is the mean of what the seeds give it, a score of many
slices at once (macro F1) the mean of the seeds'. So n counts slices, or folds, and never trainings.

Dice, IoU, HD and HD95 are averaged over slices with tumour, `dice_all` and `pixel_accuracy` over all slices with a
known mask. SDs are sample SDs (n - 1); null where they mean nothing (one value, or a score that is no mean of slices).
Undefined values are null and counted, never averaged in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintum.data.folds import natural_order
from braintum.data.schema import DataError
from braintum.evaluation.metrics import FloatArray, IntArray, agreement, auroc
from braintum.evaluation.scores import Scores, by_seed, mean_per_slice

METRICS = (
    "dice", "dice_all", "iou", "pixel_accuracy", "hd", "hd95", "false_mask_rate",
    "accuracy", "macro_f1", "weighted_f1", "auroc", "sensitivity", "specificity", "both_right",
)  # fmt: skip


def summarise(predictions: pa.Table) -> dict[str, Any]:
    """The summary of one configuration's predictions over one or more folds, of plain JSON types.

    `metrics` {name: {mean, sd, n}} over all slices; `folds` {fold: {name: value}}; `over_folds` {name: {mean, sd, n}},
    n folds; `classes` {class: {slices, precision, sensitivity, specificity, f1, auroc, dice, hd95}};
    `confusion` {labels, counts[true][predicted]} or null; `cases` {cases, metrics, mixed_cases} or null where a case is
    unknown; `hd_unit`; `counts` {slices, with_tumour, without_tumour, hd_undefined: slices to which a seed gave no
    distance}. Raises DataError as `by_seed` does, or if distances are in several units.
    """
    if not len(predictions):
        raise DataError("there are no predictions to summarise")
    scores_S = [Scores.of(table) for table in by_seed(predictions)]
    scores = scores_S[0]
    metrics = _metrics(scores_S)
    folds = {
        fold: {name: value["mean"] for name, value in _metrics(_take(scores_S, scores.fold_R == fold)).items()}
        for fold in sorted(set(scores.fold_R), key=natural_order)
    }
    over_folds = {
        name: mean_and_sd(np.array([folds[fold][name] for fold in folds if folds[fold].get(name) is not None]))
        for name in metrics
    }
    tumour_R = scores.values["has_tumour"]
    undefined_SR = [~np.isnan(s.values["dice"]) & (tumour_R == 1) & np.isnan(s.values["hd"]) for s in scores_S]
    return {
        "metrics": metrics,
        "folds": folds,
        "over_folds": over_folds,
        "classes": _averaged([_classes(scores) for scores in scores_S]),
        "confusion": _confusion(scores_S),
        "cases": _cases(scores_S),
        "hd_unit": scores.hd_unit,
        "counts": {
            "slices": len(tumour_R),
            "with_tumour": int((tumour_R == 1).sum()),
            "without_tumour": int((tumour_R == 0).sum()),
            "hd_undefined": int(np.any(undefined_SR, axis=0).sum()),
        },
    }


def _take(scores_S: Sequence[Scores], chosen: NDArray[np.bool_] | IntArray) -> list[Scores]:
    return [scores.take(chosen) for scores in scores_S]


def _metrics(scores_S: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """{name: {mean, sd, n}} in the order of METRICS; names without a defined value are left out."""
    found: dict[str, dict[str, Any]] = {}
    for name, values_R in mean_per_slice(scores_S).items():
        known_R = values_R[~np.isnan(values_R)]
        if len(known_R):
            found[name] = mean_and_sd(known_R)
    for name in ("false_mask_rate", "both_right"):  # shares: an SD would only repeat the mean
        if name in found:
            found[name]["sd"] = None
    classified_S = [scores.take(scores.classified_R) for scores in scores_S]
    found |= _averaged([_classification(c.label_R, c.predicted_R, c.probability_RN) for c in classified_S])
    return {name: found[name] for name in METRICS if name in found}


def _averaged(records: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Records of one shape, their fractions averaged over those that have them; what is no fraction is the first's."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        given = [record[name] for record in records if name in record]
        found[name] = dict(given[0])
        for key in given[0]:
            values = [one[key] for one in given if isinstance(one[key], float)]
            if values:
                found[name][key] = float(np.mean(values))
    return found


def _confusion(scores_S: Sequence[Scores]) -> dict[str, Any] | None:
    """`labels` and `counts`, slices by true and predicted class; with several seeds their mean."""
    classified_S = [scores.take(scores.classified_R) for scores in scores_S]
    classes = scores_S[0].classes
    if not len(classified_S[0].label_R):
        return None
    counts_SNN = [agreement(c.label_R, c.predicted_R, len(classes)).confusion_NN for c in classified_S]
    counts_NN = counts_SNN[0] if len(counts_SNN) == 1 else np.mean(counts_SNN, axis=0)
    return {"labels": list(classes), "counts": counts_NN.tolist()}


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


def _cases(scores_S: Sequence[Scores]) -> dict[str, Any] | None:
    """Averages over cases: a case's score is the mean of its slices', its class that of the mean probability.

    A case whose slices have several labels (healthy slices beside tumour slices) has no one true class: it is counted
    in `mixed_cases` and left out of the classification scores.
    """
    if any(case is None for case in scores_S[0].case_R):
        return None
    names, case_R = np.unique(scores_S[0].case_R.astype(str), return_inverse=True)
    metrics: dict[str, dict[str, Any]] = {}
    for name, values_R in mean_per_slice(scores_S).items():
        known_R = ~np.isnan(values_R)
        if known_R.any() and name not in ("false_mask_rate", "both_right"):
            cases = np.unique(case_R[known_R])
            metrics[name] = mean_and_sd(np.array([values_R[known_R & (case_R == case)].mean() for case in cases]))
    chosen_C = [(case_R == case) & scores_S[0].classified_R for case in range(len(names))]
    labels_C = [set(scores_S[0].label_R[chosen_R]) for chosen_R in chosen_C]
    pure = [
        (next(iter(labels)), chosen_R) for labels, chosen_R in zip(labels_C, chosen_C, strict=True) if len(labels) == 1
    ]
    if pure:
        label_C = np.array([label for label, _ in pure], dtype=np.int64)
        probability_SCN = [
            np.stack([s.probability_RN[chosen_R].mean(axis=0) for _, chosen_R in pure]) for s in scores_S
        ]
        metrics |= _averaged([_classification(label_C, p_CN.argmax(axis=1), p_CN) for p_CN in probability_SCN])
    return {
        "cases": len(names),
        "metrics": {name: metrics[name] for name in METRICS if name in metrics},
        "mixed_cases": sum(len(labels) > 1 for labels in labels_C),
    }


def mean_and_sd(values: FloatArray) -> dict[str, Any]:
    """Of any values; `sd` is None for fewer than two, `mean` for none."""
    n = len(values)
    sd = float(values.std(ddof=1)) if n > 1 else None
    return {"mean": float(values.mean()) if n else None, "sd": sd, "n": n}
