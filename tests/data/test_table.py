from __future__ import annotations

import numpy as np
import pytest
from example_rows import SIZE, make_row

from braintum.data.images import resize_image, resize_mask
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

ROWS = [
    make_row("g", "glioma"),
    make_row("m", "meningioma", mask_HW=None),
    make_row("p", "pituitary", mask_HW=np.zeros((SIZE, SIZE), np.uint8)),
    make_row("u", None),
    make_row("nothing", None, mask_HW=None),
]


def test_a_table_holds_what_can_be_learned_from(make_table) -> None:
    table = make_table(ROWS)
    assert table.slice_id_R == ["g", "m", "p", "u"]  # neither mask nor label: nothing to learn
    assert table.classes == ("glioma", "meningioma", "pituitary")
    assert table.label_R.tolist() == [0, 1, 2, -1]
    assert table.has_mask_R.tolist() == [True, False, True, True]
    assert table.has_tumour_R.tolist() == [True, False, False, True]
    assert not table.mask_RHW[1:3].any()
    for i, row in enumerate([*ROWS[:4]]):
        np.testing.assert_array_equal(table.image_RCHW[i], row.image_CHW)
        assert (table.low_RC[i, 0], table.high_RC[i, 0]) == (row.image_CHW.min(), row.image_CHW.max())


def test_slices_are_resized_to_the_size_trained_on(make_table) -> None:
    table = make_table(ROWS, image_size=16)
    assert (table.image_RCHW.shape, table.mask_RHW.shape) == ((4, 1, 16, 16), (4, 16, 16))
    assert (table.height, table.width) == (SIZE, SIZE)
    np.testing.assert_array_equal(table.image_RCHW[0], resize_image(ROWS[0].image_CHW, 16, 16))
    np.testing.assert_array_equal(table.mask_RHW[0], resize_mask(ROWS[0].mask_HW, 16, 16))


def test_classes_select_and_merge(write) -> None:
    url, _ = write(ROWS)

    def labels(classes):
        table = load_table(url, Data(image_size=SIZE, classes=classes))
        return table.classes, dict(zip(table.slice_id_R, table.label_R.tolist(), strict=True))

    both = ("pituitary", "glioma")
    assert labels({name: (name,) for name in both}) == (both, {"g": 1, "p": 0, "u": -1})
    merged = {"other": ("meningioma", "pituitary"), "glioma": ("glioma",)}
    assert labels(merged) == (("other", "glioma"), {"g": 1, "m": 0, "p": 0, "u": -1})
    with pytest.raises(DataError, match=r"'oligo' is no label of .*glioma, meningioma, pituitary"):
        labels({"glioma": ("glioma",), "o": ("oligo",)})


def test_a_table_keeps_the_sources_own_tumours(write) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (SIZE - 3, SIZE), np.uint8) for _ in range(3)]
    image_CHW = np.zeros((1, SIZE - 3, SIZE), np.uint8)
    more = [make_row(f"r{i}", mask_HW=mask, image_CHW=image_CHW) for i, mask in enumerate([masks[0], None, *masks[1:]])]
    table = load_table(write(more, shard_bytes=2 * image_CHW.size)[0], Data(image_size=16))
    assert table.native_tumour_HW(1) is None
    for row, mask in zip((0, 2, 3), masks, strict=True):
        np.testing.assert_array_equal(table.native_tumour_HW(row), mask == 1)


def test_nothing_left_is_an_error(make_table) -> None:
    with pytest.raises(DataError, match="no slice has one of the labels"):
        make_table([make_row("x", None, mask_HW=None)])


def test_native_pixels(write) -> None:
    url, _ = write(ROWS, shard_bytes=1)
    masks = read_masks(url, ["u", "m", "g"])
    assert list(masks) == ["u", "m", "g"]
    assert masks["m"] is None
    np.testing.assert_array_equal(masks["g"], ROWS[0].mask_HW)
    np.testing.assert_array_equal(read_images(url, ["p"])["p"], ROWS[2].image_CHW)
    with pytest.raises(DataError, match="no slice 'z'"):
        read_masks(url, ["g", "z"])
