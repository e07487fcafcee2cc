"""A prediction table as arrays: what every slice scores, with one seed or several. No torch: reporting uses it too.

Shapes: R rows (slices), N classes, S seeds.

A table of one configuration trained with several seeds has a column `seed` (1, 2, ...) and every slice once a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from braintum.data.schema import DataError
from braintum.evaluation.metrics import FloatArray, IntArray

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


def by_seed(predictions: pa.Table) -> list[pa.Table]:
    """The predictions of each seed in turn; a table without the column `seed` is of one.

    Raises DataError where a seed predicts a slice twice, as in a table of several configurations, or seeds predict
    different slices or folds.
    """
    tables = [predictions]
    if "seed" in predictions.schema.names:
        numbers = sorted(set(predictions["seed"].to_pylist()))
        tables = [predictions.filter(pc.field("seed") == number) for number in numbers]
    if len(tables) > 1:
        tables = [table.sort_by("slice_id") for table in tables]
    for table in tables:
        ids = table["slice_id"].to_pylist()
        if len(set(ids)) != len(ids):
            raise DataError("a slice is predicted twice: summarise the predictions of one configuration at a time")
        if any(table[name] != tables[0][name] for name in ("slice_id", "fold")):
            raise DataError("seeds predict different slices or folds: summarise trainings on the same folds")
    return tables


def mean_per_slice(scores_S: Sequence[Scores]) -> dict[str, FloatArray]:
    """`Scores.per_slice`, averaged over those seeds in which a slice counts. All have the same slices in one order."""
    of_seeds = [scores.per_slice() for scores in scores_S]
    found = {}
    for name in of_seeds[0]:
        values_SR = np.stack([values[name] for values in of_seeds])
        known_R = (~np.isnan(values_SR)).sum(axis=0)
        found[name] = np.where(known_R > 0, np.nansum(values_SR, axis=0) / np.maximum(known_R, 1), np.nan)
    return found


def _floats(column: pa.ChunkedArray) -> FloatArray:
    """Numbers or flags as float64, nan where null."""
    return np.array([np.nan if x is None else float(x) for x in column.to_pylist()], dtype=np.float64)
