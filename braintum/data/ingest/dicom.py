"""Ingests DICOM: of every study the contrast-enhanced T1 series, with its mask from a DICOM segmentation or a NIfTI.

Identity does not enter the dataset. A patient is a keyed hash (HMAC-SHA256) of PatientID, a slice is named by that and
by running numbers; no other text of a header, no date, no UID, no name of a file or folder is stored or shown. What
could not be read is listed by the number of its first file in the sorted list of all files, and by that file's digest.
The pixels are stored as they are: a face can be seen in them. Age (in years, 90 for all above) and sex are stored if
asked for.

The key is the salt. Who has it, and a list of patients, can find who is who: keep it secret, and give the same one
again to go on with an ingest that was stopped, or to have the same names in another dataset. Without one a random one
is drawn and thrown away: nobody can link the names then, a stopped ingest starts over, and another dataset has other
names.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from braintum.data.ingest.dicom_files import age_and_sex, found, quiet
from braintum.data.ingest.dicom_series import Choice, Series, chosen
from braintum.data.ingest.dicom_volume import read_segmentation, read_series
from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.manifest import read_lines
from braintum.data.ingest.nifti import read_scan
from braintum.data.ingest.slicing import Case, Slicing, slices_of
from braintum.data.ingest.volumes import Affine, MaskValues, Scan, Volume, canonical, refuse_other_grid
from braintum.data.ingest.walk import local
from braintum.data.schema import Card, DataError, Row, refuse_names

SALT_LENGTH = 16
"""Characters at least: hashes under a short salt are found by trying all."""


def ingest_dicom(
    path: str | Path,
    out: str,
    *,
    series: str | None = None,
    mask: str = "*",
    labels: str | Path | None = None,
    salt: str | None = None,
    allow_burned_in: bool = False,
    demographics: bool = False,
    mask_values: MaskValues | None = None,
    slicing: Slicing | None = None,
    name: str = "dicom",
    licence: str | None = None,
    strict: bool = False,
) -> Card:
    """Reads all DICOM files under `path` and writes a dataset at `out`; returns its card.

    `series`: a regular expression (any case) of SeriesDescription, instead of the rules of `is_contrast_t1`. `mask`: a
    pattern of the names of NIfTI masks, which lie in the folder of the series. `labels`: a CSV of the columns patient
    (PatientID) and label. `salt`: the key of the hashes. `demographics`: age and sex are stored. Raises DataError for a
    folder without MR images and for a salt that is too short, and as `ingest` does.
    """
    refuse_other(out)
    if salt is not None and len(salt) < SALT_LENGTH:
        raise DataError(
            f"salt: has {len(salt)} characters; expected {SALT_LENGTH} or more, such as of: openssl rand -hex 32"
        )
    slicing, mask_values = slicing or Slicing(), mask_values or MaskValues()
    choice = Choice(None if series is None else _expression(series), slicing.plane, allow_burned_in)
    label_of = {} if labels is None else _labels(Path(labels))
    root = local(path).resolve()
    if not root.is_dir():
        raise DataError(f"{path}: no such folder")
    headers, unreadable, niftis = found(root)
    if not headers and not unreadable:
        raise DataError("dicom: none of the folder's files is DICOM; unpack archives")
    masks = [nifti for nifti in niftis if fnmatchcase(nifti.name, mask)]
    items = chosen(headers, unreadable, masks, label_of, salt or secrets.token_hex(32), choice)
    few_bits = all(item.bits <= 8 for item in items if item.refused is None)
    source = _Dicom(slicing, mask_values, few_bits, demographics)
    options = {
        "series": "by description and tags" if series is None else "by an expression",
        "burned_in": allow_burned_in,
        "demographics": demographics,
    }
    about = About(
        name, "DICOM files, identities replaced", licence, options | slicing.options() | mask_values.options()
    )
    return ingest(source, items, out, about, strict=strict)


def _expression(series: str) -> re.Pattern[str]:
    try:
        return re.compile(series, re.IGNORECASE)
    except re.error as error:
        raise DataError(f"--series {series}: no regular expression: {error}") from None


def _labels(path: Path) -> dict[str, str]:
    """Label by PatientID. Raises DataError, which quotes no cell: they may be names."""
    try:
        lines = read_lines(path, ("patient", "label"), ("patient", "label"))[1]
    except OSError as error:
        raise DataError(f"--labels: cannot be read: {error.strerror}") from None
    except DataError:
        raise DataError(
            "--labels: expected a CSV file, UTF-8, with the columns patient and label, and no other"
        ) from None
    labels: dict[str, str] = {}
    for number, (_, cells) in enumerate(lines, 1):
        where = f"--labels, entry {number}"
        refuse_names(where, label=cells.get("label"))
        if "patient" not in cells:
            raise DataError(f"{where}: no patient")
        if "label" in cells and labels.setdefault(cells["patient"], cells["label"]) != cells["label"]:
            raise DataError(f"{where}: a second label for one patient; give each patient one")
    return labels


@dataclass(frozen=True)
class _Dicom:
    """Reads series."""

    slicing: Slicing
    mask_values: MaskValues
    few_bits: bool
    demographics: bool

    def where(self, series: Series) -> str:
        return series.where

    def files(self, series: Series) -> list[Path]:
        return [*series.files, *series.segmentations, *series.beside]

    def read(self, series: Series) -> list[Row]:
        if series.refused is not None:
            raise DataError(f"{series.where}: {series.refused}")
        with quiet():
            values_IJK, affine = read_series(series.files, series.where)
            image = canonical(values_IJK, affine, series.where)
            mask_XYZ = self._mask(series, image, values_IJK, affine)
            age_years, sex = age_and_sex(series.files[0], series.where) if self.demographics else (None, None)
        case = Case(
            name=f"{series.case_id}-{series.scan:02d}", case_id=series.case_id, where=series.where,
            image_CXYZ=image.values_XYZ[None], affine=image.affine, mask_XYZ=mask_XYZ, label=series.label,
            few_bits=self.few_bits, age_years=age_years, sex=sex,
        )  # fmt: skip
        return slices_of(case, self.slicing)

    def _mask(self, series: Series, image: Scan, values_IJK: Volume, affine: Affine) -> NDArray[np.uint8] | None:
        """From a segmentation that refers to the series, else from one or a NIfTI that lies on its grid.

        Raises DataError for several, and where there are some but none is on the grid.
        """
        masks, reasons = [], []
        for number, path in enumerate(series.segmentations, 1):
            what = f"{series.where}: segmentation {number}"
            labels_IJK = read_segmentation(path, values_IJK.shape, affine, self.mask_values, what)
            if labels_IJK is not None:
                masks.append(canonical(labels_IJK, affine, what).values_XYZ)
            else:
                reasons.append(f"{what} is not on its grid; resample it to that")
        if series.segmentations and series.refers and reasons:
            raise DataError(reasons[0])
        if not masks:
            for number, path in enumerate(series.beside, 1):
                what = f"{series.where}: NIfTI {number} beside it"
                scan = read_scan(path, what)
                try:
                    refuse_other_grid(scan, image, what, "the series")
                except DataError as error:
                    reasons.append(str(error))
                    continue
                masks.append(self.mask_values.label_map(scan.values_XYZ, what))
        if len(masks) > 1:
            raise DataError(
                f"{series.where}: has {len(masks)} masks; keep one, or name NIfTI masks with --mask PATTERN"
            )
        if not masks and reasons:
            raise DataError(reasons[0])
        return masks[0] if masks else None
