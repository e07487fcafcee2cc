"""What makes a score on a dataset look better than it is, and what is odd about it.

Two slices are one picture where their pixels are equal; nearly the same where their perceptual hashes differ in at most
DISTANCE bits and thumbnails of 64×64 correlate by SIMILAR or more. On Cheng's set (2,400 slices) 201 pairs inside the
author's folds reach 0.95, neighbours in one head, and none across them (0.949 at most): other patients' slices stay
below, copies that were saved again, scaled or made brighter lie above COPY, as 4 of those neighbours do. Copies that
were turned, flipped or cut are not found. Of several datasets also ids that stand in two are told, which may be one
patient's: no pair of pictures shows that a patient was scanned twice.

Shapes: R rows of a table, or of all tables one after another; H W pixels of a thumbnail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from braintum.data.images import resize_plane
from braintum.data.ledger import digest_of
from braintum.data.neighbours import correlations, near_pairs
from braintum.data.schema import TEST, DataError
from braintum.data.shards import read_card
from braintum.data.table import SliceTable
from braintum.parts import Data

DISTANCE, SIMILAR, COPY, THUMB = 11, 0.95, 0.98, 64
FEW_PIXELS = 10
"""A tumour of fewer, at the source's own size, is likely a slip of the pen."""
FAR = 6.0
"""Robust standard deviations (1.4826 × median absolute deviation) from the median, for an outlier."""

Parted = Literal["datasets", "test", "folds", "groups"]
"""What lies between two slices that look alike: two datasets; the source's test set and the rest; two of its folds; two
groups, which a split may put on two sides."""


class Slice(NamedTuple):
    """A slice as the audit names it."""

    dataset: str
    slice_id: str
    group: str
    fold: str | None
    label: str | None


class Pair(NamedTuple):
    """Two slices on two sides that are one picture (`same`), or nearly."""

    parted: Parted
    same: bool
    correlation: float
    first: Slice
    second: Slice

    @property
    def copy(self) -> bool:
        """Whether the two are surely of one picture, and no mere neighbours."""
        return self.same or self.correlation >= COPY

    @property
    def two_labels(self) -> bool:
        return None not in (self.first.label, self.second.label) and self.first.label != self.second.label


class Finding(NamedTuple):
    """Something odd about one slice."""

    kind: str
    dataset: str
    slice_id: str
    detail: str


class SameId(NamedTuple):
    """An id that stands in two datasets: one patient in both, or a name that both happen to use, such as a number."""

    kind: Literal["case", "group"]
    id: str
    first_dataset: str
    first_slices: int
    second_dataset: str
    second_slices: int


class Audit(NamedTuple):
    """What was found in datasets that were looked at together. `num_slices`: by dataset."""

    num_slices: dict[str, int]
    pairs: list[Pair]
    same_ids: list[SameId]
    findings: list[Finding]


def audit(tables: Mapping[str, SliceTable]) -> Audit:
    """Looks at datasets, by the names that they are to be called by, as tables of whole slices."""
    findings = [found for name, table in tables.items() for found in _odd(name, table)]
    return Audit({name: len(table) for name, table in tables.items()}, alike(tables), same_ids(tables), findings)


def refuse_same(urls: Sequence[str]) -> None:
    """Raises DataError for two datasets of the same slices, whatever their URLs: all would be copies of themselves."""
    known: dict[str, str] = {}
    for url in urls:
        content = digest_of(read_card(url).shards, {})
        if content in known:
            raise DataError(f"{url}: holds the same slices as {known[content]}; name a dataset once")
        known[content] = url


