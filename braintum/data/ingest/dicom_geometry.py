"""Where the slices of DICOM files lie, and how they make a volume.

Shapes: I along a slice's columns' index (rightwards in the picture), J along its rows' index (downwards), K slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydicom import Dataset

from braintum.data.ingest.volumes import Affine
from braintum.data.schema import DataError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_PLACE_MM = 0.02
UNEVEN = 0.05
"""How far a distance between slices may be off the usual one, as a share of that."""


class Frame(NamedTuple):
    """One slice. Vectors are DICOM's (LPS, mm): `row` points along a row, `column` down a column."""

    position: tuple[float, ...]
    row: tuple[float, ...]
    column: tuple[float, ...]
    spacing_yx_mm: tuple[float, ...]
    slope: float
    intercept: float

    @property
    def affine(self) -> Affine:
        """From (I, J, unit along the normal) to mm, RAS+."""
        affine = np.eye(4)
        affine[:3, 0] = np.multiply(self.row, self.spacing_yx_mm[1])
        affine[:3, 1] = np.multiply(self.column, self.spacing_yx_mm[0])
        affine[:3, 2] = np.cross(self.row, self.column)
        affine[:3, 3] = self.position
        return LPS_TO_RAS @ affine


def frames_of(dataset: Dataset) -> list[Frame]:
    """The frames of a file: one, or those of an enhanced one. Raises what a broken header makes pydicom raise."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        orientation = [float(value) for value in dataset.ImageOrientationPatient]
        return [
            Frame(
                tuple(float(value) for value in dataset.ImagePositionPatient), tuple(orientation[:3]),
                tuple(orientation[3:]), tuple(float(value) for value in dataset.PixelSpacing),
                float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0)),
            )
        ]  # fmt: skip
    frames = []
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        places = [groups, *dataset.get("SharedFunctionalGroupsSequence", [])]
        orientation = [float(v) for v in _group(places, "PlaneOrientationSequence").ImageOrientationPatient]
        rescale = _group(places, "PixelValueTransformationSequence")
        frames.append(
            Frame(
                tuple(float(v) for v in _group(places, "PlanePositionSequence").ImagePositionPatient),
                tuple(orientation[:3]), tuple(orientation[3:]),
                tuple(float(v) for v in _group(places, "PixelMeasuresSequence").PixelSpacing),
                float(rescale.get("RescaleSlope", 1)), float(rescale.get("RescaleIntercept", 0)),
            )
        )  # fmt: skip
    return frames


def _group(places: Sequence[Any], name: str) -> Dataset:
    """A functional group: the frame's own, else the one that frames share, else nothing."""
    for place in places:
        if place.get(name):
            group: Dataset = place[name].value[0]
            return group
    return Dataset()


def stacked(frames: Sequence[Frame], what: str) -> tuple[list[int], Affine]:
    """The order of frames along their normal, and the affine (voxel I,J,K to mm, RAS+) of the volume that they make.

    Raises DataError, naming `what`, the distance and the place, for slices that are no stack: of several directions or
    pixel sizes, shifted, two at one place, one missing, or unevenly apart.
    """
    if len(frames) < 2:
        raise DataError(f"{what}: has {len(frames)} slice, which makes no volume; choose another series")
    first = frames[0]
    directions = np.array([[*frame.row, *frame.column] for frame in frames])
    row, column = directions[0, :3], directions[0, 3:]
    if not np.isfinite(directions).all() or abs(np.linalg.norm(row) - 1) + abs(np.linalg.norm(column) - 1) > 0.01:
        raise DataError(f"{what}: ImageOrientationPatient holds no directions; correct the headers")
    if np.abs(directions - directions[0]).max() > 0.01:
        raise DataError(f"{what}: its slices have several directions, as a localiser has; choose another series")
    if abs(row @ column) > 0.01:
        raise DataError(
            f"{what}: ImageOrientationPatient: rows and columns are not at right angles; correct the headers"
        )
    spacings = np.array([frame.spacing_yx_mm for frame in frames])
    if not (np.isfinite(spacings).all() and (spacings > 0).all()) or np.ptp(spacings, axis=0).max() > 1e-3:
        raise DataError(f"{what}: PixelSpacing is not one size above 0 for all slices; choose another series")
    positions = np.array([frame.position for frame in frames])
    if not np.isfinite(positions).all():
        raise DataError(f"{what}: ImagePositionPatient holds no place; correct the headers")
    along = positions @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    _refuse_uneven(along[order], what)
    affine = first._replace(position=tuple(positions[order[0]])).affine
    step = LPS_TO_RAS[:3, :3] @ (positions[order[-1]] - positions[order[0]]) / (len(frames) - 1)
    shift = float(np.linalg.norm(step - (step @ affine[:3, 2]) * affine[:3, 2]))
    if shift > UNEVEN * np.linalg.norm(step):
        raise DataError(
            f"{what}: each slice is shifted by {shift:.2f} mm against the one before; resample it to a straight stack"
        )
    affine[:3, 2] = step
    return [int(index) for index in order], affine


def _refuse_uneven(along_mm: np.ndarray, what: str) -> None:
    steps = np.diff(along_mm)
    usual = float(np.median(steps))

    def between(index: int) -> str:
        place = f"{along_mm[index] - along_mm[0]:.1f} mm from the first"
        return f"slices {index + 1} and {index + 2} of {len(along_mm)}, {place}"

    if steps.min() < SAME_PLACE_MM:
        raise DataError(
            f"{what}: two slices at one place ({between(int(steps.argmin()))}): several phases or echoes? "
            "Choose another with --series, or separate them"
        )
    odd = np.flatnonzero(np.abs(steps - usual) > UNEVEN * usual)
    if len(odd):
        gap = float(steps[odd[0]])
        kind = "a slice is missing" if gap > 1.5 * usual else "slices are uneven"
        raise DataError(
            f"{what}: {kind} between {between(int(odd[0]))}: {gap:.2f} mm apart, others {usual:.2f} mm; "
            "export the series again"
        )
