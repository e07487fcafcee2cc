"""How far an ingest is: a bar in a terminal, elsewhere a line now and then. All on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 10.0
"""Between two lines where there is no terminal."""


class Bar:
    """`with Bar("cheng", 2400) as bar: bar.advance(100)`."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        columns = (TextColumn("ingest {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True, markup=False, emoji=False)
        self._shown = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._shown.add_task(name, total=total)
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.stop()

    def advance(self, items: int, rejected: int) -> None:
        """So many more items are done; so many in all could not be read."""
        self._done += items
        why = f"{self._name}, {rejected} rejected" if rejected else self._name
        self._shown.update(self._task, advance=items, description=why)
        if self._shown.disable and time.monotonic() - self._printed >= SECONDS:
            self._printed = time.monotonic()
            print(f"ingest {why}  {self._done}/{self._total}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line of its own."""
    print(text, file=sys.stderr, flush=True)