def alike(tables: Mapping[str, SliceTable]) -> list[Pair]:
    """The pairs that a split of these datasets could part, or has, the most alike first."""
    slices = [slice_ for name, table in tables.items() for slice_ in _slices(name, table)]
    by_group = {name: len({fold for fold in table.source_fold_R if fold not in (None, TEST)}) < 2
                for name, table in tables.items()}  # fmt: skip
    blank_R = np.concatenate([(table.low_RC == table.high_RC).all(axis=1) for table in tables.values()])
    row_R = np.flatnonzero(~blank_R)  # blank slices may be alike
    pictures = [picture for table in tables.values() for picture in table.picture_R]
    hash_R = np.concatenate([table.perceptual_hash_R for table in tables.values()])
    pairs_P2 = row_R[near_pairs(hash_R[row_R], DISTANCE)]
    sides = [_parted(slices[a], slices[b], by_group) for a, b in pairs_P2]
    kept = np.array([side is not None for side in sides], bool)
    pairs_P2, parted = pairs_P2[kept], [side for side in sides if side is not None]
    correlation_P = correlations(*_thumbnails(list(tables.values()), pairs_P2), SIMILAR)
    found = []
    for (a, b), side, correlation in zip(pairs_P2, parted, correlation_P, strict=True):
        same = pictures[a] == pictures[b]
        if same or correlation >= SIMILAR:
            found.append(Pair(side, same, 1.0 if same else float(correlation), slices[a], slices[b]))
    return sorted(found, key=lambda pair: (not pair.same, -pair.correlation))


def same_ids(tables: Mapping[str, SliceTable]) -> list[SameId]:
    """Ids that stand in two datasets: of cases, and of groups where no case is known.

    Groups that stand for a source's fold or for a picture (`fold:`, `picture:`) name no patient.
    """
    slices_of = {
        name: Counter(filter(None, map(_id, table.case_id_R, table.group_R))) for name, table in tables.items()
    }
    return [
        SameId(kind, name, a, slices_of[a][kind, name], b, slices_of[b][kind, name])
        for a, b in combinations(tables, 2)
        for kind, name in sorted(slices_of[a].keys() & slices_of[b].keys())
    ]


def _id(case: str | None, group: str) -> tuple[Literal["case", "group"], str] | None:
    if case is not None:
        return "case", case
    return None if group.startswith(("fold:", "picture:")) else ("group", group)


def whole_view(views: Collection[Data]) -> Data:
    """In which view of a dataset `refuse_leaks` sees enough: one of `views`, or a small one of whole slices."""
    widest = max(views, key=lambda data: (data.region == "whole", data.image_size))
    if widest.region == "whole" and widest.image_size >= THUMB:
        return widest
    return Data(image_size=THUMB, classes=widest.classes, window=1)  # read once and in order: nothing is shuffled


def refuse_leaks(table: SliceTable, *, allow: bool) -> int:
    """The short form before a search: copies on two sides of a split, counted, and refused unless `allow`.

    `table`: a `whole_view`. Raises DataError.
    """
    copies = [pair for pair in alike({"data": table}) if pair.copy]
    if copies and not allow:
        first = copies[0]
        raise DataError(
            f"slices {first.first.slice_id!r} and {first.second.slice_id!r} are copies, in two {first.parted} (and "
            f"{len(copies) - 1} more such pairs), so scores would be too good; see `braintum audit`, which can keep "
            "groups together (--group-near-duplicates) or leave slices out (--exclude), or search with --allow-leak, "
            "which every table says"
        )
    return len(copies)


def merged_groups(pairs: Sequence[Pair]) -> dict[str, str]:
    """Group → the group that it becomes, where pairs that only groups part are kept together."""
    root: dict[str, str] = {}

    def find(group: str) -> str:
        while root.setdefault(group, group) != group:
            root[group] = group = root[root[group]]
        return group

    for pair in pairs:
        if pair.parted == "groups":
            a, b = sorted((find(pair.first.group), find(pair.second.group)))
            root[b] = a
    return {group: find(group) for group in sorted(root) if find(group) != group}


def _slices(name: str, table: SliceTable) -> list[Slice]:
    labels = [None if label < 0 else table.classes[label] for label in table.label_R]
    rows = zip(table.slice_id_R, table.group_R, table.source_fold_R, labels, strict=True)
    return [Slice(name, *row) for row in rows]


