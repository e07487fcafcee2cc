"""A study: a search space tried on a dataset, then the winner of each architecture cross-validated.

    OUT/study.json  optuna.db  trials/<architecture>-<n>/history.json  best/<architecture>.yaml
        crossval/<architecture>/  trials.parquet  history.parquet  predictions.parquet  summary.json

`optuna.db` is all that a resumed study reads of the search.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import traceback
import warnings
from typing import Any

import optuna
import pyarrow as pa
import ray
from optuna.study import Study
from ray import tune

from braintum import storage
from braintum.connect import connect
from braintum.data.audit import refuse_leaks
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.training.crossval import crossval
from braintum.training.fit import Diverged
from braintum.training.progress import Progress
from braintum.training.run import prepare_out, refuse_at_once, say_start, versions
from braintum.training.worker import MAX_FAILURES, TrainingFailed
from braintum.tuning.importance import importances
from braintum.tuning.outcome import Winner, winners
from braintum.tuning.records import HISTORY_COLUMNS, TRIAL_COLUMNS, counts, pareto, trials_and_history
from braintum.tuning.searcher import OptunaSearcher, StudySchedulers, seed_of
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.storage import FILE, OptunaFile
from braintum.tuning.trial import OneWorkerTrial, TrialSpec, many_worker_trial
from braintum.tuning.trial_events import TrialEvents
from braintum.tuning.views import refuse_unusable, view, views_of
from braintum.tuning.watch import Watch


class StudyFailed(RuntimeError):
    """A search without a winner that could be cross-validated, with a reason."""


def search(
    space: SearchSpace,
    data_url: str,
    out: str,
    *,
    resume: bool = False,
    allow_leak: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Runs or resumes a study and returns its summary. Times in it are those of the last start. A
    finished one is read; where a winner's cross-validation failed, that is tried again.

    Data with copies on two sides of a split is refused unless `allow_leak`; the summary counts them as `leaks`, None
    where its views show too little to tell.

    Raises ConfigError or DataError before any worker starts, StudyFailed where no trial finished. KeyboardInterrupt
    leaves all state saved.
    """
    started = time.monotonic()
    data_url, out = storage.resolve(data_url), storage.resolve(out)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    refuse_at_once(data_url, out, resume=resume)
    views = views_of(space)
    connect(progress.say)
    slots = Slots.of(space.resources, space.experiment(next(iter(space.architectures)), {}).training.device)
    if not slots.filled:
        progress.say("no node has room for a trial yet: they wait until the cluster grows")
    tables = {name: share_table(data_url, data) for name, data in views.items()}
    table, folds = refuse_unusable(space, tables)
    widest = max(views.values(), key=lambda data: (data.region == "whole", data.image_size))
    leaks = refuse_leaks(ray.get(tables[view(widest)]), widest, allow=allow_leak)
    if not storage.exists(out):
        for name in space.architectures:
            experiment = space.experiment(name, {})
            say_start(experiment, ray.get(tables[view(experiment.data)]), progress)
    about = {
        "space": space.settings(),
        "digest": space.digest,
        "data": {"url": data_url, "digest": table.digest},
    }
    prepare_out(out, about, resume=resume, record="study.json")
    if leaks is None:
        progress.say(f"not audited: {widest.region} slices of {widest.image_size} pixels; see `braintum audit`")
    summary_url = storage.join(out, "summary.json")
    with OptunaFile(storage.join(out, FILE)) as file, TrialEvents() as events:
        studies = _open_studies(space, file)
        left = sum(space.shares().values()) - _ended(studies)
        if left <= 0 and storage.exists(summary_url):
            known: dict[str, Any] = storage.read_json(summary_url)
            if not known.get("failed", {}).keys() & winners(space, studies).keys():
                return known
        storage.remove(summary_url)  # it is of fewer trials; if this start is stopped, the next one must not return it
        progress.expect(left)
        watch = Watch(progress, folds, file, events, studies)
        searched = time.monotonic()
        if left > 0:
            _tune(space, studies, left, data_url, out, tables, folds, slots, watch)
        seconds = time.monotonic() - searched
        trials, history = trials_and_history(studies, out)
        best, importance = winners(space, studies), importances(studies)
    failed = {name: "no trial finished all folds" for name in space.architectures if name not in best}
    storage.write_rows(storage.join(out, "trials.parquet"), trials, TRIAL_COLUMNS)
    storage.write_rows(storage.join(out, "history.parquet"), history, HISTORY_COLUMNS)
    if not best:
        reason = next((trial["failure"] for trial in trials if trial["failure"]), "")
        ended = ", ".join(f"{count} {state}" for state, count in counts(trials).items())
        raise StudyFailed(f"{out}: no trial finished all folds ({ended}); {reason or 'give more --trials'}")
    summary = {
        "name": space.name,
        "trials": counts(trials),
        "best": _crossvalidate(space, best, data_url, out, tables, slots, failed, progress),
        "failed": failed,
        "leaks": leaks,
        **({"pareto": pareto(space.objectives, trials)} if space.objectives else {}),
        "importance": importance,
        "busy_share": watch.busy / (seconds * max(1, slots.filled)) if watch.busy else None,
        "resources": space.resources.model_dump(mode="json"),
        "search_seconds": seconds,
        "start_seconds": list(watch.starts.values()),
        "seconds": time.monotonic() - started,
        "data": about["data"],
        "versions": versions("optuna"),
    }
    storage.write_json(summary_url, summary)
    return summary


