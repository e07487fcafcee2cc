"""Leaks that are made on purpose are found, and only they."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from braintum.cli import main
from braintum.data.audit import THUMB, alike, audit
from braintum.data.folds import held_out_folds
from braintum.data.images import resize_image
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.schema import Row
from braintum.data.shards import read_card
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data

Write = Callable[..., tuple[str, Any]]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(phantom_rows(cases=48, slices_per_case=1, size=96, seed=5))


def table_of(url: str) -> SliceTable:
    return load_table(url, Data(image_size=THUMB))


def copied(row: Row, how: str, **other: Any) -> Row:
    """A slice as it comes back from another archive, under another name."""
    image = row.image_CHW.astype(np.float32)
    if how == "brighter":
        image = image * 0.7 + 40
    elif how == "noisy":
        image = image + np.random.default_rng(0).normal(0, 6, image.shape)
    elif how == "scaled":
        image = resize_image(resize_image(image, 64, 64), *row.image_CHW.shape[1:])
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return replace(row, **{"slice_id": f"copy-{how}", "case_id": "copy", "group": "copy", "image_CHW": pixels} | other)


def names(pairs: Sequence[Any]) -> set[tuple[str, str, str]]:
    return {(pair.parted, pair.first.slice_id, pair.second.slice_id) for pair in pairs}


def test_a_sound_set_has_no_pairs(write: Write, rows: list[Row]) -> None:
    found = audit({"set": table_of(write(rows)[0])})
    assert (found.num_slices, found.pairs) == ({"set": 48}, [])


@pytest.mark.parametrize("how", ["brighter", "noisy", "scaled"])
def test_a_copy_in_another_case(write: Write, rows: list[Row], how: str) -> None:
    (pair,) = alike({"set": table_of(write([*rows, copied(rows[8], how)])[0])})
    assert names([pair]) == {("groups", rows[8].slice_id, f"copy-{how}")}
    assert (pair.same, pair.two_labels, pair.correlation > 0.98) == (False, False, True)


def test_a_copy_in_another_fold_the_test_set_and_with_another_label(write: Write, rows: list[Row]) -> None:
    folds = [replace(row, source_fold=("1", "2", "test")[k % 3]) for k, row in enumerate(rows)]
    assert folds[0].source_fold == "1"
    other = copied(folds[0], "noisy", source_fold="2", label="pituitary")
    tested = copied(folds[1], "brighter", source_fold="test", case_id="tested", group="tested")
    kept = copied(folds[6], "scaled", source_fold=folds[6].source_fold, case_id="kept", group="kept")
    pairs = alike({"set": table_of(write([*folds, other, tested, kept])[0])})
    assert names(pairs) == {
        ("folds", folds[0].slice_id, "copy-noisy"), ("test", folds[1].slice_id, "copy-brighter")
    }  # fmt: skip
    assert {pair.second.slice_id: pair.two_labels for pair in pairs} == {"copy-noisy": True, "copy-brighter": False}


def test_an_external_set_that_is_none(write: Write, rows: list[Row], tmp_path: Path) -> None:
    ours, _ = write(rows, str(tmp_path / "ours"))
    again = [replace(rows[0], slice_id="x", group="x", case_id=None), copied(rows[9], "noisy")]
    fresh = list(phantom_rows(cases=8, slices_per_case=1, size=96, seed=77))
    theirs, _ = write([*again, *fresh], str(tmp_path / "theirs"))
    pairs = alike({"ours": table_of(ours), "theirs": table_of(theirs)})
    assert names(pairs) == {("datasets", rows[0].slice_id, "x"), ("datasets", rows[9].slice_id, "copy-noisy")}
    assert [pair.same for pair in pairs] == [True, False]
    assert {pair.second.dataset for pair in pairs} == {"theirs"}


def test_what_is_odd_about_a_slice(write: Write, rows: list[Row]) -> None:
    few, border = np.zeros((2, 96, 96), np.uint8)
    few[50, 50:54] = 1
    border[:20, 30:50] = 1
    tumours = [k for k, row in enumerate(rows) if row.label != "no_tumor"]
    healthy = next(k for k, row in enumerate(rows) if row.label == "no_tumor")
    changed = {
        tumours[0]: replace(rows[tumours[0]], mask_HW=few),
        tumours[1]: replace(rows[tumours[1]], mask_HW=border),
        tumours[2]: replace(rows[tumours[2]], mask_HW=np.zeros((96, 96), np.uint8)),
        tumours[3]: replace(rows[tumours[3]], image_CHW=rows[tumours[3]].image_CHW // 16),
        healthy: replace(rows[healthy], mask_HW=border),
    }
    odd = audit({"set": table_of(write([changed.get(k, row) for k, row in enumerate(rows)])[0])}).findings
    found = {(finding.kind, finding.slice_id) for finding in odd}
    assert found >= {
        ("tumour of few pixels", rows[tumours[0]].slice_id),
        ("mask at the border", rows[tumours[1]].slice_id),
        ("no tumour in the mask", rows[tumours[2]].slice_id),
        ("unusual brightness", rows[tumours[3]].slice_id),
        ("mask on a healthy slice", rows[healthy].slice_id),
    }
    assert {slice_id for _, slice_id in found} == {rows[k].slice_id for k in changed}


def test_the_command_lists_shows_and_groups(
    write: Write, rows: list[Row], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    twins = [copied(rows[4 * k], "noisy", slice_id=f"t{k}", case_id=f"t{k}", group=f"t{k}") for k in range(6)]
    url, before = write([*rows, *twins])
    capfd.readouterr()
    assert main(["audit", url, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["pairs"], said["same_picture"], said["merged_groups"]) == ({"groups": 6}, 0, 0)
    listed = pq.read_table(Path(url) / "audit" / "pairs.parquet").to_pylist()
    assert {(pair["first_slice_id"], pair["second_slice_id"]) for pair in listed} == {
        (rows[4 * k].slice_id, f"t{k}") for k in range(6)
    }
    assert (Path(url) / "audit" / "pairs.csv").read_text().count("\n") == 7
    assert (Path(url) / "audit" / "pairs.png").read_bytes()[:4] == b"\x89PNG"
    assert read_card(url).digest == before.digest

    assert main(["audit", url, "--group-near-duplicates", "--out", str(tmp_path / "audit")]) == 0
    assert "groups kept together now" in capfd.readouterr().out
    assert read_card(url).digest != before.digest
    table = table_of(url)
    assert alike({"set": table}) == []
    fold_of = {table.slice_id_R[row]: fold for fold, part in held_out_folds(table, 4, 0).items() for row in part}
    assert all(fold_of[rows[4 * k].slice_id] == fold_of[f"t{k}"] for k in range(6))
    assert main(["audit", url, url, "--group-near-duplicates"]) == 2
    assert "one dataset at a time" in capfd.readouterr().err


SPACE = """
name: small
architectures: [unet]
base: fast
overrides: {data.image_size: 64, model.width: 2, model.depth: 2, training.epochs: 1, training.half_size: 0}
folds: 2
trials: 1
scheduler: {name: none}
score: {dice: 1.0}
parameters: {optim.lr: {log_uniform: [1e-3, 1e-2]}}
"""


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_on_leaking_data_is_refused_or_says_so(
    write: Write, rows: list[Row], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, _ = write([*rows, copied(rows[8], "noisy")])
    (tmp_path / "small.yaml").write_text(SPACE)
    out = tmp_path / "study"
    command = ["search", str(tmp_path / "small.yaml"), "--data", url, "--out", str(out)]
    capfd.readouterr()
    assert main(command) == 2
    said = capfd.readouterr().err
    assert f"slices {rows[8].slice_id!r} and 'copy-noisy' are copies, in two groups (and 0 more such pairs)" in said
    assert not out.exists()

    assert main([*command, "--allow-leak"]) == 0
    words = "The data leaks: 1 pairs of copies are on two sides of a split"
    assert words in capfd.readouterr().out
    assert main(["report", str(out)]) == 0
    files = [*(out / "report" / "tables").iterdir(), out / "report" / "report.html"]
    assert len(files) > 9
    assert all(words in file.read_text() for file in files)

    assert main(["audit", url, "--group-near-duplicates"]) == 0
    assert main([*command[:-1], str(tmp_path / "sound")]) == 0
    assert json.loads((tmp_path / "sound" / "summary.json").read_text())["leaks"] == 0


@pytest.mark.real
@pytest.mark.slow
def test_the_authors_folds_of_cheng_part_no_pair(real_data: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "cheng")
    assert main(["ingest", "folder", str(real_data / "cheng"), "--out", url]) == 0
    table = table_of(url)
    assert alike({"cheng": table}) == []
    by_slice = replace(table, source_fold_R=[None] * len(table), group_R=table.slice_id_R)
    assert len(alike({"cheng": by_slice})) > 150, "neighbours in one head, which a random split would part"
