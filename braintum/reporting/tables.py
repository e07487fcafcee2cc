"""Tables of results, and how their cells read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from braintum.reporting.results import Entry, Results
from braintum.tuning.spending import words

LABELS = {
    "dice": "Dice", "dice_all": "Dice, all slices", "iou": "IoU", "pixel_accuracy": "Pixel acc.",
    "hd": "HD", "hd95": "HD95", "false_mask_rate": "False masks", "accuracy": "Accuracy", "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1", "auroc": "AUROC", "sensitivity": "Sensitivity", "specificity": "Specificity",
    "precision": "Precision", "f1": "F1", "both_right": "Both right",
}  # fmt: skip
MEANINGS = {
    "dice": "Dice is over slices with tumour.",
    "hd95": "HD95, the 95th percentile of the Hausdorff distance, is over slices with tumour; smaller is better.",
    "false_mask_rate": "False masks: the share of slices without tumour on which one was drawn.",
    "both_right": "Both right: the share of slices with the correct class and a Dice of 0.5 or more.",
}
DISTANCES = frozenset(("hd", "hd95"))
SMALLER_IS_BETTER = DISTANCES | {"false_mask_rate"}
LEADERBOARD = ("dice", "hd95", "dice_all", "false_mask_rate", "accuracy", "macro_f1", "auroc", "both_right")
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
    """Rows start with what they are about. Metrics stand as columns, or, with `metric_rows`, as rows.

    `compared`: rows are rivals, so that the best value of each metric is marked. `warning`: why not to believe it.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    hd_unit: str | None = None
    compared: bool = False
    metric_rows: bool = False
    warning: str = ""

    def heading(self, column: str) -> str:
        return heading(column, self.hd_unit)

    def words(self, i: int, j: int) -> str:
        """A cell for people."""
        cell = self.rows[i][j]
        if not self.metric_rows:
            return text(cell, self.columns[j])
        metric = str(self.rows[i][0])
        return self.heading(metric) if j == 0 else text(cell, metric)

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
            if column not in LABELS or not known:
                continue
            if column in DISTANCES and "/" in (self.hd_unit or ""):  # mm and px do not compare
                continue
            best = text((min if column in SMALLER_IS_BETTER else max)(known.values()), column)
            shared = {i for i, value in known.items() if text(value, column) == best}  # as far as is shown
            if len(shared) < len(known):
                marked |= {(i, j) for i in shared}
        return marked


def heading(column: str, hd_unit: str | None) -> str:
    """A metric for people, distances with their unit; other columns are called what they are."""
    return LABELS.get(column, column) + (f" ({hd_unit})" if hd_unit and column in DISTANCES else "")


def text(cell: Cell, column: str = "") -> str:
    """A cell for people: three decimals, one for distances."""
    if cell is None:
        return "–"
    if isinstance(cell, MeanSD):
        return text(cell.mean, column) + ("" if cell.sd is None else f" ± {text(cell.sd, column)}")
    if isinstance(cell, float):
        if column == P_VALUE:
            return "< 0.001" if cell < 0.001 else f"{cell:.3f}"
        decimals = 1 if column in DISTANCES else 3
        rounded = round(cell, decimals) + 0.0  # no negative zero
        sign = "+" if column in SIGNED and rounded > 0 else ""
        return f"{sign}{rounded:.{decimals}f}".replace("-", "−")
    return f"{cell:,}" if isinstance(cell, int) else cell


