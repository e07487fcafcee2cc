"""Tables of results, and how their cells read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from braintum.reporting.results import Entry, Results

LABELS = {
    "dice": "Dice", "dice_all": "Dice, all slices", "iou": "IoU", "pixel_accuracy": "Pixel acc.",
    "hd": "HD", "hd95": "HD95", "false_mask_rate": "False masks", "accuracy": "Accuracy", "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1", "auroc": "AUROC", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "precision": "Precision", "f1": "F1", "both_right": "Both right",
}  # fmt: skip
SMALLER_IS_BETTER = frozenset(("hd", "hd95", "false_mask_rate"))
LEADERBOARD = ("dice", "iou", "hd95", "dice_all", "false_mask_rate", "accuracy", "macro_f1", "auroc", "both_right")
PER_CLASS = ("precision", "sensitivity", "specificity", "f1", "auroc", "dice", "hd95", "false_mask_rate")
SIGNED = ("difference", "95 % low", "95 % high")
P_VALUE = "Wilcoxon p"


_NUMBER = re.compile(r"[-+<]? ?\d")


@dataclass(frozen=True)
class MeanSD:
    """A mean and its standard deviation; None where a single value has none."""

    mean: float
    sd: float | None


Cell = str | int | float | MeanSD | None


@dataclass(frozen=True)
class Table:
    """`columns` are metric names or plain words; `rows` start with what they are about.

    `compared`: rows are rivals, so that the best value of each metric is marked.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    units: dict[str, str] = field(default_factory=dict)
    compared: bool = False

    def heading(self, column: str) -> str:
        unit = self.units.get(column)
        return LABELS.get(column, column) + (f" ({unit})" if unit else "")

    def is_words(self, j: int) -> bool:
        """Whether a column holds words, which are set to the left, and not numbers."""
        cells = [row[j] for row in self.rows if row[j] is not None]
        return bool(cells) and all(isinstance(cell, str) and not _NUMBER.match(cell) for cell in cells)

    @property
    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the best value of each metric, unless all rows share it."""
        marked: set[tuple[int, int]] = set()
        if not self.compared:
            return marked
        for j, column in enumerate(self.columns):
            values = {i: _value(row[j]) for i, row in enumerate(self.rows)}
            known = {i: value for i, value in values.items() if value is not None}
            if column in LABELS and len(set(known.values())) > 1:
                best = (min if column in SMALLER_IS_BETTER else max)(known.values())
                marked |= {(i, j) for i, value in known.items() if value == best}
        return marked


def text(cell: Cell, column: str = "") -> str:
    """A cell for people: three decimals, one for distances."""
    if cell is None:
        return "–"
    if isinstance(cell, MeanSD):
        return text(cell.mean, column) + ("" if cell.sd is None else f" ± {text(cell.sd, column)}")
    if isinstance(cell, float):
        if column in SIGNED:
            return f"{cell:+.3f}"
        if column == P_VALUE:
            return "< 0.001" if cell < 0.001 else f"{cell:.3f}"
        return f"{cell:.1f}" if column in ("hd", "hd95") else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def leaderboard(results: Results) -> Table:
    """One row a configuration, means ± SD over folds (of a run: its values)."""
    several = len(results.entries[0].summary["folds"]) > 1 if results.entries else False
    present = [m for m in LEADERBOARD if any(m in entry.summary["over_folds"] for entry in results.entries)]
    if not any(entry.summary["counts"]["without_tumour"] for entry in results.entries):
        present = [metric for metric in present if metric != "dice_all"]  # the same as Dice
    rows: list[list[Cell]] = [
        [entry.name, *(_mean_sd(entry.summary["over_folds"].get(metric)) for metric in present)]
        for entry in results.entries
    ]
    note = "Mean ± SD over folds. " if several else "One held-out part. "
    note += "Dice, IoU and HD95 are over slices with tumour."
    title = "Leaderboard" if len(rows) > 1 else "Results"
    return Table("leaderboard", title, ["architecture", *present], rows, note, _units(results.entries), compared=True)


def folds(entry: Entry) -> Table:
    """Every metric of every fold, and mean ± SD over them."""
    summary = entry.summary
    metrics = list(summary["metrics"])
    rows: list[list[Cell]] = [[fold, *(values.get(m) for m in metrics)] for fold, values in summary["folds"].items()]
    if len(rows) > 1:
        rows.append(["mean ± SD", *(_mean_sd(summary["over_folds"][m]) for m in metrics)])
    return Table(f"folds_{entry.name}", entry.name, ["fold", *metrics], rows, units=_units([entry]))


def classes(entry: Entry) -> Table | None:
    """What every class scores, over all slices; None where the slices have no classes."""
    by_class: dict[str, dict[str, Any]] = entry.summary["classes"]
    present = [m for m in PER_CLASS if any(values[m] is not None for values in by_class.values())]
    if not present:
        return None
    rows: list[list[Cell]] = [
        [name, values["slices"], *(values[metric] for metric in present)] for name, values in by_class.items()
    ]
    return Table(f"classes_{entry.name}", entry.name, ["class", "slices", *present], rows, units=_units([entry]))


def slices_and_cases(entry: Entry) -> Table:
    """Averages over all slices and, where cases are known, over cases."""
    summary = entry.summary
    metrics = list(summary["metrics"])
    rows: list[list[Cell]] = [["slices", *(_mean_sd(summary["metrics"][m]) for m in metrics)]]
    if summary["cases"]:
        found = summary["cases"]["metrics"]
        rows.append(["cases", *(_mean_sd(found.get(m)) for m in metrics)])
    note = "Mean ± SD over slices of all folds together"
    if summary["cases"]:
        note += f", and over {summary['cases']['cases']} cases"
        if summary["cases"]["mixed_cases"]:
            note += (
                f" ({summary['cases']['mixed_cases']} with slices of several classes are left out of "
                "classification scores)"
            )
    return Table(f"averages_{entry.name}", entry.name, ["over", *metrics], rows, note + ".", _units([entry]))


def trials(results: Results, most: int = 20) -> Table | None:
    """The best trials of a study, with the values that the search chose."""
    if results.study is None:
        return None
    ranked = sorted(results.study.trials, key=lambda t: (t.state != "complete", -1 if t.score is None else -t.score))
    varied = sorted({path for trial in ranked for path in trial.params})
    rows: list[list[Cell]] = []
    rows += [
        [str(t.number), t.architecture, t.state, t.score, t.folds_done, t.epochs, *settings(t.params, varied)]
        for t in ranked[:most]
    ]
    more = len(ranked) - len(rows)
    note = "Selection scores choose a configuration; they are no results."
    if more > 0:
        note += f" The best {most}; {more} more stand in trials.parquet."
    columns = ["trial", "architecture", "state", "selection score", "folds", "epochs", *varied]
    return Table("trials", "Trials", columns, rows, note)


def _mean_sd(found: dict[str, Any] | None) -> Cell:
    return None if found is None or found["mean"] is None else MeanSD(found["mean"], found["sd"])


def _value(cell: Cell) -> float | None:
    if isinstance(cell, MeanSD):
        return cell.mean
    return cell if isinstance(cell, float) else None


def settings(params: dict[str, Any], paths: list[str]) -> list[str]:
    """Values of searched settings for people; empty where a trial has no such setting."""
    values = [params.get(path) for path in paths]
    return ["" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x) for x in values]


def _units(entries: Iterable[Entry]) -> dict[str, str]:
    """The unit of distances, where all entries agree; otherwise both are named."""
    units = sorted({unit for entry in entries if (unit := entry.summary["hd_unit"]) is not None})
    return {"hd": "/".join(units), "hd95": "/".join(units)} if units else {}
