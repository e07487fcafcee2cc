"""What a person sees while things train: a live table in a terminal, a line per event elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

LIVING = ("waiting", "training")
ROW_SECONDS, SUMMARY_SECONDS = 10.0, 60.0
"""Without a terminal: the least time between two lines of one row's epochs, and between two of them all."""
WIDE = 100
"""Columns from which on a table shows all that is known."""


@dataclass
class Row:
    """One run or trial: what it is, how far it is, how good and how fast it is."""

    name: str
    what: str
    state: str = "waiting"
    epoch: int = 0
    epoch_costs: Sequence[float] = ()
    fold: str = ""
    score: float | None = None
    slices_per_second: float | None = None
    started: float = field(default_factory=time.monotonic)
    began_at: int | None = None
    """Finished epochs when this training began or went on; known with its first epoch."""
    reached: float = 0.0
    """When its last epoch ended, or it began to train."""
    took: float | None = None
    """Seconds from its start here to its end, where it was trained here."""

    @property
    def trained(self) -> float:
        """The costs of the epochs that were trained here."""
        return 0.0 if self.began_at is None else sum(self.epoch_costs[self.began_at : self.epoch])

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the epochs that were trained here."""
        if self.state != "training" or self.began_at is None:
            return None
        pace = (self.reached - self.started) / self.trained
        return max(0.0, pace * sum(self.epoch_costs[self.epoch :]) - (time.monotonic() - self.reached))


class Progress:
    """Shows rows of runs or trials; `with Progress("search"): …`. Quiet prints nothing.

    In a terminal the table is redrawn in place; without one, each start and end is one line on stderr, and epochs and
    the whole are lines now and then. `score`: what the rows' scores are called.
    """

    def __init__(self, title: str, *, score: str = "score", quiet: bool = False) -> None:
        self.title, self.quiet, self._score = title, quiet, score
        self._expected = 0
        self.rows: dict[str, Row] = {}
        self._earlier: Counter[str] = Counter()
        self._best: dict[str, tuple[float, str]] = {}
        self._note = ""
        self._ends_by = math.inf
        self._console = Console(stderr=True, markup=False, emoji=False)  # brackets in a name are the name
        self._live: Live | None = None
        self._printed: dict[str, float] = {}
        self._started = self._summed_up = self.last_epoch = time.monotonic()
        self.longest_epoch = 0.0
        """Seconds of the longest epoch of any row, with what lay between it and the one before."""

    def __enter__(self) -> Self:
        if not self.quiet and self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def expect(self, rows: int) -> None:
        """So many more rows will come, for the heading's count."""
        self._expected += rows

    def earlier(self, ended: Mapping[str, int]) -> None:
        """So many, by state, had ended before this start."""
        self._earlier.update(ended)

    def best(self, what: str, score: float, name: str) -> None:
        """A finished row's score; the best of each `what` is shown."""
        if what not in self._best or score > self._best[what][0]:
            self._best[what] = score, name

    def note(self, text: str) -> None:
        """A line that is shown until another one takes its place, such as what was spent of a budget."""
        self._note = text

    def at_most(self, seconds: float) -> None:
        """In so many seconds a budget ends the whole, however many rows are still to come."""
        self._ends_by = time.monotonic() + seconds

    def update(
        self,
        name: str,
        *,
        what: str | None = None,
        state: str | None = None,
        epoch: int | None = None,
        epoch_costs: Sequence[float] | None = None,
        fold: str | None = None,
        score: float | None = None,
        slices_per_second: float | None = None,
    ) -> None:
        """Sets those fields of a row that are given; a new name starts a row.

        `epoch_costs`: see `Training.epoch_costs`; must be there before the first epoch.
        """
        row = self.rows.setdefault(name, Row(name, what or name))
        changed = state is not None and state != row.state
        if changed and state == "training":
            row.started = row.reached = time.monotonic()
            row.began_at = None
        if changed and state not in LIVING and row.state == "training":
            row.took = time.monotonic() - row.started
        if epoch and epoch != row.epoch:
            self.last_epoch = time.monotonic()
            self.longest_epoch = max(self.longest_epoch, self.last_epoch - max(row.reached, row.started))
            row.reached = self.last_epoch
            row.began_at = epoch - 1 if row.began_at is None else row.began_at
        given = {
            "what": what, "state": state, "epoch": epoch, "epoch_costs": epoch_costs, "fold": fold,
            "score": score, "slices_per_second": slices_per_second,
        }  # fmt: skip
        for key, value in given.items():
            if value is not None:
                setattr(row, key, value)
        if self._live is None and not self.quiet:
            self._print_line(row, changed)

    def say(self, text: str) -> None:
        """A line above the table, or just a line."""
        if not self.quiet:
            self._console.print(text, highlight=False, soft_wrap=True)

    @property
    def slices_per_second(self) -> float:
        """Of all rows that train."""
        rows = list(self.rows.values())  # other threads add some meanwhile
        return sum(row.slices_per_second or 0.0 for row in rows if row.state == "training")

    @property
    def seconds_left(self) -> float | None:
        """Until all expected rows have ended, or `at_most` has passed; None while neither is known.

        As if those to come took as long on average as those that ended, and as many trained at a time as do now.
        """
        rows_end, budget_ends = self._rows_end(), max(0.0, self._ends_by - time.monotonic())
        return min(rows_end, budget_ends) if min(rows_end, budget_ends) < math.inf else None

    def _rows_end(self) -> float:
        """Seconds until all expected rows have ended; inf while none has ended here."""
        rows = list(self.rows.values())  # other threads add some meanwhile
        ended = [(row.took, row.trained) for row in rows if row.took is not None]
        training = [row for row in rows if row.state == "training"]
        if not ended or not training:
            return math.inf
        seconds, costs = sum(took for took, _ in ended), sum(trained for _, trained in ended)
        mean, now = seconds / len(ended), time.monotonic()
        left: list[float] = []
        for row in training:
            usual = mean - (now - row.started)  # less than to its last epoch: some are stopped early
            known = [row.seconds_left] if row.seconds_left is not None else []
            left.append(min([*known, *([usual] if usual > 0 else [])], default=0.0))
        total = sum(left) + max(0, self._expected - len(rows)) * mean
        if costs:  # those that wait by name train to their end
            total += sum(seconds / costs * sum(row.epoch_costs) for row in rows if row.state == "waiting")
        return max(total / len(training), *left)

    def _summary(self) -> list[str]:
        """How many are in which state, the time, the best so far, and the note."""
        rows = list(self.rows.values())
        states = Counter(row.state for row in rows) + self._earlier
        of = max(self._expected, len(rows)) + self._earlier.total()
        done = sum(count for state, count in states.items() if state not in LIVING)
        left, elapsed = self.seconds_left, _duration(time.monotonic() - self._started)
        times = elapsed if left is None else f"{elapsed}, about {_duration(left)} left"
        counts = (f"{states[state]} {state}" for state in _COLOURS if states[state])
        lines = [" · ".join([self.title, f"{done}/{of} done", times, *counts])]
        if self._best:
            bests = (f"{what} {score:.3f} ({name})" for what, (score, name) in list(self._best.items()))
            lines.append(f"best {self._score}: {', '.join(bests)}")
        return [*lines, *([self._note] if self._note else [])]

    def _print_line(self, row: Row, changed: bool) -> None:
        now = time.monotonic()
        living = sum(each.state == "training" for each in list(self.rows.values()))
        if not changed and now - self._printed.get(row.name, 0.0) < ROW_SECONDS * max(1, living // 4):
            return
        self._printed[row.name] = now
        score = "" if row.score is None else f"  {self._score} {row.score:.3f}"
        speed = "" if row.slices_per_second is None else f"  {row.slices_per_second:.0f} slices/s"
        fold = f"  fold {row.fold}" if row.fold else ""
        at = f"  epoch {row.epoch}/{len(row.epoch_costs)}" if row.epoch_costs else ""
        print(f"{self.title}  {row.name}  {row.what}  {row.state}{fold}{at}{score}{speed}", file=sys.stderr, flush=True)
        if now - self._summed_up >= SUMMARY_SECONDS:
            self._summed_up = now
            print("\n".join(self._summary()), file=sys.stderr, flush=True)

    def _render(self) -> Group:
        rows = self._visible()
        wide = self._console.width >= WIDE
        table = Table(box=None, pad_edge=False)
        table.add_column("run", no_wrap=True)
        shows_what = wide and any(not row.name.startswith(row.what) for row in rows)
        if shows_what:
            table.add_column("architecture", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for heading in ("fold", "epoch", self._score, *(["slices/s"] if wide else []), "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            speed = "" if row.slices_per_second is None else f"{row.slices_per_second:.0f}"
            table.add_row(
                row.name,
                *([row.what] if shows_what else []),
                Text(row.state, _COLOURS.get(row.state, "default")),
                row.fold,
                f"{row.epoch}/{len(row.epoch_costs)}" if row.epoch_costs else "",
                "" if row.score is None else f"{row.score:.3f}",
                *([speed] if wide else []),
                "" if row.seconds_left is None else _duration(row.seconds_left),
            )
        first, *more = self._summary()
        return Group(Text(first, "bold"), *map(Text, more), table)

    def _visible(self) -> list[Row]:
        """All living rows and, as far as the window allows, the best of those that ended."""
        rows = list(self.rows.values())
        living = [row for row in rows if row.state in LIVING]
        ended = [row for row in rows if row.state not in LIVING]
        room = max(self._console.height - 8 - len(living), 3)
        best = sorted(ended, key=lambda row: -(row.score if row.score is not None else -1.0))[:room]
        return best + living


_COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "training": "cyan", "waiting": "dim"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
