"""Pixels of a table that is too large to be kept: fetched a part (a shard's rows) at a time, and let go. Numpy only.

Shapes: R rows of the table, B rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Steps = Sequence[NDArray[np.int64]]
"""The rows of every step, in the order in which they will be asked for."""
Fetch = Callable[[int], NDArray[Any]]
"""The rows of a part."""


@dataclass(frozen=True, eq=False)
class Streamed:
    """Stands where an array [R, ...] of a table would: it knows its shape, and fetches its rows when asked.

    `part_ends`: for each part, the row of the table behind its last.
    """

    fetch: Fetch
    part_ends: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> NDArray[Any]:
        """One row. Fetches its part: for a few rows, in any order."""
        part = int(np.searchsorted(self.part_ends, row, side="right"))
        found: NDArray[Any] = self.fetch(part)[row - self.start(part)]
        return found

    def start(self, part: int) -> int:
        """The table's row that a part begins with."""
        return int(self.part_ends[part - 1]) if part else 0


def rows_of_steps(arrays: Sequence[Streamed], steps: Steps, ahead: int) -> Iterator[list[NDArray[Any]]]:
    """For every step its rows of each array [B, ...], fresh copies. All arrays have the same parts.

    A part is fetched, in a thread, `ahead` steps before the first that needs it, and let go after the last.
    """
    part_S = [np.searchsorted(arrays[0].part_ends, rows, side="right") for rows in steps]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, parts in enumerate(part_S):
        for part in np.unique(parts).tolist():
            first.setdefault(part, step)
            last[part] = step
    waiting = list(first)  # in the order of first use
    held: dict[int, Future[list[NDArray[Any]]]] = {}
    pool = ThreadPoolExecutor(2, thread_name_prefix="fetch")
    try:
        for step, rows in enumerate(steps):
            while waiting and first[waiting[0]] <= step + ahead:
                part = waiting.pop(0)
                held[part] = pool.submit(lambda part: [array.fetch(part) for array in arrays], part)
            found = [np.empty((len(rows), *array.shape[1:]), array.dtype) for array in arrays]
            for i, (row, part) in enumerate(zip(rows.tolist(), part_S[step].tolist(), strict=True)):
                for into, source in zip(found, held[part].result(), strict=True):
                    into[i] = source[row - arrays[0].start(part)]
            for part in [part for part in held if last[part] == step]:
                del held[part]
            yield found
    finally:
        pool.shutdown(cancel_futures=True)
