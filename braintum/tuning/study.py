"""A study: a search space tried on a dataset, then the winner of each architecture cross-validated.

    OUT/study.json  optuna.db  trials/<architecture>-<n>/history.json  trials.parquet  history.parquet  summary.json
        and what `winner` writes: best/  crossval/  predictions.parquet

`optuna.db`, or the storage that was named instead, is all that a resumed study reads of the search.
"""

from __future__ import annotations

import errno
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ray
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import TrialState
from ray import tune
from ray.tune.error import TuneError
from sqlalchemy.exc import SQLAlchemyError

from braintum import storage
from braintum.data.folds import without
from braintum.training.progress import Progress
from braintum.training.run import prepare_out, refuse_at_once, say_start, versions
from braintum.training.worker import MAX_FAILURES
from braintum.tuning.begin import begin, location_at, open_studies, record
from braintum.tuning.budget import Allowance
from braintum.tuning.front import RULE, pareto
from braintum.tuning.importance import importances
from braintum.tuning.location import Location
from braintum.tuning.metrics import StudyMetrics
from braintum.tuning.outcome import only_the_best, race_summary, winners
from braintum.tuning.parts import COSTS
from braintum.tuning.racing import refuse_powerless
from braintum.tuning.records import HISTORY_COLUMNS, RECORD, TRIAL_COLUMNS, counts, own_trials, trials_and_history
from braintum.tuning.repeats import NOTHING_NEW, is_exhausted, repeats
from braintum.tuning.samplers import seed_of
from braintum.tuning.schedulers import StudySchedulers
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.shared import Shared, share
from braintum.tuning.slots import Places, alive_nodes
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending
from braintum.tuning.trial import OneWorkerTrial, Outer, TrialSpec, many_worker_trial
from braintum.tuning.trial_events import TrialEvents
from braintum.tuning.views import refuse_unusable, view
from braintum.tuning.warm_start import WarmStart
from braintum.tuning.watch import Watch
from braintum.tuning.winner import StudyFailed, crossvalidate, is_finished


