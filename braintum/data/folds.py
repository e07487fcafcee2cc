"""Who is trained on and who is held out. Pure numpy and scikit-learn; nothing here sees a pixel.

Splits are stratified by label and never cut a group (a case, a source fold, a slice: whatever the dataset says). They
know groups by name, and are the same in whatever order a dataset has its slices.
Rows of the source fold "test" are in no fold and in no training part. Rows that show nothing of `data.region`
(`shown_R`) are shared out like all others, so that a slice's fold is the same whatever the region, and then left out.

Shapes: R rows of the table, G groups, N strata (classes, and one more for rows without label), F folds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from braintum.data.schema import MASKS, TEST, DataError
from braintum.data.table import SliceTable

DEFAULT_FOLDS = 5
HELD_OUT_SHARE = 0.2

Rows = NDArray[np.int64]


class Split(NamedTuple):
    """Row indices, ascending. `held_out` is scored once, at the end of a run, and has rows that show something only.

    `train` has all: they are left out once a validation part is cut off (`usable_rows`).
    """

    train: Rows
    held_out: Rows


def held_out_folds(table: SliceTable, folds: int | None, seed: int) -> dict[str, Rows]:
    """Fold name → held-out rows, of those that show something.

    The source's folds where it has two or more besides "test" (`folds` then keeps the first that many, by name);
    else `folds` (default 5) parts named "1", "2", ..., stratified by label and cut by group. Raises DataError for a
    case or group in two source folds, a fold with no slice of a class, too few groups, or more folds than there are.
    """
    if folds is not None and folds < 2:
        raise DataError(f"folds: {folds}: cross-validation needs 2 or more")
    held_out = {name: _shown(table, part) for name, part in _all_folds(table, folds, seed).items()}
    for name, part in held_out.items():
        _refuse_missing_class(table, part, f"fold {name}", "choose other classes or folds")
    return held_out


_FOLDS: WeakKeyDictionary[SliceTable, dict[tuple[int | None, int], dict[str, Rows]]] = WeakKeyDictionary()
_WITHOUT: WeakKeyDictionary[SliceTable, dict[tuple[str, int | None, int], SliceTable]] = WeakKeyDictionary()


def _all_folds(table: SliceTable, folds: int | None, seed: int) -> dict[str, Rows]:
    """`held_out_folds` with the rows that show nothing. Made once a table: every fold of every trial asks."""
    known = _FOLDS.setdefault(table, {})
    if (folds, seed) not in known:
        known[folds, seed] = _cut_folds(table, folds, seed)
    return known[folds, seed]


def _cut_folds(table: SliceTable, folds: int | None, seed: int) -> dict[str, Rows]:
    _refuse_cut(table, "case", table.case_id_R)
    source = _source_folds(table)
    if source:
        _refuse_cut(table, "group", table.group_R)
        if folds is not None and folds > len(source):
            raise DataError(f"folds: {folds}: the data has {len(source)} of its own: {', '.join(source)}")
        fold_R = np.array([name or "" for name in table.source_fold_R], object)
        held_out = {name: np.flatnonzero(fold_R == name) for name in list(source)[:folds]}
    else:
        rows, count = _not_test(table), folds or DEFAULT_FOLDS
        groups_R = np.unique(np.array(table.group_R, object)[rows].astype(str), return_inverse=True)[1]
        if groups_R.max(initial=-1) + 1 < count:
            raise DataError(f"folds: {count}: the data has only {groups_R.max(initial=-1) + 1} groups; use fewer folds")
        cutter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
        smallest = np.bincount(table.label_R[rows] + 1)
        if smallest[smallest > 0].min() < count:
            scarce = int(np.flatnonzero((smallest > 0) & (smallest < count))[0]) - 1
            name = "slices without label" if scarce < 0 else f"slices of class {table.classes[scarce]!r}"
            raise DataError(f"folds: {count}: too few {name} ({smallest[scarce + 1]}); use fewer folds")
        fold_G = np.empty(groups_R.max() + 1, np.int64)
        for fold, (_, part) in enumerate(cutter.split(rows, table.label_R[rows], groups_R)):
            fold_G[groups_R[part]] = fold
        fold_G = _with_every_class(table.label_R[rows], groups_R, fold_G, count)
        held_out = {str(fold + 1): rows[fold_G[groups_R] == fold] for fold in range(count)}
    return held_out


def _with_every_class(label_R: Rows, group_R: Rows, fold_G: Rows, count: int) -> Rows:
    """The groups' folds, changed where a fold has no slice of a class, so that it has one if that can be done.

    Folds are filled greedily, largest groups first. That gives every fold every class where a group has one class and a
    class has groups enough; where groups have several, it fails in one of thirteen small random cases that can be
    solved. Then one group moves, or two change places, as long as that helps.
    """
    has_GN = np.zeros((len(fold_G), label_R.max() + 1), np.int64)
    has_GN[group_R[label_R >= 0], label_R[label_R >= 0]] = 1
    has_GN = has_GN[:, has_GN.any(axis=0)]
    size_G = np.bincount(group_R)
    if (has_GN.sum(axis=0) < count).any():
        return fold_G  # it cannot be done

    def groups_FN(fold_G: Rows) -> Rows:
        found_FN = np.zeros((count, has_GN.shape[1]), np.int64)
        np.add.at(found_FN, fold_G, has_GN)
        return found_FN

    def badness(fold_G: Rows) -> tuple[int, int, float]:
        """Classes that folds lack; how unevenly folds share the groups of a class; how unevenly the slices."""
        found_FN = groups_FN(fold_G)
        return int((found_FN == 0).sum()), int((found_FN**2).sum()), float(np.bincount(fold_G, size_G, count).var())

    def neighbours(fold_G: Rows) -> Iterator[Rows]:
        for fold, label in np.argwhere(groups_FN(fold_G) == 0):
            for group in np.flatnonzero(has_GN[:, label]):
                for other in (group, *np.flatnonzero(fold_G == fold)):
                    changed_G = fold_G.copy()
                    changed_G[other] = fold_G[group]
                    changed_G[group] = fold
                    yield changed_G

    while badness(fold_G)[0]:
        changed_G = min(neighbours(fold_G), key=badness)
        if badness(changed_G) >= badness(fold_G):
            break
        fold_G = changed_G
    return fold_G


def split(table: SliceTable, fold: str | None, folds: int | None, seed: int) -> Split:
    """The rows that a run trains on, and those it holds out: one fold of `held_out_folds`, or 20 % without `fold`.

    Raises DataError for an unknown fold (naming the known ones) and as `held_out_folds` does.
    """
    rows = _not_test(table)
    if fold is None:
        _refuse_cut(table, "case", table.case_id_R)
        train, held_out = _cut(table, rows, HELD_OUT_SHARE, seed, "the held-out part")
        return Split(train, _shown(table, held_out))
    known = held_out_folds(table, folds, seed)
    _refuse_unknown(fold, known)
    train = np.setdiff1d(rows, _all_folds(table, folds, seed)[fold])
    _refuse_missing_class(
        table, _shown(table, train), f"the training part of fold {fold}", "choose other classes or folds"
    )
    return Split(train, known[fold])


def without(table: SliceTable, fold: str, folds: int | None, seed: int) -> SliceTable:
    """The table with one fold of `held_out_folds` made a part of the source's test set: in no other fold or part.

    What else is cut is cut out of the rest. Pixels are not copied. Raises DataError as `split` does. Made once a table,
    as everything that is kept by table.
    """
    made = _WITHOUT.setdefault(table, {})
    if (fold, folds, seed) not in made:
        known = _all_folds(table, folds, seed)
        _refuse_unknown(fold, known)
        fold_R = table.source_fold_R.copy()
        for row in known[fold].tolist():
            fold_R[row] = TEST
        made[fold, folds, seed] = replace(table, source_fold_R=fold_R)
    return made[fold, folds, seed]


def at_most(table: SliceTable, folds: int | None) -> int | None:
    """`folds`, or as many as the source has where it has fewer."""
    source = _source_folds(table)
    return min(folds, len(source)) if folds and source else folds


def validation_split(table: SliceTable, train_rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Cuts a training part into rows to fit and rows that choices inside a run may see.

    Stratified and cut by group: about `fraction` of the slices, or a whole fold where groups are folds. Rows that show
    nothing are cut with the others, and left out after. Raises DataError where that leaves a part without a class.
    """
    fit, validation = _cut(table, np.sort(train_rows), fraction, seed, "the validation part")
    return _shown(table, fit), _shown(table, validation)


