"""Results printed for people, by rich. Programs read `--json` or summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("dice", "dice_all", "iou", "hd95", "accuracy", "macro_f1", "auroc", "both_right")
"""The metrics of a leaderboard, in its order."""


def print_card(card: Mapping[str, Any]) -> None:
    """A dataset's card: size, classes, masks, digest."""
    table = Table("", card["name"], box=None, show_header=True)
    table.add_row("slices", f"{card['num_slices']:,}")
    if card["num_cases"] is not None:
        table.add_row("cases", f"{card['num_cases']:,}")
    table.add_row("pixels", f"{card['height']}×{card['width']}, {card['channels']} × {card['dtype']}")
    table.add_row("classes", ", ".join(card["classes"]) or "none")
    table.add_row("masks", ", ".join(card["masks"]) or "none")
    table.add_row("digest", card["digest"][:16])
    _print(table)


def print_run(summary: Mapping[str, Any]) -> None:
    """A run's metrics on the slices held out."""
    held_out = "20 % of the groups" if summary["fold"] is None else f"fold {summary['fold']}"
    table = Table("metric", "held out", title=f"{summary['architecture']}, scored on {held_out}")
    for name, value in summary["metrics"].items():
        table.add_row(name, _number(value))
    _print(table)
    print(f"{summary['epochs']} epochs in {summary['seconds']:.0f} s, {summary['slices_per_second']:.0f} slices/s")


def print_crossval(summary: Mapping[str, Any]) -> None:
    """A cross-validation: each fold, then mean ± SD over folds."""
    names = [name for name in SHOWN if name in summary["over_folds"]]
    table = Table("fold", *names, title=f"{summary['architecture']}, cross-validated")
    for fold, metrics in summary["folds"].items():
        table.add_row(fold, *(_number(metrics.get(name)) for name in names))
    table.add_section()
    table.add_row("mean ± SD", *(_spread(summary["over_folds"][name]) for name in names))
    _print(table)


def print_study(summary: Mapping[str, Any]) -> None:
    """A study's leaderboard: the winner of each architecture, by its cross-validation."""
    names = [name for name in SHOWN if any(name in best["crossval"] for best in summary["best"].values())]
    table = Table("architecture", "trial", "selection score", *names, title="Winners, cross-validated (mean ± SD)")
    for name, best in summary["best"].items():
        metrics = best["crossval"]
        cells = (_spread(metrics[metric]) if metric in metrics else "–" for metric in names)
        table.add_row(name, str(best["trial"]), _number(best["score"]), *cells)
    _print(table)
    states = ", ".join(f"{count} {state}" for state, count in summary["trials"].items())
    busy = summary["busy_share"]
    print(f"trials: {states}; {summary['seconds']:.0f} s" + ("" if busy is None else f", workers busy {busy:.0%}"))


def print_models(listing: Mapping[str, Any]) -> None:
    """The registered architectures, their tasks and options."""
    for name, model in listing.items():
        table = Table("option", "default", "", title=f"{name}: {' and '.join(model['tasks'])}", title_justify="left")
        for option, about in model["options"].items():
            table.add_row(f"model.{option}", str(about["default"]), about["description"])
        _print(table)


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 160  # rich takes 80 for a pipe or a file, and would cut columns
    console.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _spread(metric: Mapping[str, float | None]) -> str:
    return f"{_number(metric['mean'])} ± {_number(metric['sd'])}"
