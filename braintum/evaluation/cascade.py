"""A cascade: any segmenter, then any classifier on the crop around the tumour that it found; scored as one model.

Its predictions are those of its two parts, one run after the other: nothing is learned or chosen between them. Where
the segmenter finds nothing, the classifier sees the whole slice. R rows (slices), H W pixels.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from braintum.config import Experiment
from braintum.data.images import box_around, largest_piece
from braintum.data.schema import DataError
from braintum.data.table import load_table
from braintum.evaluation.predict import both_right, decode_mask, prediction_table

NAME = "cascade"
"""What a cascade is called where an architecture's name stands."""


def classified_crops(
    masks: pa.Table,
    classifier: nn.Module,
    experiment: Experiment,
    data_url: str,
    *,
    fold: str | None,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> pa.Table:
    """The classifier's prediction table of the crops that a segmenter's predictions lead to.

    `masks`: the segmenter's prediction table. A crop is the square around the largest piece of what it found, with the
    margin of the classifier's `experiment`, cut out of the slice as it is stored. A choice: in training the square
    holds all true tumours, but around all that a segmenter draws one false pixel far off would show most of the slice.
    """
    margin = experiment.data.margin
    assert margin is not None, "a classifier of crops has data.region crop"
    found = zip(masks["slice_id"].to_pylist(), masks["mask_png"].to_pylist(), strict=True)
    boxes = {slice_id: box_around(largest_piece(decode_mask(png)), margin) for slice_id, png in found}
    crops = load_table(data_url, experiment.data, boxes)
    return prediction_table(
        classifier, experiment, crops, np.arange(len(crops)), fold=fold, device=device, autocast_dtype=autocast_dtype
    )


def as_one(masks: pa.Table, classes: pa.Table, *, experiment: str, architecture: str) -> pa.Table:
    """The masks of one prediction table and the classes of another, of the same slices, as those of one model.

    `experiment`: the digest that the rows name. Sorted by slice. Raises DataError for tables of different slices.
    """
    masks, classes = masks.sort_by("slice_id"), classes.sort_by("slice_id")
    if masks["slice_id"] != classes["slice_id"]:
        raise DataError(
            f"{architecture}: its parts predict different slices, {len(masks)} and {len(classes)}; give both the same "
            "data.classes"
        )
    given = zip(*(t.to_pylist() for t in (classes["label"], classes["predicted"], masks["dice"])), strict=True)
    columns = {
        "experiment": [experiment] * len(masks),
        "architecture": [architecture] * len(masks),
        "both_right": [both_right(label, predicted, dice) for label, predicted, dice in given],
    }
    of_classes = {"label", "predicted", *(name for name in classes.schema.names if name.startswith("probability_"))}
    arrays = [
        pa.chunked_array([pa.array(columns[field.name], field.type)])
        if field.name in columns
        else (classes if field.name in of_classes else masks)[field.name]
        for field in classes.schema
    ]
    return pa.table(arrays, schema=classes.schema)
