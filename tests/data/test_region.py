"""What `data.region` shows of a slice: a region alone, or a crop of the source's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from example_rows import SIZE, make_row
from numpy.typing import NDArray

from braintum.data.batches import ordered_batches
from braintum.data.folds import held_out_folds, region_counts, split, validation_split
from braintum.data.images import box_around, largest_piece, resize_image
from braintum.data.schema import DataError
from braintum.data.shards import write_dataset
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data

MASK = np.zeros((SIZE, SIZE), np.uint8)
MASK[4:12, 8:20] = 1
MASK[12:16, 8:20] = 2
EMPTY = np.zeros_like(MASK)
ROWS = [
    make_row("both", "a", mask_HW=MASK),
    make_row("healthy", "b", mask_HW=EMPTY),
    make_row("tumour", "b", mask_HW=np.where(MASK == 2, 0, MASK)),
    make_row("unknown", "a", mask_HW=None),
    make_row("unlabelled", None, mask_HW=MASK),
]
SEEN = {"tumour": ["both", "tumour", "unlabelled"], "oedema": ["both", "unlabelled"]}


def square(*corners: int, size: tuple[int, int] = (20, 30)) -> NDArray[np.bool_]:
    mask_HW = np.zeros(size, bool)
    top, bottom, left, right = corners
    mask_HW[top:bottom, left:right] = True
    return mask_HW


@pytest.mark.parametrize(
    ("tumour", "margin", "box"),
    [
        ((8, 12, 10, 18), 0.0, (6, 14, 10, 18)),
        ((8, 12, 10, 18), 0.25, (4, 16, 8, 20)),
        ((0, 4, 24, 30), 0.5, (0, 12, 18, 30)),  # moved into the slice
        ((5, 6, 2, 28), 0.1, (0, 20, 0, 30)),  # longer than the slice is high
        ((3, 3, 3, 3), 0.25, (0, 20, 0, 30)),  # nothing there
        ((7, 8, 7, 8), 0.25, (6, 8, 6, 8)),  # no half pixels
    ],
)
def test_a_box_is_the_square_around_a_mask(
    tumour: tuple[int, ...], margin: float, box: tuple[int, int, int, int]
) -> None:
    rows, columns = box_around(square(*tumour), margin)
    assert (rows.start, rows.stop, columns.start, columns.stop) == box


def test_the_largest_piece_of_a_mask() -> None:
    small, large, touching = square(0, 1, 0, 1), square(8, 12, 10, 18), square(12, 14, 18, 20)
    np.testing.assert_array_equal(largest_piece(small | large), large)
    np.testing.assert_array_equal(largest_piece(small | large | touching), large | touching)  # by a corner
    np.testing.assert_array_equal(largest_piece(small | square(5, 6, 5, 6)), small)  # the first of two as large
    assert not largest_piece(square(0, 0, 0, 0)).any()


def test_a_box_holds_the_whole_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        (top, bottom), (left, right) = (np.sort(rng.choice(size + 1, 2, replace=False)) for size in (20, 30))
        mask_HW = square(top, bottom, left, right)
        assert mask_HW[box_around(mask_HW, float(rng.choice([0, 0.1, 0.7])))].sum() == mask_HW.sum()


@pytest.mark.parametrize("region", ["tumour", "oedema"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pixels_outside_of_the_region_are_black_and_those_inside_as_in_the_whole_slice(
    write: Any, region: str, dtype: str
) -> None:
    rows = [make_row(r.slice_id, r.label, mask_HW=r.mask_HW, image_CHW=_of(dtype, r.image_CHW)) for r in ROWS]
    rows[4] = make_row("more", "b", mask_HW=MASK, image_CHW=rows[4].image_CHW)  # so that both classes show oedema
    url, _ = write(rows)
    tables = {name: load_table(url, Data(image_size=SIZE, region=name)) for name in ("whole", region)}
    kept = np.flatnonzero(tables[region].shown_R)
    seen, whole = (
        next(ordered_batches(table, kept, 8)).image_BCHW.numpy() for table in (tables[region], tables["whole"])
    )
    of_region = tables["whole"].mask_RHW[kept] == ("tumour", "oedema").index(region) + 1
    assert 0 < of_region.mean() < 0.2
    np.testing.assert_array_equal(seen[:, 0], np.where(of_region, whole[:, 0], 0))
    for name in ("slice_id_R", "native_bytes_R", "low_RC", "high_RC", "mask_RHW", "has_tumour_R"):
        np.testing.assert_array_equal(getattr(tables[region], name), getattr(tables["whole"], name))


def _of(dtype: str, image_CHW: NDArray[Any]) -> NDArray[Any]:
    return image_CHW if dtype == "uint8" else image_CHW.astype(np.uint16) * 16 + 5


@pytest.mark.parametrize("region", ["tumour", "oedema"])
def test_slices_that_show_nothing_of_the_region_are_marked(make_table: Any, region: str) -> None:
    table = make_table([*ROWS, make_row("more", "b", mask_HW=MASK, source_fold="test")], region=region)
    assert table.slice_id_R == [*(row.slice_id for row in ROWS), "more"]
    assert shown(table) == [*SEEN[region], "more"]
    assert region_counts(table, region) == {"shown": len(SEEN[region]), "slices": len(ROWS)}


def shown(table: SliceTable) -> list[str]:
    return [table.slice_id_R[row] for row in np.flatnonzero(table.shown_R)]


def test_every_slice_is_shown_whole_and_cut(write: Any) -> None:
    url, _ = write(ROWS)
    for region in ("whole", "crop"):
        table = load_table(url, Data(image_size=SIZE, region=region))
        assert table.shown_R.all()
        assert region_counts(table, region) == {}


@pytest.fixture(scope="module", params=["cases", "source folds"])
def regional(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SliceTable]:
    """120 slices of two classes in 40 cases, half of them without oedema and some without tumour, by region."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        mask_HW = MASK.copy()
        if rng.random() < 0.5:
            mask_HW[mask_HW == 2] = 0
        if i % 9 == 0:
            mask_HW[:] = 0
        mask_HW[0, 0] = mask_HW[0, 0] or i % 18 == 0  # a tumour that is seen in a small crop alone
        fold = {"source_fold": str(i // 3 % 3)} if request.param == "source folds" else {}
        rows.append(make_row(f"s{i:03d}", "ab"[i // 3 % 2], mask_HW=mask_HW, group=f"case {i // 3}", **fold))
    url = str(tmp_path_factory.mktemp("regional") / "set")
    write_dataset(rows, url, name="set", provenance="drawn", licence=None)
    return {name: load_table(url, Data(image_size=16, region=name)) for name in ("whole", "tumour", "oedema", "crop")}


@pytest.mark.parametrize("region", ["tumour", "oedema", "crop"])
def test_whether_a_slice_has_a_tumour_is_seen_in_the_whole_slice(regional: dict[str, SliceTable], region: str) -> None:
    np.testing.assert_array_equal(regional[region].has_tumour_R, regional["whole"].has_tumour_R)


@pytest.mark.parametrize("region", ["tumour", "oedema", "crop"])
def test_a_slices_fold_is_the_same_whatever_the_region(regional: dict[str, SliceTable], region: str) -> None:
    whole, table = regional["whole"], regional[region]
    left_out = set(np.flatnonzero(~table.shown_R))
    assert len(left_out) == {"tumour": 14, "oedema": 60, "crop": 0}[region]

    def same(part: Any, as_whole: Any) -> None:
        assert part.tolist() == [row for row in as_whole if row not in left_out]

    folds = held_out_folds(whole, None, seed=0)
    for name, rows in held_out_folds(table, None, seed=0).items():
        same(rows, folds[name])
    for name in (None, *folds):
        ours, theirs = split(table, name, None, seed=0), split(whole, name, None, seed=0)
        assert ours.train.tolist() == theirs.train.tolist()
        same(ours.held_out, theirs.held_out)
        for seed in range(3):
            inner, of_whole = (
                validation_split(*given, 0.2, seed) for given in ((table, ours.train), (whole, theirs.train))
            )
            for part, as_whole in zip(inner, of_whole, strict=True):
                same(part, as_whole)


def test_a_fold_without_a_slice_that_shows_the_region(write: Any) -> None:
    rows = [
        make_row(f"{fold}{i}", "ab"[i % 2], source_fold=fold, mask_HW=EMPTY if fold == "2" and i % 2 else MASK)
        for fold in "123"
        for i in range(4)
    ]
    url = write(rows)[0]
    whole, table = (load_table(url, Data(image_size=SIZE, region=region)) for region in ("whole", "tumour"))
    assert list(held_out_folds(whole, None, seed=0)) == ["1", "2", "3"]
    with pytest.raises(DataError, match=r"fold 2 has no slice of class 'b' that shows data\.region; choose other"):
        held_out_folds(table, None, seed=0)


def test_what_is_too_small_to_be_left_at_the_size_trained_on_shows_nothing(write: Any) -> None:
    speck = EMPTY.copy()
    speck[0, 0] = 1
    url, _ = write([*ROWS, make_row("speck", "a", mask_HW=speck)])
    seen = {side: shown(load_table(url, Data(image_size=side, region="tumour"))) for side in (SIZE, 16)}
    assert seen == {SIZE: [*SEEN["tumour"], "speck"], 16: SEEN["tumour"]}


@pytest.mark.parametrize(
    ("rows", "region", "says"),
    [
        (ROWS[1:4], "oedema", "'oedema' needs a mask of the oedema, which .* lacks; its masks: tumour"),
        (ROWS[3:4], "crop", "'crop' needs a mask of the tumour, which .* lacks; it has no masks"),
        (ROWS[:2], "tumour", "no slice of class 'b' shows tumour at 16 pixels; list the classes that do in data.class"),
    ],
)
def test_a_region_that_the_data_do_not_have(make_table: Any, rows: list[Any], region: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make_table(rows, region=region, image_size=16)


def test_a_region_that_no_slice_shows(write: Any) -> None:
    speck = EMPTY.copy()
    speck[0, 0] = 1
    url, _ = write([make_row("speck", "a", mask_HW=speck)])
    with pytest.raises(DataError, match="no slice that shows tumour at 16 pixels has one of the labels"):
        load_table(url, Data(image_size=16, region="tumour"))


def test_a_crop_is_cut_out_of_the_sources_own_pixels(make_table: Any) -> None:
    table = make_table(ROWS, region="crop", margin=0.0, image_size=16)
    assert table.slice_id_R == [row.slice_id for row in ROWS]
    around = (slice(2, 14), slice(8, 20))  # the tumour is 8 high and 12 wide
    for i, box in enumerate([around, None, around, None, around]):
        image_CHW = ROWS[i].image_CHW if box is None else ROWS[i].image_CHW[:, *box]
        np.testing.assert_array_equal(table.image_RCHW[i], resize_image(image_CHW, 16, 16))
        assert (table.low_RC[i, 0], table.high_RC[i, 0]) == (table.image_RCHW[i].min(), table.image_RCHW[i].max())
    assert table.has_tumour_R.tolist() == [True, False, True, False, True]
    assert table.mask_RHW[2].mean() == pytest.approx(8 / 12, abs=0.1), "the mask is cut as the image is"
    np.testing.assert_array_equal(table.native_tumour_HW(0), MASK == 1)


def test_a_margin_shows_more_around_the_tumour(write: Any) -> None:
    url, _ = write(ROWS)
    tables = [load_table(url, Data(image_size=SIZE, region="crop", **margin)) for margin in ({}, {"margin": 1.0})]
    share = [table.mask_RHW[2].mean() for table in tables]
    assert share == pytest.approx([8 * 12 / 18**2, 8 * 12 / 32**2], abs=0.05)


def test_boxes_are_cut_out_whatever_the_true_mask_says(write: Any) -> None:
    url, _ = write(ROWS, shard_bytes=1)
    boxes = {"unknown": (slice(3, 19), slice(10, 26)), "both": (slice(0, 16), slice(0, 16))}
    table = load_table(url, Data(image_size=16, region="crop"), boxes)
    assert table.slice_id_R == ["both", "unknown"]
    np.testing.assert_array_equal(table.image_RCHW[0], ROWS[0].image_CHW[:, :16, :16])
    np.testing.assert_array_equal(table.image_RCHW[1], ROWS[3].image_CHW[:, 3:19, 10:26])
