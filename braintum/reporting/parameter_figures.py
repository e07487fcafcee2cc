"""Figures of what a search varied: importance, slices, parallel coordinates. Their scores are selection scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from braintum.reporting.canvas import COLOURS, INK, MUTED, Figure, draw, wrapped
from braintum.reporting.results import Results, Trial

FINISHED, STOPPED, FAILED = COLOURS[0], "#d08a2e", "#a3203a"
"""Of trials by state; the marks differ too."""
_LEGEND: dict[str, dict[str, Any]] = {
    "finished all folds": {"marker": "o", "color": FINISHED},
    "stopped early": {"marker": "o", "mfc": "none", "mec": STOPPED},
    "failed": {"marker": "x", "color": FAILED},
}
FORMS = ("log_uniform", "uniform", "int", "choice")
CROWDED = 100
"""Trials from which on marks are smaller."""
FEW = 30
"""Lines of which each is to be seen by itself."""


@dataclass(frozen=True)
class Scale:
    """Where the values of a parameter stand: numbers on a line, linear or logarithmic; others in a row of names."""

    names: tuple[str, ...]
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[Any], form: str = "uniform") -> Self:
        """`form`: of the parameter in its search space. Numbers of a choice may lie far apart as well."""
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            low, high = min(values), max(values)
            return cls((), low, high, form == "log_uniform" or (form == "choice" and 0 < 20 * low < high))
        names = tuple(sorted({str(value) for value in values}))
        return cls(names, 0.0, len(names) - 1.0, False)

    def at(self, value: Any) -> float:
        return self.names.index(str(value)) if self.names else float(value)

    def share(self, value: float) -> float:
        """From 0 at the lowest to 1 at the highest."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def labels(self) -> dict[float, str]:
        """Ticks by their share: the names, or the ends and the middle."""
        if self.names:
            return {self.share(i): name for i, name in enumerate(self.names)}
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return {self.share(value): f"{value:.2g}" for value in (self.low, middle, self.high)}


def importance(results: Results) -> Figure | None:
    """How much each parameter mattered, for each study."""
    found: dict[str, dict[str, Any]] = results.summary.get("importance", {})
    if not found:
        return None
    across = min(3, len(found))
    most = max(len(of["parameters"]) for of in found.values())

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(math.ceil(len(found) / across), across, squeeze=False)
        for axes, (study, of) in zip(grid.flat, found.items(), strict=False):
            bars = sorted(of["parameters"].items(), key=lambda named: named[1]["importance"])
            for y, (_, bar) in enumerate(bars):
                axes.barh(y, 100 * bar["importance"], height=0.62, color=FINISHED, alpha=0.8)
                axes.plot([100 * bar["low"], 100 * bar["high"]], [y, y], color=INK, lw=1.2)
            axes.set_yticks(range(len(bars)), [wrapped(path, 22) for path, _ in bars])
            axes.tick_params(axis="y", length=0, labelsize=7.5)
            axes.set_ylim(-0.6, most - 0.4)
            axes.set(title=study, xlim=(0, 100), xlabel=f"% of importance, {of['trials']} trials")
            axes.grid(axis="x")
        for axes in grid.flat[len(found) :]:
            axes.set_visible(False)

    note = (
        "PED-ANOVA: how much a parameter's values among the best trials (a quarter, and five at least) differ from "
        "those among all; those stopped early count below those that got further. Lines: the middle 80 % over trials "
        "drawn again with replacement: where they are long, there were too few trials to tell."
    )
    size = (2.9 * across + 0.4, (0.36 * most + 0.85) * math.ceil(len(found) / across))
    return draw("importance", "Importance of parameters", note, size, paint)


def slices(results: Results) -> list[Figure]:
    """Selection score against each searched parameter: a figure per study."""
    found = ((name, trials, _varied(results, trials)) for name, trials in _by_study(results).items())
    return [figure for name, trials, scales in found if (figure := _slices(name, trials, scales))]


def parallel_coordinates(results: Results) -> list[Figure]:
    """A line per trial through the values of its parameters to its selection score: a figure per study."""
    found = ((name, trials, _varied(results, trials)) for name, trials in _by_study(results).items())
    return [figure for name, trials, scales in found if (figure := _parallel(name, trials, scales))]


def _by_study(results: Results) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in results.study.trials if results.study else []:
        if trial.state != "open" or trial.score is not None:
            found.setdefault(trial.study, []).append(trial)
    return found


def _varied(results: Results, trials: Sequence[Trial]) -> dict[str, Scale]:
    """The parameters of which two values or more were tried."""
    assert results.study is not None
    parameters = results.study.about["space"]["parameters"]
    forms = {path: next(form for form in FORMS if parameter.get(form)) for path, parameter in parameters.items()}
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for path, value in trial.params.items():
            values.setdefault(path, []).append(value)
    return {
        path: Scale.of(values[path], forms.get(path, "choice"))  # the architecture of a joint study is no parameter
        for path in sorted(values)
        if len(set(map(str, values[path]))) > 1
    }


