from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from example_rows import make_row

from braintum.data.batches import Batches, ordered_batches
from braintum.data.schema import DataError
from braintum.data.shared import share_table
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_the_shared_table_is_the_loaded_one(write) -> None:
    import ray

    url, card = write([make_row(f"r{i}", "ab"[i % 2]) for i in range(9)], shard_bytes=5000)
    assert len(card.shards) > 2
    data = Data(image_size=16)
    shared, loaded = ray.get(share_table(url, data)), load_table(url, data)
    for field in fields(SliceTable):
        np.testing.assert_array_equal(getattr(shared, field.name), getattr(loaded, field.name))
    assert not shared.image_RCHW.flags.writeable  # a view of the object store
    one = next(ordered_batches(shared, np.arange(9), 9))
    assert (one.image_BCHW == next(ordered_batches(loaded, np.arange(9), 9)).image_BCHW).all()
    assert len(list(Batches(shared, np.arange(9), batch_size=3, seed=0, augment=None).epoch(0))) == 3


def test_windows_that_the_store_cannot_hold_are_refused(write) -> None:
    """Of 2,048 pixels a side, a slice takes 8 MB of the table, and these ones take more than the store has."""
    import ray

    count = int(max(node["Resources"]["object_store_memory"] for node in ray.nodes()) / 2 / 2048**2) + 1
    url = write([make_row(f"r{i}", "ab"[i % 2]) for i in range(count)])[0]
    with pytest.raises(
        DataError, match=r"data.window: 16,384 slices are .* set data.window to [1-9]\d* or less"
    ) as one:
        share_table(url, Data(image_size=2048))
    with pytest.raises(DataError, match="2 trainings on a node would hold two windows each") as two:
        share_table(url, Data(image_size=2048), trainings=2)
    fits_one, fits_two = (int(re.search(r"to (\d+) or", str(error.value))[1]) for error in (one, two))
    assert abs(fits_one - 2 * fits_two) <= 1


def test_a_damaged_shard_is_the_users_one_line(write) -> None:
    url, card = write([make_row("x")])
    (Path(url) / card.shards[0].file).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"slices-00000\.parquet: damaged") as error:
        share_table(url, Data(image_size=16))
    assert "\n" not in str(error.value)
