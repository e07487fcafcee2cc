"""A nested study: how well a search does on slices that it never saw, and by how much its own scores flatter.

    OUT/study.json  outer-<fold>/ (a study each)  predictions.parquet  summary.json

Each outer fold is left out in turn. A study of its own searches the rest, whose folds its trials hold out; its winners
are trained again on all the rest, and scored on the outer fold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from braintum import storage
from braintum.data.folds import held_out_folds
from braintum.data.table import SliceTable
from braintum.evaluation.seeds import grid, spread
from braintum.evaluation.summary import summarise
from braintum.settings import ConfigError
from braintum.training.progress import Progress
from braintum.training.run import prepare_out, refuse_at_once, versions
from braintum.tuning.begin import location_at, record, refuse_another_study
from braintum.tuning.metrics import StudyMetrics
from braintum.tuning.records import RECORD
from braintum.tuning.samplers import seed_of
from braintum.tuning.shared import share
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending, Spent
from braintum.tuning.study import run_study, say_starts
from braintum.tuning.trial import Outer
from braintum.tuning.views import refuse_unusable
from braintum.tuning.winner import StudyFailed, predictions_of


def nested_search(
    space: SearchSpace,
    data_url: str,
    out: str,
    *,
    kept_at: str | None = None,
    resume: bool = False,
    allow_leak: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Runs or resumes a nested study and returns its summary: `nested` by architecture, or by a joint space's name.

    Each has `outer` {fold: {architecture, trial, experiment, selection, nested, metrics}}, `over_folds`, `seeds`,
    `hd_unit`, and `optimism` {selection, nested, difference}: the mean of the inner winners' own selection scores, of
    the same score on their outer folds, and the first minus the second. `trials` of the space are of every inner study,
    its `budget` of all of them: each gets an equal share of what is left.
    Raises as `search` does, and ConfigError where nothing is searched.
    """
    started = time.monotonic()
    if not space.parameters:
        raise ConfigError("--nested: has no effect without parameters: nothing is searched. Leave it out")
    data_url, out = storage.resolve(data_url), storage.resolve(out)
    card = refuse_at_once(data_url, out, resume=resume)
    location = location_at(kept_at, out)
    refuse_another_study(location, out, record(space, data_url, card.digest, location, nested=[]))
    shared = share(space, data_url, allow_leak=allow_leak, progress=progress)
    outers = outer_folds(space, shared.tables)
    checked = [refuse_unusable(space, shared.tables, outer) for outer in outers]
    say_starts(space, shared, out, progress)
    names = [fold for fold, _ in outers]
    about = record(space, data_url, card.digest, location, nested=names)
    prepare_out(out, about, resume=resume, record=RECORD)
    summary_url = storage.join(out, "summary.json")
    if storage.exists(summary_url):
        known: dict[str, Any] = storage.read_json(summary_url)
        if _is_finished(known, space, len(outers)):
            return known
        storage.remove(summary_url)  # it is of fewer trials or seeds; if this start is stopped, it must not stay
    progress.say(cost(space, len(outers), max(folds for _, folds in checked)))
    parts: dict[str, dict[str, Any]] = {}
    spent = Spent()
    price, began = space.budget.price_per_node_hour, started
    for outer in outers:
        inner = inner_space(space, outer)
        budget = space.budget.share(spent.amounts(price), len(outers) - len(parts))
        place = place_of_outer(out, outer[0])
        if not storage.exists(storage.join(place, "study.json")):
            storage.remove(place)  # stopped before anything was written
        progress.say(f"leaving out fold {outer[0]} of {', '.join(names)}")
        with Spending(place) as spending, StudyMetrics(place, progress, spending) as metrics:
            parts[outer[0]] = run_study(
                inner.model_copy(update={"budget": budget}), shared, place, location.of_study(place), spending, metrics,
                outer=outer, started=began, resume=True, progress=progress,
            )  # fmt: skip
        spent += spending.now()
        began = time.monotonic()
    found, failed, predictions = _gathered(space, out, parts)
    storage.write_table(
        storage.join(out, "predictions.parquet"), pa.concat_tables(predictions, promote_options="default")
    )
    states = next(iter(parts.values()))["trials"]
    summary = {
        "name": space.name,
        "trials": {state: sum(part["trials"][state] for part in parts.values()) for state in states},
        "nested": found,
        "failed": failed,
        "leaks": shared.leaks,
        "resources": space.resources.model_dump(mode="json"),
        "budget": {"trials": space.trials, **space.budget.given},
        "spent": spent.amounts(price),
        "stopped_by": next((part["stopped_by"] for part in parts.values() if part["stopped_by"] != "trials"), "trials"),
        "seconds": time.monotonic() - started,
        "data": about["data"],
        "versions": versions("optuna"),
    }
    storage.write_json(summary_url, summary)
    return summary


