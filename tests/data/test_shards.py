from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_rows import SIZE, make_row
from hypothesis import given, settings
from hypothesis import strategies as st

from braintum.data.schema import DTYPES, PLANES, DataError, Row
from braintum.data.shards import read_card, read_shard, write_dataset
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data


def test_what_was_written_is_read(write) -> None:
    no_mask = make_row("n", "b", mask_HW=None, case_id="p", spacing_yx_mm=(0.5, 0.75), position=3.0, source_fold="1")
    rows = [make_row("m"), no_mask, make_row("u", None)]
    url, card = write(rows)
    assert read_card(url) == card
    assert (card.num_slices, card.num_masks, card.num_cases) == (3, 2, None)
    assert card.slices_per_class == {"a": 1, "b": 1}
    assert (card.classes, card.masks, card.channels, card.height) == (["a", "b"], ["tumour"], 1, SIZE)
    table = read_shard(url, card.shards[0])
    assert table.schema.field("image").type == pa.binary(SIZE * SIZE)
    for row, stored in zip(rows, table.to_pylist(), strict=True):
        assert stored["image"] == row.image_CHW.tobytes()
        assert stored["image_sha256"] == hashlib.sha256(row.image_CHW.tobytes()).hexdigest()
        assert stored["mask"] == (None if row.mask_HW is None else row.mask_HW.tobytes())
        assert (stored["label"], stored["case_id"], stored["group"]) == (row.label, row.case_id, row.group)
    assert (stored["spacing_y_mm"], table["spacing_y_mm"][1].as_py(), table["position"][1].as_py()) == (None, 0.5, 3.0)


