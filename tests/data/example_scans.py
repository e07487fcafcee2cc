"""Small heads as volumes, and what writes them as NIfTI and DICOM files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SHAPE = (24, 28, 12)
"""X to the right, Y to the front, Z to the top."""
VOXEL_MM = (1.0, 1.0, 2.0)


def head(seed: int = 0, shape: Sequence[int] = SHAPE) -> NDArray[np.int16]:
    """An ellipsoid of 600 to 1,000 in noise of up to 30, RAS+; no two slices alike."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 30, shape)
    return np.where(_ball(shape, [(n - 1) / 2 for n in shape], [n * 0.42 for n in shape]),
                    rng.integers(600, 1000, shape), noise).astype(np.int16)  # fmt: skip


def tumour(centre: Sequence[float] = (8, 18, 6), radius: Sequence[float] = (3, 3, 2.5), shape: Sequence[int] = SHAPE):
    """A ball of 1, to the left and in front of the middle."""
    return _ball(shape, centre, radius).astype(np.uint8)


def _ball(shape: Sequence[int], centre: Sequence[float], radius: Sequence[float]) -> NDArray[np.bool_]:
    grid = np.indices(shape)
    return sum(((grid[a] - centre[a]) / radius[a]) ** 2 for a in range(3)) < 1


def affine(voxel_mm: Sequence[float] = VOXEL_MM, degrees: float = 0.0) -> NDArray[np.float64]:
    """RAS+, turned about the axis from left to right."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    result = np.eye(4)
    result[:3, :3] = turn * np.array(voxel_mm)
    result[:3, 3] = -20, 15, -40
    return result


def turned(values_XYZ: NDArray[Any], at: NDArray[np.float64], axes: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same voxels stored along other axes, such as "LPS", and their affine."""
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    return apply_orientation(values_XYZ, transform), at @ inv_ornt_aff(transform, values_XYZ.shape)


def write_nifti(path: Path, values_XYZ: NDArray[Any], at: NDArray[np.float64] | None = None, axes: str = "RAS") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values, its_affine = turned(values_XYZ, affine() if at is None else at, axes)
    nib.save(nib.Nifti1Image(values, its_affine), path)
    return path


def write_series(
    folder: Path, values_XYZ: NDArray[Any], at: NDArray[np.float64] | None = None, axes: str = "LPS",
    patient: str = "patient-1", names: Sequence[str] | None = None, **elements: Any,
) -> list[Dataset]:  # fmt: skip
    """A series of MR images, a file a slice; `elements` by keyword, as SeriesDescription."""
    folder.mkdir(parents=True, exist_ok=True)
    values_IJK, its_affine = turned(values_XYZ, affine() if at is None else at, axes)
    lps = np.diag([-1, -1, 1, 1]) @ its_affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    common = {
        "PatientID": patient, "PatientName": "", "PatientBirthDate": "", "PatientSex": "", "Modality": "MR",
        "StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(),
        "StudyDate": "20200101", "StudyTime": "120000", "StudyID": "", "AccessionNumber": "", "SeriesNumber": 1,
        "SeriesDescription": "t1 post contrast", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "ImageType": ["ORIGINAL"],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "Rows": values_IJK.shape[1], "Columns": values_IJK.shape[0],
        "PixelSpacing": [float(size[1]), float(size[0])], "SliceThickness": float(size[2]),
        "ImageOrientationPatient": [round(float(v), 8) for v in (*(lps[:3, 0] / size[0]), *(lps[:3, 1] / size[1]))],
        "ReferringPhysicianName": "",
    }  # fmt: skip
    datasets = []
    for k in range(values_IJK.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        position = {"ImagePositionPatient": [round(float(v), 6) for v in (lps @ [0, 0, k, 1])[:3]]}
        own = {"SOPInstanceUID": generate_uid(), "InstanceNumber": k + 1}
        for name, value in (common | own | position | elements).items():
            setattr(dataset, name, value)
        stored = np.ascontiguousarray(values_IJK[:, :, k].T)
        dataset.PixelData = (stored.astype(np.uint8) if dataset.BitsAllocated == 8 else stored.astype("<i2")).tobytes()
        dataset.save_as(folder / (names[k] if names else f"{k:03d}"), enforce_file_format=True)
        datasets.append(dataset)
    return datasets


def write_segmentation(
    path: Path, images: Sequence[Dataset], masks_XYZ: Mapping[int, NDArray[Any]], axes: str = "LPS", **elements: Any
) -> None:
    """A DICOM segmentation, by highdicom, with these segments (numbers from 1)."""
    stored = [turned(mask_XYZ, np.eye(4), axes)[0].transpose(2, 1, 0) for _, mask_XYZ in sorted(masks_XYZ.items())]
    described = [
        hd.seg.SegmentDescription(
            number, f"segment {number}", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in sorted(masks_XYZ)
    ]  # fmt: skip
    segmentation = hd.seg.Segmentation(
        source_images=list(images), pixel_array=np.stack(stored, axis=-1).astype(np.uint8),
        segmentation_type="BINARY", segment_descriptions=described, series_instance_uid=generate_uid(), series_number=9,
        sop_instance_uid=generate_uid(), instance_number=1, manufacturer="none", manufacturer_model_name="none",
        software_versions="1", device_serial_number="1",
    )  # fmt: skip
    for name, value in elements.items():
        setattr(segmentation, name, value)
    segmentation.save_as(path, enforce_file_format=True)
