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

import math
from dataclasses import dataclass
from pathlib import Path

from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.manifest import Line, read_lines
from braintum.data.ingest.pictures import picture_group, read_image, read_mask, refuse_size, sized
from braintum.data.ingest.walk import local
from braintum.data.schema import TEST, Card, DataError, Row, refuse_names

COLUMNS = (
    "slice_id", "image", "mask", "label", "case", "fold", "position", "spacing", "spacing_y", "spacing_x",
)  # fmt: skip


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
    refuse_size(size)
    root = local(path)
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
        image_CHW = read_image(_inside(self.root, cells["image"], where), where)
        mask_HW = read_mask(_inside(self.root, cells["mask"], where), where) if "mask" in cells else None
        height, width = image_CHW.shape[1:]
        image_CHW, mask_HW = sized(where, image_CHW, mask_HW, f"mask {cells.get('mask')}", self.size)
        spacing = _spacing(cells, where)
        if self.size is not None:
            spacing = None if spacing is None else (spacing[0] * height / self.size, spacing[1] * width / self.size)
        # prefixes keep a case called "1" and a fold called "1" apart
        if "case" in cells:
            group = f"case:{cells['case']}"
        else:
            group = f"fold:{fold}" if self.by_fold else picture_group(image_CHW)
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
