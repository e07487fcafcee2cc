"""What all rows of a dataset must agree on, whichever process wrote them: compared shard by shard, then counted.

Pixels are not needed for it, only their digests. Imports neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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


class LeftOut(NamedTuple):
    """A slice that is stored, and of no use beside another of the same picture. `reason` says the way out."""

    row: RowFacts
    reason: str


class Known(NamedTuple):
    """What is counted of a slice."""

    label: str | None
    case_id: str | None
    source_fold: str | None
    plane: str | None
    has_mask: bool


class Ledger:
    """Compares shards with those before, in the dataset's order, and counts for the card.

    `add` raises DataError for a duplicate slice id, images of several sizes, and one case in two source folds; `card`
    for no rows at all. What one picture says twice is for the caller to leave out or to refuse (`left_out`).
    """

    def __init__(self) -> None:
        self._first: Facts | None = None
        self._where: dict[str, str] = {}
        self._fold_of_case: dict[str, str | None] = {}
        self._num_mask_values = 1
        self._rows: list[RowFacts] = []
        self._shards: list[Shard] = []

    def add(self, facts: Facts) -> None:
        first = self._first = self._first or facts
        odd = facts.rows[0]
        refuse_unlike(odd.slice_id, odd.where, (facts.shape, facts.dtype), (first.shape, first.dtype))
        self._shards.append(facts.shard)
        for row in facts.rows:
            self._add(row)

    def left_out(self) -> list[LeftOut]:
        """Slices of one picture (that is not of a single value) that no training or score can use.

        All of a picture with two labels or two masks: no model can learn both, and nobody here knows which is right.
        Of one in two folds or, where folds are yet to be cut, in two groups: all but those on one side; that is the
        source's test set, where it holds the picture, else the side of the first.
        """
        by_picture: dict[str, list[RowFacts]] = {}
        for row in self._rows:
            if not row.blank:  # blank slices may be alike
                by_picture.setdefault(row.picture, []).append(row)
        cut_by_group = len({row.source_fold for row in self._rows} - {None, TEST}) < 2
        found = []
        for rows in by_picture.values():
            if len(rows) > 1:
                found += _contradicting(rows) or _parted(rows, cut_by_group)
        return found

    def card(
        self,
        name: str,
        provenance: str,
        licence: str | None,
        options: dict[str, Any] | None = None,
        left_out: Sequence[LeftOut] = (),
        num_rejected: int = 0,
    ) -> Card:
        """The card of a dataset of all shards that were added, less what is `left_out`."""
        if self._first is None:
            raise DataError(f"{provenance}: no slices")
        excluded = {found.row.slice_id for found in left_out}
        rows = [row for row in self._rows if row.slice_id not in excluded]
        if not rows:
            raise DataError(f"{provenance}: no slice is left; {left_out[0].reason}")
        channels, height, width = self._first.shape
        return Card.model_validate(
            {
                "name": name,
                "height": height,
                "width": width,
                "channels": channels,
                "dtype": self._first.dtype,
                "masks": list(MASKS[: self._num_mask_values]),
                **counts(
                    [Known(row.label, row.case_id, row.source_fold, row.plane, row.mask is not None) for row in rows]
                ),
                "provenance": provenance,
                "options": options or {},
                "licence": licence,
                "num_rejected": num_rejected,
                "shards": self._shards,
                "excluded": sorted(excluded),
                "digest": digest_of(self._shards, {}, excluded),
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
        self._num_mask_values = max(self._num_mask_values, row.num_mask_values)
        self._rows.append(row)


def refuse_left_out(left_out: Sequence[LeftOut], way_out: str = "") -> None:
    """Raises DataError if there is any; `way_out`: another one than the reasons say."""
    if left_out:
        raise DataError(f"{left_out[0].reason}{way_out} ({len(left_out)} such slices in all)")


def counts(slices: Sequence[Known]) -> dict[str, Any]:
    """The fields of a card that count slices."""
    cases = {known.case_id for known in slices}

    def counted(field: str) -> dict[str, int]:
        return dict(sorted(Counter(value for known in slices if (value := getattr(known, field)) is not None).items()))

    labels = counted("label")
    return {
        "classes": list(labels),
        "num_slices": len(slices),
        "num_masks": sum(known.has_mask for known in slices),
        "num_cases": None if None in cases else len(cases),
        "slices_per_class": labels,
        "slices_per_fold": counted("source_fold"),
        "slices_per_plane": counted("plane"),
    }


def _contradicting(rows: Sequence[RowFacts]) -> list[LeftOut]:
    """All slices of a picture of which two labels or two masks are said; what is not known contradicts nothing."""
    for what in ("label", "mask"):
        said: dict[str, RowFacts] = {}
        for row in rows:
            if (value := getattr(row, what)) is not None:
                said.setdefault(value, row)
        if len(said) > 1:
            (first, one), (second, other), *_ = said.items()
            which = f", {first!r} and {second!r}" if what == "label" else ""
            reason = f"slices {one} and {other} are the same picture with two {what}s{which}"
            return [LeftOut(row, f"{reason}; keep the one that is right, or correct the other") for row in rows]
    return []


def _parted(rows: Sequence[RowFacts], cut_by_group: bool) -> list[LeftOut]:
    """The slices of a picture that a split parts from the first one, or from the first of the source's test set."""
    kept = next((row for row in rows if row.source_fold == TEST), rows[0])
    why = (
        "are the same picture, so a model could be scored on what it was trained on; remove one, or give both the same "
        "case and fold"
    )
    return [
        LeftOut(row, f"slices {kept} and {row} {why}")
        for row in rows
        if row.source_fold != kept.source_fold or (cut_by_group and row.source_fold != TEST and row.group != kept.group)
    ]


def digest_of(shards: Sequence[Shard], merged_groups: Mapping[str, str], excluded: Collection[str] = ()) -> str:
    """Names the content of a dataset, what a split of it may part, and what is never used of it."""
    changes = [sorted(changed) for changed in (merged_groups.items(), excluded) if changed]
    parts = [*(shard.sha256 for shard in shards), *map(json.dumps, changes)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


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
