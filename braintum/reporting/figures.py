"""Figures of what configurations score on held-out slices, and of how they trained."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from braintum.evaluation.metrics import FloatArray
from braintum.evaluation.scores import Scores, by_seed, mean_per_slice
from braintum.reporting.canvas import INK, MUTED, Figure, colour_of, draw, panels
from braintum.reporting.results import Entry, Results
from braintum.reporting.tables import LABELS


def fold_scores(results: Results) -> Figure | None:
    """Every fold of every architecture, and their mean; None with a single fold."""
    if not results.entries or max(len(e.summary["folds"]) for e in results.entries) < 2:
        return None
    wanted = ("dice", "iou", "accuracy", "macro_f1")
    metrics = [m for m in wanted if any(m in e.summary["over_folds"] for e in results.entries)]
    colours = colour_of(results)

    def paint(canvas: Canvas) -> None:
        for axes, metric in zip(panels(canvas, len(metrics)), metrics, strict=True):
            entries = [entry for entry in reversed(results.entries) if metric in entry.summary["over_folds"]]
            for y, entry in enumerate(entries):
                values = [v[metric] for v in entry.summary["folds"].values() if metric in v]
                axes.plot(values, [y] * len(values), "o", ms=5, color=colours[entry.name], alpha=0.55, mew=0)
                axes.plot([entry.summary["over_folds"][metric]["mean"]] * 2, [y - 0.28, y + 0.28],
                          color=colours[entry.name], lw=2.2)  # fmt: skip
            axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
            axes.set_ylim(-0.6, len(entries) - 0.4)
            axes.set_title(LABELS[metric])
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.xaxis.set_major_locator(MaxNLocator(4))

    seeds = results.entries[0].seeds
    note = f"A dot is a fold{f' (mean over {seeds} seeds)' if seeds > 1 else ''}, the bar is the mean over folds."
    height = 1.0 + 0.32 * len(results.entries)
    return draw("fold_scores", "Folds", note, (2.7 * len(metrics), height), paint)


def dice_by_class(results: Results) -> Figure | None:
    """Where Dice on tumour slices lies, by class."""
    colours = colour_of(results)
    found: list[tuple[Entry, dict[str, FloatArray]]] = []
    for entry in results.entries:
        scores_S = [Scores.of(table) for table in by_seed(entry.predictions)]
        scores, dice_R = scores_S[0], mean_per_slice(scores_S)["dice"]
        names = np.array([*scores.classes, "unlabelled"], dtype=object)[scores.label_R]
        known_R = ~np.isnan(dice_R)
        groups = {name: dice_R[known_R & (names == name)] for name in [*scores.classes, "unlabelled"]}
        groups = {name: values for name, values in groups.items() if len(values)}
        if groups:
            found.append((entry, groups))
    if not found:
        return None
    shown = list(dict.fromkeys(name for _, groups in found for name in groups))

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        width = 0.8 / len(found)
        for i, (entry, groups) in enumerate(found):
            at = [shown.index(name) + (i - (len(found) - 1) / 2) * width for name in groups]
            boxes = axes.boxplot(
                list(groups.values()), positions=at, widths=width * 0.72, patch_artist=True, manage_ticks=False,
                flierprops={"marker": ".", "ms": 2.5, "mfc": colours[entry.name], "mec": "none", "alpha": 0.45},
                medianprops={"color": INK, "lw": 1.3}, capprops={"lw": 0},
                whiskerprops={"color": colours[entry.name], "lw": 1},
            )  # fmt: skip
            for box in boxes["boxes"]:
                box.set(facecolor=colours[entry.name], edgecolor="none", alpha=0.9)
            axes.plot([], [], "s", color=colours[entry.name], label=entry.name)
        axes.set_xticks(range(len(shown)), shown)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("Dice")
        axes.grid(axis="y")
        if len(found) > 1:
            canvas.legend(loc="outside upper left", ncols=len(found), handletextpad=0.2)

    note = "Slices with tumour. Box: quartiles and median; whiskers: 1.5 interquartile ranges; dots: slices beyond."
    return draw("dice_by_class", "Dice by class", note, (8, 3.1), paint)


def confusion(results: Results) -> Figure | None:
    """Confusion matrices, rows of true classes in percent, with counts."""
    entries = [entry for entry in results.entries if entry.summary["confusion"]]
    if not entries:
        return None
    most = max(len(entry.summary["confusion"]["labels"]) for entry in entries)

    def paint(canvas: Canvas) -> None:
        for axes, entry in zip(panels(canvas, len(entries)), entries, strict=True):
            labels = entry.summary["confusion"]["labels"]
            counts = np.array(entry.summary["confusion"]["counts"])
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(share, cmap=_tint(colour_of(results)[entry.name]), vmin=0, vmax=1)
            for (i, j), value in np.ndenumerate(share):
                ink = "white" if value > 0.65 else INK
                axes.text(j, i - 0.08, f"{100 * value:.0f} %", ha="center", va="center", color=ink, size=9)
                axes.text(
                    j,
                    i + 0.24,
                    f"{round(float(counts[i, j]), 1):g}",
                    ha="center",
                    va="center",
                    color=ink,
                    size=7,
                    alpha=0.75,
                )
            axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set(title=entry.name, xlabel="predicted", ylabel="true")

    size = 0.85 * most + 1.3
    note = "A row is a true class: percent of it predicted as each class, and numbers of slices, over all held out."
    return draw("confusion", "Confusion", note, (size * len(entries), size), paint)


def training_curves(results: Results) -> list[Figure]:
    """Losses, and where they are known validation scores and how two tasks got on: a figure an architecture."""
    colours = colour_of(results)
    return [
        figure
        for entry in results.entries
        for name, history in _histories(entry).items()
        if (figure := _training(name, history, colours[entry.name]))
    ]


def _histories(entry: Entry) -> dict[str, pa.Table]:
    """The rows of each architecture by name: one, or both parts of a cascade."""
    trained = entry.history["architecture"].unique().to_pylist()
    if len(trained) < 2:
        return {entry.name: entry.history}
    return {f"{entry.name}_{name}": entry.history.filter(pc.field("architecture") == name) for name in trained}


def _training(name: str, history: pa.Table, colour: str) -> Figure | None:
    names = [column for column in history.schema.names if history[column].null_count < len(history)]
    shown = {
        "Training loss": [
            n for n in ("train_loss", "train_segmentation_loss", "train_classification_loss") if n in names
        ],
        "Validation part": [n for n in ("validation_dice", "validation_macro_f1") if n in names],
        "Learning rate": [n for n in ("lr",) if n in names],
        "Task weights": [n for n in ("weight_segmentation", "weight_classification") if n in names],
        "Task cosine": [n for n in ("task_cosine",) if n in names],
    }
    if all(len(history[column].unique()) == 1 for column in shown["Task weights"]):
        del shown["Task weights"]  # fixed ones
    shown = {title: columns for title, columns in shown.items() if columns}
    if len(shown.get("Training loss", [])) == 2:
        shown["Training loss"] = ["train_loss"]  # one task: its term is the whole
    if not shown or not len(history):
        return None
    rows = history.to_pylist()
    runs = list(dict.fromkeys((row["run"], row["fold"]) for row in rows))
    styles = ("-", "--", ":")

    def paint(canvas: Canvas) -> None:
        for axes, (title, columns) in zip(panels(canvas, len(shown)), shown.items(), strict=True):
            for column, style in zip(columns, styles, strict=False):
                for run in runs:
                    of_run = [row for row in rows if (row["run"], row["fold"]) == run and row[column] is not None]
                    axes.plot([r["epoch"] for r in of_run], [r[column] for r in of_run], style, color=colour,
                              lw=1.1, alpha=0.8 if len(runs) == 1 else 0.5)  # fmt: skip
                short = re.sub("^(train|validation|weight)_|_loss$", "", column)
                axes.plot([], [], style, color=colour, label={"loss": "total"}.get(short, LABELS.get(short, short)))
            axes.set(title=title, xlabel="epoch")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if title == "Task cosine":  # below zero the tasks' gradients are in conflict
                axes.axhline(0, color=MUTED, lw=0.8)
                axes.set_ylim(-1, 1)
            else:
                axes.set_ylim(bottom=0)
            if len(columns) > 1:
                axes.legend(handlelength=1.8)
            elif title == "Validation part":
                axes.set_ylabel(LABELS[columns[0].removeprefix("validation_")])

    note = "A line is a fold." if len({fold for _, fold in runs}) == len(runs) else "A line is a fold with one seed."
    note = note if len(runs) > 1 else ""
    return draw(f"training_{name}", name, note, (2.6 * len(shown), 2.2), paint)


def _tint(colour: str) -> matplotlib.colors.Colormap:
    return matplotlib.colors.LinearSegmentedColormap.from_list("tint", ["#f6f7f9", colour])
