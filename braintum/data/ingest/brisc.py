"""Ingests BRISC 2025 as downloaded (Kaggle `briscdataset/brisc2025`; Fateh et al., arXiv 2506.14318; CC BY 4.0).

    classification_task/{train,test}/{glioma,meningioma,no_tumor,pituitary}/*.jpg
    segmentation_task/{train,test}/{images/*.jpg,masks/*.png}

A name says it all: brisc2025_train_00001_gl_ax_t1 is of the training part, a glioma, axial, T1. A picture that is in
both tasks is one slice, with a label and a mask. Slices without tumour are in the first task alone; their mask is
empty. The official test part keeps `source_fold = "test"` and is never trained on; the training part has no folds.

Choices, where set and paper leave them open:
- Pictures are of many sizes (most 512×512, some hundred 369×369 and 216×369), and not all square. They are resized to
  size×size, 256 by default, as the U-Net paper does (III-B); that stretches those that are not square.
- Some files are saved as colour. All are stored as grey, by luminance.
- Patients are not known. A group is what has the same pixels, no more: slices of one patient may well stand on both
  sides of a split, and scores on this set flatter.
- The set holds some files twice, byte by byte: at least seven of the test part are in the training part too. Of such
  files the one of the test part is kept, else the first by number; the others are rejected. Near duplicates stay.

Shapes: C channels, H W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.pictures import picture_group, read_image, read_mask, refuse_size, sized
from braintum.data.ingest.walk import files_below, local
from braintum.data.schema import TEST, Card, DataError, Row

SIZE = 256
LICENCE = "CC-BY-4.0"
TASKS = ("segmentation_task", "classification_task")
SUFFIXES = (".jpg", ".jpeg", ".png")
SPLITS = ("train", TEST)
LABELS = {"gl": "glioma", "me": "meningioma", "pi": "pituitary", "no": "no_tumor", "nt": "no_tumor"}
HEALTHY = "no_tumor"
PLANES = {"ax": "axial", "co": "coronal", "sa": "sagittal"}
NAME = re.compile(rf"brisc2025_({'|'.join(SPLITS)})_\d+_({'|'.join(LABELS)})_({'|'.join(PLANES)})_[a-z0-9]+")


class _Slice(NamedTuple):
    """A slice's files, relative to the folder. `refused`: why it is left out, whatever its files hold."""

    name: str
    image: str | None
    mask: str | None
    refused: str | None


def ingest_brisc(
    path: str | Path,
    out: str,
    *,
    name: str = "brisc2025",
    size: int = SIZE,
    licence: str = LICENCE,
    strict: bool = False,
) -> Card:
    """Reads BRISC 2025 from the folder that holds its tasks (or holds the one that does) and writes a dataset at `out`.

    Returns its card. Either task may be missing. `strict`: see `ingest`; the files that the set holds twice are errors
    then. Raises DataError for a folder without the set, and as `ingest` does.
    """
    refuse_other(out)
    refuse_size(size)
    root = _find_root(local(path))
    slices = _find_slices(root)
    if not slices:
        raise DataError(f"{root}: no picture in {' or '.join(TASKS)}")
    about = About(name, "BRISC 2025 (Kaggle briscdataset/brisc2025, arXiv 2506.14318)", licence, {"size": size})
    return ingest(_Brisc(root.resolve(), size), slices, out, about, strict=strict)