def _slices(name: str, trials: Sequence[Trial], scales: Mapping[str, Scale]) -> Figure | None:
    if not scales or all(trial.score is None for trial in trials):
        return None
    columns = min(4, len(scales))

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(math.ceil(len(scales) / columns), columns, sharey=True, squeeze=False)
        for axes, (path, scale) in zip(grid.flat, scales.items(), strict=False):
            _slice(axes, path, scale, [trial for trial in trials if path in trial.params])
        for row in grid:
            row[0].set_ylabel("selection score")
        for axes in grid.flat[len(scales) :]:
            axes.set_visible(False)
        handles = [Line2D([], [], ls="", label=label, **style) for label, style in _LEGEND.items()]
        canvas.legend(handles=handles, loc="outside upper left", ncols=3, handletextpad=0.1)

    note = "A dot is a trial, at the score that it reached; those that failed stand at the bottom."
    size = (max(2.3 * columns + 0.4, 4.4), 2.3 * math.ceil(len(scales) / columns) + 0.35)
    return draw(f"slices_{name}", f"{name}: settings tried", note, size, paint)


def _slice(axes: Axes, path: str, scale: Scale, trials: Sequence[Trial]) -> None:
    small = 0.6 if len(trials) > CROWDED else 1.0

    def x_of(trial: Trial) -> float:
        aside = 0.3 * (0.618 * trial.number % 1 - 0.5) if scale.names else 0.0  # so that dots of a name lie apart
        return scale.at(trial.params[path]) + aside

    for state, fill, edge in (
        ("pruned", "none", STOPPED), ("open", "none", MUTED), ("complete", FINISHED, FINISHED),
    ):  # fmt: skip
        dots = [(x_of(t), t.score) for t in trials if t.state == state and t.score is not None]
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", ms=4.8 * small, alpha=0.75, mfc=fill,
                  mec=edge)  # fmt: skip
    failed = [x_of(t) for t in trials if t.state == "failed"]
    if failed:  # a line of no points that is not clipped leaves the figure's layout without room
        bottom = axes.get_xaxis_transform()
        axes.plot(failed, [0.03] * len(failed), "x", ms=5 * small, color=FAILED, transform=bottom, clip_on=False)
    if scale.names:
        long = sum(map(len, scale.names)) > 20
        slant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axes.set_xticks(range(len(scale.names)), scale.names, **slant)
        axes.set_xlim(-0.5, len(scale.names) - 0.5)
    elif scale.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_title(wrapped(path, 20), size=8.5)
    axes.margins(y=0.12)
    axes.grid(axis="y")


def _parallel(name: str, trials: Sequence[Trial], scales: Mapping[str, Scale]) -> Figure | None:
    scores = [trial.score for trial in trials if trial.score is not None]
    if len(scales) < 2 or len(set(scores)) < 2:
        return None
    score = Scale.of(scores)
    every = {**scales, "selection score": score}
    tint = matplotlib.colormaps["cividis_r"]
    missing = -0.13

    def points(trial: Trial) -> list[tuple[float, float]]:
        ys = [scale.share(scale.at(trial.params[path])) if path in trial.params else missing
              for path, scale in scales.items()]  # fmt: skip
        return list(enumerate([*ys, missing if trial.score is None else score.share(trial.score)]))

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        ranked = sorted(trials, key=lambda t: (t.state == "complete", -1.0 if t.score is None else t.score))
        for states, width, alpha, style in ((("failed",), 0.8, 0.7, ":"), (("pruned", "open"), 0.7, 0.45, "-"),
                                            (("complete",), 1.2, 0.9, "-")):  # fmt: skip
            of_state = [trial for trial in ranked if trial.state in states]
            colours = [FAILED if t.score is None or t.state == "failed" else tint(0.15 + 0.85 * score.share(t.score))
                       for t in of_state]  # fmt: skip
            alpha *= min(1.0, math.sqrt(FEW / max(1, len(of_state))))
            axes.add_collection(LineCollection([points(t) for t in of_state], colors=colours, linewidths=width,
                                               alpha=alpha, linestyles=style))  # fmt: skip
        if ranked[-1].state == "complete":
            axes.add_collection(LineCollection([points(ranked[-1])], colors=[INK], linewidths=2.0))
        conditional = any(path not in trial.params for trial in trials for path in scales)
        for x, scale in enumerate(every.values()):
            axes.plot([x, x], [0, 1], color=MUTED, lw=0.9)
            labels = scale.labels()
            if any(y < 0 for y in (points(trial)[x][1] for trial in trials)):
                axes.plot([x, x], [missing, missing], "_", color=MUTED, ms=8)
                labels[missing] = "not set" if scale is not score else "no score"
            for y, label in labels.items():
                axes.text(x + 0.04, y, label, size=7, color=INK, va="center",
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})  # fmt: skip
        axes.set_xticks(range(len(every)), [wrapped(path, 16) for path in every])
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", length=0, labelsize=8, labelcolor=INK)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.2, len(every) - 0.45)
        axes.set_ylim(missing - 0.06 if conditional or len(scores) < len(trials) else -0.06, 1.06)

    note = (
        "A line is a trial: the brighter, the lower its selection score; thin if it was stopped early, dotted if it "
        "failed, black for the best that finished all folds."
    )
    return draw(f"parallel_{name}", f"{name}: settings together", note, (max(1.35 * len(every), 4.6), 3.0), paint)
