"""Leaks that are made on purpose are found, and only they."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from braintum.cli import main
from braintum.data.audit import THUMB, alike, audit
from braintum.data.exclusions import proposed
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


def test_ids_that_stand_in_two_datasets(
    write: Write, rows: list[Row], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One patient scanned twice: the pictures differ, so that only the id tells. What names no patient is left out."""
    before = [replace(row, case_id=f"p{k % 24}", group=f"case:p{k % 24}") for k, row in enumerate(rows)]
    fresh = list(phantom_rows(cases=8, slices_per_case=1, size=96, seed=77))
    cases = {0: {"case_id": "p1"}, 1: {"case_id": "p1"}, 2: {"case_id": "new"}}
    unknown = {3: "p1", 4: "fold:1", 5: "picture:aa", 6: "visit", 7: "visit"}
    after = [replace(fresh[k], **case) for k, case in cases.items()]
    after += [replace(fresh[k], case_id=None, group=group) for k, group in unknown.items()]
    others = phantom_rows(cases=4, slices_per_case=1, size=96, seed=78)
    third = [replace(row, case_id=None, group=group)
             for row, group in zip(others, ["fold:1", "picture:aa", "visit", "p0"], strict=True)]  # fmt: skip
    urls = [write(part, str(tmp_path / name))[0] for name, part in [("pre", before), ("post", after), ("third", third)]]
    capfd.readouterr()
    assert main(["audit", *urls]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "same case id in two datasets 1: one patient in both, or a name that both use" in said
    assert "none in two datasets, or that a split parts" in said
    listed = pq.read_table(tmp_path / "pre" / "audit" / "same_ids.parquet").to_pylist()
    assert [tuple(same.values()) for same in listed] == [
        ("case", "p1", "pre", 2, "post", 2), ("group", "visit", "post", 2, "third", 1)
    ]  # fmt: skip
    assert json.loads((tmp_path / "pre" / "audit" / "audit.json").read_text())["same_ids"] == {"case": 1, "group": 1}


@pytest.mark.real
def test_the_same_patients_before_and_after(real_data: Path, tmp_path: Path) -> None:
    """No pair of pictures tells them."""
    for time in ("Pre", "Post"):
        scans = ["--image", f"*/{time}_Scan_T1.nii.gz", "--mask", f"*/{time}_Mask.nii.gz", "--label", "glioma"]
        command = ["ingest", "nifti", str(real_data / "btp-nifti"), *scans, "--case", "^[^/]+"]
        assert main([*command, "--out", str(tmp_path / time)]) == 0
    found = audit({time: table_of(str(tmp_path / time)) for time in ("Pre", "Post")})
    assert [(same.kind, same.id) for same in found.same_ids] == [("case", "01"), ("case", "03")]
    assert found.pairs == []


@pytest.mark.parametrize("name", ["set", "./set", "set/", "copy"])
def test_a_dataset_beside_itself_is_refused(
    write: Write, rows: list[Row], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for out in ("set", "copy"):
        write(rows[:4], str(tmp_path / out))
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert main(["audit", "set", name]) == 2
    assert capfd.readouterr().err == f"braintum: {name}: holds the same slices as set; name a dataset once\n"
    assert not (tmp_path / "set" / "audit").exists()


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


def test_what_the_audit_would_leave_out(write: Write, rows: list[Row], tmp_path: Path) -> None:
    """The test set stays, and what was named first; of two labels none does."""
    parts = {"a": rows[:24], "b": rows[24:36], "test": rows[36:]}
    ours = [replace(row, source_fold=fold) for fold, part in parts.items() for row in part]
    ours += [
        copied(rows[0], "noisy", slice_id="again", source_fold="b"),
        copied(rows[1], "noisy", slice_id="twice", source_fold="b", label="other", case_id="c2", group="c2"),
        copied(rows[40], "noisy", slice_id="seen", source_fold="a", case_id="c3", group="c3"),
        copied(rows[0], "brighter", slice_id="tested", source_fold="test", case_id="c4", group="c4"),
    ]
    theirs = [copied(rows[5], "scaled", slice_id="x"), *phantom_rows(cases=4, slices_per_case=1, size=96, seed=77)]
    tables = {"ours": table_of(write(ours)[0]), "theirs": table_of(write(theirs, str(tmp_path / "theirs"))[0])}
    chosen = {(found.dataset, found.slice_id): found.reason for found in proposed(alike(tables))}
    gone = [rows[0].slice_id, rows[1].slice_id, "again", "twice", "seen"]
    assert set(chosen) == {*(("ours", slice_id) for slice_id in gone), ("theirs", "x")}
    assert f"with {rows[40].slice_id}, test set" in chosen["ours", "seen"]
    assert f"with ours: {rows[5].slice_id}, fold a" in chosen["theirs", "x"]
    assert f"with {rows[1].slice_id}, fold a, label {rows[1].label}" in chosen["ours", "twice"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset,slice_id\nset,none\n", "no slice 'none' to exclude (1 such in all); is it another's list?"),
        ("dataset,slice_id\nother,x\n", "line 2: dataset 'other'; expected set, as in the audit that wrote it"),
        ("what,reason\nx,y\n", "line 2: no slice_id; expected a CSV with the columns dataset, slice_id"),
        ("slice_id\n", "lists no slice"),
        ("slice_id\n\xff\n", "no CSV ("),
        (None, "no such file; an audit writes one as exclude.csv"),
        ("all", "with all of its slices excluded nothing is left; exclude fewer"),
    ],
)
def test_a_list_that_cannot_be_left_out(
    write: Write, rows: list[Row], tmp_path: Path, text: str | None, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url, card = write(rows[:4])
    path = tmp_path / "list.csv"
    if text is not None:
        ids = "\n".join(["slice_id", *(row.slice_id for row in rows[:4])])
        path.write_bytes(ids.encode() if text == "all" else text.encode("latin-1"))
    capfd.readouterr()
    assert main(["audit", url, "--exclude", str(path)]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert read_card(url) == card


@pytest.fixture
def read_only(write: Write, rows: list[Row], tmp_path: Path) -> Iterator[str]:
    """The URL of a dataset behind a server that only gives files."""
    write(rows, str(tmp_path / "served" / "set"))
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/set"
        server.shutdown()


@pytest.mark.parametrize("command", ["audit", "card"])
def test_a_dataset_that_can_only_be_read(
    read_only: str, rows: list[Row], tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main([command, read_only]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"braintum: {read_only}/{command}: cannot be written to (")
    assert said.endswith("); give a folder of yours with --out")
    (tmp_path / "file").write_text("")
    assert main([command, read_only, "--out", str(tmp_path / "file")]) == 2
    assert capfd.readouterr().err.endswith("); give another --out\n")
    assert main([command, read_only, "--out", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine").is_dir()
    if command == "audit":
        (tmp_path / "list.csv").write_text(f"slice_id\n{rows[0].slice_id}\n")
        for change in (["--exclude", str(tmp_path / "list.csv")], ["--group-near-duplicates"]):
            assert main([command, read_only, "--out", str(tmp_path / "mine"), *change]) == 2
            assert "copy the dataset to where you may write, and name the copy" in capfd.readouterr().err


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
    crops = (
        SPACE.replace("[unet]", "[classifier]")
        .replace("dice", "macro_f1")
        .replace("model.depth: 2", "data.region: crop")
    )
    (tmp_path / "crops.yaml").write_text(crops)
    for other in (command[1], "--set", "data.image_size=32"), (str(tmp_path / "crops.yaml"),):
        assert main(["search", *other, *command[2:]]) == 2, "no view of it shows enough"
        assert "'copy-noisy' are copies, in two groups (and 0 more such pairs)" in capfd.readouterr().err

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


@pytest.mark.usefixtures("ray_cluster")
def test_after_what_the_audit_advises_a_search_starts(
    write: Write, rows: list[Row], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of source folds, and between the test set and the rest, no group can be kept together."""
    folds = [replace(row, source_fold="12"[k // 4 % 2] if k < 40 else "test") for k, row in enumerate(rows)]
    across = copied(folds[0], "noisy", source_fold="2")
    tested = copied(folds[44], "noisy", slice_id="seen", source_fold="1", case_id="seen", group="seen")
    url, before = write([*folds, across, tested])
    (tmp_path / "small.yaml").write_text(SPACE)
    search = ["search", str(tmp_path / "small.yaml"), "--data", url, "--out", str(tmp_path / "study")]
    assert main(search) == 2
    assert "leave slices out (--exclude)" in capfd.readouterr().err

    assert main(["audit", url]) == 0
    listed = f"{url}/audit/exclude.csv"
    assert f"to leave 2 slices out, so that no such pair is left: the same command with --exclude {listed}" in (
        capfd.readouterr().out
    )
    assert main(["audit", url, "--exclude", listed]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "none that a split parts" in said
    assert "slices not used from now on 2" in said
    card = read_card(url)
    assert (card.excluded, card.num_slices) == (["copy-noisy", "seen"], 48)
    assert card.slices_per_fold == {"1": 20, "2": 20, "test": 8}
    assert (card.slices_per_class, card.num_masks) == (dict(Counter(row.label for row in folds)), 48)
    assert card.digest != before.digest
    assert main(["card", url, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["slices"], found["excluded"]) == (48, 2)
    assert main(search) == 0
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["leaks"] == 0


@pytest.mark.real
@pytest.mark.slow
def test_the_authors_folds_of_cheng_part_no_pair(real_data: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "cheng")
    assert main(["ingest", "folder", str(real_data / "cheng"), "--out", url]) == 0
    table = table_of(url)
    assert alike({"cheng": table}) == []
    by_slice = replace(table, source_fold_R=[None] * len(table), group_R=table.slice_id_R)
    assert len(alike({"cheng": by_slice})) > 150, "neighbours in one head, which a random split would part"
