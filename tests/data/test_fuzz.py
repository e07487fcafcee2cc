"""Files that nobody wrote on purpose: cut, overwritten, mixed up, mislabelled or random. Only DataError comes out.

Each example puts one such file into a small set, in place of a good one, and ingests that.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from downloads import BRISC, mat_folds, mat_slice, picture, tumour, write_brisc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from braintum.data.ingest.brisc import ingest_brisc
from braintum.data.ingest.figshare import ingest_figshare
from braintum.data.ingest.folder import ingest_folder
from braintum.data.schema import Card, DataError

few = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def packed(*members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, member in enumerate(members, start=1):
            archive.writestr(f"{number}.mat", member)
    return content.getvalue()


DEEP = picture(1).astype(np.uint16) * 200
MATS = [mat_slice(picture(n).astype(np.int16), tumour(at=n), 1 + n % 3, f"p{n}") for n in range(3)]
GOOD = [
    encoded(picture(0), "PNG"), encoded(tumour() * 255, "PNG"), encoded(picture(2), "JPEG"), encoded(DEEP, "PNG"),
    encoded(picture(3), "TIFF"), encoded(picture(4), "TIFF", compression="tiff_lzw"),
    encoded(np.stack([picture(5)] * 3, 2), "JPEG", progressive=True), encoded(picture(6), "GIF"),
    *MATS, mat_folds([1, 2, 3]), packed(*MATS), b"slice_id,image\n", b"",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One of GOOD, whole, cut, with some bytes overwritten, or with a piece of another in it; or random bytes."""
    content = bytearray(draw(st.sampled_from(GOOD)))
    how = draw(st.sampled_from(["whole", "cut", "bytes", "piece", "random"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        del content[at:]
    elif how == "bytes":
        for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), min_size=1, max_size=8)):
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    elif how == "piece":
        piece = draw(st.sampled_from(GOOD))
        start = draw(st.integers(0, max(0, len(piece) - 1)))
        content[at : at + 400] = piece[start : start + 400]
    elif how == "random":
        content = bytearray(draw(st.binary(max_size=600)))
    return bytes(content)


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(folder, Path(place) / "set"))


def survives(ingest: Callable[[Path, str], Card], root: Path) -> None:
    """It is a dataset with what could be used, or one line."""
    out, says = root.parent / "out", None
    try:
        assert ingest(root, str(out)).num_slices >= 1
    except DataError as error:
        says = str(error)
    assert out.exists() == (says is None)
    assert "\n" not in (says or "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "folder"
    root.mkdir()
    for number in range(3):
        (root / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
        (root / f"{number}_mask.png").write_bytes(encoded(tumour(at=number) * 255, "PNG"))
    lines = ["slice_id,image,mask,label,case,fold", *(f"s{n},{n}.png,{n}_mask.png,x,p{n},{n}" for n in range(3))]
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def brisc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brisc(tmp_path_factory.mktemp("fuzz") / "brisc2025")


@pytest.fixture(scope="module")
def figshare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "figshare"
    root.mkdir()
    (root / "brainTumorDataPublic.zip").write_bytes(packed(*MATS))
    (root / "4.mat").write_bytes(mat_slice(picture(9).astype(np.int16), tumour(), 1, "p9"))
    (root / "cvind.mat").write_bytes(mat_folds([1, 2, 3, 4]))
    return root


@few
@given(content=damaged(), name=st.sampled_from(["1.png", "1_mask.png", "manifest.csv"]))
def test_folder(folder: Path, content: bytes, name: str) -> None:
    with copy_of(folder) as root:
        (root / name).write_bytes(content)
        survives(lambda path, out: ingest_folder(path, out, size=32), root)


@few
@given(
    cells=st.lists(st.lists(st.text(max_size=12), min_size=1, max_size=7), max_size=4), quote=st.sampled_from(['"', ""])
)
def test_manifest(folder: Path, cells: list[list[str]], quote: str) -> None:
    with copy_of(folder) as root:
        text = "\n".join(",".join(f"{quote}{cell}{quote}" for cell in line) for line in cells)
        header = "slice_id,image,mask,label,case,fold\ns0,0.png,0_mask.png,x,p,1\n"
        (root / "manifest.csv").write_text(header + text, encoding="utf-8", errors="replace", newline="")
        survives(ingest_folder, root)


@few
@given(
    content=damaged(),
    name=st.sampled_from([
        f"segmentation_task/train/images/{BRISC[0]}.jpg", f"segmentation_task/train/masks/{BRISC[1]}.png",
        f"classification_task/train/no_tumor/{BRISC[3]}.jpg", f"classification_task/train/glioma/{BRISC[4]}.jpg",
        f"segmentation_task/test/masks/{BRISC[0]}.png", "segmentation_task/train/images/masks.png",
    ]),
)  # fmt: skip
def test_brisc(brisc: Path, content: bytes, name: str) -> None:
    with copy_of(brisc) as root:
        (root / name).write_bytes(content)
        survives(lambda path, out: ingest_brisc(path, out, size=32), root)


@few
@given(
    content=damaged(),
    name=st.sampled_from(["4.mat", "5.mat", "cvind.mat", "brainTumorDataPublic.zip", "other.zip"]),
)
def test_figshare(figshare: Path, content: bytes, name: str) -> None:
    with copy_of(figshare) as root:
        (root / name).write_bytes(content)
        survives(lambda path, out: ingest_figshare(path, out, size=32), root)
