"""TensorBoard's events of a study's trials, written by its driver: no training waits for them."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ray.tune.result import AUTO_RESULT_KEYS

from braintum import storage
from braintum.training.events import Events

FOLDER = "tensorboard"
_NO_METRICS = {*AUTO_RESULT_KEYS, "epoch", "began", "ended", "placed"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Said:
    """What was told of the trial in a directory: an epoch's metrics, or (None) that it has ended."""

    out: str
    settings: dict[str, Any]
    epoch: int = 0
    metrics: dict[str, float] | None = None


class TrialEvents:
    """`with TrialEvents() as events: events.write(out, settings, result)`; `events.end(out)` when a trial has ended.

    A trial that goes on tells its earlier epochs again, so that its events are written anew each time. On an object
    store a trial's file is put at most once an epoch, and less often where the store is slower than that. What cannot
    be written is said, and does not end a study.
    """

    def __init__(self) -> None:
        self._said: queue.Queue[_Said | None] = queue.Queue()
        self._open: dict[str, tuple[Events, int]] = {}
        self._thread = threading.Thread(target=self._write_all, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._said.put(None)
        self._thread.join()

    def write(self, out: str, settings: dict[str, Any], result: dict[str, Any]) -> None:
        """One result of the trial in the directory `out`; `settings`: the values that the search chose."""
        metrics = {
            name: float(value)
            for name, value in result.items()
            if name not in _NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._said.put(_Said(out, settings, result["epoch"], metrics))

    def end(self, out: str) -> None:
        self._said.put(_Said(out, {}))

    def _write_all(self) -> None:
        going = True
        while going:
            said = [self._said.get()]
            while not self._said.empty():
                said.append(self._said.get())
            going = None not in said
            told = [each for each in said if each is not None]
            for out in dict.fromkeys(each.out for each in told):
                try:
                    self._write(out, [each for each in told if each.out == out])
                except Exception as error:  # noqa: BLE001 - object stores raise their own kinds
                    _log.warning("%s: no TensorBoard events of some epochs: %s", out, error)
        for events, _ in self._open.values():
            events.close()

    def _write(self, out: str, told: list[_Said]) -> None:
        for said in told:
            if said.metrics is None:
                continue
            if out not in self._open:
                place = storage.join(out, FOLDER)
                storage.remove(place)
                self._open[out] = Events(place, first_epoch=1), 0
                self._open[out][0].add_settings(said.settings, "score")
            events, last = self._open[out]
            if said.epoch > last:  # else of a trial whose worker died: it tells them again
                events.add(said.epoch, said.metrics)
                self._open[out] = events, said.epoch
        if out in self._open:
            self._open[out][0].put()
            if any(said.metrics is None for said in told):
                self._open.pop(out)[0].close()
