"""Whatever is in a file, a reader gives slices or a DataError, and takes little memory."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import pytest
from example_scans import head, tumour, write_nifti, write_segmentation, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braintum.data.ingest.dicom import ingest_dicom
from braintum.data.ingest.nifti import ingest_nifti
from braintum.data.ingest.slicing import Slicing
from braintum.data.schema import DataError

FEW = Slicing(2, size=32)
MEMORY_KB = 200 * 2**10
HEADER = 600
"""Where a byte matters most."""


@cache
def whole() -> dict[str, bytes]:
    """A small file of every kind."""
    folder = Path(tempfile.mkdtemp())
    images = write_series(folder / "series", head())
    write_segmentation(folder / "seg", images, {1: tumour()})
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(folder / name, head())
    files = {"nii": "a.nii", "nii.gz": "a.nii.gz", "dcm": "series/004", "seg": "seg"}
    content = {kind: (folder / file).read_bytes() for kind, file in files.items()}
    content |= {f"series/{path.name}": path.read_bytes() for path in (folder / "series").iterdir()}
    shutil.rmtree(folder)
    return content


@st.composite
def spoilt(draw: st.DrawFn, kind: str) -> bytes:
    """A file that was cut short, changed in places, put in another order, replaced by another's kind or by noise."""
    content = whole()[kind]
    how = draw(st.sampled_from(["cut", "changed", "swapped", "mislabelled", "noise"]))
    if how == "cut":
        return content[: draw(st.one_of(st.integers(0, HEADER), st.integers(0, len(content))))]
    if how == "noise":
        start = draw(st.sampled_from([b"", b"\0" * 128 + b"DICM", b"\x1f\x8b\x08", content[:400]]))
        return start + draw(st.binary(max_size=2000))
    if how == "mislabelled":
        return whole()[draw(st.sampled_from(["nii", "nii.gz", "dcm", "seg"]))]
    if how == "swapped":
        first, second, length = (draw(st.integers(0, len(content) - 1)) for _ in range(3))
        first, second = sorted((first, second))
        length = min(length, second - first, len(content) - second)
        parts = content[:first], content[second : second + length], content[first + length : second]
        return b"".join([*parts, content[first : first + length], content[second + length :]])
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.one_of(st.integers(0, min(HEADER, len(content)) - 1), st.integers(0, len(content) - 1)))
        new = draw(st.binary(min_size=1, max_size=8))
        changed[place : place + len(new)] = new
    return bytes(changed)


def slices_or_one_line(read: Callable[[], object]) -> None:
    """The memory taken is that of a small file, whatever its header says."""
    before_kb = getrusage(RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):
        read()
    assert getrusage(RUSAGE_SELF).ru_maxrss - before_kb < MEMORY_KB


FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", ["nii", "nii.gz"])
@pytest.mark.parametrize("part", ["image", "mask"])
def test_nifti(kind: str, part: str) -> None:
    @FUZZ
    @given(spoilt(kind))
    def run(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("t1", "seg"):
                write_nifti(Path(folder) / f"in/a_{name}.{kind}", head() if name == "t1" else tumour())
            (Path(folder) / f"in/a_{'t1' if part == 'image' else 'seg'}.{kind}").write_bytes(content)
            slices_or_one_line(
                lambda: ingest_nifti(
                    Path(folder) / "in",
                    f"{folder}/out",
                    image=f"*_t1.{kind}",
                    mask=f"*_seg.{kind}",
                    case=".+",
                    slicing=FEW,
                )
            )

    run()


@pytest.mark.parametrize("part", ["dcm", "seg"])
def test_dicom(part: str) -> None:
    @FUZZ
    @given(spoilt(part))
    def run(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "in"
            (root / "series").mkdir(parents=True)
            for name, intact in whole().items():
                if name.startswith("series/"):
                    (root / name).write_bytes(intact)
            (root / "seg").write_bytes(whole()["seg"])
            (root / ("series/004" if part == "dcm" else "seg")).write_bytes(content)
            slices_or_one_line(lambda: ingest_dicom(root, f"{folder}/out", salt="0" * 16, slicing=FEW))

    run()
