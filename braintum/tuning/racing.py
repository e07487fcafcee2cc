"""Fold racing: at the end of each fold a trial that has lost to the best so far is stopped.

The test is paired and one-sided: a Wilcoxon signed-rank test of the trial's shares in the selection score
(`score_shares`) minus the best one's, on the same slices of the folds that the trial has finished, averaged by case.
Where cases are not known, slices stand for them; they are not independent of one another, so the level is nominal.

**Who is to be beaten**: of the study's other trials that have not been stopped and have not failed, those that have
finished most folds (complete ones, as soon as there is one), and of these the one with the best score; it must have
finished the trial's folds. It changes as trials finish. With several trials at a time it is the best one that has been
heard of by then, as in ASHA: nobody waits.

**How often a look is wrong**: a trial is looked at after every fold but its last, and the best was chosen out of as
many rivals as have finished as many folds. So p is multiplied by both numbers (Bonferroni), and a trial that is as
good as each of these is stopped with a probability of `level` at most, over all its folds. That is about networks as
they were trained: the test knows how cases differ, and not what another seed would have given. A trial whose score is
not below the best one's on the same folds is never stopped: macro F1 is no mean over slices and may order two trials
otherwise than what stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from braintum import storage
from braintum.data.folds import held_out_folds
from braintum.data.table import SliceTable
from braintum.evaluation.metrics import FloatArray
from braintum.evaluation.statistics import p_behind
from braintum.settings import ConfigError
from braintum.tuning.records import HISTORY
from braintum.tuning.trial import FoldShares, TrialSpec, read_shares


@dataclass(frozen=True)
class Lost:
    """Why a trial is stopped: `difference` to the trial `to` in mean share (selection score) over the `folds` finished.

    `p` is multiplied by the number of looks and of rivals.
    """

    to: int
    folds: int
    difference: float
    p: float


@dataclass
class _Contender:
    """A trial's directory, the folds that it has finished, and its score after each of them."""

    out: str
    folds: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class Race:
    """Of one study of `folds` folds. Told every result of a trial, it says which trial has lost.

    What it decides is a function of what it was told, in that order, and of what stands in the trials' directories.
    """

    def __init__(self, level: float, folds: int) -> None:
        self._level, self._folds = level, folds
        self._contenders: dict[int, _Contender] = {}
        self._out: set[int] = set()

    def record(self, spec: TrialSpec, result: Mapping[str, Any]) -> bool:
        """Takes a result down. Whether it ends a fold that was not known to be finished."""
        if spec.number in self._out:
            return False
        contender = self._contenders.setdefault(spec.number, _Contender(spec.out))
        if result["folds_done"] <= len(contender.folds):
            return False
        contender.folds.append(result["fold"])
        contender.scores.append(result["score"])
        return True

    def refill(self, spec: TrialSpec, told: Iterable[int]) -> None:
        """Takes down what an earlier driver was told of a trial, by its epochs: what it survived is not asked again."""
        place, steps = storage.join(spec.out, HISTORY), set(told)
        for row in storage.read_json(place) if storage.exists(place) else []:
            if row["epoch"] in steps:
                self.record(spec, row)

    def drop(self, number: int) -> None:
        """A trial that was stopped or has failed can no longer win."""
        self._out.add(number)
        self._contenders.pop(number, None)

    def lost(self, spec: TrialSpec, result: Mapping[str, Any]) -> Lost | None:
        """Takes a result down, and looks at the trial where that ends one of its folds but the last."""
        if not self.record(spec, result) or result["folds_done"] == self._folds:
            return None
        mine = self._contenders[spec.number]
        folds = len(mine.folds)
        rivals = {n: c for n, c in self._contenders.items() if n != spec.number and len(c.folds) >= folds}
        furthest = max((len(c.folds) for c in rivals.values()), default=0)
        rivals = {n: c for n, c in rivals.items() if len(c.folds) == furthest}
        if not rivals:
            return None
        best = max(rivals, key=lambda n: (rivals[n].scores[-1], -n))
        if mine.scores[-1] >= rivals[best].scores[folds - 1]:
            return None
        difference, p = compare(*([read_shares(c.out, f) for f in mine.folds] for c in (mine, rivals[best])))
        p = min(1.0, p * len(rivals) * (self._folds - 1))
        return Lost(best, folds, difference, p) if p <= self._level else None


def compare(mine: Sequence[FoldShares], best: Sequence[FoldShares]) -> tuple[float, float]:
    """The mean difference, mine minus the best one's, over the slices that both score, and its p (`p_behind`).

    Trials may look at other views of the data, and so at other slices.
    """
    differences: list[float] = []
    slices: list[str] = []
    cases: list[str | None] = []
    for own, other in zip(mine, best, strict=True):
        share_of = dict(zip(other.slices, other.shares, strict=True))
        for name, case, share in zip(own.slices, own.cases, own.shares, strict=True):
            if name in share_of:
                differences.append(share - share_of[name])
                slices.append(name)
                cases.append(case)
    units = [case for case in cases if case is not None]
    difference_R: FloatArray = np.array(differences)
    if not differences:
        return 0.0, 1.0
    return float(difference_R.mean()), p_behind(difference_R, units if len(units) == len(cases) else slices)


def unit_of(table: SliceTable) -> str:
    """What the test takes for independent: `case`, or `slice` where not every case is known (the level is nominal)."""
    return "slice" if any(case is None for case in table.case_id_R) else "case"


def refuse_powerless(level: float, table: SliceTable, folds: int | None) -> None:
    """Raises ConfigError where not even a trial that is worse on every case of its folds could lose."""
    parts = list(held_out_folds(table, folds, seed=0).values())
    rows = np.concatenate(parts[:-1])
    unit = unit_of(table)
    count = len(set(np.array(table.case_id_R, object)[rows])) if unit == "case" else len(rows)
    least = 2.0**-count * (len(parts) - 1)
    if least > level:
        raise ConfigError(
            f"racing.level: {level}: no trial could ever be stopped: {count} {unit}s in the first {len(parts) - 1} "
            f"folds give a p of {least:.2g} at least, times the looks; leave racing out, or use more data"
        )
