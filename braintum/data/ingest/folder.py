"""Ingests a folder of images that a CSV manifest describes.

    slice_id,image,mask,label,case,fold
    p1-07,images/p1-07.png,masks/p1-07.png,glioma,p1,1

`image` is required, and `mask` or `label`. Paths are relative to the manifest and stay inside the folder. An empty
cell is an unknown. `slice_id` defaults to the image's path. `case`: the patient; `fold`: the source's own fold ("test":
never trained on); `spacing_y`, `spacing_x` (or `spacing` for both): mm per pixel; `position`: of the slice in its case.

Images: PNG, JPEG or TIFF, grey of 8 or 16 bit or colour of 8 (colour that is grey is stored as grey). Masks: label
maps of 0, 1 (tumour), 2 (oedema), or pictures in which tumour is brighter than half; where there is a palette, its
indices.

A split cuts by case; where cases are unknown by the source's folds; where there are none of those, by picture: slices
of the same pixels stay together.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from braintum.data.images import resize_image, resize_mask
from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.manifest import Line, read_lines
from braintum.data.schema import MASKS, TEST, Card, DataError, Row, refuse_names

COLUMNS = (
    "slice_id", "image", "mask", "label", "case", "fold", "position", "spacing", "spacing_y", "spacing_x",
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "TIFF")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I")


def ingest_folder(
    path: str | Path,
    out: str,
    *,
    name: str | None = None,
    size: int | None = None,
    licence: str | None = None,
    strict: bool = False,
) -> Card:
    """Reads the folder's manifest.csv (or its only .csv) and writes a dataset at `out`; returns its card.

    `size`: resizes every slice to size×size (needed where they differ). `strict`: see `ingest`. Raises DataError with
    the manifest's line for what the manifest says wrongly, and as `ingest` does.
    """
    refuse_other(out)
    if size is not None and not 16 <= size <= 4096:
        raise DataError(f"size: {size}: expected 16 to 4096 pixels")
    root = Path(path)
    manifest = _find_manifest(root)
    lines = _read_manifest(manifest)
    folds = {cells["fold"] for _, cells in lines if "fold" in cells} - {TEST}
    about = About(name or root.resolve().name, f"folder {root.resolve().name}, {manifest.name}", licence)
    return ingest(_Folder(root.resolve(), size, len(folds) > 1), lines, out, about, strict=strict)


def _find_manifest(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "manifest.csv").is_file():
        return root / "manifest.csv"
    found = sorted(root.glob("*.csv"))
    if len(found) != 1:
        there = ", ".join(p.name for p in found) or "no .csv file"
        raise DataError(f"{root}: needs a manifest.csv with the columns image, mask, label, case, fold; found {there}")
    return found[0]


def _read_manifest(manifest: Path) -> list[Line]:
    """The manifest's lines, checked as far as that goes without opening an image."""
    columns, lines = read_lines(manifest, COLUMNS, ["image"])
    if "mask" not in columns and "label" not in columns:
        raise DataError(f"{manifest.name}: neither a column 'mask' nor 'label', so nothing can be learned")
    if "spacing" in columns and ("spacing_y" in columns or "spacing_x" in columns):
        raise DataError(f"{manifest.name}: 'spacing' is both of 'spacing_y' and 'spacing_x'; give one or the others")
    _check_lines(lines)
    return lines


def _check_lines(lines: list[Line]) -> None:
    line_of: dict[str, str] = {}
    fold_of: dict[str, tuple[str, str]] = {}
    some_folds = any("fold" in cells for _, cells in lines)
    for where, cells in lines:
        refuse_names(where, **cells)
        if "image" not in cells:
            raise DataError(f"{where}: no image")
        if "mask" not in cells and "label" not in cells:
            raise DataError(f"{where}: neither mask nor label; give one or remove the line")
        if some_folds and "fold" not in cells:
            raise DataError(f"{where}: no fold, where other lines have one; give all lines a fold or none")
        slice_id = cells.get("slice_id", cells["image"])
        if slice_id in line_of:
            raise DataError(
                f"{where}: duplicate slice id {slice_id!r}, as in {line_of[slice_id]}; give every slice its own"
            )
        line_of[slice_id] = where
        if "case" in cells and some_folds:
            fold, first = fold_of.setdefault(cells["case"], (cells["fold"], where))
            if fold != cells["fold"]:
                raise DataError(
                    f"{where}: case {cells['case']!r} is in fold {cells['fold']!r}, in {first} in {fold!r}; "
                    "keep a case in one fold"
                )


