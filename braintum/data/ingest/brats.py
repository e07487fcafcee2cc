"""Ingests BraTS 2018 to 2021 as downloaded: a folder a case, in it a NIfTI file a modality and the mask.

    2018, 2019:  {HGG,LGG}/<case>/<case>_{flair,t1,t1ce,t2,seg}.nii.gz
    2020, 2021:  <case>/<case>_{flair,t1,t1ce,t2,seg}.nii.gz, and in 2020 name_mapping.csv with the grades

Masks: 1 necrotic core, 3 or 4 enhancing tumour, together the tumour; 2 oedema. Label: HGG or LGG, where folder or file
say it. Scans are skull-stripped: what is 0 in every modality is not head, and stays 0.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.nifti import ENDINGS, as_float, few_bits, read_scan
from braintum.data.ingest.slicing import Case, Slicing, slices_of
from braintum.data.ingest.volumes import MaskValues, refuse_other_grid
from braintum.data.ingest.walk import files_below, local
from braintum.data.schema import Card, DataError, Row

MODALITIES = ("flair", "t1", "t1ce", "t2")
GRADES = ("HGG", "LGG")
MASK = MaskValues(tumour=(1, 3, 4), oedema=(2,))
MASK_NAMES = ("_seg", "_segm")
"""What a mask's name ends with; one case of 2020 has the second, and a name that is not its folder's."""
OF_A_CASE = (*(f"_{modality}" for modality in MODALITIES), *MASK_NAMES)
NAME_MAPPING = "name_mapping.csv"


class Folder(NamedTuple):
    """One case: its folder, and paths of its images in the order of the channels, and of its mask, where there are."""

    where: str
    case: str
    images: tuple[Path | None, ...]
    masks: tuple[Path, ...]
    label: str | None


def ingest_brats(
    path: str | Path,
    out: str,
    *,
    modalities: Sequence[str] = ("t1ce",),
    label: str | None = None,
    slicing: Slicing | None = None,
    name: str | None = None,
    licence: str | None = None,
    strict: bool = False,
) -> Card:
    """Reads all cases under `path` and writes a dataset at `out`; returns its card.

    `modalities`: of MODALITIES; they become channels, in this order. `label`: of all cases, instead of the grade.
    Raises DataError for a folder without cases, and as `ingest` does.
    """
    refuse_other(out)
    for modality in modalities:
        if modality not in MODALITIES or list(modalities).count(modality) > 1:
            raise DataError(f"modalities: {','.join(modalities)}: expected each once, of {', '.join(MODALITIES)}")
    root = local(path).resolve()
    if not root.is_dir():
        raise DataError(f"{path}: no such folder")
    folders = _found(root, modalities, label)
    slicing = slicing or Slicing()
    images = (image for folder in folders for image in folder.images if image is not None)
    source = _Brats(slicing, tuple(modalities), few_bits(images))
    options = {"modalities": ",".join(modalities)} | slicing.options() | MASK.options()
    about = About(name or root.name, f"BraTS folders of {root.name}", licence, options)
    return ingest(source, folders, out, about, strict=strict)


def _found(root: Path, modalities: Sequence[str], label: str | None) -> list[Folder]:
    """A folder that holds a modality or a mask is a case; one whose files have another name lacks them."""
    folders: list[Folder] = []
    grades: dict[str, str] = {}
    files_of: dict[Path, list[Path]] = defaultdict(list)
    for file in files_below(root):
        files_of[file.parent].append(file)
        if file.name == NAME_MAPPING:
            grades |= _grades(file)
    for folder, files in files_of.items():
        stem_of = {stem: file for file in files if (stem := _stem(file.name))}
        if not any(stem.lower().endswith(OF_A_CASE) for stem in stem_of):
            continue
        masks = [file for stem, file in stem_of.items() if stem.lower().endswith(MASK_NAMES)]
        where = folder.relative_to(root).as_posix() if folder != root else folder.name
        images = tuple(stem_of.get(f"{folder.name}_{modality}") for modality in modalities)
        grade = next((part for part in reversed(folder.parts) if part in GRADES), None)
        folders.append(Folder(where, folder.name, images, tuple(masks), label or grade))
    if not folders:
        raise DataError(
            f"{root.name}: no case of BraTS: expected folders with files such as CASE/CASE_t1ce.nii.gz, unpacked"
        )
    return [folder._replace(label=folder.label or grades.get(folder.case)) for folder in folders]


def _stem(file: str) -> str | None:
    return next((file[: -len(ending)] for ending in ENDINGS if file.endswith(ending)), None)


def _grades(path: Path) -> dict[str, str]:
    """Grade by case: under whichever year's name. Raises DataError for a file that is no such table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: no CSV file ({error}); restore or remove it") from None
    grades: dict[str, str] = {}
    for line in lines:
        grade = line.get("Grade")
        if grade not in GRADES:
            raise DataError(f"{path.name}: grade {grade!r}: expected a column Grade of {' or '.join(GRADES)}")
        grades |= {name: grade for column, name in line.items() if column != "Grade" and isinstance(name, str)}
    return grades


@dataclass(frozen=True)
class _Brats:
    """Reads cases."""

    slicing: Slicing
    modalities: tuple[str, ...]
    few_bits: bool

    def where(self, folder: Folder) -> str:
        return folder.where

    def files(self, folder: Folder) -> list[Path]:
        return [*(image for image in folder.images if image is not None), *folder.masks]

    def read(self, folder: Folder) -> list[Row]:
        scans = []
        for modality, path in zip(self.modalities, folder.images, strict=True):
            if path is None:
                raise DataError(
                    f"{folder.where}: no {folder.case}_{modality}.nii or .nii.gz; choose other --modalities"
                )
            scans.append(read_scan(path, f"{folder.where}: {modality}"))
        for modality, scan in zip(self.modalities[1:], scans[1:], strict=True):
            refuse_other_grid(scan, scans[0], f"{folder.where}: {modality}", self.modalities[0])
        if len(folder.masks) != 1:
            there = ", ".join(mask.name for mask in folder.masks) or "none"
            raise DataError(f"{folder.where}: expected one mask, {folder.case}_seg.nii or .nii.gz; found {there}")
        what = f"{folder.where}: mask"
        mask = read_scan(folder.masks[0], what)
        refuse_other_grid(mask, scans[0], what, self.modalities[0])
        image_CXYZ = np.stack([as_float(scan.values_XYZ) for scan in scans])
        case = Case(
            name=folder.case, case_id=folder.case, where=folder.where, image_CXYZ=image_CXYZ, affine=scans[0].affine,
            mask_XYZ=MASK.label_map(mask.values_XYZ, what), label=folder.label,
            head_XYZ=(image_CXYZ != 0).any(axis=0), few_bits=self.few_bits,
        )  # fmt: skip
        return slices_of(case, self.slicing)
