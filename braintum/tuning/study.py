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
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import optuna
import pyarrow as pa
import ray
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from braintum import __version__, storage
from braintum.config import Data, Experiment
from braintum.data.folds import held_out_folds
from braintum.data.shared import share_table
from braintum.data.table import SliceTable
from braintum.settings import ConfigError
from braintum.training.checkpoint import STATE
from braintum.training.crossval import crossval
from braintum.training.progress import Progress
from braintum.training.run import prepare_out, refuse_at_once
from braintum.training.worker import MAX_FAILURES, connect
from braintum.tuning.searcher import SPEC, OptunaSearcher, StudySchedulers, seed_of
from braintum.tuning.slots import Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.storage import OptunaFile
from braintum.tuning.trial import HISTORY, OneWorkerTrial, TrialSpec, many_worker_trial


@dataclass
class Tables:
    """The dataset as each view of it that the space asks for, once in the object store."""

    by_view: dict[str, ray.ObjectRef[SliceTable]]
    any: SliceTable

    @staticmethod
    def view(data: Data) -> str:
        """The name of a view: the settings that decide what the table holds."""
        return json.dumps(data.model_dump(mode="json", exclude={"validation"}), sort_keys=True)


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


def search(space: SearchSpace, data_url: str, out: str, *, resume: bool = False, progress: Progress) -> dict[str, Any]:
    """Runs or resumes a study and returns its summary.

    Raises ConfigError or DataError before any worker starts. KeyboardInterrupt leaves all state saved.
    """
    started = time.monotonic()
    data_url, out = storage.resolve(data_url), storage.resolve(out)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    refuse_at_once(data_url, out, resume=resume)
    connect()
    tables = _share(space, data_url)
    about = {
        "space": space.model_dump(mode="json", exclude={"trials", "resources"}),
        "digest": space.digest,
        "data": {"url": data_url, "digest": tables.any.digest},
    }
    folds = len(held_out_folds(tables.any, space.folds, seed=0))
    prepare_out(out, about, resume=resume, record="study.json")
    with OptunaFile(storage.join(out, "optuna.db")) as file:
        studies = _open_studies(space, file)
        watch = Watch(progress, folds)
        searched = time.monotonic()
        slots = Slots.of(space.resources)
        _tune(space, studies, data_url, out, tables, folds, slots, watch)
        seconds = time.monotonic() - searched
        trials = _trials_table(studies)
        best = _best(space, studies)
    storage.write_table(storage.join(out, "trials.parquet"), trials)
    _write_history(out, trials)
    if not best:
        raise ConfigError(f"{out}: no trial finished all folds ({_counts(trials)}); see trials.parquet there")
    winners = {name: _winner(space, trial) for name, trial in best.items()}
    summary: dict[str, Any] = {
        "name": space.name,
        "trials": _counts(trials),
        "best": {},
        "busy_share": watch.busy / (seconds * slots.count) if watch.busy else None,
        "search_seconds": seconds,
        "start_seconds": list(watch.starts.values()),
        "data": about["data"],
        "versions": {"braintum": __version__, **{name: version(name) for name in ("ray", "optuna", "torch")}},
    }
    for name, experiment in winners.items():
        storage.write_bytes(storage.join(out, "best", f"{name}.yaml"), experiment.to_yaml().encode())
        place = storage.join(out, "crossval", name)
        progress.say(f"cross-validating the best {name} (trial {best[name].number})")
        with Progress(f"crossval {name}", quiet=progress.quiet) as shown:
            result = crossval(
                experiment, data_url, place, folds=space.folds, workers=space.resources.workers,
                resume=storage.exists(place), progress=shown,
            )  # fmt: skip
        summary["best"][name] = {
            "trial": best[name].number,
            "score": best[name].value,
            "experiment": experiment.to_dict(),
            "crossval": result["metrics"],
        }
    predictions = [storage.read_table(storage.join(out, "crossval", name, "predictions.parquet")) for name in winners]
    storage.write_table(
        storage.join(out, "predictions.parquet"), pa.concat_tables(predictions, promote_options="default")
    )
    summary["seconds"] = time.monotonic() - started
    storage.write_json(storage.join(out, "summary.json"), summary)
    return summary


