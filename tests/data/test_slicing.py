"""What a volume becomes: which slices, how turned, cut, scaled, labelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from example_scans import SHAPE, affine, head, tumour

from braintum.data.ingest.slicing import Case, Slicing, slices_of
from braintum.data.schema import DataError

LONG = (20, 22, 60)


def case(**changes: Any) -> Case:
    given = {
        "name": "p1/a", "case_id": "p1", "where": "p1/a.nii", "image_CXYZ": head().astype(np.float32)[None],
        "affine": affine(), "mask_XYZ": tumour(), "label": "glioma",
    }  # fmt: skip
    return Case(**(given | changes))


def rows(slicing: Slicing, **changes: Any):
    return slices_of(case(**changes), slicing)


def numbers(found) -> list[int]:
    return [int(row.slice_id.rpartition("-")[2]) for row in found]


def test_twenty_slices_are_those_with_most_tumour_in_equal_parts_of_its_extent() -> None:
    area = np.r_[np.zeros(8, int), np.random.default_rng(0).integers(1, 60, 45), np.zeros(7, int)]
    mask = np.zeros(LONG, np.uint8)
    for k, count in enumerate(area):
        mask[5:15, 6:12, k] = np.arange(60).reshape(10, 6) < count
    found = numbers(rows(Slicing(), image_CXYZ=head(shape=LONG)[None].astype(np.float32), mask_XYZ=mask))
    assert len(found) == 20
    assert found == sorted(found)
    edges = np.linspace(8, 53, 21)
    for start, end, k in zip(edges, edges[1:], found, strict=False):
        assert start <= k < end
        assert area[k] == area[int(np.ceil(start)) : int(np.ceil(end))].max()


def test_all_slices_with_tumour_where_there_are_no_more() -> None:
    found = rows(Slicing())
    assert numbers(found) == [4, 5, 6, 7, 8]
    assert numbers(rows(Slicing("tumour"))) == [4, 5, 6, 7, 8]
    assert numbers(rows(Slicing(3))) == [5, 6, 8]
    assert {row.label for row in found} == {"glioma"}
    assert {(row.case_id, row.group, row.where) for row in found} == {("p1", "p1", "p1/a.nii")}
    assert [row.position for row in found] == [8.0, 10.0, 12.0, 14.0, 16.0]
    assert {row.spacing_yx_mm for row in found} == {(1.0, 1.0)}


def test_a_part_without_tumour_gives_its_turn_to_the_largest_left() -> None:
    mask = np.zeros(LONG, np.uint8)
    mask[5:9, 5:9, 10:20] = 1
    mask[5:12, 5:9, 45:50] = 1
    found = numbers(rows(Slicing(12), image_CXYZ=head(shape=LONG)[None].astype(np.float32), mask_XYZ=mask))
    assert len(found) == 12
    assert set(range(45, 50)) <= set(found)


def test_healthy_slices_have_head_and_an_empty_mask() -> None:
    found = rows(Slicing(2, healthy=3))
    healthy = [row for row in found if row.label == "no_tumor"]
    assert len(healthy) == 3
    assert not any(row.mask_HW.any() for row in healthy)
    assert numbers(found) == sorted(numbers(found))
    assert not set(numbers(healthy)) & {0, 4, 5, 6, 7, 8, 11}  # no head, tumour
    assert [row.label for row in rows(Slicing(1, healthy=99))].count("no_tumor") == 5
    oedema = tumour() + 2 * (tumour(radius=(4, 4, 4)) - tumour())
    assert not set(numbers(rows(Slicing(1, healthy=99), mask_XYZ=oedema))) & {3, 9}  # neither healthy nor tumour


def test_all_slices_are_those_with_head() -> None:
    found = rows(Slicing("all"))
    assert numbers(found) == list(range(1, 11))
    assert [row.label for row in found] == ["no_tumor"] * 3 + ["glioma"] * 5 + ["no_tumor"] * 2


def test_without_a_mask_slices_are_spread_over_the_head() -> None:
    found = rows(Slicing(3), mask_XYZ=None)
    assert numbers(found) == [2, 6, 9]
    assert {(row.mask_HW is None, row.label) for row in found} == {(True, "glioma")}
    assert numbers(rows(Slicing("all"), mask_XYZ=None)) == list(range(1, 11))


@pytest.mark.parametrize(
    ("plane", "number", "left", "top", "spacing"),
    [
        ("axial", 6, "right", "front", (1.0, 1.0)),
        ("coronal", 18, "right", "top", (2.0, 1.0)),
        ("sagittal", 8, "front", "top", (2.0, 1.0)),
    ],
)
def test_planes_are_shown_as_radiologists_expect(plane, number, left, top, spacing) -> None:
    """A spot in the tumour's middle, on the patient's left, in front and (0-based) at 6 of 12 from below."""
    image = head()
    image[8, 18, 6] = 30000
    found = {k: row for row in rows(Slicing("all", plane=plane, size=32, intensity="minmax"),
                                    image_CXYZ=image[None].astype(np.float32))
             for k in [int(row.slice_id[-3:])]}  # fmt: skip
    row = found[number]
    assert row.position == number * (2.0 if plane == "axial" else 1.0)
    assert row.spacing_yx_mm == spacing
    from_low = {"right": 24 - 1 - 8, "front": 28 - 1 - 18, "top": 12 - 1 - 6}
    pad = {"right": (32 - 24) // 2, "front": (32 - 28) // 2, "top": (32 - 12) // 2}
    y, x = (int(index[0]) for index in np.nonzero(row.image_CHW[0] == row.image_CHW[0].max()))
    assert (y, x) == (from_low[top] + pad[top], from_low[left] + pad[left])
    assert row.mask_HW[y, x] == 1


def test_the_window_lies_around_the_head_and_shrinks_only_larger_ones() -> None:
    image = np.zeros((60, 60, 12), np.float32)
    image[30:54, 2:30] = head()
    mask = np.zeros((60, 60, 12), np.uint8)
    mask[30:54, 2:30] = tumour()
    row = rows(Slicing(1, size=30), image_CXYZ=image[None], mask_XYZ=mask)[0]
    inside = rows(Slicing(1, size=30))[0]
    np.testing.assert_array_equal(row.mask_HW, inside.mask_HW)
    assert np.abs(row.image_CHW - inside.image_CHW).max() < 0.05
    small = rows(Slicing(1, size=16), image_CXYZ=image[None], mask_XYZ=mask)[0]
    assert small.image_CHW.shape == (1, 16, 16)
    assert small.spacing_yx_mm[0] == small.spacing_yx_mm[1] == pytest.approx(24 / 16, abs=0.1)
    area = small.spacing_yx_mm[0] ** 2
    assert small.image_CHW.astype(float).sum() * area == pytest.approx(inside.image_CHW.astype(float).sum(), rel=0.02)
    assert small.mask_HW.sum() * area == pytest.approx(inside.mask_HW.sum(), rel=0.4)


def test_tumour_outside_of_what_is_bright_is_not_cut_off() -> None:
    mask = tumour()
    mask[1, 1, 6] = 1
    assert rows(Slicing(1, size=16), mask_XYZ=mask)[0].spacing_yx_mm[0] > rows(Slicing(1, size=16))[0].spacing_yx_mm[0]


def test_intensities_are_those_of_the_head() -> None:
    image = head().astype(np.float32)
    image[12, 14, 6] = 1e6
    image[0, 0] = 1e6  # brighter than the head, but another piece
    seen = {
        how: rows(Slicing("all", intensity=how, size=32), image_CXYZ=image[None]) for how in ("percentile", "minmax")
    }
    middle = {how: found[5].image_CHW.astype(float) for how, found in seen.items()}
    assert all(values.min() >= 0 and values.max() == 1 for values in middle.values())
    assert np.median(middle["percentile"][0, 8:24, 8:24]) == pytest.approx(0.5, abs=0.1)
    assert np.median(middle["minmax"][0, 8:24, 8:24]) < 0.01
    scaled = rows(Slicing("all", intensity="minmax", size=32))[5].image_CHW
    inside = head()[head() > 500].astype(float)
    expected = (head()[:, :, 6].astype(float) - inside.min()) / np.ptp(inside)
    np.testing.assert_allclose(scaled[0, 2:30, 4:28], expected[::-1, ::-1].T.clip(0, 1), atol=1e-3)


def test_depth_follows_the_source() -> None:
    deep, flat = rows(Slicing(1))[0], rows(Slicing(1), few_bits=True)[0]
    assert (deep.image_CHW.dtype, flat.image_CHW.dtype) == (np.float16, np.uint8)
    np.testing.assert_allclose(flat.image_CHW / 255, deep.image_CHW.astype(float), atol=0.004)


def test_neighbours_become_channels_lowest_first() -> None:
    two = np.stack([head(0), head(1)]).astype(np.float32)
    plain = rows(Slicing("all", size=32), image_CXYZ=two)
    deep = rows(Slicing("all", size=32, context=1), image_CXYZ=two)
    assert numbers(plain) == numbers(deep)
    for k in range(1, len(plain) - 1):
        np.testing.assert_array_equal(
            deep[k].image_CHW, np.concatenate([plain[j].image_CHW for j in (k - 1, k, k + 1)])
        )
    mask = tumour()
    mask[8, 18, [0, -1]] = 1
    ends = rows(Slicing("tumour", size=32, context=2), mask_XYZ=mask)
    for channels in (ends[0].image_CHW, ends[-1].image_CHW[::-1]):
        np.testing.assert_array_equal(channels[0], channels[2])
        np.testing.assert_array_equal(channels[1], channels[2])
        assert (channels[3] != channels[2]).any()


def test_a_known_head_hides_all_else() -> None:
    known = np.zeros(SHAPE, bool)
    known[4:20, 4:24, 2:10] = True
    row = rows(Slicing(1, size=32), head_XYZ=known)[0]
    assert not row.image_CHW[0, :4].any()
    assert row.image_CHW[0, 8:24, 10:22].any()


@pytest.mark.parametrize(
    ("slicing", "changes", "message"),
    [
        ({}, {"mask_XYZ": None, "label": None}, "p1/a.nii: neither a mask nor a label"),
        ({"slices": "tumour"}, {"mask_XYZ": None}, "--slices tumour needs a mask"),
        ({"healthy": 1}, {"mask_XYZ": None}, "--healthy needs a mask"),
        ({}, {"mask_XYZ": np.zeros(SHAPE, np.uint8)}, "its mask shows no tumour; --healthy"),
        ({}, {"image_CXYZ": np.full((1, *SHAPE), 7, np.float32)}, "every voxel has the value 7: there is no head"),
        ({}, {"image_CXYZ": np.where(head()[None] > 900, np.nan, head())}, "no finite numbers"),
        ({}, {"image_CXYZ": (head()[None] > 500).astype(np.float32)}, "nearly all of the head has the value 1; is it"),
        ({"plane": "coronal"}, {"affine": affine((1, 1, 6))}, "coronal pixels would be 6.00×1.00 mm, and the head "
         "flat; take --plane axial"),
        ({"slices": 0}, {}, "slices: 0: expected a number above 0, all or tumour"),
        ({"slices": "most"}, {}, "slices: 'most': expected"),
        ({"slices": "all", "healthy": 2}, {}, "healthy: 2: has no effect with slices: all"),
        ({"healthy": -1}, {}, "healthy: -1: expected"),
        ({"plane": "oblique"}, {}, "plane: 'oblique': expected one of axial, coronal, sagittal"),
        ({"size": 8}, {}, "size: 8: expected 16 to 4096"),
        ({"intensity": "none"}, {}, "intensity: 'none': expected percentile or minmax"),
        ({"context": 9}, {}, "context: 9: expected 0 to 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_sliced_is_one_line(slicing, changes, message) -> None:
    with pytest.raises(DataError) as error:
        rows(Slicing(**slicing), **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
