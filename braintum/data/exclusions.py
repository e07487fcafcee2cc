"""Which slices to leave out so that no split parts two that look alike: proposed by an audit, decided by its reader.

    dataset,slice_id,reason
    data,p7-03,"the same picture as p2-11, test set"

Imports neither torch nor Ray.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from typing import NamedTuple

from braintum import storage
from braintum.data.audit import Pair, Slice
from braintum.data.schema import TEST, DataError


class Exclusion(NamedTuple):
    """A slice to leave out."""

    dataset: str
    slice_id: str
    reason: str


def proposed(pairs: Sequence[Pair]) -> list[Exclusion]:
    """Slices without which no two are left that look alike in two folds, datasets, or the test set and the rest.

    Of copies with two labels both, as one is wrong and nobody here knows which. Else one of the two: a slice of the
    source's test set stays, and one of a dataset that was named first. Two groups can be kept together instead
    (`merged_groups`).
    """
    chosen: dict[tuple[str, str], Exclusion] = {}

    def choose(slice_: Slice, other: Slice, pair: Pair) -> None:
        alike = "the same picture as" if pair.same else f"correlation {pair.correlation:.3f} with"
        of = f"{other.dataset}: " if other.dataset != slice_.dataset else ""
        label = f", label {other.label}" if pair.two_labels else ""
        where = ", test set" if other.fold == TEST else f", fold {other.fold}" if other.fold else ""
        reason = f"{alike} {of}{other.slice_id}{where}{label}"
        chosen.setdefault(slice_[:2], Exclusion(slice_.dataset, slice_.slice_id, reason))

    parted = [pair for pair in pairs if pair.parted != "groups"]
    contradicting = [pair for pair in parted if pair.copy and pair.two_labels]
    for pair in contradicting:
        choose(pair.first, pair.second, pair)
        choose(pair.second, pair.first, pair)
    for pair in sorted(parted, key=lambda pair: pair.parted != "test"):  # of those only one can go
        if chosen.keys().isdisjoint((pair.first[:2], pair.second[:2])):
            if pair.parted == "test" and pair.second.fold == TEST:
                choose(pair.first, pair.second, pair)
            else:
                choose(pair.second, pair.first, pair)
    return sorted(chosen.values())


def read_exclusions(url: str, datasets: Collection[str]) -> dict[str, list[str]]:
    """Slice ids by dataset, of a CSV with the columns slice_id and, where there are several datasets, dataset.

    Raises DataError for a file that is none, or names another dataset.
    """
    try:
        lines = list(csv.DictReader(storage.read_bytes(url).decode("utf-8-sig").splitlines(), strict=True))
    except FileNotFoundError:
        raise DataError(f"{url}: no such file; an audit writes one as exclude.csv") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{url}: no CSV ({error}); give one as an audit writes it, exclude.csv") from None
    found: dict[str, list[str]] = {name: [] for name in datasets}
    for number, line in enumerate(lines, 2):
        if not line.get("slice_id"):
            raise DataError(f"{url} line {number}: no slice_id; expected a CSV with the columns dataset, slice_id")
        name = line.get("dataset") or (next(iter(datasets)) if len(datasets) == 1 else None)
        if name not in found:
            known = ", ".join(datasets)
            raise DataError(f"{url} line {number}: dataset {name!r}; expected {known}, as in the audit that wrote it")
        found[name].append(line["slice_id"])
    if not lines:
        raise DataError(f"{url}: lists no slice; expected a CSV with the columns dataset, slice_id")
    return found
