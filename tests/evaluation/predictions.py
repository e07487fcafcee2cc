"""Prediction tables written by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from braintum.evaluation.predict import prediction_schema

CLASSES = ("glioma", "no_tumor")


def row(slice_id: str, fold: str, case: str | None = None, **values: Any) -> dict[str, Any]:
    names = prediction_schema(CLASSES).names
    known = {"slice_id": slice_id, "fold": fold, "case_id": case, "group": case or fold, "hd_unit": "px", **values}
    return {name: known.get(name) for name in names}


def tumour(slice_id: str, fold: str, dice: float, right: bool = True, **values: Any) -> dict[str, Any]:
    p = 0.9 if right else 0.2
    known: dict[str, Any] = {
        "label": "glioma", "predicted": "glioma" if right else "no_tumor", "probability_glioma": p,
        "probability_no_tumor": 1 - p, "has_tumour": True, "dice": dice, "iou": dice / (2 - dice),
        "pixel_accuracy": 0.9, "hd": 5.0 if dice else None, "hd95": 4.0 if dice else None,
        "both_right": right and dice >= 0.5,
    }  # fmt: skip
    return row(slice_id, fold, **(known | values))


def healthy(slice_id: str, fold: str, false_mask: bool, **values: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "label": "no_tumor", "predicted": "no_tumor", "probability_glioma": 0.1, "probability_no_tumor": 0.9,
        "has_tumour": False, "dice": float(not false_mask), "iou": float(not false_mask), "pixel_accuracy": 0.95,
        "hd": None if false_mask else 0.0, "hd95": None if false_mask else 0.0, "false_mask": false_mask,
        "both_right": not false_mask,
    }  # fmt: skip
    return row(slice_id, fold, **(known | values))


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=prediction_schema(CLASSES))


TWO_FOLDS = table(
    tumour("a", "1", 0.8),
    tumour("b", "1", 0.0, right=False),
    healthy("c", "1", false_mask=False),
    tumour("d", "2", 0.6),
    healthy("e", "2", false_mask=True),
)
