from __future__ import annotations

import numpy as np
import pytest

from braintum.data.neighbours import correlations, near_pairs


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 11])
def test_what_the_index_finds_is_what_comparing_all_finds(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flipped = [sum(1 << int(bit) for bit in rng.choice(64, count % 14, replace=False)) for count in range(200)]
    hashes = np.concatenate([hashes, hashes[:200] ^ np.array(flipped, np.uint64)])
    differ = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.column_stack(np.nonzero(np.triu(differ <= distance, 1)))
    found = near_pairs(hashes, distance)
    np.testing.assert_array_equal(found, expected)
    assert len(found) > 10


def test_nothing_has_no_neighbours() -> None:
    assert near_pairs(np.empty(0, np.uint64), 7).shape == (0, 2)
    with pytest.raises(ValueError, match="distance: 12: expected 0 to 11"):
        near_pairs(np.zeros(2, np.uint64), 12)


def test_correlation_is_pearsons() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (4, 16, 16)).astype(np.uint8)
    thumbs[3] = 7
    found = correlations(thumbs, np.array([[0, 1], [1, 2], [0, 3]]))
    expected = [np.corrcoef(thumbs[a].ravel(), thumbs[b].ravel())[0, 1] for a, b in ((0, 1), (1, 2))]
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-5)


def test_what_is_less_than_asked_for_stays_less() -> None:
    rng = np.random.default_rng(1)
    smooth = rng.normal(size=(40, 8, 8)).repeat(8, axis=1).repeat(8, axis=2)
    alike = smooth[:1] + rng.normal(size=(40, 64, 64)) * np.linspace(0.05, 3, 40)[:, None, None]
    thumbs = np.concatenate([smooth, alike, rng.normal(size=(20, 64, 64))]).astype(np.float16)
    pairs = np.column_stack(np.triu_indices(len(thumbs), 1))
    exact = correlations(thumbs, pairs)
    for least in (0.3, 0.8, 0.95):
        found = correlations(thumbs, pairs, least)
        near = exact >= least
        assert 5 < near.sum() < len(pairs) / 2
        np.testing.assert_allclose(found[near], exact[near], atol=1e-6)
        assert (found[~near] < least).all()
        assert (found[~near] >= exact[~near] - 1e-5).all()
