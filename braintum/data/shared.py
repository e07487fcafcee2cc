"""A dataset decoded once per cluster into Ray's object store, where all workers and trials read the same pages.

One that the store cannot hold stays there in parts, a shard's pixels each: Ray keeps what does not fit on disk
(spilling), and readers stream through them (`braintum.data.stream`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from braintum.data.schema import Card, DataError, Shard
from braintum.data.shards import read_card
from braintum.data.table import (
    Facts,
    Slices,
    SliceTable,
    assemble,
    assemble_streamed,
    class_index,
    decode_shard,
    table_bytes,
)
from braintum.parts import Data

if TYPE_CHECKING:
    from ray import ObjectRef

STORE_SHARE = 0.6
"""Share of a node's object store that a table, or what trainings hold of it at a time, may take. While a table is put
together its parts are there too; where one is streamed, the parts that come next."""


def share_table(url: str, data: Data, *, trainings: int = 1) -> ObjectRef[SliceTable]:
    """Decodes a dataset with one Ray task a shard, and returns a reference to the one table made of them.

    `ray.get` of it copies nothing: the arrays are read-only views of the object store. Needs a running Ray.
    `trainings`: how many will read it at the same time. Raises DataError at once for a missing card, unknown labels and
    windows that the store cannot hold, and for damaged shards before it returns.
    """
    card = read_card(url)
    index = class_index(card, data, url)
    about = (url, card, data, index)
    size, room = table_bytes(card, data), STORE_SHARE * _smallest_store()
    if size > room:
        _refuse_wide_windows(url, card, data, room, trainings)
    if size <= room:
        table = _assemble.remote(card, data, url, *(_decode.remote(shard, *about) for shard in card.shards))
    else:
        facts, images, masks = zip(*(_decode_apart.remote(shard, *about) for shard in card.shards), strict=True)
        table = _assemble_streamed.remote(card, data, url, _Fetch(images), _Fetch(masks), *facts)
    try:
        ray.get(table)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DataError):  # the user's one line, without the workers' tracebacks around it
            raise error.cause from None
        raise
    return table


def _refuse_wide_windows(url: str, card: Card, data: Data, room: float, trainings: int) -> None:
    """Raises DataError where the slices that trainings hold leave the store no room: all would be read from disk anew.

    A training holds the window that it shuffles and the next one. Its workers read the same slices, other trainings
    others.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    on_a_node = max(1, min(-(-trainings // len(cores)), max(cores)))  # a training takes a core or more
    rows = sum(shard.rows for shard in card.shards)
    slice_bytes = table_bytes(card, data) / rows
    if on_a_node * min(2 * data.window, rows) * slice_bytes > room:
        fits = max(1, int(room / on_a_node / slice_bytes / 2))
        raise DataError(
            f"{url}: data.window: {data.window:,} slices are {min(data.window, rows) * slice_bytes / 1e9:.2g} GB; "
            f"{on_a_node} trainings on a node would hold two windows each, and its object store has "
            f"{room / 1e9:.2g} GB for them: set data.window to {fits:,} or less, or give Ray a larger store"
        )


def _smallest_store() -> float:
    """Bytes of the smallest node's object store."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return float(min(stores, default=0.0))


@dataclass(frozen=True)
class _Fetch:
    """Gets the rows of a part out of the object store, without copying; Ray reads them from disk where it must."""

    parts: tuple[ObjectRef[NDArray[Any]], ...]

    def __call__(self, part: int) -> NDArray[Any]:
        return ray.get(self.parts[part])


@ray.remote
def _decode(shard: Shard, url: str, card: Card, data: Data, index: dict[str, int]) -> Slices:
    return decode_shard(url, card, shard, data, index)


@ray.remote(num_returns=3)
def _decode_apart(
    shard: Shard, url: str, card: Card, data: Data, index: dict[str, int]
) -> tuple[Facts, NDArray[Any], NDArray[Any]]:
    slices = decode_shard(url, card, shard, data, index)
    return slices.facts, slices.image_RCHW, slices.mask_RHW


@ray.remote
def _assemble(card: Card, data: Data, url: str, *parts: Slices) -> SliceTable:
    return assemble(card, data, url, parts)


@ray.remote
def _assemble_streamed(
    card: Card, data: Data, url: str, fetch_image: _Fetch, fetch_mask: _Fetch, *parts: Facts
) -> SliceTable:
    return assemble_streamed(card, data, url, parts, fetch_image, fetch_mask)