def region_counts(table: SliceTable, region: str) -> dict[str, int]:
    """Of the slices outside of the source's test set, how many there are (`slices`) and show the region (`shown`).

    Nothing for `whole` and `crop`, which every slice shows.
    """
    rows = _not_test(table)
    return {"shown": len(_shown(table, rows)), "slices": len(rows)} if region in MASKS else {}


def _refuse_unknown(fold: str, known: dict[str, Rows]) -> None:
    if fold not in known:
        raise DataError(f"fold: {fold!r} is not a fold of the data; known: {', '.join(known)}")


def _source_folds(table: SliceTable) -> list[str]:
    """The source's own folds, in natural order, unless it has only one besides "test" (then: none)."""
    names = {name for name in table.source_fold_R if name is not None} - {TEST}
    if len(names) < 2:
        return []
    return sorted(names, key=natural_order)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sorts "2" before "10", and "fold2" before "fold10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _not_test(table: SliceTable) -> Rows:
    return np.array([row for row, fold in enumerate(table.source_fold_R) if fold != TEST], np.int64)


def _shown(table: SliceTable, rows: Rows) -> Rows:
    return rows[table.shown_R[rows]]


def _cut(table: SliceTable, rows: Rows, fraction: float, seed: int, part_name: str) -> tuple[Rows, Rows]:
    """(rest, part): whole groups, drawn so that the part holds about `fraction` of every class, and of the masks.

    Groups are visited in a random order and join the part where that brings its shares closer to `fraction`. With a
    few large groups (folds) that is one whole group. Where two groups have slices with tumour, both sides get some.
    """
    groups, group_R = np.unique(np.array(table.group_R, object)[rows].astype(str), return_inverse=True)
    if len(groups) < 2:
        raise DataError(f"{part_name}: all slices are of one group, so none can be held out; add cases")
    count_GN = np.zeros((len(groups), len(table.classes) + 1))
    np.add.at(count_GN, (group_R, table.label_R[rows]), 1)  # no label: -1, the last column
    has_mask_R = table.has_mask_R[rows]
    if not has_mask_R.all():
        count_GN = np.column_stack([count_GN, np.bincount(group_R, has_mask_R, len(groups))])
    share_GN = count_GN[:, count_GN.any(axis=0)]
    share_GN = share_GN / share_GN.sum(axis=0)

    order = np.random.default_rng(seed).permutation(len(groups))
    chosen_G = np.zeros(len(groups), bool)

    def distance(chosen_G: NDArray[np.bool_]) -> float:
        return float(np.abs(share_GN[chosen_G].sum(axis=0) - fraction).sum())

    def flipped(group: int) -> NDArray[np.bool_]:
        other_G = chosen_G.copy()
        other_G[group] = not chosen_G[group]
        return other_G

    share_N = np.zeros(share_GN.shape[1])
    for group in order:
        if np.abs(share_N + share_GN[group] - fraction).sum() < np.abs(share_N - fraction).sum() - 1e-9:
            chosen_G[group] = True
            share_N += share_GN[group]
    if not chosen_G.any():
        chosen_G = min((flipped(group) for group in order), key=distance)
    tumour_G = np.bincount(group_R, table.has_tumour_R[rows], len(groups))
    for count_G in (*share_GN.T, tumour_G):  # what few groups have may have been passed over, or taken whole
        holders = [g for g in order if count_G[g] > 0]
        if len(holders) > 1 and (chosen_G[holders].all() or not chosen_G[holders].any()):
            chosen_G = min((flipped(group) for group in holders), key=distance)

    part, rest = rows[chosen_G[group_R]], rows[~chosen_G[group_R]]
    labels = np.unique(table.label_R[_shown(table, rows)])
    hint = "each class needs two or more groups on both sides: use more data, fewer classes or another seed"
    _refuse_missing_class(table, _shown(table, part), part_name, hint, labels)
    _refuse_missing_class(table, _shown(table, rest), f"what {part_name} leaves to train on", hint, labels)
    return rest, part


def _refuse_cut(table: SliceTable, kind: str, name_R: list[str] | list[str | None]) -> None:
    fold_of: dict[str, str | None] = {}
    for name, fold in zip(name_R, table.source_fold_R, strict=True):
        if name is not None and fold_of.setdefault(name, fold) != fold:
            raise DataError(
                f"{kind} {name!r} is in the source folds {fold_of[name]!r} and {fold!r}; "
                "a fold would leak into another: correct the folds and ingest again"
            )


def _refuse_missing_class(
    table: SliceTable, rows: Rows, where: str, hint: str, labels: NDArray[np.int64] | None = None
) -> None:
    """Labels: the classes that must be there, all of the table's where None (if any slice of it has a label)."""
    if labels is None:
        labels = np.arange(len(table.classes)) if (table.label_R >= 0).any() else np.empty(0, np.int64)
    missing = sorted(set(labels[labels >= 0].tolist()) - set(table.label_R[rows].tolist()))
    if missing:
        shows = "" if table.shown_R.all() else " that shows data.region"
        raise DataError(f"{where} has no slice of class {table.classes[missing[0]]!r}{shows}; {hint}")
