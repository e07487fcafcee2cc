"""What is in a dataset: what its slices are, how bright they are, where tumours lie, and some to look at.

Read a shard at a time: memory holds one shard, a few facts a slice and the pictures.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintum.data.schema import TUMOUR, Card
from braintum.data.shards import read_card, read_shard
from braintum.data.table import pixels

BINS = 64
PICTURES = 8
"""Slices to look at, of each class."""

Label = str | None


class Seen(NamedTuple):
    """A slice. `tumour`: pixels, None without a mask; `spacing_yx_mm`: NaN where unknown."""

    slice_id: str
    label: Label
    case_id: str | None
    group: str
    fold: str | None
    plane: str | None
    tumour: int | None
    spacing_yx_mm: tuple[float, float]
    age_years: int | None
    sex: str | None


class Picture(NamedTuple):
    """A slice to look at: its first channel, and where it has tumour (None without a mask)."""

    slice: Seen
    image_HW: NDArray[Any]
    tumour_HW: NDArray[np.bool_] | None


@dataclass
class Overview:
    """What was seen of a dataset.

    `labels`: the classes, and None if some slices have no label. `brightness`: for each label how many pixels of all
    channels lie in each of BINS equal parts of [0, 1], with the least of each slice and channel at 0 and its greatest
    at 1, as a training sees them. `where`: for each label and plane [H, W], how many slices have tumour there.
    """

    card: Card
    slices: list[Seen] = field(default_factory=list)
    brightness: dict[Label, NDArray[np.int64]] = field(default_factory=lambda: defaultdict(_no_pixels))
    where: dict[tuple[Label, str | None], NDArray[np.int64]] = field(default_factory=dict)
    pictures: dict[Label, list[Picture]] = field(default_factory=dict)

    @property
    def labels(self) -> list[Label]:
        return [*self.card.classes, *([None] if any(seen.label is None for seen in self.slices) else [])]


def look(url: str) -> Overview:
    """Reads the dataset once. Raises DataError where there is none, or a shard is missing or damaged."""
    card = read_card(url)
    found = Overview(card)
    candidates: dict[Label, list[Picture]] = defaultdict(list)
    for shard in card.shards:
        for seen, image_CHW, tumour_HW in _rows(read_shard(url, shard), card):
            found.slices.append(seen)
            found.brightness[seen.label] += _histogram(image_CHW)
            if seen.tumour:
                at = (seen.label, seen.plane)
                found.where.setdefault(at, np.zeros((card.height, card.width), np.int64))[tumour_HW] += 1
            candidates[seen.label].append(Picture(seen, image_CHW[0], tumour_HW))
        for label, pictures in candidates.items():
            candidates[label] = [
                Picture(seen, image_HW.copy(), tumour_HW) for seen, image_HW, tumour_HW in _chosen(pictures)
            ]
    found.pictures = {label: candidates[label] for label in found.labels}
    return found


def _rows(rows: pa.Table, card: Card) -> Iterator[tuple[Seen, NDArray[Any], NDArray[np.bool_] | None]]:
    images = pixels(rows["image"], (card.channels, card.height, card.width), card.dtype)
    masks = pixels(rows["mask"], (card.height, card.width), "uint8")
    has_mask = rows["mask"].is_valid().to_pylist()
    facts = rows.drop_columns(["image", "mask"]).to_pylist()
    excluded = set(card.excluded)
    for i, fact in enumerate(facts):
        if fact["slice_id"] in excluded:
            continue
        tumour_HW = masks[i] == TUMOUR if has_mask[i] else None
        tumour = None if tumour_HW is None else int(tumour_HW.sum())
        spacing = [np.nan if fact[f"spacing_{axis}_mm"] is None else fact[f"spacing_{axis}_mm"] for axis in "yx"]
        group = card.merged_groups.get(fact["group"], fact["group"])
        plane, age, sex = (fact.get(name) for name in ("plane", "age_years", "sex"))  # the first datasets had none
        names = (fact["label"], fact["case_id"], group, fact["source_fold"], plane)
        yield Seen(fact["slice_id"], *names, tumour, (spacing[0], spacing[1]), age, sex), images[i], tumour_HW


def _no_pixels() -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


def _histogram(image_CHW: NDArray[Any]) -> NDArray[np.int64]:
    flat_CX = image_CHW.reshape(len(image_CHW), -1).astype(np.float32)
    flat_CX -= flat_CX.min(axis=1, keepdims=True)
    flat_CX *= (BINS - 1e-3) / np.maximum(flat_CX.max(axis=1, keepdims=True), 1e-6)
    return np.bincount(flat_CX.astype(np.uint8).ravel(), minlength=BINS)


def _chosen(pictures: list[Picture]) -> list[Picture]:
    """PICTURES of them by chance, of as many groups as there are, with tumour before those without.

    What is left out once would be left out of all together, so that shards can be looked at one by one.
    """
    rank: dict[str, int] = defaultdict(int)
    placed = []
    for picture in sorted(pictures, key=lambda p: (not p.slice.tumour, _draw(p.slice.slice_id))):
        placed.append((rank[picture.slice.group], _draw(picture.slice.group), picture))
        rank[picture.slice.group] += 1
    return [picture for _, _, picture in sorted(placed, key=lambda found: found[:2])[:PICTURES]]


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
