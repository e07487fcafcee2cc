"""No text of a DICOM header and no name of a file gets into a dataset, the list of what was rejected, or a terminal."""

from __future__ import annotations

import csv
import hashlib
import itertools
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import pyarrow.parquet as pq
import pydicom
import pytest
from example_scans import affine, head, tumour, write_segmentation, write_series
from pydicom import Dataset, config
from pydicom.datadict import DicomDictionary
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLosslessSV1

from braintum.cli import main
from braintum.data.ingest.dicom import ingest_dicom
from braintum.data.ingest.slicing import Slicing

SALT = "of-this-test-and-no-other"
TEXT = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
KEPT = {
    "BurnedInAnnotation", "FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "ImageType",
    "Modality", "NumberOfFrames", "PatientID", "PhotometricInterpretation", "PixelSpacing", "ReferencedSOPClassUID",
    "RescaleIntercept", "RescaleSlope", "SOPClassUID", "SOPInstanceUID", "SegmentationType", "SpecificCharacterSet",
    "StudyInstanceUID",
}  # fmt: skip
"""What says how pixels are stored and where they lie; and what refers to another file, which is a secret already."""
SECRETS: set[str] = set()
COUNT = itertools.count(1)


def secret(kind: str) -> str:
    """A string of a header's kind that stands nowhere else; remembered."""
    n = next(COUNT)
    value = {
        "UI": f"1.2.826.0.1.77{n:06}.4242",
        "DA": f"{1900 + n % 40}{n % 12 + 1:02}{n % 28 + 1:02}",
        "TM": f"{n % 24:02}{n % 60:02}17.{n:06}",
        "DT": f"{1900 + n % 40}0317{n % 24:02}{n % 60:02}23.{n:06}",
        "AS": f"{n % 99:03}Y",
        "IS": f"5517{n:06}",
        "DS": f"63.51{n:06}",
        "CS": f"QZX SECRET {n:05}",
    }.get(kind, f"Qzx-secret-{n:05}")
    SECRETS.add(value)
    return value


def filled() -> Dataset:
    """A secret in every element that can hold text and that says nothing of pixels or of who refers to whom."""
    dataset = Dataset()
    for tag, (kind, _, _, _, keyword) in DicomDictionary.items():
        if kind in TEXT and keyword and keyword not in KEPT and tag > 0x00080000:
            setattr(dataset, keyword, secret(kind))
    other = Dataset()
    other.PatientID, other.PatientName = secret("LO"), secret("PN")
    dataset.OtherPatientIDsSequence = Sequence([other])
    dataset.private_block(0x0019, secret("LO"), create=True).add_new(1, "LO", secret("LO"))
    dataset.SpecificCharacterSet = secret("CS")  # none that is known: pydicom would warn, and quote it
    return dataset


def write_filled(path: Path, image: Dataset, secrets: Dataset) -> None:
    image.update(secrets)
    image.file_meta.SourceApplicationEntityTitle = secret("AE")[:16]
    image.preamble = secret("LO").encode().ljust(128, b"\0")
    image.save_as(path, enforce_file_format=True)


def write_scan(folder: Path, description: str, segments: Iterable[int] = (), **elements: str) -> None:
    """A series of a patient, full of secrets, in files and a folder with secret names; and a segmentation."""
    known = {"PatientID": secret("LO"), "StudyInstanceUID": secret("UI"), "SeriesInstanceUID": secret("UI"),
             "FrameOfReferenceUID": secret("UI"), "SeriesDescription": f"{description} {secret('LO')}"}  # fmt: skip
    names = [secret("LO") for _ in range(12)]
    images = write_series(folder, head(next(COUNT)), names=names, **(known | elements))
    SECRETS.update(str(image.SOPInstanceUID) for image in images)
    if segments:
        path = folder / secret("LO")
        write_segmentation(path, images, {number: tumour() for number in segments})
        segmentation = pydicom.dcmread(path)
        for item in segmentation.SegmentSequence:
            item.SegmentLabel, item.SegmentDescription = secret("LO"), secret("ST")
        secrets = filled()
        del secrets.SeriesInstanceUID, secrets.SeriesDescription
        write_filled(path, segmentation, secrets)
    secrets = filled()
    del secrets.SeriesInstanceUID, secrets.SeriesDescription
    for name, image in list(zip(names, images, strict=True))[::4]:
        write_filled(folder / name, image, secrets)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series that can be taken, and one of every kind that cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_dump(tmp_path_factory.mktemp("dicom"))


