"""What Prometheus sees of a command that trains, at the metrics endpoint of the node where the command runs.

Ray puts `ray_` before each name. Everything is a gauge, also what only grows: Ray's counters cannot begin at 0, which
hides their first increase, and stay for as long as the node does. Ray 2.60 forgets a gauge that was not set for 20
seconds, so all are set every few seconds, and once more when the command ends, in whatever way: nothing runs then.
After that they are gone. Those of a driver that was killed go too, but end with `braintum_running` 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Self

from ray.util.metrics import Gauge

from braintum.training.progress import Progress

SECONDS = 5.0
Sample = tuple[str, dict[str, str], float]
"""A gauge of `Metrics.GAUGES`, its labels besides `out`, and its value."""


class Metrics:
    """`with Metrics(out, progress) as metrics: metrics.begin()`: sets the gauges from then on. Slows no training.

    `out`, the directory that the command writes, is a label of all; `progress` is what they are read from.
    """

    GAUGES: ClassVar[dict[str, str]] = {
        "braintum_running": "1 while the command runs, 0 when it has ended by itself.",
        "braintum_slices_per_second": "Slices that are trained on a second, in all trainings that run.",
        "braintum_idle_seconds": "Since an epoch has ended, or the command began.",
        "braintum_longest_epoch_seconds": "The longest between two epochs of a training; 0 before the first.",
    }

    def __init__(self, out: str, progress: Progress) -> None:
        self._out, self._progress = out, progress
        self._gauges: dict[str, Gauge] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._set_while_it_runs, daemon=True)
        self._thread.start()

    def samples(self, *, running: bool) -> Iterator[Sample]:
        progress = self._progress
        yield "braintum_running", {}, float(running)
        yield "braintum_slices_per_second", {}, progress.slices_per_second if running else 0.0
        yield "braintum_idle_seconds", {}, time.monotonic() - progress.last_epoch if running else 0.0
        yield "braintum_longest_epoch_seconds", {}, progress.longest_epoch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._set(running=False)

    def _set_while_it_runs(self) -> None:
        while True:
            self._set(running=True)
            if self._stop.wait(SECONDS):
                return

    def _set(self, *, running: bool) -> None:
        for name, labels, value in self.samples(running=running):
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, self.GAUGES[name], ("out", *labels))
            self._gauges[name].set(value, {"out": self._out, **labels})
