"""What weights were trained on, so that none that a training starts from have seen what it holds out.

R rows of a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from braintum.data.folds import Rows
from braintum.data.schema import TEST
from braintum.data.table import SliceTable
from braintum.settings import ConfigError


@dataclass(frozen=True)
class TrainedOn:
    """All of a dataset but a part held out. `data`: its digest; `slices`: what `name_of` calls those trained on."""

    data: str
    slices: str
    fold: str | None
    folds: int | None


Provenance = tuple[TrainedOn | None, ...]
"""All that weights were trained on, last first; None for a file that does not say."""

UNKNOWN: Provenance = (None,)


def provenance_of(about: Mapping[str, Any]) -> Provenance:
    """What a checkpoint's metadata, or `init.json`, says of it."""
    return tuple(None if past is None else TrainedOn(**past) for past in about.get("trained_on", UNKNOWN))


def name_of(table: SliceTable, train_rows: Rows) -> str:
    """A name of slices to train on; two of one dataset are the same where neither has what the other holds out.

    Where that is just a fold of the source's, the fold is named: it is the same whatever classes are asked for.
    Other folds are not, so there the slices are.
    """
    fold_R = np.array([fold or "" for fold in table.source_fold_R], object)
    source = set(fold_R) - {"", TEST}
    held_out = source - set(fold_R[train_rows])
    if len(source) > 1 and len(held_out) == 1:
        (fold,) = held_out
        if np.array_equal(np.sort(train_rows), np.flatnonzero((fold_R != fold) & (fold_R != TEST))):
            return f"all but fold {fold} of the source"
    ids = sorted(table.slice_id_R[row] for row in train_rows)
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def refuse_seen(url: str, provenance: Provenance, table: SliceTable, parts: Sequence[Rows]) -> None:
    """Raises ConfigError where weights at `url` were trained on other slices of the table's dataset than `parts`.

    `parts`: the rows that each training starting from them trains on; none where these are all folds in turn.
    """
    for past in provenance:
        if past is None or past.data != table.digest:
            continue
        if [*{name_of(table, rows) for rows in parts}] != [past.slices]:
            folds = "" if past.folds is None else f" --folds {past.folds}"
            held_out = "20 %" if past.fold is None else f"fold {past.fold}{f' of {past.folds}' if folds else ''}"
            same = "no --fold" if past.fold is None else f"--fold {past.fold}{folds}"
            raise ConfigError(
                f"model.init_from: {url}: trained on this dataset with {held_out} held out, so it may have seen what "
                f"is held out now; train with {same} and the same data.classes, or start from other weights"
            )
