"""Ingests Jun Cheng's brain tumour set as downloaded (figshare 1512427; CC BY 4.0).

3,064 slices of contrast-enhanced T1 of 233 patients in brainTumorDataPublic_*.zip, or the folders those unpack to:
N.mat (MATLAB v7.3, which is HDF5) holds `cjdata`: `label`, `PID`, `image`, `tumorMask`. cvind.mat beside them holds the
author's five folds, by patient. Archives are read as they are; nothing is unpacked to disk.

Choices, where the set leaves them open:
- `case_id` is the PID, and the group: no split cuts a patient. Where cvind.mat is there, its folds are the source's; a
  patient in two of them is refused, and without that file folds are cut by patient.
- Most images are 512×512, some 256×256. They are stored at size×size, 256 by default: the larger ones averaged by
  area, the smaller ones as they are.
- Values are stored as they are, as 16 bit (when read, each slice goes to [0, 1]). None is below 0; one that were is
  refused.
- Planes are mixed and not said. Spacing is not stored: it is told for the images of 512×512 only (0.49 mm, Cheng et al.
  2015), and no file says it.

Shapes: C channels, H W height and width in pixels.
"""

from __future__ import annotations

import functools
import io
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from braintum.data.ingest.engine import About, ingest, refuse_other
from braintum.data.ingest.pictures import refuse_size, sized
from braintum.data.ingest.walk import files_below, local
from braintum.data.schema import Card, DataError, Row, refuse_names

SIZE = 256
LICENCE = "CC-BY-4.0"
LABELS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
NUM_FILES = 3064
FOLDS = "cvind.mat"
SLICE = re.compile(r"([1-9]\d{0,5})\.mat")
MOST_BYTES = 64 * 2**20
"""Of one .mat file, unpacked; those of the set have less than 1 MB."""
MOST_PIXELS = 2048 * 2048
MOST_CHUNKS = 4096
"""Pieces of an array in the file; those of the set have a few."""


class _Place(NamedTuple):
    """Where a file lies. `member`: its name in the archive `path`; None where `path` is the file itself."""

    path: Path
    member: str | None

    def __str__(self) -> str:
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"


class _Slice(NamedTuple):
    number: int
    place: _Place
    fold: str | None


def ingest_figshare(
    path: str | Path,
    out: str,
    *,
    name: str = "cheng",
    size: int = SIZE,
    licence: str = LICENCE,
    strict: bool = False,
) -> Card:
    """Reads the .mat files in a folder, its folders and its archives (or in one archive); writes a dataset at `out`.

    Returns its card. `strict`: see `ingest`. Raises DataError for a place without such files, an archive that does not
    open, one number in two files that differ, folds that cannot be read or are too few, and as `ingest` does.
    """
    refuse_other(out)
    refuse_size(size)
    places = _find(local(path))
    folds = _read_folds(places.pop(FOLDS)) if FOLDS in places else None
    if not places:
        raise DataError(f"{path}: no N.mat in it, nor in an archive in it; give the folder of the download")
    numbers = sorted(int(file.removesuffix(".mat")) for file in places)
    if folds is not None and numbers[-1] > len(folds):
        raise DataError(f"{path}: {numbers[-1]}.mat, where {FOLDS} has folds for {len(folds)}; remove one of the two")
    slices = [
        _Slice(number, places[f"{number}.mat"], None if folds is None else str(folds[number - 1])) for number in numbers
    ]
    provenance = f"Jun Cheng, brain tumor dataset, figshare 1512427, {len(slices):,} of {NUM_FILES:,} files"
    return ingest(_Figshare(size), slices, out, About(name, provenance, licence, {"size": size}), strict=strict)


def _find(path: Path) -> dict[str, _Place]:
    """Name ("12.mat", "cvind.mat") to place. A file that is there twice, packed and unpacked, is taken once."""
    places: dict[str, _Place] = {}
    for place in _walk(path):
        name = Path(place.member or place.path).name
        if name != FOLDS and not SLICE.fullmatch(name):
            continue
        first = places.setdefault(name, place)
        if first is not place and _checksum(first) != _checksum(place):
            raise DataError(f"{path}: {name} is there twice, and {first} is not {place}; remove one")
    return places


def _walk(path: Path) -> Iterator[_Place]:
    """All files, those in archives too, in a fixed order; not what macOS puts beside them."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or archive")
    for file in files_below(path) if path.is_dir() else [path]:
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix.lower() != ".zip":
            yield _Place(file.resolve(), None)
            continue
        with _open_archive(file) as archive:
            for member in archive.namelist():
                if member.lower().endswith(".zip"):
                    raise DataError(f"{file}: holds further archives ({member}); unpack it once and give that folder")
                if not Path(member).name.startswith("."):
                    yield _Place(file.resolve(), member)


def _open_archive(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{file}: does not open: {error}; download it again") from None


@functools.lru_cache(maxsize=8)
def _archive(file: Path, size: int, mtime_ns: int) -> zipfile.ZipFile:
    """An archive kept open: to list its members takes longer than to read one. Another state of it is another one."""
    return _open_archive(file)


def _content(place: _Place, where: str) -> bytes:
    try:
        stat = place.path.stat()
        if place.member is None:
            length = stat.st_size
        else:
            archive = _archive(place.path, stat.st_size, stat.st_mtime_ns)
            length = archive.getinfo(place.member).file_size
        if length <= MOST_BYTES:
            return place.path.read_bytes() if place.member is None else archive.read(place.member)
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        RuntimeError,
        LookupError,
        ValueError,
        EOFError,
    ) as error:
        raise DataError(f"{where}: cannot be read: {error}; download it again") from None
    raise DataError(f"{where}: has {length:,} bytes; a slice has less than {MOST_BYTES:,}")


def _checksum(place: _Place) -> int:
    if place.member is None:
        return zlib.crc32(place.path.read_bytes())
    with _open_archive(place.path) as archive:
        return archive.getinfo(place.member).CRC


def _read_folds(place: _Place) -> NDArray[np.int64]:
    """The author's fold of each number, from 1 on."""
    where = str(place)
    with _open_mat(place, where) as file:
        values = _array(file, "cvind", MOST_PIXELS, where).ravel()
    if values.dtype.kind not in "iuf" or not np.isin(values, range(1, 100)).all():
        raise DataError(f"{where}: cvind: expected a fold from 1 on for every slice; remove the file to do without")
    return values.astype(np.int64)