def search(
    space: SearchSpace,
    data_url: str,
    out: str,
    *,
    kept_at: str | None = None,
    warm_start_from: str | None = None,
    resume: bool = False,
    allow_leak: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Runs or resumes a study and returns its summary. Times in it are those of the last start. A
    finished one is read; where a winner's cross-validation failed, that is tried again.

    `kept_at`: the storage of its trials (`Location.of`); None: a file in `out`, or as it was begun. `warm_start_from`:
    an older study whose trials teach the sampler (`braintum.tuning.warm_start`).

    Data with copies on two sides of a split is refused unless `allow_leak`; the summary counts them as `leaks`.

    Raises ConfigError or DataError before any worker starts, StudyFailed where no trial finished. KeyboardInterrupt
    leaves all state saved.
    """
    started = time.monotonic()
    data_url, out = storage.resolve(data_url), storage.resolve(out)
    card = refuse_at_once(data_url, out, resume=resume)
    location = location_at(kept_at, out)
    about, warm = begin(space, data_url, card.digest, out, location, warm_start_from)
    shared = share(space, data_url, allow_leak=allow_leak, progress=progress)
    say_starts(space, shared, out, progress)
    if warm is not None:
        progress.say(warm.said)
    with Spending(out) as spending, StudyMetrics(out, progress, spending) as metrics:
        return run_study(
            space, shared, out, location, spending, metrics, warm_start=about["warm_start"], warm=warm,
            started=started, resume=resume, progress=progress,
        )  # fmt: skip


def run_study(
    space: SearchSpace,
    shared: Shared,
    out: str,
    location: Location,
    spending: Spending,
    metrics: StudyMetrics,
    *,
    outer: Outer | None = None,
    warm_start: str | None = None,
    warm: WarmStart | None = None,
    started: float,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """`search` on a dataset that is shared already. `outer`: trials do not see that fold, and winners hold out only it.

    `warm_start`: what study.json says of it; `warm`: what a study that has not begun takes from there.
    `started`: what the summary's `seconds`, and `spending`, count from, as `time.monotonic` has it.
    """
    table, folds = refuse_unusable(space, shared.tables, outer)
    part = outer and {"fold": outer[0], "folds": outer[1]}
    about = record(space, shared.data_url, table.digest, location, outer=part, warm_start=warm_start)
    if space.racing:
        seen = table if outer is None else without(table, *outer, seed=0)
        refuse_powerless(space.racing.level, seen, space.folds if outer is None else folds)
    prepare_out(out, about, resume=resume, record=RECORD)
    summary_url = storage.join(out, "summary.json")
    with location.open() as store, TrialEvents() as events:
        studies = open_studies(space, location, store, about, warm)
        left = sum(space.shares().values()) - _ended(studies)
        places = Places.of(shared.slots)
        allowance = Allowance(
            space, studies, spending, lambda: Places.of(shared.slots), folds, nested=outer is not None
        )
        asked = {"trials": space.trials, **space.budget.given}
        if not _may_go_on(studies, allowance):  # the budget is spent
            left = 0
        if left <= 0 and storage.exists(summary_url):
            known: dict[str, Any] = storage.read_json(summary_url)
            by_trials = allowance.stopped_by == "trials"
            if (by_trials or known.get("budget") == asked) and is_finished(known, space, winners(space, studies, out)):
                return known
        storage.remove(summary_url)  # it is of fewer trials; if this start is stopped, the next one must not return it
        spending.begin(started, space.budget, alive_nodes, progress)
        progress.expect(left)
        watch = Watch(progress, folds, store, events, studies, spending, places.trial_gpus)
        metrics.begin_study(watch, space.budget.price_per_node_hour)
        searched = time.monotonic()
        if left > 0 and _may_go_on(studies, allowance):
            _tune(space, studies, out, folds, shared, outer, watch, allowance)
        seconds = time.monotonic() - searched
        known_again = {name: repeats(study) for name, study in studies.items()}
        for name in (name for name, study in studies.items() if is_exhausted(study.get_trials(deepcopy=False))):
            progress.say(f"{name}: nothing new in {NOTHING_NEW} proposals, so it ends with fewer trials")
        stopped_by = allowance.stopped_by
        trials, history = trials_and_history(studies, out)
        best, importance = winners(space, studies, out), importances(studies)
        raced = {"racing": race_summary(space, studies, folds, table)} if space.racing else {}
    failed = {name: "no trial finished all folds" for name in space.architectures if name not in best}
    if outer is not None and space.joint:  # what the search chose is one of all
        best, failed = only_the_best(best), {}
    storage.write_rows(storage.join(out, "trials.parquet"), trials, TRIAL_COLUMNS)
    storage.write_rows(storage.join(out, "history.parquet"), history, HISTORY_COLUMNS)
    if not best:
        reason = next((trial["failure"] for trial in trials if trial["failure"]), "")
        ended = ", ".join(f"{count} {state}" for state, count in counts(trials).items())
        raise StudyFailed(f"{out}: no trial finished all folds ({ended}); {reason or allowance.way_out(stopped_by)}")
    spending.hold("winners", places.winner_gpus * min(places.winners, allowance.winners))
    summary = {
        "name": space.name,
        "trials": counts(trials),
        "best": crossvalidate(space, best, shared, out, outer, failed, progress),
        "failed": failed,
        "repeats": known_again,
        "leaks": shared.leaks,
        **({"pareto": pareto(space.objectives, trials), "chosen_by": RULE} if space.objectives else {}),
        **raced,
        "importance": importance,
        "busy_share": watch.busy / (seconds * max(1, shared.slots.filled)) if watch.busy else None,
        "resources": space.resources.model_dump(mode="json"),
        "budget": asked,
        "spent": spending.now().amounts(space.budget.price_per_node_hour),
        "stopped_by": stopped_by,
        "search_seconds": seconds,
        "start_seconds": list(watch.starts.values()),
        "seconds": time.monotonic() - started,
        "data": about["data"],
        "versions": versions("optuna"),
    }
    storage.write_json(summary_url, summary)
    return summary


def say_starts(space: SearchSpace, shared: Shared, out: str, progress: Progress) -> None:
    """`say_start` of every architecture, unless `out` is there already: then it was said."""
    if not storage.exists(out):
        for name in space.architectures:
            experiment = space.experiment(name, {})
            say_start(experiment, ray.get(shared.tables[view(experiment.data)]), progress)


def _may_go_on(studies: dict[str, Study], allowance: Allowance) -> bool:
    """Whether there is something to train: what earlier starts have begun is finished, whatever the budget."""
    begun = (study.get_trials(deepcopy=False, states=[TrialState.RUNNING]) for study in studies.values())
    return any(begun) or allowance.stopped_by is None


def _ended(studies: dict[str, Study]) -> int:
    return sum(trial.state.is_finished() for study in studies.values() for trial in own_trials(study))


def _tune(
    space: SearchSpace,
    studies: dict[str, Study],
    out: str,
    folds: int,
    shared: Shared,
    outer: Outer | None,
    watch: Watch,
    allowance: Allowance,
) -> None:
    """Runs the trials that are left."""
    slots, tables = shared.slots, shared.tables

    def place(architecture: str, number: int, name: str, values: dict[str, Any]) -> TrialSpec:
        # Each trial has a seed of its own: a search in which all share one rewards that seed's luck.
        seed = {"training.seed": seed_of(space.sampler.seed, name, number)}
        experiment = space.experiment(architecture, {**seed, **values})
        trial_out = storage.join(out, "trials", f"{name}-{number}")
        return TrialSpec(
            architecture,
            number,
            experiment.to_dict(),
            view(experiment.data),
            trial_out,
            space.folds if outer is None else folds,
            space.score,
            tuple(cost for cost in COSTS if cost in space.objectives),
            outer,
        )

    most_epochs = {name: folds * _most_epochs(space, name) for name in studies}
    if slots.workers == 1:
        trainable = tune.with_parameters(OneWorkerTrial, tables=tables, threads=slots.threads)
        trainable.__qualname__ = trainable.__name__  # what `ps` calls its processes
    else:
        trainable = tune.with_resources(
            tune.with_parameters(many_worker_trial, tables=tables, workers=slots.workers, resources=slots.per_worker),
            tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}]),  # a bundle of nothing is refused
        )
    with tempfile.TemporaryDirectory(prefix="braintum-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearcher(space, studies, place, allowance, slots),
                scheduler=StudySchedulers(space, studies, most_epochs, folds),
                metric="score",
                mode="max",
                num_samples=-1,  # until the searcher has none
                max_concurrent_trials=slots.count,
                reuse_actors=slots.workers == 1,
            ),
            run_config=tune.RunConfig(
                name=space.name,
                storage_path=scratch,
                callbacks=[watch],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES if slots.workers == 1 else 0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if slots.workers == 1 else None,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt as error:
            # Tune ends the trials' actors only after an Exception. They would keep their cores for as long as somebody
            # holds the traceback, as a notebook does; to clear its frames is not enough, as Tune's have closures.
            error.__traceback__ = None
            gc.collect()
            raise
        except (TuneError, SQLAlchemyError, StorageInternalError) as error:
            causes = list(_causes(error))
            # Tune wraps what its callbacks raise, and a database's driver what interrupts it.
            if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
                raise KeyboardInterrupt from None
            if any(storage.is_full(cause) or "disk is full" in str(cause) for cause in causes):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), out) from error
            raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it was raised in the handling of."""
    while error is not None:
        yield error
        error = error.__context__


def _most_epochs(space: SearchSpace, study: str) -> int:
    """The longest training that a study may ask for, epochs a fold."""
    searched = space.parameters.get("training.epochs")
    names = space.architectures if space.joint else (study,)
    fixed = max(space.experiment(name, {}).training.epochs for name in names)
    return max(fixed, *(int(end) for end in searched.ends)) if searched else fixed  # type: ignore[arg-type]