def _find_root(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; unpack the download and give the folder")
    candidates = [path, *sorted(inner for inner in path.iterdir() if inner.is_dir())]
    found = [folder for folder in candidates if any((folder / task).is_dir() for task in TASKS)]
    if not found:
        raise DataError(f"{path}: neither {' nor '.join(TASKS)} is in it, or in a folder of it; give BRISC's folder")
    if len(found) > 1:
        raise DataError(f"{path}: BRISC is in it twice, in {found[0].name} and {found[1].name}; give one of them")
    return found[0]


def _find_slices(root: Path) -> list[_Slice]:
    """All slices, by name (test before train), each with what its names and places alone refuse it for."""
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    wrong: list[_Slice] = []
    for task in TASKS:  # where a picture is in both, the one that the mask was drawn on
        here: set[tuple[str, bool]] = set()
        for path in files_below(root / task) if (root / task).is_dir() else ():
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            place, is_mask = str(path.relative_to(root)), path.parent.name == "masks"
            refused = _misplaced(path.relative_to(root))
            if refused is None and (path.stem, is_mask) in here:
                refused = "its name is there twice; remove one"
            if refused is not None:
                wrong.append(_Slice(place, None, None, refused))
                continue
            here.add((path.stem, is_mask))
            (masks if is_mask else images).setdefault(path.stem, place)
    same = _same_files(root, images)
    slices = []
    for name in sorted({*images, *masks}):
        image, mask, refused = images.get(name), masks.get(name), None
        if image is None:
            refused = "a mask without its image; add that, or remove it"
        elif mask is None and image.startswith(TASKS[0]) and _label(name) != HEALTHY:
            refused = "an image without its mask; add that, or remove it from segmentation_task"
        elif name in same:
            refused = f"the same file as {same[name]}; remove one"
        slices.append(_Slice(name, image, mask, refused))
    return slices + wrong


def _misplaced(place: Path) -> str | None:
    """What is wrong with a file's name, or where it lies."""
    match = NAME.fullmatch(place.stem)
    if match is None:
        return "its name is none of BRISC's, such as brisc2025_train_00001_gl_ax_t1; rename or remove it"
    split, label = match[1], _label(place.stem)
    for folder in place.parts[1:-1]:
        if (folder in SPLITS and folder != split) or (folder in LABELS.values() and folder != label):
            return f"its name says {split}, {label}, it lies in {folder}; rename or move it"
    return None


def _label(name: str) -> str:
    return LABELS[name.split("_")[3]]


def _same_files(root: Path, images: Mapping[str, str]) -> dict[str, str]:
    """Name of each image whose file is byte by byte that of one with a smaller name, and that name."""
    of_size: dict[int, list[str]] = defaultdict(list)
    for name in sorted(images):
        of_size[(root / images[name]).stat().st_size].append(name)
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for names in of_size.values():
        for name in names if len(names) > 1 else ():
            digest = hashlib.sha256((root / images[name]).read_bytes()).hexdigest()
            if (kept := first.setdefault(digest, name)) != name:
                same[name] = kept
    return same


@dataclass(frozen=True)
class _Brisc:
    """Reads slices by their files."""

    root: Path
    size: int

    def where(self, item: _Slice) -> str:
        return item.image or item.mask or item.name

    def files(self, item: _Slice) -> list[Path]:
        return [self.root / place for place in (item.image, item.mask) if place is not None]

    def read(self, item: _Slice) -> list[Row]:
        where = self.where(item)
        if item.refused is not None:
            raise DataError(f"{where}: {item.refused}")
        match = NAME.fullmatch(item.name)
        assert item.image is not None
        assert match is not None
        split, label, plane = match[1], _label(item.name), PLANES[match[3]]
        image_CHW = read_image(self.root / item.image, where)
        if len(image_CHW) > 1:
            grey = Image.fromarray(np.ascontiguousarray(np.moveaxis(image_CHW, 0, 2))).convert("L")
            image_CHW = np.asarray(grey)[None]
        mask_HW = np.zeros(image_CHW.shape[1:], np.uint8) if label == HEALTHY else None
        if item.mask is not None:
            mask_HW = read_mask(self.root / item.mask, where)
        image_CHW, mask_HW = sized(where, image_CHW, mask_HW, str(item.mask), self.size)
        return [
            Row(
                slice_id=item.name, group=picture_group(image_CHW), image_CHW=image_CHW, mask_HW=mask_HW, label=label,
                source_fold=TEST if split == TEST else None, plane=plane, where=where,
            )
        ]  # fmt: skip
