"""`braintum card`: what it counts is what was written, and what it draws can be looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused
from example_rows import SIZE, make_row
from PIL import Image

from braintum.cli import main
from braintum.data.overview import PICTURES, look
from braintum.data.schema import Row
from braintum.data.shards import merge_groups, write_dataset

Write = Callable[..., tuple[str, Any]]
ABOUT = {"name": "set", "provenance": "a test", "licence": None}


def mask(side: int) -> np.ndarray:
    mask_HW = np.zeros((SIZE, SIZE), np.uint8)
    mask_HW[:side, :side] = 1
    return mask_HW


@pytest.fixture
def rows() -> list[Row]:
    """Glioma and healthy slices of cases, some unlabelled, without mask, plane or fold."""
    rows = [
        make_row(
            f"g{i}", "glioma", group=f"c{i // 2}", case_id=f"c{i // 2}", mask_HW=mask(4 + i),
            source_fold="12"[i // 2 % 2], plane=("axial", "coronal", None)[i % 3], spacing_yx_mm=(0.5, 0.75),
            age_years=40 + i, sex="F",
        )
        for i in range(6)
    ]  # fmt: skip
    rows += [make_row(f"h{i}", "healthy", group=f"h{i}", case_id=f"h{i}", mask_HW=mask(0), source_fold="test",
                      plane="axial", spacing_yx_mm=(1.0, 1.0)) for i in range(3)]  # fmt: skip
    return [*rows, make_row("bare", None, case_id="x", mask_HW=None, spacing_yx_mm=(1.0, 1.0))]


def shown(capfd: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capfd.readouterr()
    assert main(["card", *command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_counts(write: Write, rows: list[Row], capfd: pytest.CaptureFixture[str]) -> None:
    url, card = write(rows, licence="CC BY 4.0", shard_bytes=3000)
    assert len(card.shards) > 2
    found = shown(capfd, url)
    assert found == json.loads((Path(url) / "card" / "overview.json").read_text())
    counts = {name: found[name] for name in ("slices", "with_mask", "with_tumour", "cases", "groups")}
    assert counts == {"slices": 10, "with_mask": 9, "with_tumour": 6, "cases": 7, "groups": 7}
    assert [found["licence"], found["provenance"], found["digest"]] == ["CC BY 4.0", "a test", card.digest]
    assert found["spacing_mm"] == {"y": [0.5, 0.5, 1.0], "x": [0.75, 0.75, 1.0]}
    glioma, healthy, bare = found["classes"]
    assert [each["label"] for each in found["classes"]] == ["glioma", "healthy", None]
    assert (glioma["slices"], glioma["cases"], glioma["folds"]) == (6, 3, {"1": 4, "2": 2})
    assert glioma["planes"] == {"axial": 2, "coronal": 2, "not known": 2}
    assert glioma["tumour_pixels"] == [16, np.median([side**2 for side in range(4, 10)]), 81]
    assert (glioma["sexes"], glioma["age_years"], healthy["age_years"]) == ({"F": 6}, [40, 42.5, 45], None)
    assert (healthy["with_mask"], healthy["with_tumour"], healthy["tumour_pixels"]) == (3, 0, None)
    assert healthy["folds"] == {"test": 3}
    assert (bare["slices"], bare["with_mask"]) == (1, 0)
    assert bare["folds"] == bare["planes"] == {"not known": 1}


def test_terminal(write: Write, rows: list[Row], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url, _ = write(rows)
    assert main(["card", url, "--out", str(tmp_path / "page")]) == 0
    lines = [re.findall(r"[^\s│┃]+(?: [^\s│┃]+)*", line) for line in capfd.readouterr().out.splitlines()]
    assert ["licence", "not known"] in lines
    assert ["pixel", "0.5 to 1 × 0.75 to 1 mm"] in lines
    assert ["glioma", "6", "6", "6", "3", "3", "42", "42"] in lines  # both 42.5
    assert ["glioma", "4", "2", "0", "0"] in lines  # folds 1, 2, test, not known
    assert ["all", "4", "2", "3", "1"] in lines
    assert not (Path(url) / "card").exists()


def test_files(write: Write, rows: list[Row]) -> None:
    rows[6] = make_row("g<b>&", "healthy", group="<i>", case_id="<i>", mask_HW=mask(0))
    url, _ = write(rows, provenance="<script>alert(1)</script> & more")
    assert main(["card", url]) == 0
    folder = Path(url) / "card"
    page = (folder / "card.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*", page), "one file, nothing fetched"
    assert page.count("<svg") == 3
    for name in ("slices", "histograms", "places"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5


def test_what_is_looked_at(write: Write, tmp_path: Path) -> None:
    """Of many groups, with tumour first, whatever the order of rows and size of shards."""
    rows = [make_row(f"s{i:02d}", group=f"g{i // 5}", mask_HW=mask(6 if i % 5 == 3 else 0)) for i in range(60)]
    rows += [make_row(f"t{i:02d}", "b", group="one", mask_HW=mask(i % 2)) for i in range(20)]
    found = look(write(rows, shard_bytes=4000)[0])
    of_a, of_b = ([picture.slice for picture in found.pictures[label]] for label in "ab")
    assert len({seen.group for seen in of_a}) == PICTURES
    assert all(seen.tumour for seen in of_a)
    assert (len(of_b), {seen.group for seen in of_b}, all(seen.tumour for seen in of_b)) == (PICTURES, {"one"}, True)
    images = {row.slice_id: row for row in rows}
    for picture in (*found.pictures["a"], *found.pictures["b"]):
        row = images[picture.slice.slice_id]
        assert np.array_equal(picture.image_HW, row.image_CHW[0])
        assert np.array_equal(picture.tumour_HW, row.mask_HW == 1)
    other = look(write(rows[::-1], str(tmp_path / "other"), shard_bytes=50_000)[0])
    assert [p.slice for p in other.pictures["a"]] == [p.slice for p in found.pictures["a"]]


def test_brightness_is_what_a_training_sees(write: Write) -> None:
    """From the least to the greatest of each slice and channel, in any dtype."""
    ramp = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    two_CHW = np.stack([ramp, 0.5 + ramp / 4]).astype(np.float16)
    found = look(write([make_row("a", image_CHW=two_CHW), make_row("b", image_CHW=two_CHW / np.float16(2))])[0])
    counts = found.brightness["a"]
    assert counts.sum() == 4 * SIZE * SIZE
    assert counts.max() < 1.2 * counts.mean(), "a ramp is as often of each brightness"
    assert counts.min() > 0.8 * counts.mean()


def test_groups_that_the_audit_merged_are_one(write: Write, rows: list[Row], capfd: pytest.CaptureFixture[str]) -> None:
    url, _ = write(rows)
    merge_groups(url, {"c1": "c0"})
    found = shown(capfd, url)
    assert (found["cases"], found["groups"], found["merged_groups"]) == (7, 6, 1)


def test_nothing_but_healthy_or_unlabelled_slices(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    url, _ = write([make_row(f"s{i}", None, mask_HW=None) for i in range(2)])
    found = shown(capfd, url)
    assert (found["classes"][0]["label"], found["cases"], found["spacing_mm"]) == (None, None, None)
    assert not (Path(url) / "card" / "places.png").exists()


def test_no_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, ["card", str(tmp_path)], "no card.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
def test_on_s3(s3: str, rows: list[Row], capfd: pytest.CaptureFixture[str]) -> None:
    from braintum import storage

    url = f"{s3}/card/set"
    write_dataset(rows, url, **ABOUT)
    found = shown(capfd, url)
    assert (found["slices"], found["out"]) == (10, f"{url}/card")
    assert storage.read_bytes(f"{url}/card/slices.png").startswith(b"\x89PNG")


@pytest.mark.real
def test_real_volumes(real_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "set")
    pattern = ["--image", "*_Scan_T1.nii.gz", "--mask", "*_Mask.nii.gz", "--case", "^[^/]+", "--label", "glioma"]
    assert main(["ingest", "nifti", str(real_data / "btp-nifti"), *pattern, "--out", url]) == 0
    found = shown(capfd, url)
    (glioma,) = found["classes"]
    assert (found["cases"], glioma["planes"]) == (2, {"axial": found["slices"]})
    assert 0.3 < found["spacing_mm"]["y"][1] < 2
    assert found["options"]["slices"] == 20
