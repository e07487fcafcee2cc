"""What `data.region` shows of a slice: a region alone, or a crop of the source's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from example_rows import SIZE, make_row
from numpy.typing import NDArray

from braintum.data.batches import ordered_batches
from braintum.data.images import box_around, resize_image
from braintum.data.schema import DataError
from braintum.data.table import load_table
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
    kept = [tables["whole"].slice_id_R.index(name) for name in tables[region].slice_id_R]
    seen, whole = (
        next(ordered_batches(table, np.asarray(order, np.int64), 8)).image_BCHW.numpy()
        for table, order in ((tables[region], np.arange(len(kept))), (tables["whole"], kept))
    )
    of_region = tables["whole"].mask_RHW[kept] == ("tumour", "oedema").index(region) + 1
    assert 0 < of_region.mean() < 0.2
    np.testing.assert_array_equal(seen[:, 0], np.where(of_region, whole[:, 0], 0))
    for name in ("native_bytes_R", "low_RC", "high_RC", "mask_RHW"):
        np.testing.assert_array_equal(getattr(tables[region], name), getattr(tables["whole"], name)[kept])


def _of(dtype: str, image_CHW: NDArray[Any]) -> NDArray[Any]:
    return image_CHW if dtype == "uint8" else image_CHW.astype(np.uint16) * 16 + 5


@pytest.mark.parametrize("region", ["tumour", "oedema"])
def test_slices_that_show_nothing_of_the_region_are_left_out(make_table: Any, region: str) -> None:
    table = make_table([*ROWS, make_row("more", "b", mask_HW=MASK)], region=region)
    assert table.slice_id_R == [*SEEN[region], "more"]
    assert table.has_mask_R.all()


def test_what_is_too_small_to_be_left_at_the_size_trained_on_shows_nothing(write: Any) -> None:
    speck = EMPTY.copy()
    speck[0, 0] = 1
    url, _ = write([*ROWS, make_row("speck", "a", mask_HW=speck)])
    seen = {side: load_table(url, Data(image_size=side, region="tumour")).slice_id_R for side in (SIZE, 16)}
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
