"""What Prometheus sees of a study, besides what it sees of every command (`braintum.training.metrics`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from braintum.training.metrics import Metrics, Sample
from braintum.training.progress import Progress
from braintum.tuning.spending import Spending
from braintum.tuning.watch import Watch


class StudyMetrics(Metrics):
    """Those of the study that writes `out`; of a nested study, each inner one has its own."""

    GAUGES: ClassVar[dict[str, str]] = {
        **Metrics.GAUGES,
        "braintum_trials": "Trials by state: running, complete, pruned, failed; of earlier starts too.",
        "braintum_best_score": "Best selection score of a complete trial: what the search looks at, never a result.",
        "braintum_start_seconds": "From when trials were placed to their first step, in all, in this start.",
        "braintum_busy_seconds": "Epochs of trials took in all, in this start.",
        "braintum_trial_restarts": "Trials whose worker died and that were begun again, in this start.",
        "braintum_spent_hours": "Wall time of all starts.",
        "braintum_spent_gpu_hours": "GPUs that were held, in all starts.",
        "braintum_spent_cost": "Node-hours of all starts at the budget's price; absent where it has none.",
    }

    def __init__(self, out: str, progress: Progress, spending: Spending) -> None:
        super().__init__(out, progress)
        self._spending = spending
        self._watch: Watch | None = None
        self._price: float | None = None

    def begin_study(self, watch: Watch, price_per_node_hour: float | None) -> None:
        self._watch, self._price = watch, price_per_node_hour
        self.begin()

    def samples(self, *, running: bool) -> Iterator[Sample]:
        yield from super().samples(running=running)
        watch = self._watch
        assert watch is not None
        yield "braintum_trials", {"state": "running"}, float(len(watch.running)) if running else 0.0
        for state, count in list(watch.ended.items()):
            yield "braintum_trials", {"state": state}, float(count)
        for name, score in list(watch.best.items()):
            yield "braintum_best_score", {"architecture": name}, score
        yield "braintum_start_seconds", {}, sum(list(watch.starts.values()))
        yield "braintum_busy_seconds", {}, watch.busy
        yield "braintum_trial_restarts", {}, float(watch.restarts)
        for limit, amount in self._spending.now().amounts(self._price).items():
            if amount is not None:
                yield f"braintum_spent_{limit}", {}, amount
