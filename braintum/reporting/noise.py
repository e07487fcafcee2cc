"""How much of a score is luck: of the seed, of the fold, and of having been picked out of many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from braintum.evaluation.seeds import Lead, lead, spread
from braintum.reporting.results import Entry, Results
from braintum.reporting.tables import LABELS, Cell, Table, shown, text

METRICS = ("dice", "accuracy", "macro_f1")
"""In which a lead is looked at."""


def seeds_table(results: Results) -> Table | None:
    """How far seeds and folds move every score; None where there is one seed."""
    if results.entries[0].seeds < 2:
        return None
    rows: list[list[Cell]] = []
    for entry in results.entries:
        moved = spread(entry.scores)
        for metric in shown([entry.summary["over_folds"]]):
            over_folds, over_seeds, over_runs = (
                found[metric] for found in (entry.summary["over_folds"], moved["over_seeds"], moved["over_runs"])
            )
            sds = [text(found["sd"], metric) for found in (over_folds, over_seeds, over_runs)]
            rows.append([f"{entry.name}, {LABELS[metric]}", text(over_folds["mean"], metric), *sds])
    note = (
        f"{results.entries[0].seeds} seeds. Over folds: of each fold's mean over seeds. Over seeds: of each seed's "
        "mean over folds. Over both: of every training."
    )
    columns = ["score", "mean", "SD over folds", "SD over seeds", "SD over both"]
    return Table("seeds", "Seeds and folds", columns, rows, note)


class Against(NamedTuple):
    """The best by a metric against another configuration."""

    metric: str
    best: Entry
    other: Entry
    lead: Lead


def leads(results: Results) -> Iterator[Against]:
    """The best configuration against each other one, the nearest first, by each metric."""
    for metric in METRICS:
        scored = [(value, entry) for entry in results.entries if (value := entry.metric(metric)) is not None]
        ranked = [entry for _, entry in sorted(scored, key=lambda pair: -pair[0])]
        for other in ranked[1:]:
            found = lead(ranked[0].scores, other.scores, metric)
            if found is not None:
                yield Against(metric, ranked[0], other, found)


def leads_table(results: Results) -> Table | None:
    """Every configuration against the best; None where there is nothing to compare or one training each."""
    rows: list[list[Cell]] = [
        [LABELS[metric], best.name, other.name, found.difference, found.over_folds, found.over_seeds, found.over_runs,
         found.noise, _percent(found.share)]
        for metric, best, other, found in leads(results)
    ]  # fmt: skip
    if not rows or all(row[4] is None and row[5] is None for row in rows):
        return None
    note = (
        "The best minus the other, paired by fold and seed; SDs are of that difference. What seeds leave in it: SD "
        "over seeds / √seeds, also as a share of the difference. Of so few values an SD is itself uncertain."
    )
    columns = ["metric", "best", "other", "difference", "SD over folds", "SD over seeds", "SD over both"]
    return Table("leads", "Leads of the best", [*columns, "left by seeds", "share"], rows, note)


def lead_words(results: Results) -> list[str]:
    """The lead over the next best and what seeds alone do to it, a sentence a metric."""
    nearest: dict[str, Against] = {}
    for against in leads(results):
        nearest.setdefault(against.metric, against)
    if not nearest:
        return []
    if results.entries[0].seeds < 2:
        return [
            "Each configuration was trained with one seed, so how much of a lead is that seed's luck cannot be known "
            "here; a search with --seeds 3 tells."
        ]
    return [
        f"{LABELS[metric]}: {best.name} leads {other.name} by {text(found.difference)}. Seeds alone move that lead by "
        f"{text(found.over_seeds)} (SD of {found.num_seeds} seeds), and leave ± {text(found.noise)} in its mean: "
        f"{_percent(found.share)} of the lead."
        for metric, best, other, found in nearest.values()
        if found.share is not None
    ]


def optimism_table(results: Results) -> Table | None:
    """Selection scores beside what the same settings score; None where nothing was searched."""
    name = "nested" if results.kind == "nested study" else "crossval"
    found: dict[str, Any] = {
        architecture: about["optimism"]
        for architecture, about in results.summary.get("nested", results.summary.get("best", {})).items()
        if about["optimism"]
    }
    if not found:
        return None
    rows: list[list[Cell]] = [
        [architecture, o["selection"], o[name], o["difference"]] for architecture, o in found.items()
    ]
    note = (
        "The selection score is that of the best trial, which was picked by it: it is no result, and is taken at the "
        "resolution of the training. "
    )
    note += (
        "Nested: the same score on folds that the search never saw, of a training on more slices than the trials had. "
        "Both are means over the outer folds."
        if name == "nested"
        else "Cross-validated: the same score of its settings with fresh seeds, but on the folds that chose them."
    )
    words = {"nested": "nested score", "crossval": "cross-validated"}
    return Table("optimism", "Optimism", ["architecture", "selection score", words[name], "difference"], rows, note)


def outer_table(results: Results) -> Table | None:
    """What each inner study of a nested one chose, and what that scores on the fold left out; else None."""
    if results.kind != "nested study" or results.study is None:
        return None
    searched = list(results.study.about["space"]["parameters"])
    present = shown(entry.summary["over_folds"] for entry in results.entries)
    rows: list[list[Cell]] = []
    for name, found in results.summary["nested"].items():
        for fold, winner in found["outer"].items():
            settings = [_setting(winner["experiment"], path) for path in searched]
            about: list[Cell] = [name, f"fold {fold}", winner["architecture"], str(winner["trial"])]
            scores = [winner["metrics"].get(metric) for metric in present]
            rows.append([*about, winner["selection"], winner["nested"], *scores, *settings])
    columns = ["search", "left out", "architecture", "trial", "selection score", "nested score", *present, *searched]
    note = "The winner of the search without a fold, trained again on all the rest and scored on that fold."
    return Table("outer", "Outer folds", columns, rows, note, results.entries[0].summary["hd_unit"])


def _setting(experiment: dict[str, Any], path: str) -> str | None:
    """The value of a searched field, where the architecture has it."""
    part, _, field = path.partition(".")
    value = experiment[part].get(field)
    return None if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"
