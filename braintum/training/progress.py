"""What a person sees while things train: a live table in a terminal, a line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


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
    """When its last epoch ended."""

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the epochs that were trained here."""
        if self.state != "training" or self.began_at is None:
            return None
        pace = (self.reached - self.started) / sum(self.epoch_costs[self.began_at : self.epoch])
        return max(0.0, pace * sum(self.epoch_costs[self.epoch :]) - (time.monotonic() - self.reached))


class Progress:
    """Shows rows of runs or trials; `with Progress("search"): …`. Quiet prints nothing.

    In a terminal the table is redrawn in place; without one, each new epoch-mile, start and end is one line on stderr.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self._expected = 0
        self.rows: dict[str, Row] = {}
        self._console = Console(stderr=True, markup=False, emoji=False)  # brackets in a name are the name
        self._live: Live | None = None
        self._printed: dict[str, float] = {}
        self._started = time.monotonic()

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
            row.started, row.began_at = time.monotonic(), None
        if epoch and epoch != row.epoch:
            row.reached = time.monotonic()
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

    def _print_line(self, row: Row, changed: bool) -> None:
        last = self._printed.get(row.name, 0.0)
        if not changed and time.monotonic() - last < 10:
            return
        self._printed[row.name] = time.monotonic()
        score = "" if row.score is None else f"  score {row.score:.3f}"
        speed = "" if row.slices_per_second is None else f"  {row.slices_per_second:.0f} slices/s"
        fold = f"  fold {row.fold}" if row.fold else ""
        at = f"  epoch {row.epoch}/{len(row.epoch_costs)}" if row.epoch_costs else ""
        print(f"{self.title}  {row.name}  {row.what}  {row.state}{fold}{at}{score}{speed}", file=sys.stderr, flush=True)

    def _render(self) -> Table:
        elapsed = time.monotonic() - self._started
        done = sum(row.state not in ("waiting", "training") for row in list(self.rows.values()))
        of = max(self._expected, len(self.rows))
        table = Table(title=f"{self.title} · {done}/{of} done · {_duration(elapsed)}", title_justify="left", box=None)
        for heading in ("run", "architecture", "state"):
            table.add_column(heading)
        for heading in ("fold", "epoch", "score", "slices/s", "left"):
            table.add_column(heading, justify="right")
        for row in self._visible():
            table.add_row(
                row.name,
                row.what,
                Text(row.state, _COLOURS.get(row.state, "default")),
                row.fold,
                f"{row.epoch}/{len(row.epoch_costs)}" if row.epoch_costs else "",
                "" if row.score is None else f"{row.score:.3f}",
                "" if row.slices_per_second is None else f"{row.slices_per_second:.0f}",
                "" if row.seconds_left is None else _duration(row.seconds_left),
            )
        return table

    def _visible(self) -> list[Row]:
        """All living rows and, as far as the window allows, the best of those that ended."""
        rows = list(self.rows.values())  # other threads add some meanwhile
        living = [row for row in rows if row.state in ("waiting", "training")]
        ended = [row for row in rows if row.state not in ("waiting", "training")]
        room = max(self._console.height - 6 - len(living), 3)
        best = sorted(ended, key=lambda row: -(row.score if row.score is not None else -1.0))[:room]
        return best + living


_COLOURS = {"training": "cyan", "complete": "green", "pruned": "yellow", "failed": "red", "waiting": "dim"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
