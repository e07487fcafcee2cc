"""Data on the command line: what cannot be ingested or trained on is one line, and leaves nothing behind."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import QUICK, refused
from PIL import Image

from braintum.cli import main

Rows = list[dict[str, str]]


@pytest.fixture
def phantom(tiny_phantom: str) -> Path:
    return Path(tiny_phantom)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight slices with masks, two labels, two folds, two slices a case; what to do with them is manifest.csv's."""
    root = tmp_path / "slices"
    root.mkdir()
    generator = np.random.default_rng(0)
    rows: Rows = []
    for i in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8 + i : 16 + i] = 255
        Image.fromarray(generator.integers(0, 255, (32, 32), np.uint8)).save(root / f"{i}.png")
        Image.fromarray(mask).save(root / f"{i}_mask.png")
        case, fold = f"c{i // 2}", str(i // 4)
        label = "glioma" if i // 2 % 2 else "pituitary"
        rows.append(
            {"slice_id": f"s{i}", "image": f"{i}.png", "mask": f"{i}_mask.png", "label": label, "case": case}
            | {"fold": fold}
        )
    write_manifest(root, rows)
    return root


def write_manifest(root: Path, rows: Rows) -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change(root: Path, line: int, **cells: str) -> None:
    """Replaces cells of one row of the manifest."""
    with (root / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[line] |= cells
    write_manifest(root, rows)


# What a manifest can have wrong: a change of the folder, and what the line says.
def unreadable(root: Path) -> None:
    (root / "3.png").write_bytes(b"this is no image")


def missing(root: Path) -> None:
    (root / "3.png").unlink()


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "3_mask.png")


def two_folds(root: Path) -> None:
    change(root, 1, fold="1")


def twice(root: Path) -> None:
    change(root, 3, slice_id="s0")


def outside(root: Path) -> None:
    change(root, 3, image="../../secret.png")


def open_quote(root: Path) -> None:
    """A cell that would hold the rest of a long manifest."""
    with (root / "manifest.csv").open("a") as file:
        file.write('s8,"8.png,,glioma,c4,1\n' + "s9,9.png,,glioma,c4,1\n" * 10_000)


def open_quote_at_the_end_of_a_line(root: Path) -> None:
    with (root / "manifest.csv").open("a") as file:
        file.write('s8,7.png,,glioma,c3,"1\ns9,7.png,,glioma,c3,1\n')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unreadable, ("line 5", "3.png")),
        (missing, ("line 5", "3.png")),
        (other_size, ("line 5", "16", "32")),
        (two_folds, ("c0", "fold")),
        (twice, ("s0", "line")),
        (outside, ("line 5", "secret.png")),
        (open_quote, ("manifest.csv line 10: field larger than field limit", "close a quote")),
        (open_quote_at_the_end_of_a_line, ("line 11: fold '1\\n'...: a line break", "close a quote")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_ingested(
    capfd: pytest.CaptureFixture[str], folder: Path, spoil: Callable[[Path], None], says: tuple[str, ...]
) -> None:
    spoil(folder)
    out = folder.parent / "out"
    refused(capfd, ["ingest", "folder", str(folder), "--strict", "--out", str(out)], *says)
    assert not out.exists()
    assert {path.name for path in folder.parent.iterdir()} == {"slices"}


def test_a_folder_that_is_not_there(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capfd, ["ingest", "folder", str(tmp_path / "no"), "--out", str(tmp_path / "out")], "no such folder")
    assert not (tmp_path / "out").exists()


def test_an_output_of_ingest_that_exists(capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep")
    for source in (["phantom"], ["folder", str(folder)]):
        refused(capfd, ["ingest", *source, "--out", str(tmp_path / "out")], "exists; choose another --out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file/out", "file/out: Not a directory"),
        ("x" * 300, "xx: File name too long"),
        ("nowhere://out", "nowhere://out: Protocol not known"),
    ],
)
def test_an_output_that_cannot_be_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, place: str, says: str
) -> None:
    (tmp_path / "file").touch()
    out = place if "://" in place else str(tmp_path / place)
    for source in (["phantom", "--cases", "4", "--size", "32"], ["folder", str(folder)]):
        refused(capfd, ["ingest", *source, "--out", out], says)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "slices"}


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A limit on a file's size is as much as a test can fill."""
    out = tmp_path / "out"
    command = f"{sys.executable} -m braintum.cli ingest phantom --cases 4 --size 64 --out {out}"
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; {command}"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (2, f"braintum: {out}/slices-00000.parquet: File too large\n")
    assert not out.exists()


