"""What a prediction of a trained network costs: `latency`, `parameters`, `energy`.

Of one slice at a time, at the size that it was trained at, with the flips of `augment.test_time`: on the GPU of the
training, or on one thread of a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from braintum.data.batches import ordered_batches
from braintum.evaluation.predict import evaluating, forward
from braintum.training.energy import EnergyCounter
from braintum.training.fit import Fit

WARM_UP, REPEATS, SECONDS = 3, 15, 1.0
"""Predictions before the clock starts; then as many are timed as fit into the seconds, REPEATS at least."""
ENERGY_SECONDS = 2.0
"""A GPU's counter moves some ten times a second."""


def costs(names: Collection[str], fit: Fit) -> dict[str, float]:
    """The costs of those names: seconds a slice (median), the number of parameters, joules a slice.

    Beside `latency` stands `latency_iqr`, the range of the middle half of its repeats: what else runs on the machine
    makes the noise. `energy` is all that the GPU takes while it predicts, idle power included. Raises EnergyUnknown.
    """
    found: dict[str, float] = {}
    if "parameters" in names:
        found["parameters"] = sum(parameter.numel() for parameter in fit.model.parameters())
    if not {"latency", "energy"} & set(names):
        return found
    batch = next(ordered_batches(fit.table, np.zeros(1, np.int64), 1, fit.device))

    def predict() -> None:
        forward(fit.model, batch.image_BCHW, fit.autocast_dtype, fit.experiment.augment.mirrors)
        if fit.device.type == "cuda":
            torch.cuda.synchronize(fit.device)

    with evaluating(fit.model), _one_thread():
        for _ in range(WARM_UP):
            predict()
        if "latency" in names:
            low, median, high = np.percentile(_seconds(predict, REPEATS, SECONDS), [25, 50, 75])
            found |= {"latency": float(median), "latency_iqr": float(high - low)}
        if "energy" in names:
            counter = EnergyCounter(fit.device)
            before = counter.joules()
            count = len(_seconds(predict, REPEATS, ENERGY_SECONDS))
            found["energy"] = (counter.joules() - before) / count
    return found


def _seconds(step: Callable[[], None], repeats: int, seconds: float) -> list[float]:
    """How long each of at least `repeats` steps took, of as many as fit into `seconds`."""
    taken: list[float] = []
    while len(taken) < repeats or sum(taken) < seconds:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
