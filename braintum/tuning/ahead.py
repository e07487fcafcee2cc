"""A trial's next epoch, begun in a thread while Tune hears of the last one.

Tune takes 20 to 60 ms for a result, in which a trial's actor would wait. What a trial that is stopped has trained in
that time is lost. Nothing of an epoch is saved before it is asked for, so that what is kept does not depend on time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Ahead:
    """Trains the epochs of a trial, each from when the last one was handed out.

    `epochs` makes them. They call `go_on` before a step, and `wait` before anything of an epoch is saved.
    """

    def __init__(self, epochs: Callable[[Ahead], Iterator[dict[str, Any]]]) -> None:
        self._asked, self._left = threading.Event(), False
        self._epochs = epochs(self)
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(self._train)

    def next(self) -> dict[str, Any]:
        """The next result. Raises what the training raised."""
        self._asked.set()
        result = self._next.result()
        self._asked.clear()
        self._next = self._thread.submit(self._train)
        return result

    def leave(self) -> None:
        """Ends the training at its next step, and lets go of the network."""
        self._left = True
        self._asked.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._epochs = iter(())

    def go_on(self) -> None:
        """Raises _Left once nobody wants the rest."""
        if self._left:
            raise _Left

    def wait(self) -> None:
        """Returns once the epoch has been asked for; raises as `go_on`."""
        self._asked.wait()
        self.go_on()

    def _train(self) -> dict[str, Any]:
        return next(self._epochs, {})


class _Left(Exception):
    """Ends the training of an epoch that nobody wants."""
