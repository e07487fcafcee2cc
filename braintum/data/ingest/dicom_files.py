"""DICOM files as they lie in folders: found by content, and as much of their headers as choosing a series takes.

What a header says is private: here it stays in memory. No message holds a header's text, a file's name or a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from braintum.data.ingest.bar import Bar
from braintum.data.ingest.dicom_geometry import Frame, frames_of
from braintum.data.ingest.nifti import ENDINGS
from braintum.data.ingest.walk import files_below
from braintum.data.schema import DataError

BROKEN = (
    AttributeError, BytesLengthException, EOFError, IndexError, InvalidDicomError, KeyError, MemoryError,
    NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, TypeError, ValueError, struct.error,
    zlib.error,
)  # fmt: skip
"""What pydicom raises, depending on what is wrong with a file."""
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
MR_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1")
OLDEST = 90
"""The age of all who are older: few are, so that it may tell who somebody is (HIPAA's safe harbor, 45 CFR 164.514)."""
PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
TAGS = (
    "BitsStored", "BurnedInAnnotation", "ContrastBolusAgent", "ContrastBolusAgentSequence", "EchoTime",
    "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "Modality", "PatientID",
    "PerFrameFunctionalGroupsSequence", "PixelSpacing", "ProtocolName", "ReferencedSeriesSequence", "RepetitionTime",
    "RescaleIntercept", "RescaleSlope", "SOPClassUID", "SOPInstanceUID", "ScanningSequence", "SeriesDescription",
    "SeriesInstanceUID", "SharedFunctionalGroupsSequence", "StudyDate", "StudyInstanceUID", "StudyTime",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is looked at of one file. `number`: of the sorted list of all files. `refers`: UIDs that a mask is of."""

    number: int
    path: Path
    patient: str
    study: str
    time: str
    series: str
    instance: str
    is_mr: bool
    is_mask: bool
    description: str
    image_type: str
    agent: str
    sequence: str
    echo_ms: float | None
    repetition_ms: float | None
    burned_in: bool
    bits: int
    frames: tuple[Frame, ...]
    refers: frozenset[str]


@dataclass(frozen=True)
class Unreadable:
    """A DICOM file that cannot be used, and why."""

    number: int
    path: Path
    reason: str


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings and log lines quote headers."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def named(number: int, path: Path) -> str:
    """How a file is called: by its number and the digest of its content, by which its owner can find it."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return f"file {number}"
    return f"file {number}, SHA-256 {digest[:16]}"


def found(root: Path) -> tuple[list[Header], list[Unreadable], list[Path]]:
    """Headers of all DICOM files under a folder, those that cannot be used, and the NIfTI files there.

    Raises DataError for a folder that cannot be listed.
    """
    try:
        paths = sorted(files_below(root), key=lambda path: path.relative_to(root).as_posix())
    except OSError as error:
        raise DataError(f"dicom: a folder cannot be listed: {error.strerror}; change its permissions") from None
    headers: list[Header] = []
    unreadable: list[Unreadable] = []
    with Bar("headers", len(paths)) as bar, quiet():
        for number, path in enumerate(paths, 1):
            try:
                if _is_dicom(path):
                    header = _header(number, path)
                    headers += [] if header is None else [header]
            except DataError as error:
                unreadable.append(Unreadable(number, path, str(error)))
            bar.advance(1, len(unreadable))
    return headers, unreadable, [path for path in paths if path.name.endswith(ENDINGS)]


def _is_dicom(path: Path) -> bool:
    """By the magic word of the format; or, in files from before it, by the group of the first element."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    return start[128:] == b"DICM" or (len(start) == 132 and start[:2] in (b"\x08\0", b"\x02\0") and start[3] == 0)


def opened(path: Path, what: str, *, tags: Sequence[str] | None = None) -> Dataset:
    """A file's dataset: whole, or of `tags` alone. Raises DataError for one that cannot be read."""
    try:
        dataset = (
            pydicom.dcmread(path, force=True)
            if tags is None
            else pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(tags))
        )
        if "TransferSyntaxUID" not in dataset.file_meta:  # from before files said it
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            )
    except BROKEN as error:
        raise DataError(f"{what}{damage(error)}") from None
    return dataset


