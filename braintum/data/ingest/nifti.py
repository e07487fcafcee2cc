"""Ingests NIfTI volumes (.nii, .nii.gz): a folder by a pattern, or a CSV that lists them.

    image,mask,case,label
    p1/before.nii.gz,p1/before_tumour.nii.gz,p1,glioma

`image` and `case`, the patient, are required, and `mask` or `label`. Paths are relative to the CSV and stay inside its
folder. An empty cell is an unknown.

By a pattern: `*` in "*_Scan_T1.nii.gz" stands for any text, folders too, and names the volume; the same text in the
mask's pattern "*_Mask.nii.gz" finds its mask. Several `*` are filled in their order. A regular expression says which
part of a volume's name is the patient: "^[^/]+" for a folder a patient, ".+" where every volume is another patient's.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.manifest import read_lines
from braintum.data.ingest.slicing import Case, Slicing, slices_of
from braintum.data.ingest.volumes import MAX_VOXELS, MaskValues, Scan, canonical, refuse_other_grid, shown
from braintum.data.ingest.walk import files_below, local
from braintum.data.schema import Card, DataError, Row, refuse_names

ENDINGS = (".nii", ".nii.gz")
UNITS_MM = {"meter": 1000.0, "micron": 0.001}
"""Where a header says nothing, lengths are in mm, as the format's tools take them."""
DEFLATE = 1032
"""How many times smaller compression makes a file at best."""
DAMAGED = (
    EOFError, HeaderDataError, HeaderTypeError, ImageFileError, IndexError, KeyError, MemoryError, OSError,
    OverflowError, TypeError, ValueError, zlib.error,
)  # fmt: skip
"""What nibabel raises, depending on what is wrong with a file."""


class Entry(NamedTuple):
    """One volume. `image`, `mask`: paths relative to the folder; `name`: what its slice ids begin with."""

    where: str
    name: str
    case: str
    image: str
    mask: str | None
    label: str | None


def ingest_nifti(
    path: str | Path,
    out: str,
    *,
    image: str | None = None,
    mask: str | None = None,
    case: str | None = None,
    label: str | None = None,
    mask_values: MaskValues | None = None,
    slicing: Slicing | None = None,
    name: str | None = None,
    licence: str | None = None,
    strict: bool = False,
) -> Card:
    """Writes a dataset of a folder's volumes, found by the patterns `image` and `mask`, or of those that a CSV lists.

    `case`: a regular expression, of which the first group (else all) that it matches in a volume's name is the
    patient; a folder needs one, as scans of one patient on two sides of a split make scores that are not true.
    `label`: of all volumes of a folder. Raises DataError for patterns that find nothing and for what the CSV says
    wrongly, and as `ingest` does.
    """
    refuse_other(out)
    path = local(path)
    if path.suffix.lower() == ".csv":
        for option, value in (("image", image), ("mask", mask), ("case", case), ("label", label)):
            if value is not None:
                raise DataError(f"--{option} {value}: has no effect with a CSV; leave it out, that is a column there")
        root, entries, said = path.resolve().parent, _listed(path), path.name
    else:
        root, entries, said = path.resolve(), _found(path, image, mask, case, label), f"{image}, {mask or 'no masks'}"
    slicing, mask_values = slicing or Slicing(), mask_values or MaskValues()
    source = _Nifti(root, slicing, mask_values, few_bits(root / entry.image for entry in entries))
    about = About(
        name or root.name, f"NIfTI volumes of {root.name}: {said}", licence, slicing.options() | mask_values.options()
    )
    return ingest(source, entries, out, about, strict=strict)


def _listed(path: Path) -> list[Entry]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    entries = []
    for where, cells in read_lines(path, ("image", "mask", "case", "label"), ("image", "case"))[1]:
        refuse_names(where, **cells)
        for column in ("image", "case"):
            if column not in cells:
                raise DataError(f"{where}: no {column}" + "; which patient is it of?" * (column == "case"))
        for file in (cells["image"], cells.get("mask", ".")):
            if os.path.isabs(file) or os.path.normpath(file).startswith(".."):
                raise DataError(f"{where}: {file} leaves the folder; keep all files inside it")
        name = re.sub(r"\.nii(\.gz)?$", "", cells["image"])
        entries.append(Entry(where, name, cells["case"], cells["image"], cells.get("mask"), cells.get("label")))
    return entries


