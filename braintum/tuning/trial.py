"""A trial: one Experiment over folds, one after another, on one of two executors.

`trial_epochs` is what both run. `OneWorkerTrial` runs it in a Tune actor that is reused from trial to trial;
`many_worker_trial` runs it on the DDP workers of a `TorchTrainer` inside the trial. A trial's directory holds
`state.pt` while it lives (the checkpoint of the fold being trained), `history.json` (a row per epoch), a
`shares-<fold>.json` of each finished fold (what racing compares), `init.json` with model.init_from, and `error.txt` if
it failed.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from braintum import storage
from braintum.config import Experiment
from braintum.data.folds import held_out_folds, split, without
from braintum.data.table import SliceTable
from braintum.evaluation.predict import score_shares, selection_metrics
from braintum.training.checkpoint import STATE, load_state, save_state
from braintum.training.costs import costs
from braintum.training.device import keep_freed_memory
from braintum.training.fit import Diverged, Fit, score
from braintum.training.run import refuse_unequal, write_initialised
from braintum.training.worker import MAX_FAILURES, ray_storage
from braintum.tuning.ahead import Ahead
from braintum.tuning.records import HISTORY

ERROR = "error.txt"
RAY_FILES = "ray"
"""Where Ray Train keeps its own files of a trial of many workers, while it lives."""

FAILED, CROWDED, FULL = "failed", "crowded", "full"
"""How a trial ends without a score: for good (its loss became NaN or infinite, or a GPU's memory is too small for it);
out of memory beside others on its GPU; with no room left where it is written."""

Outer = tuple[str, int | None]
"""A fold that a search never sees, by its name, and the number of folds that it is one of (None: as the data say)."""


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is: plain values, so that it travels to workers.

    `view` names the table to train on (searches over `data.*` have several), `score` weighs the metrics, `costs` are
    measured after the last fold (`braintum.training.costs`). `folds` are cut out of what is not `outer`. `after`: the
    directory of a trial of the same Experiment that was stopped; the folds that it finished are read.
    """

    architecture: str
    number: int
    experiment: dict[str, Any]
    view: str
    out: str
    folds: int | None
    score: dict[str, float]
    costs: tuple[str, ...] = ()
    outer: Outer | None = None
    after: str | None = None

    @property
    def run(self) -> str:
        """What its study's tables call it."""
        return f"{self.architecture}-{self.number}"

    @property
    def shown(self) -> str:
        """What the terminal calls it."""
        return self.run if self.outer is None else f"outer-{self.outer[0]} {self.run}"


@dataclass(frozen=True)
class FoldShares:
    """The share of each of R slices of a held-out fold in a trial's selection score, by the weights that it kept."""

    slices: list[str]
    cases: list[str | None]
    shares: list[float]


def read_shares(out: str, fold: str) -> FoldShares:
    """What the trial in directory `out` has left of a fold that it finished. Raises FileNotFoundError."""
    return FoldShares(**storage.read_json(_shares_url(out, fold)))


def write_shares(out: str, fold: str, shares: FoldShares) -> None:
    """Leaves what `read_shares` reads."""
    storage.write_json(_shares_url(out, fold), asdict(shares))


def finished_rows(out: str) -> list[dict[str, Any]]:
    """The rows of the folds that the trial in directory `out` finished, in order."""
    place = storage.join(out, HISTORY)
    rows: list[dict[str, Any]] = storage.read_json(place) if storage.exists(place) else []
    done = rows[-1]["folds_done"] if rows else 0
    return rows[: next((i + 1 for i, row in enumerate(rows) if row["folds_done"] == done), 0)] if done else []


def _shares_url(out: str, fold: str) -> str:
    return storage.join(out, f"shares-{fold}.json")


def trial_epochs(
    spec: TrialSpec,
    table: SliceTable,
    *,
    rank: int = 0,
    world_size: int = 1,
    ahead: Ahead | None = None,
    node: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains the folds in turn and yields one result per epoch; goes on from the trial's saved state.

    With `ahead` an epoch may be trained before somebody asks for it; nothing of it is kept before. `node`: Ray's id of
    that on which it trains.
    `epoch` = finished folds × epochs + epoch within the fold; `score` = mean selection score of the finished folds and
    the current one; `finished` is True in the last result. A resumed trial first yields its saved results again.
    """
    experiment = Experiment.from_dict(spec.experiment)
    if spec.outer is not None:
        table = without(table, *spec.outer, seed=0)
    names = list(held_out_folds(table, spec.folds, seed=0))
    state_url = storage.join(spec.out, STATE)
    state = load_state(state_url)
    if state is None or state["experiment"] != experiment.digest:  # of a trial that was lost before it was stored
        state = {"rows": [], "scores": [], "shares": [], "fit": None}
        if spec.after is not None:
            state |= _gone_on_with(spec.after, spec.out, rank)
    rows, scores, shares = state["rows"], state["scores"], state["shares"]
    refuse_unequal(state_url, len(rows), world_size)
    # Who resumes may not have heard of the last ones: they were saved before they were told.
    yield from [{**row, "again": True} for row in rows]
    for index in range(len(scores), len(names)):
        fold = split(table, names[index], spec.folds, seed=0)
        before_step = None if ahead is None else ahead.go_on
        fit = Fit(experiment, table, fold.train, rank=rank, world_size=world_size, before_step=before_step)
        if state["fit"] is not None:
            fit.load_state_dict(state["fit"])
        began = time.time()
        for metrics in fit:
            slices = fit.scores_of(fold.held_out)
            ended = time.time()
            if ahead is not None:
                ahead.wait()
            selection = selection_metrics(slices, table.classes)
            if fit.kept_epoch == fit.epoch:
                shares = score_shares(slices, spec.score).tolist()
            fold_scores = [row["fold_score"] for row in rows if row["fold"] == names[index]]
            fold_scores.append(score(selection, spec.score))
            kept = fold_scores[fit.kept_epoch - 1]
            finished = fit.finished and index + 1 == len(names)
            rows.append(
                {
                    **metrics,
                    **{f"selection_{name}": value for name, value in selection.items()},
                    "fold": names[index],
                    "fold_score": fold_scores[-1],
                    "epoch_in_fold": fit.epoch,
                    "kept_epoch": fit.kept_epoch,  # in the fold, of the weights that would be kept now
                    "epoch": index * experiment.training.epochs + fit.epoch,
                    "folds_done": index + fit.finished,
                    "score": sum([*scores, kept]) / (len(scores) + 1),
                    "finished": finished,
                    **(costs(spec.costs, fit) if finished and rank == 0 else {}),
                    "began": began,  # wall-clock seconds, as `ended`: first step, and scores known
                    "ended": ended,
                    "node": node,
                }
            )
            if fit.finished:
                scores.append(kept)
            if rank == 0:
                if fit.finished:
                    ids, cases = ([of[row] for row in fold.held_out] for of in (table.slice_id_R, table.case_id_R))
                    write_shares(spec.out, names[index], FoldShares(ids, cases, shares))
                storage.write_json(storage.join(spec.out, HISTORY), rows)
                write_initialised(spec.out, fit)
                saved = None if fit.finished else fit.state_dict()
                about = {"experiment": experiment.digest, "rows": rows, "scores": scores, "shares": shares}
                save_state(state_url, {**about, "fit": saved})
            yield rows[-1]
            began = time.time()
        state["fit"] = None


def _gone_on_with(stopped: str, out: str, rank: int) -> dict[str, list[Any]]:
    """The rows and scores of the folds that a trial finished, in the directory `stopped`; `out` gets its files."""
    rows = finished_rows(stopped)
    last = {row["fold"]: row for row in rows}
    if rank == 0:
        storage.write_json(storage.join(out, HISTORY), rows)
        for fold in last:
            write_shares(out, fold, read_shares(stopped, fold))
    kept = {(row["fold"], row["epoch_in_fold"]): row["fold_score"] for row in rows}
    return {"rows": rows, "scores": [kept[fold, row["kept_epoch"]] for fold, row in last.items()]}


class OneWorkerTrial(tune.Trainable):
    """A trial in one actor, which Tune hands from trial to trial."""

    _ahead: Ahead | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def setup(
        self, config: dict[str, Any], tables: Mapping[str, ray.ObjectRef[SliceTable]] | None = None, threads: int = 1
    ) -> None:
        assert tables is not None
        self._tables, self._view = tables, ""
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        assert self._ahead is not None
        try:
            result = self._ahead.next()
        except Exception as error:
            self._leave()
            ended = _ended(error, self._spec, shares_gpu=self._shares_gpu)
            if ended is None:
                raise
            return {**ended, "placed": self._placed, "done": True}
        return {**result, "placed": self._placed, "done": result["finished"]}

    def cleanup(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._ahead is not None:
            self._ahead.leave()
            self._ahead = None

    def _begin(self, config: dict[str, Any]) -> None:
        self._leave()
        torch.cuda.empty_cache()  # what the trial before has left may be what another on the same GPU lacks
        self._placed, self._shares_gpu = config["placed"], 0 < config["gpus"] < 1
        self._spec = spec = TrialSpec(**config["trial"])
        if self._view != spec.view:  # what is kept by table (folds, tensors on a GPU) stays from trial to trial
            self._view, self._table = spec.view, ray.get(self._tables[spec.view])
        node = ray.get_runtime_context().get_node_id()
        self._ahead = Ahead(lambda ahead: trial_epochs(spec, self._table, ahead=ahead, node=node))


def many_worker_trial(
    config: dict[str, Any],
    tables: Mapping[str, ray.ObjectRef[SliceTable]],
    workers: int,
    resources: dict[str, float],
) -> None:
    """A trial on a worker group of its own; what rank 0 reports goes up to Tune."""
    spec = TrialSpec(**config["trial"])
    filesystem, path = ray_storage(storage.join(spec.out, RAY_FILES))
    use_gpu = resources.get("GPU", 0) > 0
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "trial": asdict(spec), "table": tables[spec.view], "placed": config["placed"],
            "threads": max(1, int(resources["CPU"])),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=spec.run,  # what Ray's dashboard calls it
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        full = next((cause for cause in causes if storage.is_full(cause)), None)
        if full is None:
            raise
        tune.report({**_unscored(FULL, full), "placed": config["placed"]})


def _work(config: dict[str, Any]) -> None:
    """What every DDP worker of a trial does."""
    spec = TrialSpec(**config["trial"])
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    context = ray.train.get_context()
    table: SliceTable = ray.get(config["table"])
    rank, world_size = context.get_world_rank(), context.get_world_size()
    try:
        node = ray.get_runtime_context().get_node_id()
        for result in trial_epochs(spec, table, rank=rank, world_size=world_size, node=node):
            ray.train.report({**result, "placed": config["placed"]})
    except Exception as error:
        ended = _ended(error, spec)
        if not isinstance(error, Diverged) or ended is None:
            raise  # not of all ranks, and a report waits for all
        ray.train.report({**ended, "placed": config["placed"]})


def reason_of_failure(spec: TrialSpec) -> str:
    """The last line of the error that a trial's worker wrote down; killed workers write none."""
    place = storage.join(spec.out, ERROR)
    if not storage.exists(place):
        return "its workers died"
    return storage.read_bytes(place).decode().strip().splitlines()[-1]


def _ended(error: Exception, spec: TrialSpec, *, shares_gpu: bool = False) -> dict[str, Any] | None:
    """The last result of a trial that an error ends, `outcome` says how and `failure` why; None: it is to be raised.

    Raising the others too would lose the reused actor, and Tune would start the trial again, which ends the same. The
    traceback stays in the trial's directory: Tune tells its searcher only that there was an error.
    """
    if isinstance(error, Diverged):
        return _unscored(FAILED, error)
    if storage.is_full(error):
        return _unscored(FULL, error)
    storage.write_bytes(storage.join(spec.out, ERROR), traceback.format_exc().encode())
    if isinstance(error, torch.OutOfMemoryError):
        return _unscored(CROWDED if shares_gpu else FAILED, error)
    return None


def _unscored(outcome: str, error: Exception) -> dict[str, Any]:
    failure = str(error).split("\n")[0]
    return {"outcome": outcome, "failure": failure, "finished": False, "epoch": 0, "score": 0.0}
