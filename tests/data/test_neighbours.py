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