def _found(root: Path, image: str | None, mask: str | None, case: str | None, label: str | None) -> list[Entry]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, and no .csv file")
    if image is None or "*" not in image or (mask is not None and mask.count("*") != image.count("*")):
        given = f"--image {image or 'is missing'}{'' if mask is None else f' --mask {mask}'}"
        raise DataError(
            f"{given}: expected a pattern with a *, as '*_t1.nii.gz', and as many in --mask; or a CSV as PATH"
        )
    if case is None:
        raise DataError(
            "--case is missing: which part of a volume's name is its patient? --case '^[^/]+' for a folder a patient, "
            "--case '.+' where every volume is another patient's"
        )
    pattern = re.compile("(.+)".join(map(re.escape, image.split("*"))))
    files = [file.relative_to(root).as_posix() for file in files_below(root)]
    stars = {file: match.groups() for file in files if (match := pattern.fullmatch(file))}
    masks = {} if mask is None else {file: _filled(mask, star) for file, star in stars.items()}
    images = [file for file in stars if file not in set(masks.values())]
    if not images:
        raise DataError(f"{root.name}: --image {image} finds none of {len(files)} files; `*` stands for any text")
    entries = []
    for file in images:
        name = "/".join(stars[file])
        where = f"{root.name}/{file}"
        refuse_names(where, name=name)
        entries.append(Entry(where, name, _case(case, name), file, masks.get(file), label))
    return entries + ([] if mask is None else _masks_alone(root, files, {*images, *masks.values()}, image, mask))


def _masks_alone(root: Path, files: Iterable[str], used: set[str], image: str, mask: str) -> list[Entry]:
    """Masks whose image is not there, which reading them says."""
    pattern = re.compile("(.+)".join(map(re.escape, mask.split("*"))))
    stars = {file: match.groups() for file in files if file not in used and (match := pattern.fullmatch(file))}
    return [
        Entry(f"{root.name}/{file}", "/".join(star), "/".join(star), _filled(image, star), file, None)
        for file, star in stars.items()
    ]


def _filled(pattern: str, stars: Iterable[str]) -> str:
    left = iter(stars)
    return "".join(next(left) if part == "*" else part for part in re.split(r"(\*)", pattern))


def _case(expression: str, name: str) -> str:
    try:
        match = re.search(expression, name)
    except re.error as error:
        raise DataError(f"--case {expression}: no regular expression: {error}") from None
    if match is None or not match[match.re.groups and 1]:
        raise DataError(f"--case {expression}: matches nothing in {name!r}, so its patient is not known")
    return match[match.re.groups and 1]


@dataclass(frozen=True)
class _Nifti:
    """Reads volumes and their masks."""

    root: Path
    slicing: Slicing
    mask_values: MaskValues
    few_bits: bool

    def where(self, entry: Entry) -> str:
        return entry.where

    def files(self, entry: Entry) -> list[Path]:
        return [self.root / file for file in (entry.image, entry.mask) if file is not None]

    def read(self, entry: Entry) -> list[Row]:
        image = read_scan(self.root / entry.image, f"{entry.where}: image")
        mask_XYZ = None
        if entry.mask is not None:
            what = f"{entry.where}: mask {entry.mask}"
            mask = read_scan(self.root / entry.mask, what)
            refuse_other_grid(mask, image, what, "its image")
            mask_XYZ = self.mask_values.label_map(mask.values_XYZ, what)
        case = Case(
            name=entry.name, case_id=entry.case, where=entry.where, image_CXYZ=as_float(image.values_XYZ)[None],
            affine=image.affine, mask_XYZ=mask_XYZ, label=entry.label, few_bits=self.few_bits,
        )  # fmt: skip
        return slices_of(case, self.slicing)


def as_float(values_XYZ: np.ndarray) -> np.ndarray:
    """As float32; what is too large for that becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values_XYZ.astype(np.float32)


def read_scan(path: Path, what: str) -> Scan:
    """A NIfTI file's voxels, scaled as its header says, in canonical order.

    Raises DataError, naming `what` and not the path, for a file that does not open, whose header cannot be, or that is
    no volume of real numbers.
    """
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one
            raise DataError(f"{what}: is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1 or image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{what}: holds {shown(shape)} of {image.get_data_dtype()}; expected three axes of numbers")
        voxels = math.prod(shape)
        if voxels > MAX_VOXELS:
            raise DataError(f"{what}: holds {shown(shape)} voxels; expected {MAX_VOXELS:,} or fewer")
        if voxels * image.get_data_dtype().itemsize > path.stat().st_size * (DEFLATE if path.suffix == ".gz" else 1):
            raise EOFError  # before memory is taken for what cannot be there
        values_IJK = np.asanyarray(image.dataobj).reshape(shape)
        affine = np.asarray(image.affine, np.float64)
        affine[:3] *= UNITS_MM.get(image.header.get_xyzt_units()[0], 1.0)
    except DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what}: {_why(error)}; replace or remove it") from None
    return canonical(values_IJK, affine, what)


def _why(error: BaseException) -> str:
    """In words, and without the path that most messages have."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, ImageFileError):
        return "is not NIfTI"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"is cut short or damaged ({type(error).__name__})"


def few_bits(paths: Iterable[Path]) -> bool:
    """Whether none of the files has more than 8 bits a voxel, as far as they open."""
    for path in paths:
        try:
            if nib.load(path).get_data_dtype().itemsize > 1:  # type: ignore[attr-defined]
                return False
        except DAMAGED:
            continue
    return True
