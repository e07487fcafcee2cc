"""The figure of a search's places for trials: which trained what, when they started, and when they were idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from braintum.reporting.canvas import INK, MUTED, Figure, colour_of, draw
from braintum.reporting.results import Results, Trial

STARTING, BETWEEN = "#f0c36d", "#d5dbe2"
FINENESS = 1500
"""Pauses of less than this part of the whole are not drawn."""
BREAK_SHARE, BREAK_SECONDS = 0.05, 60.0
"""Nothing ran: a pause of more than both is shortened, as where a study was stopped and resumed."""


@dataclass(frozen=True)
class Stay:
    """A trial in a place, from when it was put there to its last epoch, and its epochs; seconds."""

    trial: Trial
    placed: float
    end: float
    epochs: tuple[tuple[float, float], ...]
    last: bool
    """Of the trial's: it ended here."""


@dataclass
class _Place:
    stays: list[Stay] = field(default_factory=list)

    @property
    def free(self) -> float:
        return self.stays[-1].end


def timeline(results: Results) -> Figure | None:
    """What every place for a trial did; None where the study did not keep when its trials were placed."""
    study = results.study
    if study is None or not any(trial.placed for trial in study.trials) or not len(study.history):
        return None
    stays = _stays(study.trials, study.history.to_pylist())
    places, breaks = _places(stays), _breaks(stays)
    first = stays[0].placed
    whole = max(stay.end for stay in stays) - first - sum(end - begin for begin, end in breaks)
    unit, seconds = ("s", 1.0) if whole < 300 else ("min", 60.0) if whole < 10_800 else ("h", 3600.0)
    colours = colour_of(results)
    busy = sum(end - began for stay in stays for began, end in stay.epochs)

    def at(time: float) -> float:
        return (time - first - sum(min(time, end) - begin for begin, end in breaks if time > begin)) / seconds

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for y, place in enumerate(places):
            for stay in place.stays:
                _paint_stay(axes, y, stay, at, colours[stay.trial.architecture], whole / seconds)
        for begin, end in breaks:
            axes.axvline(at(begin), color=MUTED, lw=0.9, ls="--")
            axes.annotate(f"stopped {_duration(end - begin)}", (at(begin), 1), xycoords=axes.get_xaxis_transform(),
                          xytext=(3, 2), textcoords="offset points", size=7, color=MUTED)  # fmt: skip
        axes.set_yticks(range(len(places)), [str(y + 1) for y in range(len(places))])
        axes.set_ylim(len(places) - 0.4, -0.6)
        axes.set_xlim(0, max(whole / seconds, 1e-3))
        axes.set(xlabel=unit, ylabel="place")
        axes.tick_params(axis="y", length=0)
        names = dict.fromkeys(stay.trial.architecture for stay in stays)
        handles = [*(Patch(color=colours[name], label=name) for name in names),
                   Patch(color=STARTING, label="starting"), Patch(color=BETWEEN, label="between epochs")]  # fmt: skip
        canvas.legend(handles=handles, loc="outside upper left", ncols=5, handlelength=1, handletextpad=0.4)

    note = (
        f"A row is a place for a trial, a bar a trial with its number; × failed. White: idle. Training took "
        f"{100 * busy / (whole * len(places)) if whole else 0:.0f} % of the time of all places that were ever filled."
    )
    return draw("timeline", "Places for trials", note, (8.6, min(1.2 + 0.3 * len(places), 12.0)), paint)


def _stays(trials: Sequence[Trial], rows: list[dict[str, Any]]) -> list[Stay]:
    """In the order of time."""
    epochs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        epochs.setdefault(row["run"], []).append((row["began"], row["ended"]))
    stays = []
    for trial in trials:
        ends = [*trial.placed[1:], float("inf")]
        for placed, until in zip(trial.placed, ends, strict=True):
            inside = tuple(sorted(epoch for epoch in epochs.get(trial.name, []) if placed <= epoch[0] < until))
            end = max((ended for _, ended in inside), default=placed)
            stays.append(Stay(trial, placed, end, inside, until == ends[-1]))
    return sorted(stays, key=lambda stay: stay.placed)


def _places(stays: Sequence[Stay]) -> list[_Place]:
    """Who was put where: into the place that had become free last, which is where a reused worker goes on."""
    places: list[_Place] = []
    for stay in stays:
        free = [place for place in places if place.free <= stay.placed + 0.05]
        if not free:
            places.append(_Place())
        max(free or places[-1:], key=lambda place: place.free if place.stays else 0.0).stays.append(stay)
    return places


def _breaks(stays: Sequence[Stay]) -> list[tuple[float, float]]:
    """The long times in which nothing was placed anywhere."""
    gaps, reached = [], stays[0].end
    for stay in stays[1:]:
        if stay.placed > reached:
            gaps.append((reached, stay.placed))
        reached = max(reached, stay.end)
    active = reached - stays[0].placed - sum(end - begin for begin, end in gaps)
    return [(begin, end) for begin, end in gaps if end - begin > max(BREAK_SECONDS, BREAK_SHARE * active)]


def _paint_stay(axes: Axes, y: int, stay: Stay, at: Callable[[float], float], colour: str, whole: float) -> None:
    height, begin, end = 0.72, at(stay.placed), at(stay.end)
    low = y - height / 2
    axes.broken_barh([(begin, end - begin)], (low, height), color=BETWEEN, lw=0)
    if stay.epochs:
        axes.broken_barh([(begin, at(stay.epochs[0][0]) - begin)], (low, height), color=STARTING, lw=0)
    bars: list[list[float]] = []
    for began, ended in stay.epochs:
        if bars and at(began) - bars[-1][1] < whole / FINENESS:
            bars[-1][1] = at(ended)
        else:
            bars.append([at(began), at(ended)])
    axes.broken_barh([(left, right - left) for left, right in bars], (low, height), color=colour, lw=0)
    axes.plot([begin, begin], [low, low + height], color="white", lw=0.8)
    if stay.last and stay.trial.state == "failed":
        axes.plot([end], [y], "x", color=INK, ms=5, mew=1.2, clip_on=False)
    if end - begin > whole * (0.008 + 0.006 * len(str(stay.trial.number))):
        axes.text((begin + end) / 2, y, str(stay.trial.number), ha="center", va="center", size=6.5, color="white")


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
