"""A study: a search space tried on a dataset, then the winner of each architecture cross-validated.

    OUT/study.json  optuna.db  trials/<architecture>-<n>/history.json  best/<architecture>.yaml
        crossval/<architecture>/  trials.parquet  history.parquet  predictions.parquet  summary.json

`optuna.db` is all that a resumed study reads of the search.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from itertools import product
from typing import Any

import optuna
import pyarrow as pa
import ray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from braintum import storage
from braintum.config import Data, Experiment
from braintum.data.folds import held_out_folds, split
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.settings import ConfigError
from braintum.training.checkpoint import STATE
from braintum.training.crossval import crossval
from braintum.training.fit import usable_rows
from braintum.training.progress import Progress
from braintum.training.run import prepare_out, refuse_at_once, versions
from braintum.training.worker import MAX_FAILURES, connect
from braintum.tuning.searcher import SPEC, OptunaSearcher, StudySchedulers, seed_of
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.storage import OptunaFile
from braintum.tuning.trial import HISTORY, RAY_FILES, OneWorkerTrial, TrialSpec, many_worker_trial


class StudyFailed(RuntimeError):
    """A search in which no trial finished, with the reason of one."""


class Watch(tune.Callback):
    """Follows Tune: shows progress, adds up busy seconds, and removes the checkpoints of trials that ended."""

    def __init__(self, progress: Progress, folds: int) -> None:
        self._progress, self._folds = progress, folds
        self.busy = 0.0
        self.starts: dict[str, float] = {}
        """Seconds from a trial's placing to its first step here."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a Tuner pickles its callbacks to a file that nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        spec = TrialSpec(**trial.config["trial"])
        epochs = spec.experiment["training"]["epochs"] * self._folds
        self._progress.update(_row(spec), what=spec.architecture, state="training", epochs=epochs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "diverged" in result:
            return
        spec = TrialSpec(**trial.config["trial"])
        if result["began"] >= result["placed"]:  # else a resumed trial tells its last epoch again
            self.busy += result["ended"] - result["began"]
            self.starts.setdefault(_row(spec), result["began"] - result["placed"])
        self._progress.update(
            _row(spec),
            epoch=result["epoch"],
            fold=f"{result['fold']}",
            score=result["score"],
            slices_per_second=result["slices_per_second"],
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        ended = "failed" if "diverged" in result else "complete" if result.get("finished") else "pruned"
        self._end(trial, ended)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed")

    def _end(self, trial: Any, state: str) -> None:
        spec = TrialSpec(**trial.config["trial"])
        self._progress.update(_row(spec), state=state)
        storage.remove(storage.join(spec.out, STATE))
        storage.remove(storage.join(spec.out, RAY_FILES))


def search(space: SearchSpace, data_url: str, out: str, *, resume: bool = False, progress: Progress) -> dict[str, Any]:
    """Runs or resumes a study and returns its summary. Times in it are those of the last start.

    Raises ConfigError or DataError before any worker starts, StudyFailed where no trial finished. KeyboardInterrupt
    leaves all state saved.
    """
    started = time.monotonic()
    data_url, out = storage.resolve(data_url), storage.resolve(out)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    refuse_at_once(data_url, out, resume=resume)
    views = _views(space)
    connect()
    tables = {view: share_table(data_url, data) for view, data in views.items()}
    table, folds = _refuse_unusable(space, tables)
    slots = Slots.of(space.resources, space.experiment(space.architectures[0], {}).training.device)
    about = {
        "space": space.model_dump(mode="json", by_alias=True, exclude={"trials", "resources"}),
        "digest": space.digest,
        "data": {"url": data_url, "digest": table.digest},
    }
    prepare_out(out, about, resume=resume, record="study.json")
    with OptunaFile(storage.join(out, "optuna.db")) as file:
        studies = _open_studies(space, file)
        left = sum(space.shares().values()) - _ended(studies)
        if left <= 0 and storage.exists(storage.join(out, "summary.json")):
            known: dict[str, Any] = storage.read_json(storage.join(out, "summary.json"))
            return known
        progress.expect(left)
        watch = Watch(progress, folds)
        searched = time.monotonic()
        if left > 0:
            _tune(space, studies, left, data_url, out, tables, folds, slots, watch)
        seconds = time.monotonic() - searched
        trials, history = _trials_and_history(studies)
        best = _best(space, studies)
    storage.write_table(storage.join(out, "trials.parquet"), trials)
    storage.write_table(storage.join(out, "history.parquet"), history)
    if not best:
        reason = next((failure for failure in trials["failure"].to_pylist() if failure), "")
        ended = ", ".join(f"{count} {state}" for state, count in _counts(trials).items())
        raise StudyFailed(f"{out}: no trial finished all folds ({ended}); {reason or 'give more --trials'}")
    summary = {
        "name": space.name,
        "trials": _counts(trials),
        "best": _crossvalidate(space, best, data_url, out, progress),
        "busy_share": watch.busy / (seconds * slots.count) if watch.busy else None,
        "search_seconds": seconds,
        "start_seconds": list(watch.starts.values()),
        "seconds": time.monotonic() - started,
        "data": about["data"],
        "versions": versions("optuna"),
    }
    storage.write_json(storage.join(out, "summary.json"), summary)
    return summary


def _view(data: Data) -> str:
    """The name of a view of the dataset: the settings that decide what the table holds."""
    return json.dumps(data.model_dump(mode="json", exclude={"validation"}), sort_keys=True)


def _views(space: SearchSpace) -> dict[str, Data]:
    """Every view of the dataset that the space can ask for. Raises ConfigError for a range of views."""
    searched: dict[str, list[Any]] = {}
    for path, parameter in space.parameters.items():
        if path.startswith("data.") and path != "data.validation":
            if parameter.choice is None:
                raise ConfigError(f"parameters.{path}: a search over the data needs a choice, not a range")
            searched[path] = [*parameter.choice, *([_ABSENT] if parameter.when else [])]
    views: dict[str, Data] = {}
    for name in space.architectures:
        for values in product(*searched.values()):
            given = {path: v for path, v in zip(searched, values, strict=True) if v is not _ABSENT}
            data = space.experiment(name, given).data
            views.setdefault(_view(data), data)
    return views


_ABSENT = object()
"""The value of a parameter whose condition does not hold."""


def _refuse_unusable(space: SearchSpace, tables: dict[str, ray.ObjectRef[SliceTable]]) -> tuple[SliceTable, int]:
    """Raises DataError where an architecture's own settings could not be trained on a fold.

    Returns a table (any: all have the same slices' digest) and the number of folds.
    """
    for name in space.architectures:
        experiment = space.experiment(name, {})
        table: SliceTable = ray.get(tables[_view(experiment.data)])
        folds = list(held_out_folds(table, space.folds, seed=0))
        for fold in folds:
            usable_rows(experiment, table, split(table, fold, space.folds, seed=0).train, space.resources.workers)
    return table, len(folds)


def _crossvalidate(
    space: SearchSpace, best: dict[str, FrozenTrial], data_url: str, out: str, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Cross-validates each architecture's winner; what the study's summary says of it, by architecture."""
    found, predictions = {}, []
    for name, trial in best.items():
        experiment = _winner(space, trial)
        storage.write_bytes(storage.join(out, "best", f"{name}.yaml"), experiment.to_yaml().encode())
        place = storage.join(out, "crossval", name)
        before = storage.join(place, "experiment.json")
        if storage.exists(before) and storage.read_json(before)["experiment"] != experiment.to_dict():
            storage.remove(place)  # more trials found another winner
        progress.say(f"cross-validating the best {name} (trial {trial.number})")
        result = crossval(
            experiment, data_url, place, folds=space.folds, workers=space.resources.workers,
            resume=storage.exists(place), progress=progress,
        )  # fmt: skip
        predictions.append(storage.read_table(storage.join(place, "predictions.parquet")))
        found[name] = {
            "trial": trial.number,
            "score": trial.value,
            "experiment": experiment.to_dict(),
            "crossval": result["over_folds"],
            "hd_unit": result["hd_unit"],
        }
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
            _view(experiment.data),
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
        tune.Tuner(
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
        ).fit()


def _most_epochs(space: SearchSpace, study: str) -> int:
    """The longest training that a study may ask for, epochs a fold."""
    searched = space.parameters.get("training.epochs")
    names = space.architectures if space.joint else (study,)
    fixed = max(space.experiment(name, {}).training.epochs for name in names)
    return max(fixed, *(int(end) for end in searched.ends)) if searched else fixed  # type: ignore[arg-type]


def _winner(space: SearchSpace, trial: FrozenTrial) -> Experiment:
    """A trial's settings with a fresh seed: its own was chosen with them, by luck too."""
    experiment = Experiment.from_dict(json.loads(trial.user_attrs[SPEC])["experiment"])
    return experiment.with_overrides({"training.seed": seed_of(space.sampler.seed, "winner")})


def _best(space: SearchSpace, studies: dict[str, Study]) -> dict[str, FrozenTrial]:
    """The complete trial with the best selection score, of each architecture that has one."""
    best: dict[str, FrozenTrial] = {}
    for study in studies.values():
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            name = json.loads(trial.user_attrs[SPEC])["architecture"]
            if name not in best or (trial.value or 0.0) > (best[name].value or 0.0):
                best[name] = trial
    return {name: best[name] for name in space.architectures if name in best}


def _trials_and_history(studies: dict[str, Study]) -> tuple[pa.Table, pa.Table]:
    """`trials.parquet`, a row per trial (`score` is a selection score), and `history.parquet`, a row per epoch."""
    trials: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    for name, study in studies.items():
        for trial in study.get_trials(deepcopy=False):
            if SPEC not in trial.user_attrs:
                continue
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            place = storage.join(spec.out, HISTORY)
            rows = storage.read_json(place) if storage.exists(place) else []
            about = {"run": _row(spec), "architecture": spec.architecture}
            epochs += [{**about, **row} for row in rows]
            epoch = max(trial.intermediate_values, default=0)
            trials.append(
                {
                    "study": name,
                    "number": trial.number,
                    "architecture": spec.architecture,
                    "state": _STATES.get(trial.state, "open"),
                    "score": trial.intermediate_values.get(epoch),
                    "epochs": epoch,
                    "folds_done": rows[-1]["folds_done"] if rows else 0,
                    "seconds": trial.duration.total_seconds() if trial.duration else None,
                    "params": json.dumps(trial.params),
                    "failure": trial.user_attrs.get("failure"),
                    "directory": spec.out,
                    "start": trial.datetime_start,
                    "end": trial.datetime_complete,
                }
            )
    return storage.table_of(trials), storage.table_of(epochs)


_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def _counts(trials: pa.Table) -> dict[str, int]:
    states = trials["state"].to_pylist()
    return {state: states.count(state) for state in _STATES.values()}


def _row(spec: TrialSpec) -> str:
    return f"{spec.architecture}-{spec.number}"
