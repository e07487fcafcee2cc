"""Small copies of public sets, in the layout in which they are downloaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 48
FOLDER = {"gl": "glioma", "me": "meningioma", "pi": "pituitary", "no": "no_tumor"}
BRISC = (
    "brisc2025_train_00001_gl_ax_t1", "brisc2025_train_00002_gl_co_t1", "brisc2025_train_01200_me_sa_t1",
    "brisc2025_train_02500_no_ax_t1", "brisc2025_train_03700_pi_co_t1", "brisc2025_test_00001_gl_ax_t1",
    "brisc2025_test_00561_no_sa_t1",
)  # fmt: skip


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def tumour(height: int = SIDE, width: int = SIDE, at: int = 6) -> NDArray[np.uint8]:
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[at : at + height // 4, at : at + width // 4] = 1
    return mask_HW


def write_brisc(root: Path) -> Path:
    """BRISC 2025 with seven slices, two of them without tumour; returns its folder."""
    for seed, name in enumerate(BRISC):
        add_brisc(root, name, picture(seed), tumour(at=seed))
    (root / "manifest.csv").write_text("relative_path,sha256\n")
    (root / "classification_task" / "train" / "glioma" / ".DS_Store").write_bytes(b"what macOS leaves")
    return root


def add_brisc(root: Path, name: str, image_HW: NDArray[np.uint8], mask_HW: NDArray[np.uint8]) -> None:
    """One slice: in the segmentation task too if it has a tumour."""
    _, split, _, kind, *_ = name.split("_")
    content = io.BytesIO()
    Image.fromarray(image_HW).save(content, "JPEG", quality=95)
    places = [root / "classification_task" / split / FOLDER[kind]]
    if kind != "no":
        places.append(root / "segmentation_task" / split / "images")
        masks = root / "segmentation_task" / split / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask_HW * 255).save(masks / f"{name}.png")
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.jpg").write_bytes(content.getvalue())


def mat_slice(image_HW: NDArray[Any], mask_HW: NDArray[Any], label: float = 2, pid: str = "MR0402") -> bytes:
    """A file of Jun Cheng's set, as MATLAB writes it with -v7.3."""
    border = np.array([[3.5, 4.0, 7.5, 9.0]])
    fields = {
        "PID": np.array([list(map(ord, pid))], np.uint16), "image": image_HW, "label": np.array([[label]]),
        "tumorBorder": border, "tumorMask": mask_HW,
    }  # fmt: skip
    return mat_file({f"cjdata/{name}": values for name, values in fields.items()})


def mat_folds(folds: list[int]) -> bytes:
    return mat_file({"cvind": np.array([folds], float).T})


def mat_file(fields: dict[str, NDArray[Any]]) -> bytes:
    """MATLAB puts a text of 512 bytes before the HDF5, and the axes the other way round."""
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=512) as file:
        for name, values in fields.items():
            file.create_dataset(name, data=values.T, compression="gzip", chunks=values.T.shape)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 ."
    return header.ljust(512, b"\0") + content.getvalue()[512:]
