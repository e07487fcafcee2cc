"""The two best configurations, compared slice by slice."""

from __future__ import annotations

from typing import Literal

from braintum.evaluation.statistics import PairedDifference, paired_difference
from braintum.reporting.results import Results
from braintum.reporting.tables import P_VALUE, SIGNED, Cell, Table, text

WORDS = {"dice": "Dice on tumour slices", "accuracy": "accuracy"}


def comparisons(results: Results) -> list[tuple[str, str, PairedDifference]]:
    """(best, second best, difference) by Dice and by accuracy, where two or more configurations have it."""
    found = []
    metrics: tuple[Literal["dice", "accuracy"], ...] = ("dice", "accuracy")
    for metric in metrics:
        scored = [(value, entry) for entry in results.entries if (value := entry.metric(metric)) is not None]
        if len(scored) > 1:
            (_, first), (_, second) = sorted(scored, key=lambda pair: -pair[0])[:2]
            difference = paired_difference(first.predictions, second.predictions, metric)
            if difference is not None:
                found.append((first.name, second.name, difference))
    return found


def _limits(found: PairedDifference) -> str:
    """What keeps a difference from being sure."""
    words = ""
    if found.least_p > 0.05:
        words += (
            f" {found.num_units} {found.unit}s cannot decide which is better: the smallest p that so few could give is "
            f"{text(found.least_p, P_VALUE)}."
        )
    if found.unit == "slice":
        words += " Slices of one patient are not independent, and patients are not known here: p is too small."
    return words


def comparison_table(results: Results) -> Table | None:
    found = comparisons(results)
    if not found:
        return None
    columns = ["metric", "best", "second", *SIGNED, P_VALUE, "paired over"]
    rows: list[list[Cell]] = []
    for first, second, d in found:
        numbers: list[Cell] = [d.difference, d.low, d.high, d.p]
        rows.append([WORDS[d.metric], first, second, *numbers, f"{d.num_units} {d.unit}s"])
    note = (
        "Best minus second, paired over what is independent as far as the data say; bootstrap interval and two-sided "
        "Wilcoxon signed-rank test. The two were picked by these same numbers, and p is not corrected for that."
    )
    note += "".join(dict.fromkeys(_limits(difference) for _, _, difference in found))
    return Table("comparison", "The two best", columns, rows, note)
