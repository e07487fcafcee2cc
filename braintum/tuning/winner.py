"""What happens to the winners of a search: each is trained again, with one fresh seed or several, and scored.

OUT/best/<architecture>.yaml  predictions.parquet (of all, with a column `seed`)
    crossval/<architecture>/ (a cross-validation: the first seed's)  crossval/<architecture>/seed-<2, 3, ...>/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import ray

from braintum import storage
from braintum.config import Experiment
from braintum.evaluation.seeds import grid, joined, place_of, spread
from braintum.evaluation.summary import summarise
from braintum.training.crossval import crossvals
from braintum.training.fit import Diverged, score
from braintum.training.progress import Progress
from braintum.training.worker import TrainingFailed
from braintum.tuning.outcome import Winner, seed_of_winner
from braintum.tuning.shared import Shared
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import Outer
from braintum.tuning.views import view


class StudyFailed(RuntimeError):
    """A search without a winner that could be cross-validated, with a reason."""


def is_finished(summary: Mapping[str, Any], space: SearchSpace, best: Mapping[str, Winner]) -> bool:
    """Whether a study's summary has all winners that can be had, trained with as many seeds as the space asks for."""
    seeds = [found["seeds"]["n"] for found in summary["best"].values()]
    return not summary["failed"].keys() & best.keys() and min(seeds) >= space.seeds


def crossvalidate(
    space: SearchSpace,
    best: Mapping[str, Winner],
    shared: Shared,
    out: str,
    outer: Outer | None,
    failed: dict[str, str],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Cross-validates each architecture's winner; what the study's summary says of it, by architecture.

    `outer`: only that fold is held out, which the search has not seen. Trainings that are finished are read. A winner
    that diverges with a fresh seed, or whose workers are lost, goes to `failed`, with the reason. Raises StudyFailed
    where that is all of them.
    """
    found, predictions = {}, []
    for name, winner in best.items():
        storage.write_bytes(storage.join(out, "best", f"{name}.yaml"), winner.experiment.to_yaml().encode())
        place = storage.join(out, "crossval", name)
        which = name if winner.trial is None else f"the best {name} (trial {winner.trial})"
        progress.say(f"cross-validating {which}" if outer is None else f"scoring {which} on outer fold {outer[0]}")
        try:
            _train(space, winner.experiment, shared, place, outer, progress)
        except (Diverged, TrainingFailed, ray.exceptions.RayTaskError) as error:  # the last: out of memory, say
            cause = getattr(error, "cause", error)  # what Ray wraps when a task raises it
            which = "its settings" if winner.trial is None else f"trial {winner.trial}"
            diverged = " diverged with another seed" if isinstance(error, Diverged) else ""
            failed[name] = f"{which}{diverged}: {cause}"
            continue
        predictions.append(predictions_of(place, space.seeds))
        found[name] = about(winner, predictions[-1], space.score)
    if not found:
        raise StudyFailed(f"{out}: no winner could be cross-validated; {'; '.join(failed.values())}")
    storage.write_table(
        storage.join(out, "predictions.parquet"), pa.concat_tables(predictions, promote_options="default")
    )
    return found


def predictions_of(place: str, seeds: int) -> pa.Table:
    """What a winner predicts with its first so many seeds."""
    places = [place_of(place, number) for number in range(1, seeds + 1)]
    return joined([storage.read_table(storage.join(place, "predictions.parquet")) for place in places])


def about(winner: Winner, predictions: pa.Table, weights: dict[str, float]) -> dict[str, Any]:
    """What a study's summary says of a winner; all scores but `score` and `optimism.selection` are results."""
    summary = summarise(predictions)
    means = {name: value["mean"] for name, value in summary["over_folds"].items()}
    optimism = None
    if winner.score is not None:
        result = score(means, weights)
        optimism = {"selection": winner.score, "crossval": result, "difference": winner.score - result}
    return {
        "trial": winner.trial,
        "score": winner.score,
        "experiment": winner.experiment.to_dict(),
        "crossval": summary["over_folds"],
        "seeds": spread(grid(predictions)),
        "optimism": optimism,
        "hd_unit": summary["hd_unit"],
    }


def _train(
    space: SearchSpace, experiment: Experiment, shared: Shared, place: str, outer: Outer | None, progress: Progress
) -> None:
    """Trains what is not finished of all seeds and folds."""
    seeds = {
        place_of(place, number): experiment.with_overrides({"training.seed": seed_of_winner(space, number)})
        for number in range(1, space.seeds + 1)
    }
    for place, seeded in seeds.items():  # the first one's holds the others'
        before = storage.join(place, "experiment.json")
        if not storage.exists(before) or storage.read_json(before)["experiment"] != seeded.to_dict():
            storage.remove(place)  # more trials found another winner, or it was stopped before anything was written
    crossvals(
        seeds, shared.data_url, folds=space.folds, only=outer and outer[:1], workers=shared.slots.workers,
        at_once=shared.slots.count, table_ref=shared.tables[view(experiment.data)], resume=True, progress=progress,
    )  # fmt: skip
