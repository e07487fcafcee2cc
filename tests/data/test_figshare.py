from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from downloads import mat_file, mat_folds, mat_slice, tumour
from numpy.typing import NDArray

from braintum.cli import main
from braintum.data.folds import held_out_folds
from braintum.data.ingest.figshare import ingest_figshare
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

SIDE = 40
NUMBERS = (1, 2, 3, 4, 766, 767, 768, 3064)
PATIENTS = ("100360", "100360", "MR 01", "MR 01", "p5", "p6", "p7", "p8")
LABELS = (1, 1, 2, 2, 3, 3, 2, 1)


def image(number: int, side: int = SIDE) -> NDArray[np.int16]:
    return np.random.default_rng(number).integers(0, 4000, (side, side), np.int16)


def mask(number: int, side: int = SIDE) -> NDArray[np.uint8]:
    return tumour(side, side, at=number % 9)


def folds() -> list[int]:
    return [1 if number < 3 else 2 if number < 5 else 3 if number < 767 else 4 for number in range(1, 3065)]


def files() -> dict[str, bytes]:
    sides = {4: SIDE // 2}  # some of the set are smaller
    return {
        f"{number}.mat": mat_slice(image(number, side), mask(number, side), label, patient)
        for number, label, patient in zip(NUMBERS, LABELS, PATIENTS, strict=True)
        for side in [sides.get(number, SIDE)]
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Unpacked."""
    root = tmp_path / "1512427"
    root.mkdir()
    for name, content in files().items():
        (root / name).write_bytes(content)
    (root / "cvind.mat").write_bytes(mat_folds(folds()))
    (root / "README.txt").write_text("This brain tumor dataset")
    (root / "._1.mat").write_bytes(b"what macOS leaves")
    return root


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """As downloaded."""
    root = tmp_path / "download"
    root.mkdir()
    content = files()
    for name, numbers in (("1-766", NUMBERS[:5]), ("767-1532", NUMBERS[5:7]), ("2299-3064", NUMBERS[7:])):
        with zipfile.ZipFile(root / f"brainTumorDataPublic_{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for number in numbers:
                archive.writestr(f"{number}.mat", content[f"{number}.mat"])
            archive.writestr(f"__MACOSX/._{numbers[0]}.mat", b"what macOS leaves")
    (root / "cvind.mat").write_bytes(mat_folds(folds()))
    return root


def test_archives_are_read_as_they_are(archives: Path, folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in archives.rglob("*")}
    card = ingest_figshare(archives, out, size=SIDE)
    assert {path: path.stat().st_mtime_ns for path in archives.rglob("*")} == before
    assert (card.num_slices, card.num_masks, card.num_cases, card.num_rejected) == (8, 8, 6, 0)
    assert card.slices_per_class == {"glioma": 3, "meningioma": 3, "pituitary": 2}
    assert card.slices_per_fold == {"1": 2, "2": 2, "3": 1, "4": 3}
    assert (card.name, card.licence, card.dtype, card.options) == ("cheng", "CC-BY-4.0", "uint16", {"size": SIDE})
    assert card.provenance.endswith("figshare 1512427, 8 of 3,064 files")
    assert ingest_figshare(folder, str(tmp_path / "unpacked"), size=SIDE).digest == card.digest
    names = [f"cheng-{number:04d}" for number in NUMBERS]
    images, masks = read_images(out, names), read_masks(out, names)
    for number, name in zip(NUMBERS, names, strict=True):
        if number != 4:
            np.testing.assert_array_equal(images[name][0], image(number))  # the right way round, and nothing lost
            np.testing.assert_array_equal(masks[name], mask(number))
    assert images["cheng-0004"].shape == (1, SIDE, SIDE)


def test_a_split_cuts_by_the_author_s_folds_or_by_patient(folder: Path, tmp_path: Path) -> None:
    ingest_figshare(folder, str(tmp_path / "folds"))
    table = load_table(str(tmp_path / "folds"), Data(image_size=32))
    assert table.case_id_R == list(PATIENTS)
    assert table.group_R == [f"case:{patient}" for patient in PATIENTS]
    assert table.source_fold_R == [str(folds()[number - 1]) for number in NUMBERS]
    (folder / "cvind.mat").unlink()
    card = ingest_figshare(folder, str(tmp_path / "cases"))
    assert (card.slices_per_fold, card.num_cases) == ({}, 6)
    classes = {"glioma": ["glioma"], "other": ["meningioma", "pituitary"]}
    table = load_table(str(tmp_path / "cases"), Data(image_size=32, classes=classes))
    parts = held_out_folds(table, 2, 0)
    assert sum(map(len, parts.values())) == 8
    cases = [{table.case_id_R[row] for row in part} for part in parts.values()]
    assert sum(map(len, cases)) == 6


def test_a_patient_in_two_of_the_author_s_folds_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cvind.mat").write_bytes(mat_folds([1, 2, *folds()[2:]]))
    with pytest.raises(DataError, match=r"2\.mat: case '100360' is in the folds '1' and '2'; .* leave the folds out"):
        ingest_figshare(folder, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_packed_and_unpacked_beside_it_is_one(archives: Path, folder: Path, tmp_path: Path) -> None:
    for path in archives.iterdir():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(archives / path.stem)
    whole = ingest_figshare(folder, str(tmp_path / "folder"))
    assert ingest_figshare(archives, str(tmp_path / "both")).digest == whole.digest
    one = archives / "brainTumorDataPublic_1-766.zip"
    assert ingest_figshare(one, str(tmp_path / "one")).num_slices == 5
    (archives / one.stem / "2.mat").write_bytes(files()["1.mat"])
    with pytest.raises(DataError, match=r"2\.mat is there twice, and 2\.mat is not .*1-766\.zip/2\.mat; remove one"):
        ingest_figshare(archives, str(tmp_path / "differ"))


def test_an_archive_of_archives_is_to_be_unpacked_once(archives: Path, tmp_path: Path) -> None:
    outer = tmp_path / "1512427.zip"
    with zipfile.ZipFile(outer, "w") as archive:
        for path in archives.iterdir():
            archive.write(path, path.name)
    with pytest.raises(DataError, match=r"1512427\.zip: holds further archives .* unpack it once"):
        ingest_figshare(outer, str(tmp_path / "out"))


GOOD: dict[str, Any] = {"image_HW": image(2), "mask_HW": mask(2), "label": 2, "pid": "p"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no MATLAB v7.3 file"),
        (b"MATLAB 5.0 MAT-file".ljust(600, b"\0"), "no MATLAB v7.3 file"),
        (mat_slice(**GOOD)[:-300], "no MATLAB v7.3 file"),
        (mat_folds([1, 2]), "no cjdata"),
        (mat_file({"cjdata": np.zeros((2, 2))}), "no cjdata"),
        (mat_file({"cjdata/label": np.array([[1.0]])}), "PID: expected an array"),
        (mat_slice(**GOOD | {"label": 7}), "label 7; expected 1 (meningioma), 2 (glioma), 3 (pituitary)"),
        (mat_slice(**GOOD | {"label": float("nan")}), "label nan; expected 1"),
        (mat_slice(**GOOD | {"pid": "a\nb"}), "PID: expected 1 to 64 characters"),
        (mat_slice(**GOOD | {"pid": "  "}), "PID: is blank"),
        (mat_slice(**GOOD | {"pid": "p" * 65}), "PID: expected an array of at most 64 values"),
        (mat_slice(**GOOD | {"image_HW": np.zeros((2049, 2048), np.int16)}), "image: expected an array of at most"),
        (mat_slice(**GOOD | {"image_HW": image(2) - np.int16(900)}), "image has values -"),
        (mat_slice(**GOOD | {"image_HW": image(2).astype(np.float64)}), "image is float64 (40, 40); expected whole"),
        (mat_slice(**GOOD | {"image_HW": image(2)[None]}), "image is int16 (1, 40, 40); expected whole"),
        (mat_slice(**GOOD | {"image_HW": image(2)[:, :30]}), "tumorMask is 40×40, its image 30×40"),
        (mat_slice(**GOOD | {"mask_HW": mask(2) * 3}), "tumorMask is uint8 (40, 40); expected 0 and 1 alone"),
    ],
)
def test_what_cannot_be_read_is_listed(folder: Path, tmp_path: Path, content: bytes, says: str) -> None:
    (folder / "2.mat").write_bytes(content)
    out = tmp_path / "out"
    card = ingest_figshare(folder, str(out), size=SIDE)
    with (out / "rejected.csv").open() as lines:
        ((what, reason),) = list(csv.reader(lines))[1:]
    assert (what, card.num_slices, card.num_rejected) == ("2.mat", 7, 1)
    assert says in reason
    with pytest.raises(DataError) as error:
        ingest_figshare(folder, str(tmp_path / "strict"), size=SIDE, strict=True)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_archive_member_is_listed(archives: Path, tmp_path: Path) -> None:
    path = archives / "brainTumorDataPublic_767-1532.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("768.mat").header_offset
    content[start + 60 : start + 80] = bytes(20)
    path.write_bytes(content)
    card = ingest_figshare(archives, str(tmp_path / "out"))
    assert (card.num_slices, card.num_rejected) == (7, 1)
    assert "1532.zip/768.mat,cannot be read: " in (tmp_path / "out" / "rejected.csv").read_text()


def cut_archive(root: Path) -> None:
    path = root / "brainTumorDataPublic_767-1532.zip"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut_archive, r"1532\.zip: does not open: File is not a zip file; download it again"),
        (lambda root: (root / "cvind.mat").write_bytes(b"x"), r"cvind\.mat: no MATLAB v7\.3 file"),
        (lambda root: (root / "cvind.mat").write_bytes(mat_file({"x": np.ones(4)})), r"cvind\.mat: cvind: expected"),
        (lambda root: (root / "cvind.mat").write_bytes(mat_folds([1, 0, 2])), r"cvind\.mat: cvind: expected a fold"),
        (
            lambda root: (root / "cvind.mat").write_bytes(mat_folds([1, 2])),
            r"3064\.mat, where cvind\.mat has folds for 2",
        ),
    ],
)
def test_what_makes_the_whole_set_unusable(
    archives: Path, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(archives)
    with pytest.raises(DataError, match=says):
        ingest_figshare(archives, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_places_without_the_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or archive"):
        ingest_figshare(tmp_path / "none", str(tmp_path / "out"))
    (tmp_path / "cvind.mat").write_bytes(mat_folds([1, 2]))
    with pytest.raises(DataError, match=r"no N\.mat in it, nor in an archive in it"):
        ingest_figshare(tmp_path, str(tmp_path / "out"))


def test_planes_are_not_known(folder: Path, tmp_path: Path) -> None:
    assert ingest_figshare(folder, str(tmp_path / "out")).slices_per_plane == {}
    assert pq.read_table(next((tmp_path / "out").glob("*.parquet")))["plane"].null_count == 8


def test_on_the_command_line(archives: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["ingest", "figshare", str(archives), "--out", str(out), "--licence", "CC0-1.0", "--json"]) == 0
    card = json.loads(capfd.readouterr().out)
    assert card == json.loads((out / "card.json").read_text())
    assert (card["name"], card["height"], card["licence"]) == ("cheng", 256, "CC0-1.0")
    with zipfile.ZipFile(archives / "more.zip", "w") as archive:
        archive.writestr("9.mat", b"no MATLAB file")
    assert main(["ingest", "figshare", str(archives), "--out", str(tmp_path / "strict"), "--strict"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("braintum: more.zip/9.mat: no MATLAB v7.3 file")