def age_and_sex(path: Path, what: str) -> tuple[int | None, str | None]:
    """Of a file's patient: whole years, OLDEST for all above, and "F", "M" or "O"; None for what is not said so.

    Where no age is written it is counted from the days of birth and of the study.
    """
    tags = ("PatientAge", "PatientBirthDate", "PatientSex", "StudyDate")
    dataset = opened(path, what, tags=tags)
    try:
        age, born, sex, day = (_text(dataset, name) for name in tags)
    except BROKEN as error:
        raise DataError(f"{what}{damage(error)}") from None
    years = None
    if found := re.fullmatch(r"(\d{3})([DWMY])", age):
        years = int(int(found[1]) / PER_YEAR[found[2]])
    elif re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", day) and born <= day:
        years = int(day[:4]) - int(born[:4]) - (day[4:] < born[4:])
    return None if years is None else min(years, OLDEST), sex if sex in ("F", "M", "O") else None


def damage(error: BaseException) -> str:
    """In words that quote nothing of the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"is damaged, or no DICOM ({type(error).__name__}); export it again"


def _header(number: int, path: Path) -> Header | None:
    """None for a directory of media, which holds no image."""
    dataset = opened(path, "", tags=TAGS)
    try:
        sop_class = _text(dataset, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        if sop_class == MEDIA_DIRECTORY:
            return None
        is_mask = sop_class in SEGMENTATIONS
        is_mr = _text(dataset, "Modality") == "MR" or sop_class in MR_IMAGES
        header = Header(
            number=number, path=path, patient=_text(dataset, "PatientID"), study=_text(dataset, "StudyInstanceUID"),
            time=f"{_text(dataset, 'StudyDate'):8} {_text(dataset, 'StudyTime')}",
            series=_text(dataset, "SeriesInstanceUID"), instance=_text(dataset, "SOPInstanceUID"),
            is_mr=is_mr, is_mask=is_mask,
            description=_text(dataset, "SeriesDescription") or _text(dataset, "ProtocolName"),
            image_type=_text(dataset, "ImageType"),
            agent=_text(dataset, "ContrastBolusAgent") or "yes" * bool(dataset.get("ContrastBolusAgentSequence")),
            sequence=_text(dataset, "ScanningSequence"), echo_ms=_number(dataset, "EchoTime"),
            repetition_ms=_number(dataset, "RepetitionTime"),
            burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES", bits=int(dataset.get("BitsStored") or 0),
            frames=_frames(dataset) if is_mr else (),
            refers=frozenset(_references(dataset)) if is_mask else frozenset(),
        )  # fmt: skip
    except BROKEN as error:
        raise DataError(damage(error)) from None
    if not (header.series and header.study and header.instance):
        raise DataError("has no Study-, Series- or SOPInstanceUID; export it again")
    return header


def _frames(dataset: Dataset) -> tuple[Frame, ...]:
    """None where they cannot be read: that is said of the series, should it be chosen."""
    try:
        return tuple(frames_of(dataset))
    except BROKEN:
        return ()


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value).strip()


def _number(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    return None if value in (None, "") else float(value)


def _references(dataset: Dataset) -> Iterator[str]:
    """UIDs of the series and images that a segmentation is of."""
    for series in dataset.get("ReferencedSeriesSequence") or []:
        yield str(series.get("SeriesInstanceUID", ""))
        for image in series.get("ReferencedInstanceSequence") or []:
            yield str(image.get("ReferencedSOPInstanceUID", ""))
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        for derivation in frame.get("DerivationImageSequence") or []:
            for image in derivation.get("SourceImageSequence") or []:
                yield str(image.get("ReferencedSOPInstanceUID", ""))