def _parted(a: Slice, b: Slice, by_group: Mapping[str, bool]) -> Parted | None:
    """What lies between two slices; None where every split keeps them together."""
    if a.dataset != b.dataset:
        return "datasets"
    if a.fold != b.fold:
        return "test" if TEST in (a.fold, b.fold) else "folds"
    return "groups" if a.fold != TEST and by_group[a.dataset] and a.group != b.group else None


def _thumbnails(
    tables: Sequence[SliceTable], pairs_P2: NDArray[np.int64]
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Thumbnails of the slices in pairs, and the pairs as indices of these."""
    wanted, index_P2 = np.unique(pairs_P2, return_inverse=True)
    starts = np.cumsum([0, *map(len, tables)])
    thumb_RHW = np.empty((len(wanted), THUMB, THUMB), np.float16)
    for i, row in enumerate(wanted):
        of = int(np.searchsorted(starts, row, side="right")) - 1
        plane_HW = tables[of].image_RCHW[row - starts[of]].mean(axis=0, dtype=np.float32)
        low, high = plane_HW.min(), plane_HW.max()
        thumb_RHW[i] = resize_plane((plane_HW - low) / max(high - low, 1e-6), THUMB, THUMB)
    return thumb_RHW, index_P2.reshape(pairs_P2.shape).astype(np.int64)


def _odd(name: str, table: SliceTable) -> Iterator[Finding]:
    """Masks, intensities and tumours that are unlike the rest."""
    area_R, border_R = _tumours(table)
    masked_R = table.has_mask_R

    def found(kind: str, rows: NDArray[np.bool_], detail: Any) -> Iterator[Finding]:
        for row in np.flatnonzero(rows):
            yield Finding(kind, name, table.slice_id_R[row], detail(row))

    for label, of_class in enumerate(table.classes):
        label_R = (table.label_R == label) & masked_R
        if not label_R.any():
            continue
        healthy = (area_R[label_R] == 0).mean() > 0.5
        if healthy:
            yield from found("mask on a healthy slice", label_R & (area_R > 0), lambda r: f"{area_R[r]} pixels")
        else:
            yield from found("no tumour in the mask", label_R & (area_R == 0), lambda _, c=of_class: c)
            sized_R = label_R & (area_R > 0)
            far_R = np.zeros(len(table), bool)
            far_R[sized_R] = _far(np.log(area_R[sized_R]))
            yield from found("tumour of unusual size", far_R, lambda r, c=of_class: f"{area_R[r]} pixels, {c}")
    few_R = masked_R & (area_R > 0) & (area_R < FEW_PIXELS)
    yield from found("tumour of few pixels", few_R, lambda r: f"{area_R[r]} pixels")
    yield from found("mask at the border", border_R, lambda r: f"{area_R[r]} pixels")
    mean_R = np.array([table.image_RCHW[row].mean(dtype=np.float64) for row in range(len(table))])
    scale = 255.0 if table.image_RCHW.dtype == np.uint8 else 1.0
    yield from found("unusual brightness", _far(mean_R), lambda r: f"mean {mean_R[r] / scale:.3f} of 1")
    blank_R = (table.low_RC == table.high_RC).all(axis=1)
    yield from found("blank image", blank_R, lambda r: f"all pixels {table.low_RC[r].tolist()}")


def _tumours(table: SliceTable) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pixels of tumour at the source's own size, and whether it touches the border."""
    area_R, border_R = np.zeros(len(table), np.int64), np.zeros(len(table), bool)
    for row, tumour_HW in table.native_tumours():
        area_R[row] = tumour_HW.sum()
        border_R[row] = tumour_HW[[0, -1]].any() or tumour_HW[:, [0, -1]].any()
    return area_R, border_R


def _far(value_R: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Values that lie far from the median, as deviations go here."""
    distance_R = np.abs(value_R - np.median(value_R))
    deviation = 1.4826 * np.median(distance_R)
    return distance_R > FAR * deviation if deviation > 0 else np.zeros(len(value_R), bool)