def _open_mat(place: _Place, where: str) -> h5py.File:
    content = _content(place, where)
    try:
        return h5py.File(io.BytesIO(content), "r")
    except (OSError, RuntimeError, ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: no MATLAB v7.3 file ({reason}); download it again, or save it with -v7.3") from None


def _array(group: Mapping[str, Any], name: str, most: int, where: str) -> NDArray[Any]:
    """A field of at most so many values, as MATLAB shows it: HDF5 has the axes the other way round."""
    try:
        found = group.get(name)
        if isinstance(found, h5py.Dataset) and _is_small(found, most):
            values: NDArray[Any] = np.asarray(found[()]).T
            return values
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}: {name} cannot be read: {' '.join(str(error).split())}; download it again") from None
    raise DataError(f"{where}: {name}: expected an array of at most {most:,} values; download it again")


def _is_small(dataset: h5py.Dataset, most: int) -> bool:
    """Whether reading it takes no more memory and time than it should: a damaged file may say what it likes."""
    if dataset.size is None or not 0 < dataset.size <= most or dataset.dtype.itemsize > 8:
        return False
    chunk = dataset.chunks or dataset.shape
    num_chunks = math.prod(-(-side // step) for side, step in zip(dataset.shape, chunk, strict=True))
    return bool(math.prod(chunk) <= MOST_PIXELS and num_chunks <= MOST_CHUNKS)


@dataclass(frozen=True)
class _Figshare:
    """Reads .mat files."""

    size: int

    def where(self, item: _Slice) -> str:
        return str(item.place)

    def files(self, item: _Slice) -> list[Path]:
        return [item.place.path]

    def read(self, item: _Slice) -> list[Row]:
        where = self.where(item)
        with _open_mat(item.place, where) as file:
            try:
                group = file.get("cjdata")
            except (OSError, RuntimeError, ValueError, KeyError, OverflowError) as error:
                raise DataError(f"{where}: cjdata cannot be read: {error}; download it again") from None
            if not isinstance(group, h5py.Group):
                raise DataError(f"{where}: no cjdata: no slice of Jun Cheng's set; remove it")
            label = _label(_array(group, "label", 1, where), where)
            patient = _text(_array(group, "PID", 64, where), where)
            image_HW = _image(_array(group, "image", MOST_PIXELS, where), where)
            drawn_HW = _mask(_array(group, "tumorMask", MOST_PIXELS, where), where)
        image_CHW, mask_HW = sized(where, image_HW[None], drawn_HW, "tumorMask", self.size)
        return [
            Row(
                slice_id=f"cheng-{item.number:04d}", group=f"case:{patient}", image_CHW=image_CHW, mask_HW=mask_HW,
                label=label, case_id=patient, source_fold=item.fold, where=where,
            )
        ]  # fmt: skip


def _label(values: NDArray[Any], where: str) -> str:
    value = values.item()
    if values.dtype.kind not in "iuf" or value not in LABELS:
        known = ", ".join(f"{number} ({label})" for number, label in LABELS.items())
        raise DataError(f"{where}: label {value!r}; expected {known}")
    return LABELS[int(value)]


def _text(values: NDArray[Any], where: str) -> str:
    """MATLAB stores text as the numbers of its characters."""
    codes = values.ravel()
    if codes.dtype.kind not in "iu" or not ((codes > 31) & (codes < 0xD800)).all():
        raise DataError(f"{where}: PID: expected 1 to 64 characters, as MATLAB stores text")
    text = "".join(map(chr, codes)).strip()
    refuse_names(where, PID=text)
    if not text:
        raise DataError(f"{where}: PID: is blank")
    return text


def _image(image_HW: NDArray[Any], where: str) -> NDArray[np.uint16]:
    if image_HW.ndim != 2 or image_HW.dtype.kind not in "iu":
        raise DataError(f"{where}: image is {image_HW.dtype} {image_HW.shape}; expected whole numbers, H,W")
    if image_HW.min() < 0 or image_HW.max() > 65535:
        raise DataError(f"{where}: image has values {image_HW.min()} to {image_HW.max()}; expected 0 to 65535")
    return image_HW.astype(np.uint16)


def _mask(mask_HW: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if mask_HW.ndim != 2 or mask_HW.dtype.kind not in "iub" or mask_HW.min() < 0 or mask_HW.max() > 1:
        raise DataError(f"{where}: tumorMask is {mask_HW.dtype} {mask_HW.shape}; expected 0 and 1 alone, H,W")
    return mask_HW.astype(np.uint8)
