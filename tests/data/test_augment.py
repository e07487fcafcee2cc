from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from braintum.data.augment import NUM_DRAWS, augment_draws
from braintum.data.change_by_slice import change_slices
from braintum.data.change_in_batch import change_in_batch, resample_in_batch
from braintum.data.changes import Changes, changes_of
from braintum.parts import Augment

OFF = {"flip_horizontal": 0, "flip_vertical": 0, "rotate": 0, "scale": 0, "shift": 0, "brightness": 0, "contrast": 0}
HEIGHT, WIDTH = 24, 36


def only(**settings: float) -> Augment:
    return Augment(**{**OFF, **settings})


@pytest.fixture
def image() -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(
        torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)), (HEIGHT, WIDTH), mode="bicubic"
    )
    return smooth.clamp(0, 1)


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.zeros(4, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    mask[:, :, 6:12, 9:20] = 1
    mask[:, :, 12:15, 9:20] = 2
    return mask


Pair = tuple[torch.Tensor, torch.Tensor]


def on_cpu(image: torch.Tensor, mask: torch.Tensor, changes: Changes) -> Pair:
    """What `change_in_batch` does, as CPUs do it."""
    low = np.zeros(image.shape[:2], np.float32)
    return change_slices(image.numpy(), mask.numpy()[:, 0], low, low + 1, changes)


def changed(image: torch.Tensor, mask: torch.Tensor, draws_BP: NDArray[np.float32], augment: Augment) -> Pair:
    return on_cpu(image, mask, changes_of(draws_BP, augment, *image.shape[2:]))


def by_opencv(image: torch.Tensor, mask: torch.Tensor, moves: torch.Tensor) -> Pair:
    """What `resample_in_batch` does, as CPUs do it."""
    one = np.ones(len(image))
    return on_cpu(image, mask, Changes(moves.double().numpy(), one, 0 * one))


def draws(value: float, slices: int = 4) -> NDArray[np.float32]:
    return np.full((slices, NUM_DRAWS), value, np.float32)


def test_nothing_changes_when_all_is_off(image, mask) -> None:
    same_image, same_mask = changed(image, mask, augment_draws(4, 0, 0), only())
    assert torch.equal(same_image, image)
    assert torch.equal(same_mask, mask)


@pytest.mark.parametrize(("field", "axis"), [("flip_horizontal", 3), ("flip_vertical", 2)])
def test_flips(image, mask, field: str, axis: int) -> None:
    image_flipped, mask_flipped = changed(image, mask, draws(0.5), only(**{field: 1}))
    torch.testing.assert_close(image_flipped, image.flip(axis), atol=1e-5, rtol=0)
    assert torch.equal(mask_flipped, mask.flip(axis))


def test_a_quarter_turn(image, mask) -> None:
    square, square_mask = image[..., :HEIGHT], mask[..., :HEIGHT]
    image_turned, mask_turned = changed(square, square_mask, draws(1.0), only(rotate=90))
    torch.testing.assert_close(image_turned, torch.rot90(square, 1, (2, 3)), atol=1e-4, rtol=0)
    assert torch.equal(mask_turned, torch.rot90(square_mask, 1, (2, 3)))


def test_a_rotation_is_rigid_in_an_oblong_picture() -> None:
    y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(128.0) - 63.5, indexing="ij")
    bar = ((y.abs() < 3) & (x.abs() < 25)).float()[None, None]
    _, turned = changed(bar, bar.byte(), draws(1.0, 1), only(rotate=60))
    along = (x * math.cos(math.pi / 3) - y * math.sin(math.pi / 3)).abs()
    across = (x * math.sin(math.pi / 3) + y * math.cos(math.pi / 3)).abs()
    inside = turned[0, 0] > 0
    assert abs(int(inside.sum()) - int(bar.sum())) < 20  # the area stays
    assert 24 < along[inside].max() < 26  # and so do the length
    assert 2 < across[inside].max() < 4  # and the width


@pytest.mark.parametrize(("draw", "factor"), [(1.0, 1.5), (0.0, 0.5)])
def test_scale_is_the_zoom(draw: float, factor: float) -> None:
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    mask[:, :, 24:40, 28:36] = 1
    zoomed = changed(mask.float(), mask, draws(draw, 1), only(scale=0.5))[1]
    assert float(zoomed.sum()) == pytest.approx(float(mask.sum()) * factor**2, rel=0.1)