def _share(space: SearchSpace, data_url: str) -> Tables:
    """Decodes every view of the dataset that the space can ask for."""
    searched = {path: p.choice for path, p in space.parameters.items() if path.startswith("data.")}
    by_view: dict[str, ray.ObjectRef[SliceTable]] = {}
    for name in space.architectures:
        for values in product(*(choice or () for choice in searched.values())):
            data = space.experiment(name, dict(zip(searched, values, strict=True))).data
            if Tables.view(data) not in by_view:
                by_view[Tables.view(data)] = share_table(data_url, data)
    if not by_view:
        raise ConfigError(f"parameters: {', '.join(searched)}: a search over the data needs choices, not a range")
    return Tables(by_view, ray.get(next(iter(by_view.values()))))


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


def _tune(
    space: SearchSpace,
    studies: dict[str, Study],
    data_url: str,
    out: str,
    tables: Tables,
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
            Tables.view(experiment.data),
            trial_out,
            space.folds,
            space.score,
        )

    left = sum(space.shares().values()) - sum(
        trial.state.is_finished() for study in studies.values() for trial in study.get_trials(deepcopy=False)
    )
    if left <= 0:
        return
    most_epochs = {name: folds * _most_epochs(space, name) for name in studies}
    if slots.workers == 1:
        trainable = tune.with_resources(
            tune.with_parameters(OneWorkerTrial, tables=tables.by_view, threads=slots.threads), slots.per_worker
        )
    else:
        trainable = tune.with_resources(
            tune.with_parameters(
                many_worker_trial, tables=tables.by_view, workers=slots.workers, resources=slots.per_worker
            ),
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


def _trials_table(studies: dict[str, Study]) -> pa.Table:
    """`trials.parquet`: a row per trial, as Optuna's storage has it. `score` is a selection score."""
    rows = []
    for name, study in studies.items():
        for trial in study.get_trials(deepcopy=False):
            if SPEC not in trial.user_attrs:
                continue
            spec = TrialSpec(**json.loads(trial.user_attrs[SPEC]))
            epoch = max(trial.intermediate_values, default=0)
            rows.append(
                {
                    "study": name,
                    "number": trial.number,
                    "architecture": spec.architecture,
                    "state": {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(
                        trial.state.name, "open"
                    ),
                    "score": trial.intermediate_values.get(epoch),
                    "epochs": epoch,
                    "folds_done": epoch // spec.experiment["training"]["epochs"],
                    "seconds": trial.duration.total_seconds() if trial.duration else None,
                    "params": json.dumps(trial.params),
                    "failure": trial.user_attrs.get("failure"),
                    "directory": spec.out,
                    "start": trial.datetime_start,
                    "end": trial.datetime_complete,
                }
            )
    return pa.Table.from_pylist(rows)


def _counts(trials: pa.Table) -> dict[str, int]:
    states = trials["state"].to_pylist()
    return {state: states.count(state) for state in ("complete", "pruned", "failed")}


def _write_history(out: str, trials: pa.Table) -> None:
    """`history.parquet`: every epoch of every trial."""
    rows = []
    for trial in trials.to_pylist():
        place = storage.join(trial["directory"], HISTORY)
        if storage.exists(place):
            about = {"run": f"{trial['architecture']}-{trial['number']}", "architecture": trial["architecture"]}
            rows += [{**about, **row} for row in storage.read_json(place)]
    storage.write_table(storage.join(out, "history.parquet"), pa.Table.from_pylist(rows))


def _row(spec: TrialSpec) -> str:
    return f"{spec.architecture}-{spec.number}"
