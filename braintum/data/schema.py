"""The slice table: what a dataset's rows and its card hold. Imports neither torch nor Ray.

Shapes: C channels, H W height and width in pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
CARD = "card.json"
TEST = "test"
"""The source's fold that is never trained on."""
NAME = re.compile(r"\w[\w.-]{0,31}")
"""A fold's name: letters, digits, `_`, and behind the first also `.` and `-`. Directories are called by it."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that no label and no id has: they would break a line, or move a terminal's cursor."""
MASKS = ("tumour", "oedema")
"""What the values 1, 2 of a mask mean. A dataset names the first one or two in its card."""
TUMOUR = 1
NO_TUMOR = "no_tumor"
"""The label of slices without tumour, spelt as the public sets do."""
PLANES = ("axial", "coronal", "sagittal")
DTYPES = ("uint8", "uint16", "float16")
"""Of stored images: as the source has them, or float16 in [0, 1] where a volume's intensities were scaled."""


class DataError(ValueError):
    """Data that cannot be used: one line that says what is wrong, where, and what to do."""


def refuse_names(where: str, fold: str | None = None, **names: str | None) -> None:
    """Raises DataError for a fold that cannot name a directory, and for control characters in any name."""
    for kind, name in {"fold": fold, **names}.items():
        if name is not None and (found := CONTROL.search(name)):
            raise DataError(
                f"{where}: {kind} {name[: found.end()]!r}...: a line break or another control character; remove it, or "
                "close a quote that was left open"
            )
    if fold is not None and not NAME.fullmatch(fold):
        raise DataError(f"{where}: fold {fold[:40]!r}: expected 1 to 32 letters, digits, _ . - and not . or - first")


@dataclass(frozen=True, eq=False)
class Row:
    """One slice on its way into a dataset.

    `image_CHW`: of a type in DTYPES. `mask_HW`: uint8 label map (0 background, 1 tumour, 2 oedema) or None where nobody
    drew one; a healthy slice has an empty mask. `group`: what a split must not cut. `plane`: one of PLANES, None where
    it is not known. `age_years`, `sex` ("F", "M" or "O"): of the patient, None where not known or not asked for.
    `where`: how an error names this row ("manifest.csv line 7").
    """

    slice_id: str
    group: str
    image_CHW: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float16]
    mask_HW: NDArray[np.uint8] | None
    label: str | None
    case_id: str | None = None
    source_fold: str | None = None
    plane: str | None = None
    position: float | None = None
    spacing_yx_mm: tuple[float, float] | None = None
    age_years: int | None = None
    sex: str | None = None
    where: str = ""


class Shard(BaseModel):
    """One Parquet file of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str


class Card(BaseModel):
    """card.json: what a dataset is. Written last, so that a dataset without one was never finished."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int = FORMAT_VERSION
    name: str
    height: int = Field(ge=1, description="of every slice, pixels")
    width: int = Field(ge=1, description="of every slice, pixels")
    channels: int = Field(ge=1)
    dtype: Literal["uint8", "uint16", "float16"]
    classes: list[str] = Field(description="the labels that occur, sorted")
    masks: list[str] = Field(description="what the values 1, 2 of a mask mean")
    num_slices: int = Field(description="without those that are excluded, as all counts")
    num_masks: int = Field(description="slices with a mask, empty ones included")
    num_cases: int | None = Field(description="None where cases are not known")
    slices_per_class: dict[str, int]
    slices_per_fold: dict[str, int] = Field(description="the source's own folds; empty where it has none")
    slices_per_plane: dict[str, int] = Field({}, description="of the slices whose plane is known")
    provenance: str
    options: dict[str, bool | int | float | str | None] = Field({}, description="how slices were made of what was read")
    licence: str | None
    num_rejected: int = Field(0, ge=0, description="what could not be read or used, listed in rejected.csv")
    shards: list[Shard]
    merged_groups: dict[str, str] = Field({}, description="group: what it became part of, by `braintum audit`")
    excluded: list[str] = Field([], description="slice ids that are stored and never used, by ingest or the audit")
    digest: str = Field(description="SHA-256 over shards' digests, merged groups, exclusions: names the content")


def arrow_schema(channels: int, height: int, width: int, dtype: str) -> pa.Schema:
    """The columns of a shard. `image` holds C,H,W in native order, `mask` H,W uint8; both of fixed size."""
    itemsize = np.dtype(dtype).itemsize
    return pa.schema(
        [
            pa.field("slice_id", pa.string(), nullable=False),
            pa.field("case_id", pa.string()),
            pa.field("group", pa.string(), nullable=False),
            pa.field("source_fold", pa.string()),
            pa.field("plane", pa.string()),
            pa.field("position", pa.float32()),
            pa.field("label", pa.string()),
            pa.field("image", pa.binary(channels * height * width * itemsize), nullable=False),
            pa.field("mask", pa.binary(height * width)),
            pa.field("spacing_y_mm", pa.float32()),
            pa.field("spacing_x_mm", pa.float32()),
            pa.field("age_years", pa.int16()),
            pa.field("sex", pa.string()),
            pa.field("image_sha256", pa.string(), nullable=False),
            pa.field("perceptual_hash", pa.uint64(), nullable=False),
        ]
    )