def _gathered(
    space: SearchSpace, out: str, parts: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, str], list[pa.Table]]:
    """What the summary says of each search, why some could not be scored, and the predictions of the others.

    `parts`: the summaries of the inner studies by outer fold. Raises StudyFailed where none could be scored.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    predictions: list[pa.Table] = []
    for name in space.shares():
        chosen = {fold: next(iter(part["best"])) if space.joint else name for fold, part in parts.items()}
        missing = [fold for fold in parts if chosen[fold] not in parts[fold]["best"]]
        if missing:
            failed[name] = f"outer fold {missing[0]}: {parts[missing[0]]['failed'][name]}"
            continue
        places = [storage.join(place_of_outer(out, fold), "crossval", chosen[fold]) for fold in parts]
        tables = [predictions_of(place, space.seeds) for place in places]
        predictions.append(pa.concat_tables(tables, promote_options="default"))
        winners = {fold: {"architecture": chosen[fold], **part["best"][chosen[fold]]} for fold, part in parts.items()}
        found[name] = _about(winners, predictions[-1])
    if not found:
        raise StudyFailed(f"{out}: no winner could be scored on every outer fold; {'; '.join(failed.values())}")
    return found, failed, predictions


def place_of_outer(out: str, fold: str) -> str:
    """The directory of the study that leaves a fold out."""
    return storage.join(out, f"outer-{fold}")


def inner_space(space: SearchSpace, outer: Outer) -> SearchSpace:
    """The space with seeds of its own: inner studies that draw the same are not independent of one another."""
    seed = seed_of(space.sampler.seed, "outer", outer[0])
    return space.model_copy(update={"sampler": space.sampler.model_copy(update={"seed": seed})})


def outer_folds(space: SearchSpace, tables: Mapping[str, ray.ObjectRef[SliceTable]]) -> list[Outer]:
    """The folds to leave out in turn. Raises ConfigError where architectures that see other slices have other folds."""
    fold_of: dict[str, str] = {}
    for reference in tables.values():
        table: SliceTable = ray.get(reference)
        for name, rows in held_out_folds(table, space.folds, seed=0).items():
            for row in rows:
                if fold_of.setdefault(table.slice_id_R[row], name) != name:
                    raise ConfigError(
                        "--nested: architectures with other data.classes have other folds, so that what one leaves out "
                        "another sees; give all the same, or a dataset with folds of its own"
                    )
    return [(name, space.folds) for name in held_out_folds(table, space.folds, seed=0)]


def cost(space: SearchSpace, outer: int, inner: int) -> str:
    """What a nested study trains, at most, in words."""
    winners = 1 if space.joint else len(space.architectures)
    searched, scored = outer * space.trials * inner, outer * winners * space.seeds
    seeds = f" with {space.seeds} seeds each" if space.seeds > 1 else ""
    return (
        f"nested: {outer} outer folds × {space.trials} trials of {inner} folds, up to {searched:,} trainings of a "
        f"fold; then {winners} winners a study{seeds}, {scored:,} more"
    )


def _is_finished(summary: Mapping[str, Any], space: SearchSpace, outer: int) -> bool:
    """Whether a nested study's summary is of all that the space asks for."""
    seeds = min(found["seeds"]["n"] for found in summary["nested"].values())
    ended = sum(summary["trials"].values())
    asked = {"trials": space.trials, **space.budget.given}
    spent = summary.get("stopped_by", "trials") != "trials" and summary["budget"] == asked
    return not summary["failed"] and seeds >= space.seeds and (spent or ended >= outer * space.trials)


def _about(winners: Mapping[str, Mapping[str, Any]], predictions: pa.Table) -> dict[str, Any]:
    """What the summary says of the winners of all inner studies, by outer fold."""
    summary = summarise(predictions)
    outer = {
        fold: {
            "architecture": winner["architecture"],
            "trial": winner["trial"],
            "experiment": winner["experiment"],
            "selection": winner["optimism"]["selection"],
            "nested": winner["optimism"]["crossval"],
            "metrics": summary["folds"][fold],
        }
        for fold, winner in winners.items()
    }
    selection, nested = (float(np.mean([found[key] for found in outer.values()])) for key in ("selection", "nested"))
    return {
        "outer": outer,
        "over_folds": summary["over_folds"],
        "seeds": spread(grid(predictions)),
        "optimism": {"selection": selection, "nested": nested, "difference": selection - nested},
        "hd_unit": summary["hd_unit"],
    }
