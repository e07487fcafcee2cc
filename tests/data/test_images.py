from __future__ import annotations

import numpy as np
import pytest

from braintum.data.images import perceptual_hash, resize_image, resize_mask
from braintum.data.ingest.phantom import phantom_rows


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_shrinking_averages_by_area(dtype: type) -> None:
    image_CHW = np.random.default_rng(0).integers(0, 255, (2, 12, 18)).astype(dtype)
    blocks = image_CHW.reshape(2, 4, 3, 6, 3).astype(np.float64).mean((2, 4))
    resized = resize_image(image_CHW, 4, 6)
    assert (resized.dtype, resized.shape) == (dtype, (2, 4, 6))
    assert np.abs(resized - blocks).max() <= (1.01 if dtype == np.uint8 else 0.51)  # rounded once an axis


def test_growing_is_smooth_and_keeps_the_range() -> None:
    step = np.zeros((1, 8, 8), np.uint16)
    step[:, :, 4:] = 1000
    grown = resize_image(step, 8, 32)[0, 0].astype(int)
    assert (grown.min(), grown.max()) == (0, 1000)
    assert (np.diff(grown) >= 0).all()
    assert 0 < grown[15] < 1000


def test_masks_keep_what_covers_half() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :3] = 1  # covers a pixel, and half of the next
    mask[4:, 5:] = 2  # half of one, and the last
    np.testing.assert_array_equal(resize_mask(mask, 4, 4), [[1, 1, 0, 0]] * 2 + [[0, 0, 2, 2]] * 2)
    np.testing.assert_array_equal(resize_mask(mask, 16, 16), mask.repeat(2, 0).repeat(2, 1))


def test_the_perceptual_hash_sees_likeness() -> None:
    images = [row.image_CHW for row in phantom_rows(cases=8, slices_per_case=1, size=64, seed=0)]

    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()

    noise = np.random.default_rng(0).normal(0, 3, images[0].shape)
    for image in images:
        changed = np.clip(image * 0.8 + 12 + noise, 0, 255).astype(np.uint8)
        assert distance(image, changed) <= 6
        assert distance(image, resize_image(image, 128, 128)) <= 6
        assert 0 <= perceptual_hash(image) < 2**64
    others = [distance(a, b) for i, a in enumerate(images) for b in images[:i]]
    assert min(others) > 6
    assert distance(images[0], images[0][:, :, ::-1]) > 6
