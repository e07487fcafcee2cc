"""What a study has spent over all its starts, in OUT/spent.json. Imports neither torch nor Ray: reports read it too.

It is written again every few seconds, so that a study that was killed has lost the count of no more. Nothing else
remembers how long winners were trained, or how many nodes a cluster that grows had.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from braintum import storage
from braintum.training.progress import Progress
from braintum.tuning.parts import LIMITS, Budget

FILE = "spent.json"
WRITE_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """`seconds` of wall time, `gpu_seconds` of GPUs that were held, `node_seconds` of nodes that were alive."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    node_seconds: float = 0.0

    def __add__(self, more: Spent) -> Spent:
        return Spent(
            self.seconds + more.seconds, self.gpu_seconds + more.gpu_seconds, self.node_seconds + more.node_seconds
        )

    def amounts(self, price: float | None) -> dict[str, float | None]:
        """By the name of the limit that bounds it; the cost is None without a price of a node-hour."""
        cost = None if price is None else price * self.node_seconds / 3600
        return {"hours": self.seconds / 3600, "gpu_hours": self.gpu_seconds / 3600, "cost": cost}


class Spending:
    """`with Spending(out) as spending:`: counts from `begin` on, for as long as the body runs.

    What trains says so (`hold`, `release`). `nodes` is how many were alive when last asked.
    """

    def __init__(self, out: str) -> None:
        self._url = storage.join(out, FILE)
        self._total = Spent(**storage.read_json(self._url)) if storage.exists(self._url) else Spent()
        self._held: dict[str, float] = {}
        self._until: float | None = None
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self.nodes = 1

    def begin(self, started: float, budget: Budget, nodes: Callable[[], int], progress: Progress) -> None:
        """Counts from `started` (as `time.monotonic` has it) on, and shows what is left of the budget."""
        self._until = started
        self.nodes = nodes()
        self._thread = threading.Thread(target=self._write_while_it_runs, args=(budget, nodes, progress), daemon=True)
        self._thread.start()

    def now(self) -> Spent:
        """All that was spent until now; before `begin`, what earlier starts have spent."""
        with self._lock:
            if self._until is not None:
                until, nodes = time.monotonic(), max(1, self.nodes)
                passed = until - self._until
                self._total += Spent(passed, passed * sum(self._held.values()), passed * nodes)
                self._until = until
            return self._total

    def hold(self, what: str, gpus: float) -> None:
        """From now on `what` holds so many GPUs."""
        self.now()
        with self._lock:
            self._held[what] = gpus

    def release(self, what: str) -> None:
        self.now()
        with self._lock:
            self._held.pop(what, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(WRITE_SECONDS)  # no longer: a cluster whose head has died does not say what nodes there are
        self.now()
        self._until = None
        self._write()

    def _write_while_it_runs(self, budget: Budget, nodes: Callable[[], int], progress: Progress) -> None:
        while True:
            self.now()
            self._write()
            self._show(budget, progress)
            if self._stop.wait(WRITE_SECONDS):
                return
            try:
                self.nodes = nodes()
            except Exception as error:  # noqa: BLE001 - the study goes on; Ray raises its own kinds
                _log.warning("the number of nodes is not known: %s", error)

    def _show(self, budget: Budget, progress: Progress) -> None:
        """What was spent, and the time until the first limit is reached if all goes on as it is now."""
        amounts = self.now().amounts(budget.price_per_node_hour)
        said = words(amounts, budget.given)
        if said:
            progress.note(f"spent: {said}")
        with self._lock:
            held = sum(self._held.values())
        rates = Spent(1.0, held, max(1, self.nodes)).amounts(budget.price_per_node_hour)
        left = [(most - (amounts[name] or 0.0)) / rate for name, most in budget.limits.items() if (rate := rates[name])]
        if left:
            progress.at_most(max(0.0, min(left)))

    def _write(self) -> None:
        with self._lock:
            total = asdict(self._total)
        try:
            storage.write_json(self._url, total)
        except Exception as error:  # noqa: BLE001 - object stores raise their own kinds; the next round tries again
            _log.warning("%s: not written: %s", self._url, error)


_UNITS = {"hours": "hours", "gpu_hours": "GPU hours", "cost": "in cost"}


def words(spent: Mapping[str, Any], budget: Mapping[str, Any]) -> str:
    """What was spent of each limit, such as `1.97 of 2 hours`; the cost also where there is a price and no limit."""
    shown = [name for name in LIMITS if name in budget or (name == "cost" and spent[name] is not None)]
    of = (f"{spent[name]:.3g} of {budget[name]:g}" if name in budget else f"{spent[name]:.3g}" for name in shown)
    return ", ".join(f"{amount} {_UNITS[name]}" for name, amount in zip(shown, of, strict=True))