def test_ingest_prints_its_card(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["ingest", "phantom", "--cases", "7", "--slices-per-case", "3", "--size", "48", "--out", str(out)]) == 0
    shown = {" ".join(line.split()) for line in capfd.readouterr().out.splitlines()}
    assert shown >= {"slices 21", "cases 7", "pixels 48×48, 1 × uint8", "masks tumour"}
    shutil.rmtree(out)
    assert main(["ingest", "phantom", "--cases", "8", "--slices-per-case", "1", "--out", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((out / "card.json").read_text())


def test_a_label_is_no_markup(capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    for line, label in enumerate(("a[/b]", "grade [low]", ":brain:")):
        change(folder, line, label=label)
    assert main(["ingest", "folder", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert ":brain:, a[/b], glioma, grade [low], pituitary" in capfd.readouterr().out


@pytest.fixture(params=["train", "crossval", "search"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Each command that trains, ready for --data and --out."""
    if request.param != "search":
        return [request.param, *QUICK]
    space = tmp_path / "space.yaml"
    space.write_text(
        "{name: s, architectures: [joint_unet], base: fast, folds: 2, trials: 1, "
        "overrides: {data.image_size: 32, model.width: 4, model.depth: 2, training.batch_size: 8}, "
        "scheduler: {name: none}, "
        "parameters: {optim.lr: {uniform: [0.001, 0.01]}}}"
    )
    return ["search", str(space)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestDataThatCannotBeTrainedOn:
    """Every command that trains refuses it alike, and leaves no output."""

    def test_a_dataset_without_a_card(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        shutil.copytree(phantom, data)
        (data / "card.json").unlink()
        refused(capfd, [*command, "--data", str(data), "--out", str(out)], str(data), "no card.json")
        assert not out.exists()

    def test_a_shard_whose_digest_is_wrong(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        shutil.copytree(phantom, data)
        shard = next(data.glob("*.parquet"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        refused(capfd, [*command, "--data", str(data), "--out", str(out)], shard.name, "expected", "ingest")
        assert not out.exists()

    def test_a_label_missing_from_the_classes(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        out = tmp_path / "out"
        wrong = ["--set", "data.classes=[glioma, lymphoma]", "--data", str(phantom), "--out", str(out)]
        refused(capfd, [*command, *wrong], "'lymphoma'", "glioma", "meningioma", "pituitary")
        assert not out.exists()

    def test_a_fold_with_no_slice_of_a_class(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, command: list[str]
    ) -> None:
        for line in (6, 7):  # the only gliomas of fold 1
            change(folder, line, label="pituitary")
        data, out = tmp_path / "data", tmp_path / "out"
        assert main(["ingest", "folder", str(folder), "--out", str(data)]) == 0
        fold = ["--fold", "1"] if command[0] == "train" else []
        refused(capfd, [*command, *fold, "--data", str(data), "--out", str(out)], "fold", "'glioma'")
        assert not out.exists()

    def test_an_output_that_exists(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "precious.txt").write_text("keep")
        refused(capfd, [*command, "--data", str(phantom), "--out", str(out)], str(out), "exists", "--out")
        refused(capfd, [*command, "--data", str(phantom), "--out", str(out), "--resume"], str(out))
        assert [path.name for path in out.iterdir()] == ["precious.txt"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_unknown_fold(capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    assert main(["ingest", "folder", str(folder), "--out", str(data)]) == 0
    refused(capfd, ["train", *QUICK, "--fold", "7", "--data", str(data), "--out", str(out)], "'7'", "0, 1")
    assert not out.exists()
