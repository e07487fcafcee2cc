"""The two best configurations, compared slice by slice, in words."""

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
            found.append((first.name, second.name, difference))
    return found


def sentence(first: str, second: str, found: PairedDifference) -> str:
    """What the difference is, how sure it is, and what limits that."""
    units = f"{found.num_units} {found.unit}s" + ("" if found.unit == "slice" else f" ({found.num_slices:,} slices)")
    said = (
        f"{WORDS[found.metric]}: {first} − {second} = {found.difference:+.3f} "
        f"(95 % interval {found.low:+.3f} to {found.high:+.3f}, paired over {units}; "
        f"Wilcoxon p {_equals(found.p)})."
    )
    if found.least_p > 0.05:
        said += (
            f" So few {found.unit}s cannot decide it: the smallest p that {found.num_units} could give is "
            f"{text(found.least_p, P_VALUE)}."
        )
    if found.unit == "slice":
        said += " Slices of one patient are not independent and patients are not known here: p is too small."
    return said


def _equals(p: float) -> str:
    said = text(p, P_VALUE)
    return said if said.startswith("<") else f"= {said}"


def comparison_table(results: Results) -> Table | None:
    found = comparisons(results)
    if not found:
        return None
    columns = ["metric", "best", "second", *SIGNED, P_VALUE, "paired over"]
    rows: list[list[Cell]] = []
    for first, second, d in found:
        numbers: list[Cell] = [d.difference, d.low, d.high, d.p]
        rows.append([WORDS[d.metric], first, second, *numbers, f"{d.num_units} {d.unit}s"])
    return Table("comparison", "The two best", columns, rows)
