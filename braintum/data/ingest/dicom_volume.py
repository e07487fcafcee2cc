"""Pixels of DICOM series as a volume, and of DICOM segmentations as a mask on its grid.

Shapes: I J K as in `braintum.data.ingest.dicom_geometry`; N frames of a file, H W their rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from braintum.data.ingest.dicom_files import BROKEN, damage, opened
from braintum.data.ingest.dicom_geometry import frames_of, stacked
from braintum.data.ingest.nifti import as_float
from braintum.data.ingest.volumes import MAX_VOXELS, Affine, MaskValues, Volume
from braintum.data.schema import DataError

LIBJPEG, OPENJPEG = "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"
DECODERS = {
    "1.2.840.10008.1.2.4.50": LIBJPEG, "1.2.840.10008.1.2.4.51": LIBJPEG, "1.2.840.10008.1.2.4.57": LIBJPEG,
    "1.2.840.10008.1.2.4.70": LIBJPEG, "1.2.840.10008.1.2.4.80": LIBJPEG, "1.2.840.10008.1.2.4.81": LIBJPEG,
    "1.2.840.10008.1.2.4.90": OPENJPEG, "1.2.840.10008.1.2.4.91": OPENJPEG, "1.2.840.10008.1.2.4.201": OPENJPEG,
    "1.2.840.10008.1.2.4.202": OPENJPEG, "1.2.840.10008.1.2.4.203": OPENJPEG,
}  # fmt: skip
"""What pydicom needs beside itself for JPEG, JPEG-LS, JPEG 2000 and HTJ2K."""
OFF_GRID = 0.25
"""How far a segmentation's pixel may lie from the middle of a voxel, in voxels."""


def read_series(paths: Sequence[Path], what: str) -> tuple[Volume, Affine]:
    """A series' values, rescaled, I,J,K, and the affine to mm (RAS+).

    Raises DataError, naming `what`, for files that cannot be read or decoded, for slices of several sizes or in colour,
    and for what `stacked` refuses.
    """
    frames, planes = [], []
    for path in paths:
        dataset = opened(path, f"{what}: one of its files ")
        pixels_NHW = _pixels(dataset, what)
        try:
            its_frames = frames_of(dataset)
        except BROKEN as error:
            raise DataError(
                f"{what}: says not where its slices are ({type(error).__name__}); export it again"
            ) from None
        if len(its_frames) != len(pixels_NHW):
            raise DataError(f"{what}: {len(pixels_NHW)} pictures at {len(its_frames)} places; export it again")
        frames += its_frames
        planes += [
            as_float(plane_HW) * f.slope + f.intercept for plane_HW, f in zip(pixels_NHW, its_frames, strict=True)
        ]
    sizes = sorted({plane.shape for plane in planes})
    if len(sizes) > 1:
        raise DataError(f"{what}: has slices of {_by(sizes[0])} and {_by(sizes[-1])} pixels; choose another series")
    order, affine = stacked(frames, what)
    return np.stack([planes[index].T for index in order], axis=2).astype(np.float32), affine


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}×{shape[-2]}"


def _pixels(dataset: Dataset, what: str) -> NDArray[Any]:
    """Stored values of all frames, N,H,W. Raises DataError for what is not grey, too large, or cannot be decoded."""
    try:
        samples, rows, columns = (int(dataset[key].value) for key in ("SamplesPerPixel", "Rows", "Columns"))
        frames = int(dataset.get("NumberOfFrames") or 1)
        syntax = UID(dataset.file_meta.TransferSyntaxUID)
        if samples != 1 or dataset.get("PhotometricInterpretation") != "MONOCHROME2":
            raise DataError(f"{what}: is no picture in grey with white for high values; choose another series")
        if not 0 < rows * columns * frames <= MAX_VOXELS:
            raise DataError(f"{what}: a file of {frames}×{rows}×{columns} pixels; expected 1 to {MAX_VOXELS:,}")
        stored = len(dataset.PixelData) * 8 // int(dataset.BitsAllocated)
        if not syntax.is_encapsulated and rows * columns * frames > stored:
            raise DataError(f"{what}: one of its files is cut short: it has {stored:,} pixels; export it again")
        if syntax.is_encapsulated and not get_decoder(syntax).is_available:
            raise DataError(f"{what}: is compressed as {syntax.name}, {_needs(syntax)}")
        try:
            pixels: NDArray[Any] = dataset.pixel_array
        except (NotImplementedError, RuntimeError):
            if not syntax.is_encapsulated:
                raise
            raise DataError(f"{what}: is compressed as {syntax.name}, {_needs(syntax)}") from None
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what}: one of its files {damage(error)}") from None
    return pixels.reshape(frames, rows, columns)