def shown(over_folds: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics of a leaderboard, of all that the `over_folds` of summaries hold."""
    found = {metric for metrics in over_folds for metric in metrics}
    if "false_mask_rate" not in found:
        found.discard("dice_all")  # no slice without tumour: the same as Dice
    return [metric for metric in LEADERBOARD if metric in found]


def leak_words(leaks: int) -> str:
    """What every table of a search that was allowed to leak says."""
    return f"The data leaks: {leaks:,} pairs of copies are on two sides of a split, so scores are too good."


def leaderboard(results: Results) -> Table:
    """One row a configuration, means ± SD over folds (of a run: its values)."""
    entries = results.entries
    present = shown(entry.summary["over_folds"] for entry in entries)
    rows: list[list[Cell]] = [
        [entry.name, *(mean_sd(entry.summary["over_folds"].get(metric)) for metric in present)] for entry in entries
    ]
    several = len(entries[0].summary["folds"]) > 1
    seeds = f" of means over {entries[0].seeds} seeds" if entries[0].seeds > 1 else ""
    notes = [f"Mean ± SD over folds{seeds}."] if several else ["Scored once, on the slices held out."]
    notes += [words for metric, words in MEANINGS.items() if metric in present]
    undefined = {entry.name: n for entry in entries if (n := entry.summary["counts"]["hd_undefined"])}
    if undefined:
        named = ", ".join(f"{name} {n}" for name, n in undefined.items())
        drawn = "nothing was drawn" if entries[0].seeds == 1 else "nothing was drawn with one seed or more"
        notes.append(f"Tumour slices on which {drawn} have no distance there and are left out of it: {named}.")
    notes += [f"Not ranked: {name}, {reason}." for name, reason in results.summary.get("failed", {}).items()]
    if len(entries) > 1:
        notes.append("The best of a column is in bold.")
    title = "Leaderboard" if len(rows) > 1 else "Results"
    columns = ["architecture", *present]
    unit = unit_of(entry.summary["hd_unit"] for entry in entries)
    return Table("leaderboard", title, columns, rows, " ".join(notes), unit, compared=True)


def every_metric(entry: Entry) -> Table:
    """Every metric: of each fold, mean ± SD over folds, over all slices together and, where known, over cases."""
    summary = entry.summary
    folds: dict[str, dict[str, float]] = summary["folds"]
    cases = summary["cases"]
    several = len(folds) > 1
    rows: list[list[Cell]] = []
    for metric, over_slices in summary["metrics"].items():
        row: list[Cell] = [metric, *(values.get(metric) for values in folds.values())] if several else [metric]
        if several:
            row.append(mean_sd(summary["over_folds"][metric]))
        row.append(mean_sd(over_slices))
        if cases:
            row.append(mean_sd(cases["metrics"].get(metric)))
        rows.append(row)
    columns = ["metric", *(f"fold {name}" for name in folds), "over folds"] if several else ["metric"]
    columns += ["over slices", "over cases"] if cases else ["over slices"]
    note = "Each fold, mean ± SD over folds, and mean ± SD over all " if several else "Mean ± SD over "
    note += f"{summary['counts']['slices']:,} slices."
    if entry.seeds > 1:
        note += f" Every number is of means over {entry.seeds} seeds."
    if cases:
        note += f" {cases['cases']:,} cases: a case has the mean of its slices and the class of their mean probability."
    if cases and cases["mixed_cases"]:
        note += f" {cases['mixed_cases']} with slices of several classes are in no classification score."
    return Table(f"metrics_{entry.name}", entry.name, columns, rows, note, summary["hd_unit"], metric_rows=True)


def classes(entry: Entry) -> Table | None:
    """What every class scores, over all slices; None where the slices have no classes."""
    by_class: dict[str, dict[str, Any]] = entry.summary["classes"]
    present = [m for m in PER_CLASS if any(values[m] is not None for values in by_class.values())]
    if not present:
        return None
    rows: list[list[Cell]] = [
        [name, values["slices"], *(values[metric] for metric in present)] for name, values in by_class.items()
    ]
    undefined = any(cell is None for row in rows for cell in row)
    note = "–: not defined, as the precision of a class that was never predicted." if undefined else ""
    columns = ["class", "slices", *present]
    return Table(f"classes_{entry.name}", entry.name, columns, rows, note, entry.summary["hd_unit"])


def trials(results: Results, most: int = 8) -> Table | None:
    """The best trials of each architecture, with the values that the search chose; None where nothing was searched."""
    if results.study is None or not results.study.trials:
        return None
    every = results.study.trials
    varied = sorted({path for trial in every for path in trial.params})
    fronts = {name: {p["trial"]: p for p in front} for name, front in results.summary.get("pareto", {}).items()}
    rows: list[list[Cell]] = []
    for architecture in dict.fromkeys([*(entry.name for entry in results.entries), *(t.architecture for t in every)]):
        of_it = [trial for trial in every if trial.architecture == architecture]
        ranked = sorted(of_it, key=lambda t: (t.state != "complete", 1 if t.score is None else -t.score))
        front = fronts.get(architecture, {})
        for t in [t for i, t in enumerate(ranked) if i < most or t.number in front]:
            about: list[Cell] = [architecture, str(t.number), t.state, t.score, t.folds_done, t.epochs]
            if fronts:
                about.append(_objectives(front[t.number]) if t.number in front else None)
            rows.append(about + [_setting(t.params.get(path)) for path in varied])
    note = (
        "Selection scores choose a configuration; they are no results, and those of architectures with different "
        "tasks do not compare."
    )
    if fronts:
        note += (
            " On the Pareto front of these objectives (metrics are selection metrics): no other is as good in all and "
        )
        note += f"better in one. Chosen: {results.summary['chosen_by']}."
    if len(rows) < len(every):
        note += f" The best {most} of each architecture; all {len(every)} stand in trials.parquet."
    columns = ["architecture", "trial", "state", "selection score", "folds", "epochs"]
    columns += ["Pareto front"] if fronts else []
    return Table("trials", "Trials", columns + varied, rows, note)


def _objectives(point: Mapping[str, Any]) -> str:
    """What a trial on a Pareto front has of each objective."""
    costs = {"latency": "{:.3g} s a slice", "parameters": "{:,}", "energy": "{:.3g} J a slice"}
    values = {o: value for o, value in point.items() if o not in ("trial", "chosen")}
    words = [f"{objective} {costs.get(objective, '{:.3f}').format(value)}" for objective, value in values.items()]
    return ", ".join([*words, *(["chosen"] if point["chosen"] else [])])


def racing_words(racing: Mapping[str, Any]) -> str:
    """What fold racing did."""
    epochs, count = racing["epochs"], len(racing["stopped"])
    words = f"Racing stopped {count} trial{'s' if count != 1 else ''} after a fold: {epochs['saved']:,} of the "
    words += f"{epochs['all']:,} epochs that all folds of all trials have were left out (level {racing['level']:g}, "
    words += f"one-sided Wilcoxon tests over {racing['unit']}s, Bonferroni over looks and rivals)."
    if racing["unit"] == "slice":
        words += " Cases are not known and slices of one are not independent, so the level is nominal."
    return words


def budget_words(summary: Mapping[str, Any], studies: int = 1) -> str:
    """What a study, or the studies of a nested one, spent of a budget; empty where there is none."""
    budget, stopped_by = summary.get("budget", {}), summary.get("stopped_by", "trials")
    if budget.keys() <= {"trials"}:
        return ""
    ended = f"{sum(summary['trials'].values())} of {budget['trials'] * studies} trials"
    why = (
        "" if stopped_by == "trials" else f"; no more would have ended within its {stopped_by.replace('gpu_', 'GPU ')}"
    )
    return f"{ended}: {words(summary['spent'], budget)} spent{why}"


def _setting(value: Any) -> str | None:
    """The value of a searched setting; None where a trial has no such setting."""
    if value is None:
        return None
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def mean_sd(found: Mapping[str, Any] | None) -> MeanSD | None:
    """A metric of a summary's `metrics` or `over_folds` as a cell."""
    return None if found is None or found["mean"] is None else MeanSD(found["mean"], found["sd"])


def _value(cell: Cell) -> float | None:
    if isinstance(cell, MeanSD):
        return cell.mean
    return cell if isinstance(cell, float) else None


def unit_of(hd_units: Iterable[str | None]) -> str | None:
    """The unit of distances that those of several summaries agree in; both, as mm/px, where they differ."""
    return "/".join(sorted({unit for unit in hd_units if unit is not None})) or None
