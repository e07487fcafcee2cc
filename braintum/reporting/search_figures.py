"""Figures of a search. All show selection scores, which choose and are no results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from braintum.reporting.canvas import INK, MUTED, Figure, colour_of, draw, panels
from braintum.reporting.results import Results, Trial
from braintum.reporting.tables import LABELS

MOST_LABELS = 12
"""Points on a front that are labelled with their trials' numbers."""


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


def pareto_fronts(results: Results) -> Figure | None:
    """The trials that finished all folds by each pair of objectives, and those on the Pareto front."""
    study, fronts = results.study, results.summary.get("pareto")
    if study is None or not fronts:
        return None
    objectives = {name: [o for o in front[0] if o not in ("trial", "chosen")] for name, front in fronts.items()}
    pairs = {name: list(combinations(known, 2)) for name, known in objectives.items()}
    across = max(map(len, pairs.values()))
    colours = colour_of(results)

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(len(fronts), across, squeeze=False)
        for line, (name, front) in zip(grid, fronts.items(), strict=True):
            finished = [t for t in study.trials if t.architecture == name and t.metrics]
            chosen = next(point["trial"] for point in front if point["chosen"])
            winner = next(t for t in finished if t.number == chosen)
            for axes, pair in zip(line, pairs[name], strict=False):
                _front(axes, pair, finished, front, winner, colours[name])
                axes.set_title(name)
            for axes in line[len(pairs[name]) :]:
                axes.set_visible(False)
        handles = [
            Line2D([], [], ls="", marker="o", mfc="none", mec=MUTED, label="finished all folds"),
            Line2D([], [], ls="-", marker="o", color=MUTED, label="on the Pareto front"),
            Line2D([], [], ls="", marker="*", ms=10, color=INK, label="chosen"),
        ]
        canvas.legend(handles=handles, loc="outside upper left", ncols=3, handletextpad=0.4)

    note = (
        "Selection metrics, means over folds, choose, and are no results; costs are of one slice at a time. Numbers "
        f"are trials. Chosen: {results.summary['chosen_by']}."
    )
    size = (max(3.4 * across, 5.4), 2.7 * len(fronts) + 0.4)
    return draw("pareto", "Pareto front", note, size, paint)


def _front(
    axes: Axes, pair: tuple[str, str], finished: Sequence[Trial], front: Sequence[Mapping[str, float]], winner: Trial,
    colour: str,
) -> None:  # fmt: skip
    x, y = pair
    dots = [(t.metrics[x], t.metrics[y]) for t in finished if x in t.metrics and y in t.metrics]
    axes.plot(*zip(*dots, strict=True), "o", ms=4.5, mfc="none", mec=colour, alpha=0.6)
    on_it = sorted((point[x], point[y], point["trial"]) for point in front)
    axes.plot([a for a, _, _ in on_it], [b for _, b, _ in on_it], "o-" if len(front[0]) == 4 else "o", ms=5.5, lw=1,
              color=colour)  # fmt: skip
    if len(on_it) <= MOST_LABELS:
        for i, (a, b, trial) in enumerate(on_it):
            axes.annotate(f"{trial:g}", (a, b), xytext=(5, 4 if i % 2 else -9), textcoords="offset points", size=7.5,
                          color=INK)  # fmt: skip
    axes.plot(winner.metrics[x], winner.metrics[y], "*", ms=10, color=INK)
    axes.set(xlabel=_objective(x), ylabel=_objective(y))
    axes.grid()
    axes.margins(0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _objective(name: str) -> str:
    costs = {"latency": "seconds a slice", "parameters": "parameters", "energy": "joules a slice"}
    return costs.get(name, f"{LABELS.get(name, name)} (selection)")


def _running_best(trials: Sequence[Trial]) -> list[tuple[int, float]]:
    """(trial, best score so far), of trials that finished."""
    best: list[tuple[int, float]] = []
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.state == "complete" and trial.score is not None:
            best.append((trial.number, max(trial.score, best[-1][1] if best else trial.score)))
    return best
