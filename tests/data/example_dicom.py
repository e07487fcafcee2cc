"""Sets of DICOM files, changed in some way, and what ingesting them gives."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from example_scans import head, tumour, write_segmentation, write_series
from pydicom import Dataset

from braintum.data.ingest.dicom import ingest_dicom
from braintum.data.ingest.slicing import Slicing
from braintum.data.table import load_table, read_images
from braintum.parts import Data

SALT = "0123456789abcdef"
FEW = Slicing(2, size=32)
ALL = Slicing("all", size=32)


def ingest(root: Path, out: str = "out", **options: Any):
    url = str(root.parent / out)
    return url, ingest_dicom(root, url, **({"slicing": FEW, "salt": SALT} | options))


def rejected(url: str) -> list[list[str]]:
    with open(f"{url}/rejected.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def pixels(url: str, read=read_images) -> np.ndarray:
    return np.stack(list(read(url, load_table(url, Data(image_size=32)).slice_id_R).values()))


def write_study(folder: Path, patient: str = "patient-1", seed: int = 0, masked: bool = True, **elements: Any):
    """A series with its segmentation."""
    images = write_series(folder, head(seed), patient=patient, **elements)
    if masked:
        write_segmentation(folder / "seg", images, {1: tumour()})
    return images


def change(path: Path, how) -> None:
    image = pydicom.dcmread(path)
    how(image)
    image.save_as(path, enforce_file_format=True)


def put(**elements: Any):
    return lambda image: [setattr(image, name, value) for name, value in elements.items()]


def shift(image: Dataset, mm: float, axis: int = 2) -> None:
    position = list(image.ImagePositionPatient)
    position[axis] += mm
    image.ImagePositionPatient = position