@st.composite
def datasets(draw: st.DrawFn) -> list[Row]:
    """Rows of one shape and dtype, some of whose pictures may be the same; what may be unknown is so in some."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    channels, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rows = []
    for number in range(draw(st.integers(1, 7))):
        rng = np.random.default_rng(draw(st.integers(0, 4)))
        if dtype == np.float16:
            image_CHW: Any = rng.random((channels, height, width)).astype(dtype)
        else:
            image_CHW = rng.integers(0, np.iinfo(dtype).max, (channels, height, width), dtype, endpoint=True)
        if draw(st.booleans()):  # a view of another, in an order of its own
            image_CHW = image_CHW[:, :, ::-1]
        mask_HW = (image_CHW[0] > image_CHW[0].mean()).astype(np.uint8) * 2
        mm = st.floats(0.125, 8, width=32)
        spacing = draw(st.none() | st.tuples(mm, mm))
        rows.append(
            Row(
                slice_id=f"{number}", group="g", image_CHW=image_CHW, mask_HW=draw(st.sampled_from([None, mask_HW])),
                label=draw(st.sampled_from([None, "a"])), case_id=draw(st.sampled_from([None, "p"])),
                plane=draw(st.sampled_from([None, *PLANES])), spacing_yx_mm=spacing,
                position=draw(st.none() | st.floats(-1e6, 1e6, width=32)),
            )
        )  # fmt: skip
    return rows


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(rows=datasets(), shard_bytes=st.integers(1, 20_000))
def test_a_round_trip_of_any_dtype_and_size(rows: list[Row], shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/set"
        card = write_dataset(rows, url, name="set", provenance="a test", licence=None, shard_bytes=shard_bytes)
        assert read_card(url) == card
        assert sum(shard.rows for shard in card.shards) == card.num_slices == len(rows)
        names = [row.slice_id for row in rows]
        images, masks = read_images(url, names), read_masks(url, names)
        stored = [line for shard in card.shards for line in read_shard(url, shard).to_pylist()]
    for row, line in zip(rows, stored, strict=True):
        image, mask = images[row.slice_id], masks[row.slice_id]
        assert image.dtype == row.image_CHW.dtype
        np.testing.assert_array_equal(image, row.image_CHW)
        assert (mask is None) == (row.mask_HW is None)
        if row.mask_HW is not None:
            np.testing.assert_array_equal(mask, row.mask_HW)
        assert [line[name] for name in ("slice_id", "group", "label", "case_id", "plane", "position")] == [
            row.slice_id, row.group, row.label, row.case_id, row.plane, row.position,
        ]  # fmt: skip
        assert (line["spacing_y_mm"], line["spacing_x_mm"]) == (row.spacing_yx_mm or (None, None))
        assert line["image_sha256"] == hashlib.sha256(image.tobytes()).hexdigest()
    planes = [row.plane for row in rows if row.plane is not None]
    assert card.slices_per_plane == {plane: planes.count(plane) for plane in sorted(set(planes))}


def test_a_dataset_from_before_planes_is_read(write) -> None:
    url, card = write([make_row("x"), make_row("y")])
    shard = Path(url) / card.shards[0].file
    pq.write_table(pq.read_table(shard).drop_columns("plane"), shard)
    settings = json.loads((Path(url) / "card.json").read_text())
    del settings["slices_per_plane"]
    settings["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (Path(url) / "card.json").write_text(json.dumps(settings))
    assert read_card(url).slices_per_plane == {}
    assert load_table(url, Data(image_size=SIZE)).slice_id_R == ["x", "y"]


def test_the_digest_names_the_content(write, tmp_path: Path) -> None:
    rows = [make_row(f"r{i}") for i in range(7)]
    _, one = write(rows, str(tmp_path / "one"), shard_bytes=3 * 2 * SIZE * SIZE)
    _, again = write(rows, str(tmp_path / "again"), shard_bytes=3 * 2 * SIZE * SIZE)
    _, fewer = write(rows[:-1], str(tmp_path / "fewer"), shard_bytes=3 * 2 * SIZE * SIZE)
    assert [shard.rows for shard in one.shards] == [3, 3, 1]
    assert one.digest == again.digest != fewer.digest
    names = load_table(str(tmp_path / "one"), Data(image_size=SIZE)).slice_id_R
    assert names == [f"r{i}" for i in range(7)]  # the order is kept across shards


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [make_row("x", where="line 2"), make_row("x", where="line 3")],
            "line 3: duplicate slice id 'x', as in line 2",
        ),
        ([make_row("x"), make_row("y", image_CHW=np.zeros((1, 8, 8), np.uint8), mask_HW=None)], "image y is 8×8"),
        ([make_row("x", mask_HW=np.zeros((8, 9), np.uint8))], "mask of x is 9×8, its image 32×32"),
        ([make_row("x", mask_HW=np.full((SIZE, SIZE), 7, np.uint8))], "mask of x has the value 7"),
        ([make_row("x", case_id="p", source_fold="1"), make_row("y", case_id="p", source_fold="2")], "case 'p' is in"),
        ([make_row("x", mask_HW=np.zeros((SIZE, SIZE), bool))], "mask of x is bool; expected uint8"),
        ([make_row("x", plane="oblique")], "x: plane 'oblique'; known: axial, coronal, sagittal"),
        ([make_row("x", label="a\nb", where="line 2")], r"line 2: label 'a\\n'...: a line break"),
        ([make_row("x", source_fold="..")], r"fold '\.\.': expected 1 to 32 letters"),
        ([make_row("x", source_fold="1" * 33)], "expected 1 to 32 letters"),
        (
            [make_row("x", source_fold="1"), replace(make_row("x", source_fold="2"), slice_id="y")],
            r"'x' \(fold '1', group 'x'\) and 'y' \(fold '2', group 'x'\) are the same picture, so .*1 such",
        ),
        ([], "no slices"),
    ],
)
def test_bad_rows_leave_nothing_behind(write, tmp_path: Path, rows, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        write(rows, str(tmp_path / "out" / "set"), shard_bytes=1)  # every good row before is a shard on disk
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "set").exists()


def test_a_fold_that_would_lead_out_of_a_results_folder_is_not_read(write) -> None:
    url, card = write([make_row("x", source_fold="1"), make_row("y", source_fold="2")])
    shard = Path(url) / card.shards[0].file
    table = pq.read_table(shard)
    at = table.schema.get_field_index("source_fold")
    pq.write_table(table.set_column(at, table.schema.field(at), [["../../x", "2"]]), shard)
    settings = json.loads((Path(url) / "card.json").read_text())
    settings["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (Path(url) / "card.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=rf"{shard.name}: fold '\.\./\.\./x': expected 1 to 32 letters"):
        load_table(url, Data(image_size=SIZE))


def test_an_output_that_exists_is_refused_and_kept(write, tmp_path: Path) -> None:
    url, card = write([make_row("x")])
    with pytest.raises(DataError, match="exists; choose another --out"):
        write([make_row("y")], url)
    assert read_card(url) == card


def test_a_damaged_shard_is_named(write) -> None:
    url, card = write([make_row("x")])
    path = Path(url) / card.shards[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match=f"{card.shards[0].file}: damaged.*{card.shards[0].sha256}.*{found}.*ingest"):
        load_table(url, Data(image_size=SIZE))
    path.unlink()
    with pytest.raises(DataError, match=f"{card.shards[0].file}: missing"):
        load_table(url, Data(image_size=SIZE))


def test_a_dataset_without_a_card_was_never_finished(write, tmp_path: Path) -> None:
    url, _ = write([make_row("x")])
    card = Path(url) / "card.json"
    settings = json.loads(card.read_text())
    for change, message in [({"format_version": 99}, "format 99"), ({"height": "x"}, "height")]:
        card.write_text(json.dumps(settings | change))
        with pytest.raises(DataError, match=message):
            read_card(url)
    card.unlink()
    for where in (url, str(tmp_path / "nowhere"), "memory://nowhere"):
        with pytest.raises(DataError, match=r"no card\.json"):
            read_card(where)
    with pytest.raises(DataError, match="nosuch"):
        read_card("nosuch://a/b")
