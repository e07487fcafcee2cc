"""Figures of a search. All show selection scores, which choose and are no results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from braintum.reporting.canvas import Figure, colour_of, draw, panels
from braintum.reporting.results import Results, Trial


def search_history(results: Results) -> Figure | None:
    """Selection scores: by trial, and by epoch, where pruned trials end early."""
    study = results.study
    if study is None or not any(t.score is not None for t in study.trials):
        return None
    colours = colour_of(results)
    marks = {"complete": "o", "pruned": "x", "failed": "v", "open": "."}
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in study.history.to_pylist():
        curves.setdefault(row["run"], []).append((row["epoch"], row["score"]))

    def paint(canvas: Canvas) -> None:
        left, right = panels(canvas, 2)
        for architecture in dict.fromkeys(t.architecture for t in study.trials):
            scored = [t for t in study.trials if t.architecture == architecture and t.score is not None]
            for state, mark in marks.items():
                of_state = [t for t in scored if t.state == state]
                dots = [(t.number, t.score) for t in of_state if t.score is not None]
                left.plot([x for x, _ in dots], [y for _, y in dots], mark, color=colours[architecture],
                          ms=5.5 if mark == "o" else 4.5, alpha=0.9 if mark == "o" else 0.6, ls="")  # fmt: skip
            best = _running_best(scored)
            left.plot([n for n, _ in best], [score for _, score in best], color=colours[architecture], lw=1.2,
                      drawstyle="steps-post", alpha=0.7)  # fmt: skip
            left.plot([], [], "s", color=colours[architecture], label=architecture)
        for trial in study.trials:
            points = sorted(curves.get(trial.name, []))
            complete = trial.state == "complete"
            right.plot([e for e, _ in points], [s for _, s in points], color=colours[trial.architecture],
                       lw=1.3 if complete else 0.9, alpha=0.9 if complete else 0.4)  # fmt: skip
            if points and not complete:
                right.plot(*points[-1], "x", color=colours[trial.architecture], ms=4, alpha=0.6)
        for axes, title, label in ((left, "By trial", "trial"), (right, "By epoch, folds one after another", "epoch")):
            axes.set(title=title, xlabel=label, ylabel="selection score")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        canvas.legend(loc="outside upper left", ncols=4, handletextpad=0.2)

    note = (
        "Left: dots are trials that finished all folds, crosses were stopped early, lines are the best so far. Right: "
        "a line is a trial; the score falls where the next fold begins."
    )
    return draw("search_history", "Scores of the trials", note, (8.6, 3.3), paint)


def parameter_effects(results: Results) -> Figure | None:
    """Selection score against each searched setting."""
    study = results.study
    if study is None:
        return None
    scored = [t for t in study.trials if t.score is not None]
    paths = [
        p for p in sorted({p for t in scored for p in t.params}) if len({str(t.params.get(p)) for t in scored}) > 1
    ]
    if not paths:
        return None
    columns, colours = min(4, len(paths)), colour_of(results)

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(math.ceil(len(paths) / columns), columns, sharey=True, squeeze=False)
        for axes, path in zip(grid.flat, paths, strict=False):
            _scatter(axes, path, [t for t in scored if path in t.params], colours)
        for row in grid:
            row[0].set_ylabel("selection score")
        for axes in grid.flat[len(paths) :]:
            axes.set_visible(False)
        for architecture in dict.fromkeys(t.architecture for t in scored):
            grid[0, 0].plot([], [], "s", color=colours[architecture], label=architecture)
        canvas.legend(loc="outside upper left", ncols=4, handletextpad=0.2)

    note = "A dot is a trial: filled if it finished all folds, hollow if stopped early, at the score it had."
    size = (2.3 * columns + 0.4, 2.1 * math.ceil(len(paths) / columns) + 0.3)
    return draw("parameters", "Settings tried", note, size, paint)


def _scatter(axes: Axes, path: str, trials: Sequence[Trial], colours: dict[str, str]) -> None:
    values = [t.params[path] for t in trials]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    names = sorted({str(v) for v in values})
    for trial, value in zip(trials, values, strict=True):
        colour = colours[trial.architecture]
        face = colour if trial.state == "complete" else "none"
        x = value if numeric else names.index(str(value))
        assert trial.score is not None  # only scored trials are shown
        axes.plot(x, trial.score, "o", ms=4.5, mec=colour, mfc=face, mew=1, alpha=0.85)
    if not numeric:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif min(values) > 0 and max(values) / min(values) > 20:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_title(path)
    axes.grid(axis="y")


def _running_best(trials: Sequence[Trial]) -> list[tuple[int, float]]:
    """(trial, best score so far), of trials that finished."""
    best: list[tuple[int, float]] = []
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.state == "complete" and trial.score is not None:
            best.append((trial.number, max(trial.score, best[-1][1] if best else trial.score)))
    return best
