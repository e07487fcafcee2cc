from __future__ import annotations

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


def test_a_damaged_shard_is_the_users_one_line(write) -> None:
    url, card = write([make_row("x")])
    (Path(url) / card.shards[0].file).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"slices-00000\.parquet: damaged") as error:
        share_table(url, Data(image_size=16))
    assert "\n" not in str(error.value)