def write_dump(root: Path) -> Path:
    settings = config.settings
    mode = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    segmented, beside, gap, burned, compressed, other, unknown = (root / secret("LO") / secret("LO") for _ in range(7))
    write_scan(segmented, "t1 post", [1])
    write_scan(unknown, "t1 post", [1, 2, 3])
    write_scan(beside, "mprage +gd")
    mask = nib.Nifti1Image(tumour(), affine())
    mask.header["descrip"] = secret("LO")
    nib.save(mask, beside / f"{secret('LO')}.nii.gz")
    write_scan(gap, "t1 post")
    sorted(gap.iterdir())[5].unlink()
    write_scan(burned, "t1 post", BurnedInAnnotation="YES")
    write_scan(other, "T2 flair")
    write_scan(compressed, "t1 post")
    for path in compressed.iterdir():
        image = pydicom.dcmread(path)
        image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        image.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        image["PixelData"].is_undefined_length = True
        image.save_as(path)
    whole = min(other.iterdir()).read_bytes()
    for length in (300, 3000):
        (root / secret("LO")).write_bytes(whole[:length])
    (root / secret("LO")).write_text(f"no DICOM, of {secret('PN')}")
    settings.reading_validation_mode, settings.writing_validation_mode = mode
    return root


@pytest.mark.parametrize("asked", [[], ["--demographics"]], ids=["identity", "demographics"])
def test_nothing_of_a_header_leaves_it(dump: Path, asked: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = dump.parent / f"out-{len(asked)}"
    command = ["ingest", "dicom", str(dump), "--salt", SALT, "--size", "32", *asked, "--out"]
    # a process of its own, whose warnings and log lines go where they go
    done = subprocess.run([sys.executable, "-m", "braintum.cli", *command, str(out), "--json"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    shown = {"stdout": done.stdout, "stderr": done.stderr}
    labels = dump.parent / "labels.csv"
    labels.write_text(f"{next(iter(SECRETS))},x\n")
    for name, options in {"labels": ["--labels", str(labels)], "strict": ["--strict"]}.items():
        assert main([*command, str(dump.parent / f"{name}-{len(asked)}"), *options]) == 2
        shown |= {f"{name} {which}": text.encode() for which, text in zip("12", capfd.readouterr(), strict=True)}
    files = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert set(files) == {"card.json", "rejected.csv", "slices-00000.parquet"}
    table = pq.read_table(out / "slices-00000.parquet")
    assert table.num_rows == 4 * 5 // 2
    assert (table["age_years"].null_count < len(table)) == bool(asked)
    assert table["sex"].null_count == len(table), "a secret is no sex"
    columns = {
        name: b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in column.to_pylist())
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    assert len(SECRETS) > 20_000
    for name, content in (shown | files | columns).items():
        found = [value for value in SECRETS if value.encode() in content]
        assert not found, f"{name}: {found[:3]}"
    # and the search finds what is there
    assert any(value.encode() in min(dump.rglob("Qzx*/Qzx*/Qzx*")).read_bytes() for value in SECRETS)


def test_what_was_rejected_can_still_be_found(dump: Path) -> None:
    """By number and digest, with reasons that say what to do."""
    out = dump.parent / "listed-out"
    ingest_dicom(dump, str(out), salt=SALT, slicing=Slicing(size=32))
    with (out / "rejected.csv").open(newline="") as file:
        rejected = list(csv.reader(file))[1:]
    reasons = sorted(reason for _, reason in rejected)
    expected = (
        "BurnedInAnnotation is YES", "a slice is missing between slices 5 and 6 of 11", "has no Study-",
        "is compressed as JPEG Lossless", "of 1 series there is none", "segmentation 1: has the value 3; known: tumour",
    )  # fmt: skip
    for reason in expected:
        assert any(reason in given for given in reasons), (reason, reasons)
    files = sorted(
        (path for path in dump.rglob("*") if path.is_file()), key=lambda path: path.relative_to(dump).as_posix()
    )
    for what, _ in rejected:
        number, digest = re.search(r"file (\d+), SHA-256 ([0-9a-f]{16})", what).groups()
        assert hashlib.sha256(files[int(number) - 1].read_bytes()).hexdigest().startswith(digest)