def _needs(syntax: UID) -> str:
    package = DECODERS.get(syntax, f"{LIBJPEG} {OPENJPEG}")
    return f"which could not be decoded with what is installed; try: pip install pylibjpeg {package}"


def read_segmentation(
    path: Path, shape: tuple[int, ...], affine: Affine, mask_values: MaskValues, what: str
) -> NDArray[np.uint8] | None:
    """A DICOM segmentation as a label map I,J,K of the volume of that shape and affine; None if it is not on its grid.

    Segments are known by their numbers, as `mask_values` says. Where they overlap, tumour wins over oedema. Frames may
    be missing (empty ones often are), flipped or in any order. Raises DataError, naming `what`, for a file that cannot
    be read, and for unknown segments.
    """
    dataset = opened(path, f"{what} ")
    pixels_NHW = _pixels(dataset, what)
    try:
        frames = frames_of(dataset)
        numbers_NHW = _segment_numbers(dataset, pixels_NHW)
    except BROKEN as error:
        raise DataError(f"{what} {damage(error)}") from None
    if len(frames) != len(numbers_NHW):
        raise DataError(f"{what}: {len(numbers_NHW)} pictures at {len(frames)} places; export it again")
    labels_IJK = np.zeros(shape, np.uint8)
    to_voxels = np.linalg.inv(affine)
    for numbers_HW, frame in zip(numbers_NHW, frames, strict=True):
        step = to_voxels @ frame.affine
        rows, columns = np.nonzero(numbers_HW)
        exact_3P = (step @ np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]))[:3]
        voxels_3P = np.rint(exact_3P).astype(np.int64)
        one_to_one = np.allclose(np.linalg.norm(step[:3, :2], axis=0), 1, atol=0.01)
        if not one_to_one or (np.abs(exact_3P - voxels_3P) > OFF_GRID).any():
            return None
        if (voxels_3P < 0).any() or (voxels_3P >= np.array(shape)[:, None]).any():
            return None
        found = mask_values.label_map(numbers_HW[rows, columns], what)
        place = tuple(voxels_3P)
        kept = labels_IJK[place]
        # of two labels the lower, tumour, but for 0
        labels_IJK[place] = np.where((kept == 0) | (found == 0), np.maximum(kept, found), np.minimum(kept, found))
    return labels_IJK


def _segment_numbers(dataset: Dataset, pixels_NHW: NDArray[Any]) -> NDArray[Any]:
    """The number of the segment that each pixel is of, 0 for none. A fractional one counts from a half."""
    kind = dataset.get("SegmentationType")
    if kind == "LABELMAP":
        return pixels_NHW
    inside_NHW = pixels_NHW > 0
    if kind == "FRACTIONAL":
        inside_NHW = pixels_NHW >= dataset.MaximumFractionalValue / 2
    numbers_N = [_segment(groups, dataset) for groups in dataset.PerFrameFunctionalGroupsSequence]
    return inside_NHW * np.array(numbers_N, np.int64)[:, None, None]


def _segment(groups: Dataset, dataset: Dataset) -> int:
    for place in (groups, *dataset.get("SharedFunctionalGroupsSequence", [])):
        if place.get("SegmentIdentificationSequence"):
            return int(place.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    raise ValueError("no segment")
