"""A trial's next epoch, begun in a thread while Tune hears of the last one.

Tune takes 20 to 60 ms for a result, in which a trial's actor would wait. What a trial that is stopped has trained in
that time is lost. Nothing of an epoch is saved before it is asked for, so that what is kept does not depend on time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any


class Ahead:
    """Trains the epochs of a trial, each from when the last one was handed out.

    `epochs` makes them. They call `go_on` before a step, and `wait` before anything of an epoch is saved. An actor that
    is dropped in the middle does not wait for the thread.
    """

    def __init__(self, epochs: Callable[[Ahead], Iterator[dict[str, Any]]]) -> None:
        self._changed, self._asked, self._made, self._left = threading.Condition(), 0, 0, False
        self._results: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._train, args=(epochs,), daemon=True)
        self._thread.start()

    def next(self) -> dict[str, Any]:
        """The next result, {} after the last one. Raises what the training raised, after which there is no other."""
        with self._changed:
            self._asked += 1
            self._changed.notify()
        result = self._results.get()
        if not isinstance(result, Exception):
            return result
        try:
            raise result
        finally:
            del result  # its traceback holds this frame: as a circle they would keep the network

    def leave(self) -> None:
        """Ends the training at its next step. The network is let go of by then."""
        with self._changed:
            self._left = True
            self._changed.notify()
        self._thread.join()

    def go_on(self) -> None:
        """Raises _Left once nobody wants the rest."""
        if self._left:
            raise _Left

    def wait(self) -> None:
        """Returns once the epoch has been asked for; raises as `go_on`."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._asked > self._made)
        self.go_on()

    def _train(self, epochs: Callable[[Ahead], Iterator[dict[str, Any]]]) -> None:
        try:
            for result in epochs(self):
                self._made += 1
                self._results.put(result)
        except _Left:
            return
        except Exception as error:  # noqa: BLE001 - `next` raises it
            self._results.put(error)
            return
        self._results.put({})


class _Left(Exception):
    """Ends the training of an epoch that nobody wants."""
