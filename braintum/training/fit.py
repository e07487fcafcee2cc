"""The training loop: plain torch, one epoch at a time.

`Fit` sees only training slices. What it must choose on the way (best epoch, early stopping, plateau) it chooses on a
validation part that it cuts out of them. It yields one metrics dict per epoch and can be saved and loaded between
epochs; whoever drives it (a plain loop, a Ray Train worker, a Tune trial) decides about reports and checkpoints.

B batch, C channels, H W, K mask channels, N classes, R rows of the table.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from braintum.config import Experiment
from braintum.data.batches import Batch, Batches, steps_per_epoch
from braintum.data.folds import Rows, validation_split
from braintum.data.schema import DataError
from braintum.data.table import SliceTable
from braintum.evaluation.predict import selection_metrics, slice_scores
from braintum.losses.balancing import balancing_of
from braintum.losses.classification import balanced_class_weights
from braintum.losses.objective import Objective
from braintum.models.registry import Task
from braintum.settings import ConfigError
from braintum.training.device import autocast_dtype, memory_format, pick_device
from braintum.training.optim import LearningRate, build_optimizer
from braintum.training.pretrained import Initialised, initialise
from braintum.training.provenance import refuse_seen
from braintum.training.resized import Resized

T = TypeVar("T")

SCORE = {"dice": 0.5, "macro_f1": 0.5}
"""Weights of the validation score: Dice on tumour slices and macro F1, of the tasks that the model has."""


class Diverged(ArithmeticError):
    """Loss, weights or outputs became NaN or infinite; the message names the epoch, and the step of a loss."""


def score(metrics: dict[str, float], weights: dict[str, float]) -> float:
    """Weighted mean of those metrics that the model has."""
    present = {name: weight for name, weight in weights.items() if name in metrics}
    if not present:
        raise DataError(f"score: none of {', '.join(weights)} is a metric of this model: {', '.join(metrics)}")
    return sum(metrics[name] * weight for name, weight in present.items()) / sum(present.values())


class Fit:
    """One training of an Experiment on `train_rows` of a table; iterate it for one metrics dict per epoch.

    With `world_size` > 1 a torch.distributed process group must exist; every rank iterates equally often and gets the
    same metrics. `before_step` may raise, to leave an epoch in the middle. Metrics: `epoch` (from 1), `lr`,
    `train_loss` (the tasks' losses by each step's weights; unweighted where only their shared gradients are weighed),
    `train_segmentation_loss`, `train_classification_loss`, `seconds`, `slices_per_second`; of two tasks
    `weight_segmentation`, `weight_classification` and `task_cosine` (of their gradients on the shared parameters, means
    over the steps that know them); and, where a validation part is needed, `validation_score` and
    `validation_<metric>`.
    """

    def __init__(
        self,
        experiment: Experiment,
        table: SliceTable,
        train_rows: np.ndarray,
        *,
        rank: int = 0,
        world_size: int = 1,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        training = experiment.training
        self.experiment, self.table = experiment, table
        self.rank, self.world_size = rank, world_size
        self._before_step = before_step
        self.device = pick_device(training)
        self.autocast_dtype = autocast_dtype(training, self.device)
        self._format = memory_format(self.device, self.autocast_dtype)
        self._fit_rows, self._validation_rows = usable_rows(experiment, table, train_rows, world_size)
        self._batches = Batches(
            table,
            self._fit_rows,
            batch_size=training.batch_size,
            seed=training.seed,
            augment=experiment.augment,
            window=experiment.data.window,
            rank=rank,
            world_size=world_size,
            device=self.device,
        )
        self.model = build_model(experiment, table).to(self.device, memory_format=self._format)  # type: ignore[call-overload]
        self._network = self._distribute(self.model)
        self._average = copy.deepcopy(self.model) if training.weights == "average" else None
        weights_N = None
        if experiment.loss.class_weights == "balanced":
            weights_N = balanced_class_weights(table.label_R[self._fit_rows], len(table.classes)).to(self.device)
        self._objective = Objective(experiment.loss, weights_N)
        self._balancing = balancing_of(
            experiment.loss, self._tasks, self.model.parameters(), workers=world_size, device=self.device
        )
        self._optimizer = build_optimizer(self.model.parameters(), experiment.optim)
        self._lr = LearningRate(
            self._optimizer,
            experiment.schedule,
            epochs=training.epochs,
            steps_per_epoch=self._batches.num_steps,
        )
        self.initialised: Initialised | None = None
        """What the first epoch began with of `model.init_from`; None where it was not asked for, or not run here."""
        self.epoch = 0
        self._steps = 0
        self.best_epoch = 0
        self.best_score = -np.inf
        self.best_state: dict[str, Tensor] | None = None
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done or early stopping has struck."""
        training = self.experiment.training
        patience = training.early_stopping
        stopped = patience is not None and self.epoch - self.best_epoch >= patience
        return self.epoch >= training.epochs or stopped

    def __iter__(self) -> Iterator[dict[str, float]]:
        while not self.finished:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, float]:
        """Trains one epoch and returns its metrics. The first one begins with the weights of `model.init_from`.

        Raises Diverged, or ConfigError where nothing of that file can be used, or it has seen other slices of this
        dataset (`refuse_seen`).
        """
        if self.epoch == 0 and self.experiment.model.init_from is not None:
            self.initialised = self._initialise()
        start = time.perf_counter()
        lr = self._lr.value
        losses = self._train()
        seconds = time.perf_counter() - start
        self.epoch += 1
        metrics = {"epoch": self.epoch, "lr": lr, **losses}
        if len(self._validation_rows):
            metrics.update(self._validate())
        self._lr.after_epoch(metrics.get("validation_score"))
        metrics["slices_per_second"] = len(self._fit_rows) / seconds
        metrics["seconds"] = time.perf_counter() - start
        self.history.append(metrics)
        return metrics

    def score_rows(self, rows: np.ndarray) -> dict[str, float]:
        """Metrics of the `scores_of` rows."""
        return selection_metrics(self.scores_of(rows), self.table.classes)

    def scores_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`slice_scores` at training resolution by the weights that would be kept now (current or averaged).

        After an epoch at half size, slices are looked at in half size.
        """
        position_R = np.arange(len(rows))
        share = rows[self.rank :: self.world_size]
        model = self._at_size_of(self.epoch, self._average or self.model)
        shares = self.gathered_outputs(
            lambda: slice_scores(model, self.table, share, device=self.device, autocast_dtype=self.autocast_dtype)
        )
        filled = [scores for scores in shares if scores]  # a worker without rows has none
        order_R = np.argsort(np.concatenate([position_R[rank :: self.world_size] for rank in range(self.world_size)]))
        return {name: np.concatenate([s[name] for s in filled])[order_R] for name in filled[0]}

    def gathered_outputs(self, predict: Callable[[], T]) -> list[T]:
        """What every worker predicts, by rank, on all of them. Raises Diverged on all for what one could not."""
        try:
            mine = predict()
        except FloatingPointError:
            mine = None
        shares = gathered(mine, self.world_size)
        if any(share is None for share in shares):
            raise Diverged(f"the network's outputs became NaN or infinite by epoch {self.epoch}: lower optim.lr")
        return shares

    @property
    def kept_epoch(self) -> int:
        """The epoch after which the kept weights stood."""
        return self.best_epoch if self.best_state is not None else self.epoch

    def kept_weights(self) -> dict[str, Tensor]:
        """The state dict of the weights that this run keeps: best, last or averaged."""
        if self.best_state is not None:
            return self.best_state
        weights: dict[str, Tensor] = (self._average or self.model).state_dict()
        return weights

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, in types that `torch.load(weights_only=True)` reads."""
        return {
            "experiment": self.experiment.digest,
            "epoch": self.epoch,
            "steps": self._steps,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "lr": self._lr.state_dict(),
            "balancing": self._balancing.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "best_epoch": self.best_epoch,
            "best_score": float(self.best_score),
            "best_state": self.best_state,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state. Raises ValueError if it belongs to another Experiment."""
        if state["experiment"] != self.experiment.digest:
            raise ValueError(
                f"the saved state belongs to experiment {state['experiment']}, not {self.experiment.digest}: "
                "choose another --out, or use the settings it was started with"
            )
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._lr.load_state_dict(state["lr"])
        self._balancing.load_state_dict(state["balancing"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.epoch, self._steps = state["epoch"], state["steps"]
        self.best_epoch, self.best_score = state["best_epoch"], state["best_score"]
        self.best_state, self.history = state["best_state"], state["history"]

    @property
    def _tasks(self) -> list[Task]:
        tasks: tuple[Task, ...] = ("segmentation", "classification")
        return [task for task in tasks if task in self.experiment.model.tasks]

    def _initialise(self) -> Initialised:
        """Every worker reads the file; what one cannot use is raised on all, and so is another file."""
        found: Initialised | ConfigError
        try:
            found = initialise(self.model, self.experiment.model, self.table.image_RCHW.shape[1])
            train_rows = np.union1d(self._fit_rows, self._validation_rows)
            refuse_seen(found.url, found.trained_on, self.table, [train_rows])
        except ConfigError as error:
            found = error
        everyones = gathered(found, self.world_size)
        for other in everyones:
            if isinstance(other, ConfigError):
                raise other
            if other != everyones[0]:
                raise ConfigError(f"model.init_from: {other.url}: workers read different files; give a shared one")
        if self._average is not None:
            self._average.load_state_dict(self.model.state_dict())
        initialised: Initialised = everyones[0]
        return initialised

    def _train(self) -> dict[str, float]:
        """One pass over the batches; the epoch's mean losses over all workers, and how the tasks were weighed."""
        # Dropout is a pure function of (seed, epoch, rank): a resumed run repeats it, another worker count does not.
        torch.manual_seed((self.experiment.training.seed * 1_000_003 + self.epoch) * 1_009 + self.rank)
        network = self._at_size_of(self.epoch + 1, self._network).train()
        terms = []
        for batch in self._batches.epoch(self.epoch):
            if self._before_step is not None:
                self._before_step()
            terms.append(self._step(network, batch))
            self._lr.after_step()
        terms_ST = torch.stack(terms)  # S steps, T terms
        if self.world_size > 1:
            dist.all_reduce(terms_ST)
            self._share_buffers()
        self._refuse_divergence(terms_ST[:, 0])
        self._refuse_broken_weights()
        total, *means = terms_ST.mean(dim=0).tolist()
        losses = dict(zip(self._tasks, means, strict=True))
        return {
            "train_loss": total,
            **{f"train_{task}_loss": loss for task, loss in losses.items()},
            **self._balancing.after_epoch(losses),
        }

    def _share_buffers(self) -> None:
        """Gives all workers rank 0's batch statistics, those of the weights that are scored and saved."""
        for model in (self.model, self._average):
            for buffer in model.buffers() if model is not None else ():
                dist.broadcast(buffer, src=0)

    def _at_size_of(self, epoch: int, network: nn.Module) -> nn.Module:
        """The network as epoch `epoch` (from 1) trains it."""
        if epoch > self.experiment.training.half_size_epochs:
            return network
        return Resized(network, self.experiment.half_side)

    def _step(self, network: nn.Module, batch: Batch) -> Tensor:
        """One weight update; this worker's share of the losses (total and each task's)."""
        with self._autocast():
            output = network(batch.image_BCHW.contiguous(memory_format=self._format))
        terms = self._objective(output, batch)
        self._optimizer.zero_grad(set_to_none=True)
        has_targets: dict[Task, bool] = {
            "segmentation": batch.num_masks > 0,
            "classification": batch.num_labels > 0,
        }
        total = self._balancing.backward(terms.losses, has_targets)
        if self.experiment.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.optim.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._update_average(self._average)
        return torch.stack([total, *terms.main.values()])

    def _validate(self) -> dict[str, float]:
        metrics = self.score_rows(self._validation_rows)
        validation_score = score(metrics, SCORE)
        if validation_score > self.best_score:
            self.best_score, self.best_epoch = validation_score, self.epoch
            if self.experiment.training.weights == "best":
                self.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {"validation_score": validation_score, **{f"validation_{k}": v for k, v in metrics.items()}}

    def _update_average(self, average: nn.Module) -> None:
        # A plain mean of the first steps, until that would forget more slowly than the decay does.
        self._steps += 1
        decay = min(self.experiment.training.average_decay or 0.0, 1 - 1 / self._steps)
        kept, current = average.state_dict(), self.model.state_dict()
        floating = [name for name, value in kept.items() if value.is_floating_point()]
        torch._foreach_lerp_([kept[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in kept.keys() - set(floating):
            kept[name].copy_(current[name])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def _distribute(self, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        if self.device.type == "cuda":
            self.model = model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[self.device])
        return DistributedDataParallel(model)

    def _refuse_divergence(self, total_S: Tensor) -> None:
        bad = (~torch.isfinite(total_S)).nonzero()
        if len(bad):
            step = int(bad[0])
            raise Diverged(
                f"the loss became {float(total_S[step])} at epoch {self.epoch + 1}, step {step + 1}: lower optim.lr"
            )

    def _refuse_broken_weights(self) -> None:
        """The last step may break what no loss has seen yet. Asked once an epoch: each answer of a GPU is a wait."""
        kept = [*self.model.state_dict().values(), *(self._average.state_dict().values() if self._average else ())]
        if not torch.stack([value.isfinite().all() for value in kept]).all():
            raise Diverged(f"the weights became NaN or infinite at epoch {self.epoch + 1}: lower optim.lr")


def gathered(value: Any, world_size: int) -> list[Any]:
    """Every worker's value, by rank, on all of them."""
    values: list[Any] = [value] * world_size
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


def usable_rows(experiment: Experiment, table: SliceTable, train_rows: Rows, world_size: int) -> tuple[Rows, Rows]:
    """The rows to fit and those to validate on (none where nothing is chosen inside a run).

    Raises DataError or ConfigError for what could not be trained: a task without targets in the rows, a part without
    a class, fewer slices than workers, or than the model needs.
    """
    fit_rows = train_rows[table.shown_R[train_rows]]
    refuse_without_targets(experiment, table, fit_rows, "training")
    validation_rows = np.empty(0, dtype=np.int64)
    if experiment.needs_validation:
        fit_rows, validation_rows = validation_split(
            table, train_rows, experiment.data.validation, experiment.training.seed
        )
        refuse_without_targets(experiment, table, fit_rows, "fitted")
        refuse_without_targets(experiment, table, validation_rows, "validation")
    batch_size, model = experiment.training.batch_size, experiment.model
    fewest = len(fit_rows) // steps_per_epoch(len(fit_rows), batch_size, world_size) // world_size
    if fewest < model.smallest_batch:
        raise ConfigError(
            f"training.batch_size: {batch_size} leaves a step of {len(fit_rows)} slices on {world_size} workers with "
            f"{fewest} a worker, and {model.name} needs {model.smallest_batch}; use a larger batch or fewer workers"
        )
    if experiment.loss.class_weights == "balanced":
        balanced_class_weights(table.label_R[fit_rows], len(table.classes))
    return fit_rows, validation_rows


def refuse_without_targets(experiment: Experiment, table: SliceTable, rows: Rows, part: str) -> None:
    """Raises DataError where the rows of a part lack what a task of the model is trained or scored by."""
    name, tasks, label_R = experiment.model.name, experiment.model.tasks, table.label_R[rows]
    if "segmentation" in tasks and not table.has_tumour_R[rows].any():
        lacks = "tumour in its mask" if table.has_mask_R[rows].any() else "mask"
        raise DataError(f"model.name: {name} segments, and no {part} slice has a {lacks}; use a classifier or add some")
    if "classification" in tasks and len(np.unique(label_R[label_R >= 0])) < 2:
        found = "is of one class" if (label_R >= 0).any() else "has a label"
        kind = f"every {part} slice" if (label_R >= 0).any() else f"no {part} slice"
        raise DataError(f"model.name: {name} classifies, and {kind} {found}; use a segmenter or add classes")


def build_model(experiment: Experiment, table: SliceTable) -> nn.Module:
    """The Experiment's network for a table's channels, classes and masks; same seed, same weights."""
    torch.manual_seed(experiment.training.seed)
    return experiment.model.build(table.image_RCHW.shape[1], len(table.classes), len(table.masks))
