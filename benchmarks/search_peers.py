"""The searches that braintum's is compared with, as their own documentation has them, over the same space and trials.

All train through `trial_epochs`, so that an epoch is the same work everywhere, checkpoint and history included. A
folder holds `data`, a dataset, and `space.yaml`, a space of one architecture without conditions; a trial's
`history.json` and `values.json` come to lie in `trials/<id>`.

- `documented`: a TorchTrainer inside a Tune function, TuneReportCallback, OptunaSearch, ASHAScheduler, as
  "Hyperparameter Tuning with Ray Tune" of Ray Train's user guides has it (docs.ray.io), the table in the object store.
- `function`: a plain Tune function trainable with the same searcher and scheduler.
- `random`: a plain Tune function trainable, random draws, no early stopping: Tune's defaults.

The first trial of each is the base's own settings (`points_to_evaluate`), as in braintum's, and each trial trains with
a seed of its own. They are given what their pages do not have: an environment in which a report takes 20 ms instead of
two seconds and Tune writes no files of its own beside the trials' (`start_local`), memory that is kept
(`keep_freed_memory`), and reused actors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from braintum import storage
from braintum.tuning.samplers import seed_of
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import TrialSpec
from braintum.tuning.views import view

SLOTS = 2
PEERS = ("documented", "function", "random")


class Places:
    """Makes the TrialSpec of a trial's id and values, as braintum's search would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.space = SearchSpace.load(folder / "space.yaml")
        (self.name,) = self.space.architectures

    def spec(self, trial: str, values: dict[str, Any]) -> TrialSpec:
        seed = {"training.seed": seed_of(self.space.sampler.seed, trial)}
        experiment = self.space.experiment(self.name, {**seed, **values})
        out = str(self._folder / "trials" / trial)
        storage.write_json(storage.join(out, "values.json"), values)
        return TrialSpec(
            self.name, 0, experiment.to_dict(), view(experiment.data), out, self.space.folds, self.space.score
        )


def by_braintum(folder: Path) -> None:
    """`search`, with Optuna's file, trials' records and progress as always."""
    from braintum.connect import start_local
    from braintum.training.progress import Progress
    from braintum.tuning.study import search

    start_local(num_cpus=SLOTS)
    space = SearchSpace.load(folder / "space.yaml")
    search(space, str(folder / "data"), str(folder / "study"), progress=Progress("study", quiet=True))


def by_tune(peer: str, folder: Path) -> None:
    """One of PEERS, with the trials of the space."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    from braintum.connect import start_local
    from braintum.data.table import load_table

    places = Places(folder)
    space, nested = places.space, peer == "documented"
    start_local(num_cpus=2 * SLOTS if nested else SLOTS)  # its Tune functions, which only wait, take a CPU each too
    base = space.experiment(places.name, {})
    table = ray.put(load_table(str(folder / "data"), base.data))

    def train_loop(config: dict[str, Any]) -> None:
        import ray.train
        import torch

        from braintum.training.device import keep_freed_memory
        from braintum.tuning.trial import trial_epochs

        torch.set_num_threads(1)
        keep_freed_memory()
        for row in trial_epochs(config["spec"], ray.get(table)):
            ray.train.report({"score": row["score"], "epoch": row["epoch"]})

    def driver(config: dict[str, Any]) -> None:
        import ray.train
        import torch
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        from braintum.training.device import keep_freed_memory
        from braintum.tuning.trial import trial_epochs

        trial = tune.get_context().get_trial_id()
        spec = places.spec(trial, config)
        if nested:
            trainer = TorchTrainer(
                train_loop,
                train_loop_config={"spec": spec},
                scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
                run_config=ray.train.RunConfig(
                    name=trial, storage_path=str(folder / "train"), callbacks=[TuneReportCallback()]
                ),
            )
            trainer.fit()
            return
        torch.set_num_threads(1)
        keep_freed_memory()
        for row in trial_epochs(spec, ray.get(table)):
            tune.report({"score": row["score"], "epoch": row["epoch"]})

    first, seed = [space.defaults(places.name)], space.sampler.seed
    scheduler = None
    if peer != "random":
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=base.training.epochs * (space.folds or 1) + 1,
            grace_period=int(space.scheduler.option("grace_epochs")),
            reduction_factor=int(space.scheduler.option("reduction")),
        )
    tuner = tune.Tuner(
        driver,
        param_space={path: _domain(written) for path, written in space.settings()["parameters"].items()},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=space.trials,
            max_concurrent_trials=SLOTS,
            search_alg=BasicVariantGenerator(points_to_evaluate=first, random_state=seed)
            if peer == "random"
            else OptunaSearch(points_to_evaluate=first, seed=seed),
            scheduler=scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "tune")),
    )
    tuner.fit()
    ray.shutdown()


def _domain(written: dict[str, Any]) -> Any:
    """Tune's word for a parameter of a space."""
    from ray import tune

    kinds = {
        "log_uniform": lambda of: tune.loguniform(*of),
        "uniform": lambda of: tune.uniform(*of),
        "choice": tune.choice,
    }
    ((kind, of),) = ((kind, of) for kind, of in written.items() if kind in kinds and of is not None)
    return kinds[kind](of)
