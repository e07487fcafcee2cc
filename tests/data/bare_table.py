"""A table without a dataset: what folds and batches look at, and pixels of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from braintum.data.table import SliceTable


class Line(NamedTuple):
    """A slice; `label`: an index, -1 for none."""

    group: str
    label: int
    fold: str | None = None
    has_mask: bool = True
    has_tumour: bool = True


def bare_table(lines: Sequence[Line], size: int = 1) -> SliceTable:
    """Slices named "0", "1", ... in the order given; as many classes as the highest label asks for."""
    count = len(lines)
    image_RCHW = np.random.default_rng(0).integers(0, 256, (count, 1, size, size), np.uint8)
    mask_RHW = image_RCHW[:, 0] // 128 * np.array([line.has_mask for line in lines], np.uint8)[:, None, None]
    return SliceTable(
        image_RCHW=image_RCHW,
        mask_RHW=mask_RHW,
        part_ends=np.unique([count // 3, count // 2, count]),
        has_mask_R=np.array([line.has_mask for line in lines]),
        has_tumour_R=np.array([line.has_tumour for line in lines]),
        shown_R=np.ones(count, bool),
        label_R=np.array([line.label for line in lines]),
        low_RC=image_RCHW.min(axis=(2, 3)).astype(np.float32),
        high_RC=image_RCHW.max(axis=(2, 3)).astype(np.float32),
        spacing_R2=np.full((count, 2), np.nan, np.float32),
        native_tumour=np.zeros(0, np.uint8),
        native_bytes_R=np.zeros(count, np.int64),
        slice_id_R=[str(row) for row in range(count)],
        case_id_R=[None] * count,
        group_R=[line.group for line in lines],
        source_fold_R=[line.fold for line in lines],
        picture_R=[""] * count,
        perceptual_hash_R=np.zeros(count, np.uint64),
        classes=tuple(f"class {label}" for label in range(max((line.label for line in lines), default=-1) + 1)),
        masks=("tumour",),
        height=size,
        width=size,
        digest="",
    )
