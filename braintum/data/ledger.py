"""What all rows of a dataset must agree on, whichever process wrote them: compared shard by shard, then counted.

Pixels are not needed for it, only their digests. Imports neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from braintum.data.schema import MASKS, TEST, Card, DataError, Shard

Shape = tuple[int, int, int]
"""C, H, W."""


class RowFacts(NamedTuple):
    """One slice, as far as it is compared with others. `mask`: its mask's digest; `where`: see `Row`."""

    slice_id: str
    group: str
    case_id: str | None
    source_fold: str | None
    plane: str | None
    label: str | None
    picture: str
    blank: bool
    mask: str | None
    num_mask_values: int
    where: str

    def __str__(self) -> str:
        fold = "" if self.source_fold is None else f"fold {self.source_fold!r}"
        return f"{self.slice_id!r} ({', '.join(filter(None, (self.where, fold, f'group {self.group!r}')))})"


@dataclass(frozen=True)
class Facts:
    """What is known of a shard that was written."""

    shard: Shard
    shape: Shape
    dtype: str
    rows: list[RowFacts]

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "shard": self.shard.model_dump(mode="json")})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        value = json.loads(text)
        channels, height, width = value["shape"]
        rows = [RowFacts(*row) for row in value["rows"]]
        return cls(Shard.model_validate(value["shard"]), (channels, height, width), value["dtype"], rows)


class Ledger:
    """Compares shards with those before, in the dataset's order, and counts for the card.

    `add` raises DataError for a duplicate slice id, images of several sizes, and one case in two source folds; `card`
    for one picture (that is not of a single value) with two labels or masks, or where a split could part it from
    itself, and for no rows at all.
    """

    def __init__(self) -> None:
        self._first: Facts | None = None
        self._where: dict[str, str] = {}
        self._fold_of_case: dict[str, str | None] = {}
        self._labels: Counter[str] = Counter()
        self._folds: Counter[str] = Counter()
        self._planes: Counter[str] = Counter()
        self._num_masks = 0
        self._num_mask_values = 1
        self._cases_known = True
        self._seen: dict[str, RowFacts] = {}
        self._again: list[tuple[RowFacts, RowFacts]] = []
        self._said: dict[tuple[str, str], tuple[str, RowFacts]] = {}
        self._contradictions: list[str] = []
        self._shards: list[Shard] = []

    def add(self, facts: Facts) -> None:
        first = self._first = self._first or facts
        odd = facts.rows[0]
        refuse_unlike(odd.slice_id, odd.where, (facts.shape, facts.dtype), (first.shape, first.dtype))
        self._shards.append(facts.shard)
        for row in facts.rows:
            self._add(row)

    def card(
        self,
        name: str,
        provenance: str,
        licence: str | None,
        options: dict[str, Any] | None = None,
        num_rejected: int = 0,
    ) -> Card:
        """The card of a dataset of all shards that were added."""
        if self._first is None:
            raise DataError(f"{provenance}: no slices")
        self._refuse_contradictions()
        self._refuse_parted()
        channels, height, width = self._first.shape
        return Card.model_validate(
            {
                "name": name,
                "height": height,
                "width": width,
                "channels": channels,
                "dtype": self._first.dtype,
                "classes": sorted(self._labels),
                "masks": list(MASKS[: self._num_mask_values]),
                "num_slices": len(self._where),
                "num_masks": self._num_masks,
                "num_cases": len(self._fold_of_case) if self._cases_known else None,
                "slices_per_class": dict(sorted(self._labels.items())),
                "slices_per_fold": dict(sorted(self._folds.items())),
                "slices_per_plane": dict(sorted(self._planes.items())),
                "provenance": provenance,
                "options": options or {},
                "licence": licence,
                "num_rejected": num_rejected,
                "shards": self._shards,
                "digest": digest_of(self._shards, {}),
            }
        )

    def _add(self, row: RowFacts) -> None:
        where = f"{row.where}: " if row.where else ""
        if row.slice_id in self._where:
            other = f", as in {self._where[row.slice_id]}" if self._where[row.slice_id] else ""
            raise DataError(f"{where}duplicate slice id {row.slice_id!r}{other}; give every slice its own")
        if row.case_id is not None:
            fold = self._fold_of_case.setdefault(row.case_id, row.source_fold)
            if fold != row.source_fold:
                raise DataError(
                    f"{where}case {row.case_id!r} is in the folds {fold!r} and {row.source_fold!r}; "
                    "keep a case in one fold, or leave the folds out"
                )
        self._where[row.slice_id] = row.where
        self._cases_known &= row.case_id is not None
        if row.label is not None:
            self._labels[row.label] += 1
        if row.source_fold is not None:
            self._folds[row.source_fold] += 1
        if row.plane is not None:
            self._planes[row.plane] += 1
        if row.mask is not None:
            self._num_masks += 1
            self._num_mask_values = max(self._num_mask_values, row.num_mask_values)
        first = self._seen.setdefault(row.picture, row)
        if not row.blank:  # blank slices may be alike
            if first is not row:
                self._again.append((first, row))
            self._compare(row)

    def _compare(self, row: RowFacts) -> None:
        """Notes what else was said of the same picture before; what is not known contradicts nothing."""
        for what, value in (("label", row.label), ("mask", row.mask)):
            if value is None:
                continue
            known, first = self._said.setdefault((row.picture, what), (value, row))
            if known != value:
                which = f", {known!r} and {value!r}" if what == "label" else ""
                self._contradictions.append(f"slices {first} and {row} are the same picture with two {what}s{which}")
                break

    def _refuse_contradictions(self) -> None:
        """Raises DataError for a picture with two labels or two masks: no model can learn both."""
        if self._contradictions:
            more = f" (and {len(self._contradictions) - 1} more such slices)" * (len(self._contradictions) > 1)
            raise DataError(f"{self._contradictions[0]}{more}; keep the one that is right, or correct the other")

    def _refuse_parted(self) -> None:
        """Raises DataError for a picture in two folds or, where folds are yet to be cut, in two groups."""
        cut_by_group = len(set(self._folds) - {TEST}) < 2
        parted = [(a, b) for a, b in self._again
                  if a.source_fold != b.source_fold or (cut_by_group and a.group != b.group)]  # fmt: skip
        if parted:
            first, again = parted[0]
            more = f" (and {len(parted) - 1} more such pairs)" * (len(parted) > 1)
            raise DataError(
                f"slices {first} and {again} are the same picture{more}, so a model could be scored on what it was "
                "trained on; remove one, or give both the same case and fold"
            )


def digest_of(shards: Sequence[Shard], merged_groups: Mapping[str, str]) -> str:
    """Names the content of a dataset, and what a split of it may part."""
    merged = json.dumps(sorted(merged_groups.items())) if merged_groups else ""
    return hashlib.sha256(("".join(shard.sha256 for shard in shards) + merged).encode()).hexdigest()


def refuse_unlike(slice_id: str, where: str, shape: tuple[Shape, str], first: tuple[Shape, str]) -> None:
    """Raises DataError for a slice of another shape or dtype than the first."""
    if shape != first:
        raise DataError(
            f"{where}{': ' if where else ''}image {slice_id} is {_shown(*shape)}, the first is {_shown(*first)}; all "
            "must be alike: give one size with --size, and convert what differs in depth or colour"
        )


def _shown(shape: Shape, dtype: str) -> str:
    channels, height, width = shape
    bits = {"uint8": "8 bit", "uint16": "16 bit", "float16": "16 bit float"}[dtype]
    return f"{width}×{height}, {bits}, {channels} channel{'s' * (channels > 1)}"
