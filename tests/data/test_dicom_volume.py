"""DICOM: how a series' files make a volume."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from example_dicom import ALL, change, ingest, pixels, put, rejected, shift, write_study
from example_scans import affine, head, tumour, write_nifti, write_segmentation, write_series
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from braintum.data.ingest.nifti import ingest_nifti
from braintum.data.ingest.slicing import Slicing
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_masks
from braintum.parts import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dump"


@pytest.mark.parametrize("axes", ["LPS", "LPI", "PIR", "LIA"])
@pytest.mark.parametrize("degrees", [0, 12])
def test_any_direction_gives_the_slices_that_nifti_gives(root: Path, axes: str, degrees: float) -> None:
    at = affine((1, 1.2, 2), degrees)
    images = write_series(root / "series", head(), at, axes)
    write_segmentation(root / "series/seg", images, {1: tumour()}, axes)
    write_nifti(root.parent / "nifti/a_t1.nii", head(), at)
    write_nifti(root.parent / "nifti/a_seg.nii", tumour(), at)
    same = str(root.parent / "same")
    ingest_nifti(root.parent / "nifti", same, image="*_t1.nii", mask="*_seg.nii", case=".+", slicing=ALL)
    url, card = ingest(root, slicing=ALL, strict=True)
    assert card.num_slices == 10
    np.testing.assert_array_equal(pixels(url), pixels(same))
    np.testing.assert_array_equal(pixels(url, read_masks), pixels(same, read_masks))
    for here, there in zip(*(load_table(u, Data(image_size=32)).spacing_R2 for u in (url, same)), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5)


def test_values_are_rescaled_slice_by_slice(root: Path) -> None:
    images = write_study(root / "a")
    plain = ingest(root, "plain", slicing=ALL)[0]
    for k, image in enumerate(images):
        slope = 1 + k
        values = (np.frombuffer(image.PixelData, "<i2") * 4 + 100).astype("<i2")
        image.RescaleSlope, image.RescaleIntercept = slope, -100.0 * slope
        image.PixelData = values.tobytes()
        image.save_as(root / f"a/{k:03d}", enforce_file_format=True)
    with pytest.raises(AssertionError):  # as stored they are others
        np.testing.assert_allclose(pixels(plain), pixels(ingest(root, "scaled", slicing=ALL)[0]), atol=1e-3)
    for k, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 0.5, -50.0
        image.save_as(root / f"a/{k:03d}", enforce_file_format=True)
    np.testing.assert_array_equal(pixels(plain), pixels(ingest(root, "even", slicing=ALL)[0]))


def test_eight_bits_stay_eight(root: Path) -> None:
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    images = write_series(root / "a", head() // 4, **eight)
    write_segmentation(root / "a/seg", images, {1: tumour()})
    assert ingest(root)[1].dtype == "uint8"


def remove_one(folder: Path) -> None:
    (folder / "004").unlink()


def shift_one(folder: Path) -> None:
    change(folder / "004", lambda image: shift(image, 0.4))


def twice(folder: Path) -> None:
    image = pydicom.dcmread(folder / "004")
    image.SOPInstanceUID = generate_uid()
    image.save_as(folder / "again", enforce_file_format=True)


def each(how):
    return lambda folder: [change(path, lambda image: how(image)) for path in sorted(folder.glob("0*"))]


def slant(image: Dataset) -> None:
    shift(image, 0.5 * image.InstanceNumber, axis=0)


def one(how):
    return lambda folder: change(folder / "004", how)


def no_place(image: Dataset) -> None:
    del image.ImagePositionPatient


def cut(image: Dataset) -> None:
    image.PixelData = image.PixelData[:100]


def narrow(image: Dataset) -> None:
    image.Columns, image.PixelData = 20, image.PixelData[: 28 * 20 * 2]


def lossless(image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    image.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].is_undefined_length = True


BAD = {
    "missing": (remove_one, "a slice is missing between slices 4 and 5 of 11, 6.0 mm from the first: 4.00 mm apart, "
                            "others 2.00 mm; export the series again"),
    "uneven": (shift_one, "slices are uneven between slices 4 and 5 of 12, 6.0 mm from the first: 2.40 mm apart"),
    "two at one place": (twice, "two slices at one place (slices 5 and 6 of 13, 8.0 mm from the first)"),
    "slanted": (each(slant), "each slice is shifted by 0.50 mm against the one before"),
    "two directions": (one(put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])), "its slices have several directions"),
    "no directions": (each(put(ImageOrientationPatient=[0, 0, 0, 0, 1, 0])), "holds no directions; correct"),
    "not at right angles": (each(put(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])), "are not at right angles"),
    "two spacings": (one(put(PixelSpacing=[2, 2])), "PixelSpacing is not one size above 0 for all slices"),
    "no place": (one(no_place), "says not where its slices are (AttributeError)"),
    "cut short": (one(cut), "one of its files is cut short: it has 50 pixels; export it again"),
    "two sizes": (one(narrow), "has slices of 20×28 and 24×28 pixels; choose another series"),
    "colour": (one(put(PhotometricInterpretation="MONOCHROME1")), "is no picture in grey with white for high values"),
    "compressed": (one(lossless), "is compressed as JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process "
                   "14 [Selection Value 1]), which could not be decoded with what is installed; try: pip install "
                   "pylibjpeg pylibjpeg-libjpeg"),
    "burnt in": (one(put(BurnedInAnnotation="YES")), "BurnedInAnnotation is YES: names may be drawn into"),
    "nobody": (each(put(PatientID="")), "no PatientID, so one patient could be on both sides of a split; give each"),
    "one slice": (lambda folder: [path.unlink() for path in folder.glob("0*") if path.name != "004"], "has 1 slice,"),
    "one thick": (each(put(PixelSpacing=[8, 1])), "axial pixels would be 8.00×1.00 mm, and the head flat"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_series_that_are_no_volume_are_listed_without_a_name(root: Path, name: str) -> None:
    (root.parent / "labels.csv").write_text("patient,label\nbad,x\ngood,x\n")
    spoil, message = BAD[name]
    write_series(root / "bad", head(1), patient="bad")
    write_series(root / "good", head(2), patient="good")
    spoil(root / "bad")
    url, card = ingest(root, labels=root.parent / "labels.csv")
    assert (card.num_rejected, card.num_cases) == (1, 1)
    [[what, reason]] = rejected(url)
    assert what.startswith("case ")
    assert " scan 1 (file 1, SHA-256 " in what
    assert message in reason
    with pytest.raises(DataError) as error:
        ingest(root, "strict", labels=root.parent / "labels.csv", strict=True)
    assert message in str(error.value)


def test_files_without_a_preamble_are_read(root: Path) -> None:
    images = write_study(root / "a")
    expected = pixels(ingest(root, "expected")[0])
    for k, image in enumerate(images):
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pydicom.dcmwrite(root / f"a/{k:03d}", image, implicit_vr=True, little_endian=True, enforce_file_format=False)
        content = (root / f"a/{k:03d}").read_bytes()
        start = content.index(b"\x08\0\x08\0")
        (root / f"a/{k:03d}").write_bytes(content[start:])
    np.testing.assert_array_equal(pixels(ingest(root, strict=True)[0]), expected)


def test_compressed_files_are_read_where_that_is_possible(root: Path) -> None:
    (root.parent / "labels.csv").write_text("patient,label\np,x\n")
    found = {}
    for name in ("MR_small", "MR_small_jp2klossless", "MR_small_RLE"):
        (root / name).mkdir(parents=True)
        for k in range(3):
            image = pydicom.dcmread(get_testdata_file(f"{name}.dcm"))
            image.SOPInstanceUID, image.PatientID = generate_uid(), "p"
            shift(image, 0.8 * k)
            image.save_as(root / name / str(k))
        options = {"series": ".*", "slicing": Slicing("all", size=64), "labels": root.parent / "labels.csv"}
        found[name] = pixels(ingest(root / name, f"../{name}", **options, strict=True)[0])
    plain = found.pop("MR_small")
    assert plain.std() > 0.1
    for values in found.values():
        np.testing.assert_array_equal(values, plain)


def write_enhanced(path: Path, values_XYZ: np.ndarray) -> None:
    """One file of many frames, in no order."""
    plain = write_series(path.parent / "plain", values_XYZ)
    enhanced = pydicom.dcmread(path.parent / "plain/000")
    shutil.rmtree(path.parent / "plain")
    order = np.random.default_rng(0).permutation(len(plain))
    enhanced.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    measures, orientation, rescale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = plain[0].PixelSpacing
    orientation.ImageOrientationPatient = plain[0].ImageOrientationPatient
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, 5
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    frames = []
    for k in order:
        position, groups = Dataset(), Dataset()
        position.ImagePositionPatient = plain[k].ImagePositionPatient
        groups.PlanePositionSequence = Sequence([position])
        frames.append(groups)
    enhanced.SharedFunctionalGroupsSequence = Sequence([shared])
    enhanced.PerFrameFunctionalGroupsSequence = Sequence(frames)
    enhanced.NumberOfFrames = len(frames)
    enhanced.PixelData = b"".join(plain[k].PixelData for k in order)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(enhanced, name)
    enhanced.save_as(path, enforce_file_format=True)


def test_enhanced_files_hold_a_whole_volume(root: Path) -> None:
    root.mkdir()
    (root.parent / "labels.csv").write_text("patient,label\npatient-1,x\n")
    labels = {"labels": root.parent / "labels.csv", "slicing": ALL, "strict": True}
    write_series(root / "a", head())
    expected = pixels(ingest(root, "expected", **labels)[0])
    shutil.rmtree(root / "a")
    write_enhanced(root / "b", head())
    np.testing.assert_array_equal(pixels(ingest(root, **labels)[0]), expected)