@dataclass(frozen=True)
class _Folder:
    """Reads lines of a manifest. `by_fold`: whether the source's folds are what a split must not cut."""

    root: Path
    size: int | None
    by_fold: bool

    def where(self, line: Line) -> str:
        return line[0]

    def files(self, line: Line) -> list[Path]:
        return [self.root / line[1][column] for column in ("image", "mask") if column in line[1]]

    def read(self, line: Line) -> list[Row]:
        where, cells = line
        fold = cells.get("fold")
        image_CHW = _read_image(_inside(self.root, cells["image"], where), where)
        mask_HW = _read_mask(_inside(self.root, cells["mask"], where), where) if "mask" in cells else None
        height, width = image_CHW.shape[1:]
        if mask_HW is not None and mask_HW.shape != (height, width):
            raise DataError(
                f"{where}: mask {cells['mask']} is {mask_HW.shape[1]}×{mask_HW.shape[0]}, its image {width}×{height}; "
                "they must be of one size"
            )
        spacing = _spacing(cells, where)
        if self.size is not None:
            image_CHW = resize_image(image_CHW, self.size, self.size)
            mask_HW = None if mask_HW is None else resize_mask(mask_HW, self.size, self.size)
            spacing = None if spacing is None else (spacing[0] * height / self.size, spacing[1] * width / self.size)
        # prefixes keep a case called "1" and a fold called "1" apart
        picture = f"picture:{hashlib.sha256(image_CHW.tobytes()).hexdigest()[:16]}"
        group = f"case:{cells['case']}" if "case" in cells else f"fold:{fold}" if self.by_fold else picture
        return [
            Row(
                slice_id=cells.get("slice_id", cells["image"]), group=group, image_CHW=image_CHW, mask_HW=mask_HW,
                label=cells.get("label"), case_id=cells.get("case"), source_fold=fold,
                position=_number(cells, "position", where), spacing_yx_mm=spacing, where=where,
            )
        ]  # fmt: skip


def _inside(root: Path, relative: str, where: str) -> Path:
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"{where}: {relative} leaves the folder; keep all files inside it")
    if not path.is_file():
        raise DataError(f"{where}: {relative}: no such file")
    return path


def _open(path: Path, where: str) -> Image.Image:
    """A picture of one of MODES. Raises DataError when it does not open."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            pictures = getattr(image, "n_frames", 1)
            depth = _depth(image, path)
            image.load()
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a PNG, JPEG or TIFF" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{where}: {path.name} does not open: {reason}; replace or remove it") from None
    if pictures > 1:
        raise DataError(f"{where}: {path.name} holds several pictures; write one slice a file")
    if image.mode not in MODES:
        raise DataError(f"{where}: {path.name} is of mode {image.mode}; save it as grey of 8 or 16 bit, or RGB of 8")
    if depth > 8 and not image.mode.startswith("I"):
        raise DataError(
            f"{where}: {path.name} has colour or transparency of {depth} bit, of which only 8 would be read; "
            "save it as grey of 16 bit, or of 8 bit"
        )
    return image


def _depth(image: Image.Image, path: Path) -> int:
    """Bits a channel as the file's header says: Pillow cuts colour of 16 bit to 8."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    with path.open("rb") as file:
        header = file.read(25)  # of a PNG: signature, length and name of the chunk IHDR, width, height, depth
    return header[24] if image.format == "PNG" else 8


def _read_image(path: Path, where: str) -> NDArray[Any]:
    """C,H,W, uint8 or uint16; one channel where all are alike."""
    image = _open(path, where)
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if image.mode in ("LA", "RGBA"):
        if (values[..., -1] != 255).any():
            raise DataError(f"{where}: {path.name} is transparent in places; save it without alpha")
        values = values[..., :-1]
    if image.mode == "1":
        values = values.astype(np.uint8) * 255
    if image.mode.startswith("I"):
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: {path.name} has values {values.min()} to {values.max()}; expected 0 to 65535")
        values = values.astype(np.uint16)
    image_CHW = np.moveaxis(np.atleast_3d(values), 2, 0)
    alike = (image_CHW == image_CHW[:1]).all()
    return image_CHW[:1] if alike else image_CHW


def _read_mask(path: Path, where: str) -> NDArray[np.uint8]:
    """A label map H,W."""
    image = _open(path, where)
    values = np.asarray(image)
    if image.mode == "P":  # the colours of a label map mean nothing, but white for background is likely another thing
        light = np.asarray(image.convert("L"))
        if (light[values == 0] > light.min()).any():
            raise DataError(
                f"{where}: mask {path.name}: its palette shows 0, the background, lighter than the rest; "
                "save it as grey, with the values 0, 1 (tumour), 2 (oedema)"
            )
    if image.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    if values.ndim == 3:
        values = values.max(axis=2)
    greatest = int(values.max())
    if greatest <= len(MASKS):
        return values.astype(np.uint8)
    half = 32768 if greatest > 255 else 128
    if greatest < half or int(values.min()) < 0:
        raise DataError(
            f"{where}: mask {path.name} has values up to {greatest}; "
            "expected 0, 1 (tumour), 2 (oedema), or tumour white"
        )
    return (values >= half).astype(np.uint8)


def _spacing(cells: dict[str, str], where: str) -> tuple[float, float] | None:
    names = ("spacing", "spacing") if "spacing" in cells else ("spacing_y", "spacing_x")
    y, x = (_number(cells, name, where) for name in names)
    if y is None and x is None:
        return None
    if y is None or x is None or y <= 0 or x <= 0:
        raise DataError(f"{where}: spacing: expected mm per pixel above 0 for both axes")
    return y, x


def _number(cells: dict[str, str], column: str, where: str) -> float | None:
    if column not in cells:
        return None
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {column}: {cells[column]!r} is not a number")
    return value