def test_shift_is_a_share_of_the_side(image, mask) -> None:
    image_moved, mask_moved = changed(image, mask, draws(1.0), only(shift=0.25))
    torch.testing.assert_close(image_moved[:, :, : -HEIGHT // 4, : -WIDTH // 4], image[:, :, 6:, 9:], atol=1e-4, rtol=0)
    assert torch.equal(mask_moved[:, :, :-6, :-9], mask[:, :, 6:, 9:])
    assert not mask_moved[:, :, -6:].any()


def test_intensities_stay_in_range_and_masks_untouched(image, mask) -> None:
    brighter = changed(image, mask, draws(1.0), only(brightness=0.3))
    torch.testing.assert_close(brighter[0], (image + 0.3).clamp(0, 1))
    mean = image.mean((2, 3), keepdim=True)
    harder = changed(image, mask, draws(1.0), only(contrast=0.5))
    torch.testing.assert_close(harder[0], (mean + 1.5 * (image - mean)).clamp(0, 1))
    assert torch.equal(brighter[1], mask)
    assert torch.equal(harder[1], mask)


def test_image_and_mask_move_together_and_labels_stay_labels(mask) -> None:
    settings = Augment(rotate=180, scale=0.3, shift=0.2, brightness=0, contrast=0)
    image, moved = changed((mask == 1).float(), mask, augment_draws(4, 0, 0), settings)
    assert set(moved.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert ((image > 0.5) == (moved == 1)).float().mean() > 0.97
    assert not torch.equal(moved, mask)


def test_a_gpu_moves_slices_as_opencv_does(image, mask) -> None:
    angle, flip = torch.tensor([0.0, 0.2, -1.0, 2.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    shift = torch.tensor([0.0, 3.0, -4.5, 10.0])
    to_x = torch.stack([angle.cos() * flip, -angle.sin() * flip, shift], 1)
    to_y = torch.stack([angle.sin() * 0.7, angle.cos() * 0.7, -shift], 1)
    inputs = image, mask, torch.stack([to_x, to_y], 1)
    for in_batch, by_slice in zip(resample_in_batch(*inputs), by_opencv(*inputs), strict=True):
        assert by_slice.any()
        differs = ~torch.isclose(in_batch, by_slice, atol=1e-4)
        assert differs.float().mean() < 0.002  # a place on the edge of two pixels is rounded to either


def test_a_gpu_changes_intensities_as_cpus_do(image, mask) -> None:
    changes = changes_of(augment_draws(4, 0, 0), only(brightness=0.3, contrast=0.5), HEIGHT, WIDTH)
    (in_batch, _), (by_slice, _) = change_in_batch(image, mask, changes), on_cpu(image, mask, changes)
    torch.testing.assert_close(in_batch, by_slice)
    assert not torch.equal(in_batch, image)


def test_a_mask_is_moved_wherever_it_lies_and_however_far() -> None:
    """Only a part of the picture is looked at, around what the mask holds: nothing of it is missed."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(200, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    for slice_1HW in mask[:-1]:
        y, x = (int(torch.randint(0, side, (1,), generator=generator)) for side in (HEIGHT, WIDTH))
        slice_1HW[:, y : y + 5, x : x + 9] = torch.randint(
            0, 3, slice_1HW[:, y : y + 5, x : x + 9].shape, generator=generator
        )
    moves = torch.randn(200, 2, 3, generator=generator) + torch.eye(2, 3)
    moves[:, :, 2] *= 10
    inputs = mask.float(), mask, moves
    (_, in_batch), (_, by_slice) = resample_in_batch(*inputs), by_opencv(*inputs)
    assert in_batch.any(3).any(2).sum() > 50
    assert (in_batch != by_slice).float().mean() < 1e-4


def test_a_slice_is_changed_alike_whatever_batch_and_threads() -> None:
    image, mask = (
        torch.rand(5, 1, 256, 256, generator=torch.Generator().manual_seed(0)),
        torch.zeros(5, 1, 256, 256, dtype=torch.uint8),
    )
    mask[:, :, 100:150, 80:170] = 1
    draws_BP, settings, threads = augment_draws(5, 0, 0), Augment(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = changed(image, mask, draws_BP, settings)
        for torch_threads, size in ((1, 1), (2, 1), (2, 2), (2, 5)):
            torch.set_num_threads(torch_threads)
            parts = [slice(start, start + size) for start in range(0, 5, size)]
            pairs = [changed(image[part], mask[part], draws_BP[part], settings) for part in parts]
            assert torch.equal(torch.cat([pair[0] for pair in pairs]), whole[0])
            assert torch.equal(torch.cat([pair[1] for pair in pairs]), whole[1])
    finally:
        torch.set_num_threads(threads)


def test_draws_are_keyed_by_seed_and_epoch() -> None:
    one = augment_draws(1000, 3, 7)
    assert np.array_equal(one, augment_draws(1000, 3, 7))
    assert np.array_equal(one[:10], augment_draws(10, 3, 7))  # of a row, not of the table's length
    assert ((one >= 0) & (one < 1)).all()
    assert np.abs(one.mean(0) - 0.5).max() < 0.05
    for other in (augment_draws(1000, 4, 7), augment_draws(1000, 3, 8)):
        assert not np.array_equal(one, other)