def _crossvalidate(
    space: SearchSpace,
    best: dict[str, Winner],
    data_url: str,
    out: str,
    tables: dict[str, ray.ObjectRef[SliceTable]],
    slots: Slots,
    failed: dict[str, str],
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Cross-validates each architecture's winner; what the study's summary says of it, by architecture.

    One that diverges with its fresh seed, or whose workers are lost, goes to `failed`, with the reason. Raises
    StudyFailed where that is all of them.
    """
    found, predictions = {}, []
    for name, (experiment, trial, score) in best.items():
        storage.write_bytes(storage.join(out, "best", f"{name}.yaml"), experiment.to_yaml().encode())
        place = storage.join(out, "crossval", name)
        before = storage.join(place, "experiment.json")
        same = storage.exists(before) and storage.read_json(before)["experiment"] == experiment.to_dict()
        if not same:
            storage.remove(place)  # more trials found another winner, or it was stopped before anything was written
        progress.say(
            f"cross-validating {name}" if trial is None else f"cross-validating the best {name} (trial {trial})"
        )
        try:
            result = crossval(
                experiment, data_url, place, folds=space.folds, workers=slots.workers, at_once=slots.count,
                table_ref=tables[view(experiment.data)], resume=same, progress=progress,
            )  # fmt: skip
        except (Diverged, TrainingFailed, ray.exceptions.RayTaskError) as error:  # the last: out of memory, say
            cause = getattr(error, "cause", error)  # what Ray wraps when a task raises it
            which = "its settings" if trial is None else f"trial {trial}"
            diverged = " diverged with another seed" if isinstance(error, Diverged) else ""
            failed[name] = f"{which}{diverged}: {cause}"
            continue
        predictions.append(storage.read_table(storage.join(place, "predictions.parquet")))
        found[name] = {
            "trial": trial,
            "score": score,
            "experiment": experiment.to_dict(),
            "crossval": result["over_folds"],
            "hd_unit": result["hd_unit"],
        }
    if not found:
        raise StudyFailed(f"{out}: no winner could be cross-validated; {'; '.join(failed.values())}")
    storage.write_table(
        storage.join(out, "predictions.parquet"), pa.concat_tables(predictions, promote_options="default")
    )
    return found


def _open_studies(space: SearchSpace, file: OptunaFile) -> dict[str, Study]:
    """The Optuna studies by name; a new one's first trials are the base's own settings."""
    studies = {}
    known = optuna.get_all_study_names(file.storage)
    for name in space.shares():
        studies[name] = study = optuna.create_study(
            storage=file.storage, study_name=name, direction="maximize", load_if_exists=True
        )
        if name not in known:
            for architecture in space.architectures if space.joint else [name]:
                study.enqueue_trial(space.defaults(architecture))
    return studies


def _ended(studies: dict[str, Study]) -> int:
    return sum(trial.state.is_finished() for study in studies.values() for trial in study.get_trials(deepcopy=False))


def _tune(
    space: SearchSpace,
    studies: dict[str, Study],
    left: int,
    data_url: str,
    out: str,
    tables: dict[str, ray.ObjectRef[SliceTable]],
    folds: int,
    slots: Slots,
    watch: Watch,
) -> None:
    """Runs the trials that are left."""

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
            space.folds,
            space.score,
        )

    most_epochs = {name: folds * _most_epochs(space, name) for name in studies}
    if slots.workers == 1:
        trainable = tune.with_resources(
            tune.with_parameters(OneWorkerTrial, tables=tables, threads=slots.threads), slots.per_worker
        )
    else:
        trainable = tune.with_resources(
            tune.with_parameters(many_worker_trial, tables=tables, workers=slots.workers, resources=slots.per_worker),
            tune.PlacementGroupFactory([{"CPU": 0, "memory": 1}]),  # a bundle of nothing is refused
        )
    with tempfile.TemporaryDirectory(prefix="braintum-tune-") as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearcher(space, studies, place),
                scheduler=StudySchedulers(space, studies, most_epochs),
                metric="score",
                mode="max",
                num_samples=left,
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
            # holds the traceback, as a notebook does.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            raise


def _most_epochs(space: SearchSpace, study: str) -> int:
    """The longest training that a study may ask for, epochs a fold."""
    searched = space.parameters.get("training.epochs")
    names = space.architectures if space.joint else (study,)
    fixed = max(space.experiment(name, {}).training.epochs for name in names)
    return max(fixed, *(int(end) for end in searched.ends)) if searched else fixed  # type: ignore[arg-type]
