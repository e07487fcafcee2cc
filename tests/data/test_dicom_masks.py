"""DICOM: where a series' mask comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_dicom import ALL, change, ingest, pixels, put, rejected, write_study
from example_scans import affine, head, tumour, write_nifti, write_segmentation, write_series
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from braintum.data.ingest.volumes import MaskValues
from braintum.data.schema import DataError
from braintum.data.table import read_masks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dump"


def test_segments_are_known_by_number(root: Path) -> None:
    images = write_series(root / "a", head())
    oedema = tumour(radius=(5, 5, 3.5))  # overlaps the tumour, which wins
    write_segmentation(root / "seg", images, {1: oedema, 2: tumour()})
    url, card = ingest(root, mask_values=MaskValues((2,), (1,)), slicing=ALL, strict=True)
    assert card.masks == ["tumour", "oedema"]
    masks = pixels(url, read_masks)
    assert ((masks == 1).sum(), (masks == 2).sum()) == (tumour().sum(), oedema.sum() - tumour().sum())
    with pytest.raises(DataError, match="segmentation 1: has the value 2; known: tumour 1, oedema none"):
        ingest(root, "unknown", mask_values=MaskValues((1,), ()))


@pytest.mark.parametrize("refers", [True, False])
def test_a_segmentation_on_another_grid_is_refused(root: Path, refers: bool) -> None:
    images = write_series(root / "a", head())
    other = write_series(root.parent / "other", head(1), affine((1, 1, 2)) + np.eye(4, k=3) * 0.4)
    write_segmentation(root / "seg", other, {1: tumour()})
    study = {"StudyInstanceUID": images[0].StudyInstanceUID}
    change(root / "seg", lambda seg: put(**study)(seg))
    if refers:
        change(root / "seg", lambda seg: setattr(seg.ReferencedSeriesSequence[0], "SeriesInstanceUID",
                                                 images[0].SeriesInstanceUID))  # fmt: skip
    with pytest.raises(DataError, match="segmentation 1 is not on its grid; resample it to that"):
        ingest(root)


def test_a_segmentation_of_nothing_known_is_matched_by_its_place(root: Path) -> None:
    images = write_series(root / "a", head())
    write_segmentation(root / "seg", images, {1: tumour()})
    expected = pixels(ingest(root, "expected")[0], read_masks)

    def forget(segmentation: Dataset) -> None:
        segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = Sequence([])
        for frame in segmentation.PerFrameFunctionalGroupsSequence:
            if "DerivationImageSequence" in frame:
                del frame.DerivationImageSequence

    change(root / "seg", forget)
    np.testing.assert_array_equal(pixels(ingest(root, strict=True)[0], read_masks), expected)


def test_a_segmentation_of_a_series_that_was_not_taken_is_listed(root: Path) -> None:
    images = write_study(root / "a")
    other = write_series(root / "b", head(1), SeriesDescription="FLAIR", StudyInstanceUID=images[0].StudyInstanceUID)
    write_segmentation(root / "b/seg", other, {1: tumour()})
    url, card = ingest(root)
    assert (card.num_slices, card.num_masks) == (2, 2)
    [[what, reason]] = rejected(url)
    assert what.startswith("file 26, SHA-256 ")
    assert reason.startswith("is a segmentation of no series that was taken; choose that one with --series")


def test_two_segmentations_are_one_too_many(root: Path) -> None:
    images = write_study(root / "a")
    write_segmentation(root / "a/seg2", images, {1: tumour(radius=(2, 2, 2))})
    with pytest.raises(DataError, match="has 2 masks; keep one"):
        ingest(root)


def test_a_nifti_beside_the_series_is_its_mask(root: Path) -> None:
    write_series(root / "a", head())
    write_nifti(root / "a/mask.nii.gz", tumour(), axes="LIA")
    url, card = ingest(root, slicing=ALL, strict=True)
    assert card.num_masks == 10
    assert pixels(url, read_masks).sum() == tumour().sum()
    write_nifti(root / "a/small.nii.gz", tumour()[:20])  # not on its grid
    assert ingest(root, "small")[1].num_masks == 2
    write_nifti(root / "a/second.nii.gz", tumour())
    with pytest.raises(DataError, match="has 2 masks; keep one, or name NIfTI masks with --mask PATTERN"):
        ingest(root, "two")
    assert ingest(root, "named", mask="mask*")[1].num_masks == 2
    with pytest.raises(DataError, match="NIfTI 1 beside it is 20×28×12 voxels, the series 24×28×12"):
        ingest(root, "other", mask="small*")


def test_a_nifti_beside_files_of_two_patients_is_nobodys(root: Path) -> None:
    write_series(root / "a", head(1), names=[f"1-{k}" for k in range(12)])
    write_series(root / "a", head(2), names=[f"2-{k}" for k in range(12)], patient="patient-2")
    write_nifti(root / "a/mask.nii.gz", tumour())
    with pytest.raises(DataError, match="neither a mask nor a label"):
        ingest(root)
