"""A dataset decoded once per cluster into Ray's object store, where all workers and trials read the same pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray

from braintum.data.schema import Card, DataError, Shard
from braintum.data.shards import read_card
from braintum.data.table import Slices, SliceTable, assemble, class_index, decode_shard
from braintum.parts import Data

if TYPE_CHECKING:
    from ray import ObjectRef


def share_table(url: str, data: Data) -> ObjectRef[SliceTable]:
    """Decodes a dataset with one Ray task a shard, and returns a reference to the one table made of them.

    `ray.get` of it copies nothing: the arrays are read-only views of the object store. Needs a running Ray. Raises
    DataError at once for a missing card and unknown labels, and for damaged shards before it returns.
    """
    card = read_card(url)
    index = class_index(card, data, url)
    parts = [_decode.remote(url, card, shard, data, index) for shard in card.shards]
    table = _assemble.remote(card, data, url, *parts)
    try:
        ray.get(table)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):  # the user's one line, without the workers' tracebacks around it
            raise error.cause from None
        raise
    return table


@ray.remote
def _decode(url: str, card: Card, shard: Shard, data: Data, index: dict[str, int]) -> Slices:
    return decode_shard(url, card, shard, data, index)


@ray.remote
def _assemble(card: Card, data: Data, url: str, *parts: Slices) -> SliceTable:
    return assemble(card, data, url, parts)
