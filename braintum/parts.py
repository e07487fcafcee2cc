"""The parts of an Experiment: what of the data, loss, optimiser, schedule, augmentation and training can be set."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from braintum.settings import Part, PartWithOptions

DEFAULT_WINDOW = 16_384

Classes = dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] | None


def _classes_as_map(value: Any) -> Any:
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return {name: (name,) for name in value}
    if isinstance(value, Mapping):  # JSON and YAML have lists only
        for name, labels in value.items():
            if isinstance(labels, list | tuple) and not labels:
                raise ValueError(f"class {name!r} has no labels; list them, or leave it out")
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return value


class Data(PartWithOptions):
    """What of the dataset is seen, and how.

    `region` is what a classifier sees of a slice, by its true mask (BrainTumNet compares the first three, table 2 and
    figure 7). `whole`: all. `tumour`, `oedema`: the region alone; every other pixel is as dark as the slice's darkest,
    and a slice without a mask, or on which no pixel of the region is left at `image_size`, is neither trained on nor
    scored. `crop`: the square around the tumour, cut out of the source's own pixels; the whole slice where there is no
    tumour or no mask. Folds are those of `whole`, so that regions compare.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "region": {"whole": {}, "tumour": {}, "oedema": {}, "crop": {"margin": 0.25}}
    }
    image_size: int = Field(256, ge=16, le=2048, description="height and width that slices are resized to, pixels")
    classes: Annotated[Classes, BeforeValidator(_classes_as_map, json_schema_input_type=Classes | list[str])] = Field(
        None,
        description="selects and merges labels: {class: [labels]}; slices of other labels are left out. "
        "A list [a, b] is short for {a: [a], b: [b]}. None: the card's classes",
    )
    region: Literal["whole", "tumour", "oedema", "crop"] = Field(
        "whole", description="what a classifier sees of a slice, by its true mask; crop: the square around the tumour"
    )
    margin: float | None = Field(
        None, ge=0, le=10, description="around a crop, each side: share of the tumour's longer side; 0.25 if none"
    )
    window: int = Field(
        DEFAULT_WINDOW,
        ge=1,
        description="slices shuffled together where a training has more; about twice as many are in memory at once "
        "where the set is too large for it",
    )
    validation: float = Field(
        0.2, gt=0, lt=1, description="share of the training part that choices inside a run may see, cut by group"
    )

    @model_validator(mode="after")
    def _labels_once(self) -> Self:
        labels = [label for members in (self.classes or {}).values() for label in members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"classes: label {twice[0]!r} is in two classes")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError("classes: a classifier needs two or more classes")
        return self


class Loss(PartWithOptions):
    """A segmentation term and cross-entropy, and how the two tasks' gradients are weighed against each other.

    `segmentation` (`braintum/losses/segmentation.py` names the sources), always per slice. `bce_dice`: binary
    cross-entropy + 1 − soft Dice per mask channel (the U-Net paper, eq. 1 and 2). `dice_ce`: softmax cross-entropy over
    background and masks + 1 − soft Dice averaged over background and masks (the BrainTumNet paper, eq. 4 to 6). `dice`:
    1 − soft Dice alone. `tversky`, `focal_tversky`: as Dice, with missed pixels weighed more than false ones.
    `boundary`: bce_dice + boundary_weight × how far from the true outline wrong pixels lie.

    `balancing` (`braintum/losses/balancing.py`) of two tasks. `fixed`: segmentation_weight × segmentation +
    classification_weight × cross-entropy. `uncertainty`, `dwa`, `gradnorm` find the weights while they train. The
    others combine the tasks' gradients on the parameters that both losses reach.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "segmentation": {
            "bce_dice": {},
            "dice_ce": {},
            "dice": {},
            "tversky": {"tversky_beta": 0.7},
            "focal_tversky": {"tversky_beta": 0.7, "focal_gamma": 4 / 3},
            "boundary": {"boundary_weight": 1.0},
        },
        "balancing": {
            "fixed": {"segmentation_weight": 1.0, "classification_weight": 1.0},
            "uncertainty": {"balancing_lr": 0.01},
            "dwa": {"dwa_temperature": 2.0},
            "gradnorm": {"balancing_lr": 0.025, "gradnorm_asymmetry": 1.5},
            "pcgrad": {},
            "cagrad": {"cagrad_c": 0.4},
            "mgda": {},
            "imtl_g": {},
            "aligned_mtl": {},
            "nash_mtl": {},
            "upgrad": {},
        },
    }
    segmentation: Literal["bce_dice", "dice_ce", "dice", "tversky", "focal_tversky", "boundary"] = "bce_dice"
    tversky_beta: float | None = Field(
        None, gt=0, lt=1, description="weight of missed pixels; the rest, to 1, is that of false ones"
    )
    focal_gamma: float | None = Field(
        None, ge=1, le=10, description="the root that is taken of 1 − Tversky index; above 1 hard slices weigh more"
    )
    boundary_weight: float | None = Field(
        None, gt=0, description="of distances to the true outline, in shares of the slice's longer side"
    )
    balancing: Literal[
        "fixed", "uncertainty", "dwa", "gradnorm",
        "pcgrad", "cagrad", "mgda", "imtl_g", "aligned_mtl", "nash_mtl", "upgrad",
    ] = "fixed"  # fmt: skip
    segmentation_weight: float | None = Field(None, ge=0)
    classification_weight: float | None = Field(None, ge=0)
    balancing_lr: float | None = Field(None, gt=0, le=1, description="of what is learned: log variances, or weights")
    dwa_temperature: float | None = Field(None, gt=0, description="the larger, the more equal the weights")
    gradnorm_asymmetry: float | None = Field(
        None, ge=0, le=10, description="how strongly a task that learns more slowly is pulled up"
    )
    cagrad_c: float | None = Field(
        None, ge=0, lt=10, description="how far, in norms of the mean gradient, the combined one may be from it"
    )
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: inverse class frequency")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class Optim(PartWithOptions):
    """The optimiser. `clip_norm`: global gradient norm, None for no clipping."""

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "name": {
            "adam": {"beta1": 0.9, "beta2": 0.999},
            "adamw": {"beta1": 0.9, "beta2": 0.999},
            "sgd": {"momentum": 0.9, "nesterov": True},
        }
    }
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-4, gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    beta1: float | None = Field(None, ge=0, lt=1)
    beta2: float | None = Field(None, ge=0, lt=1)
    momentum: float | None = Field(None, ge=0, lt=1)
    nesterov: bool | None = None

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.name == "sgd" and self.option("nesterov") and not self.option("momentum"):
            raise ValueError("nesterov needs a momentum above 0; set it to false, or optim.momentum to 0.9")
        return self


class Schedule(PartWithOptions):
    """The learning rate over time; `optim.lr` is its peak.

    `plateau` is multiplied by `factor` when more than `patience` epochs in a row had no better validation score (per
    epoch); `cosine` rises linearly for `warmup_epochs` and falls to `final_fraction` of the peak, `one_cycle` rises by
    a cosine over `warmup_fraction` of the steps and falls to zero (both per step); `constant`.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "name": {
            "plateau": {"factor": 0.5, "patience": 7},
            "cosine": {"warmup_epochs": 0.0, "final_fraction": 0.0},
            "one_cycle": {"warmup_fraction": 0.25},
            "constant": {},
        }
    }
    name: Literal["plateau", "cosine", "one_cycle", "constant"] = "plateau"
    factor: float | None = Field(None, gt=0, lt=1)
    patience: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0)
    final_fraction: float | None = Field(None, ge=0, le=1)
    warmup_fraction: float | None = Field(None, gt=0, lt=1)


class Augment(Part):
    """Random changes of a training slice; all zero switches augmentation off.

    Defaults are the U-Net paper's (section II-B: flips, ±15°, mild affine jitter, brightness and contrast);
    the paper gives no amounts for the last three, so they are mild ones chosen here.
    """

    flip_horizontal: float = Field(0.5, ge=0, le=1, description="probability")
    flip_vertical: float = Field(0.5, ge=0, le=1, description="probability")
    rotate: float = Field(15.0, ge=0, le=180, description="degrees, uniform in ±")
    scale: float = Field(0.1, ge=0, lt=1, description="zoom, uniform in 1 ±")
    shift: float = Field(0.05, ge=0, lt=1, description="share of the side, uniform in ±, each axis")
    brightness: float = Field(0.1, ge=0, le=1, description="added to intensities in [0, 1], uniform in ±")
    contrast: float = Field(0.1, ge=0, lt=1, description="factor around the slice's mean, uniform in 1 ±")
    test_time: bool = Field(False, description="average final predictions over the flips that are trained with")

    @model_validator(mode="after")
    def _has_flips(self) -> Self:
        if self.test_time and not (self.flip_horizontal or self.flip_vertical):
            raise ValueError("test_time has no effect without flips. Leave it out")
        return self

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return any((self.flip_horizontal, self.flip_vertical, self.rotate, self.scale, self.shift))

    @property
    def mirrors(self) -> list[tuple[int, ...]]:
        """The axes of [B, C, H, W] by which a slice is flipped for each of the predictions that are averaged."""
        axes = [
            axis for axis, share in ((2, self.flip_vertical), (3, self.flip_horizontal)) if self.test_time and share
        ]
        return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


class Training(PartWithOptions):
    """How long, on what, and which weights are kept.

    `weights`: `best` keeps the epoch with the best validation score; `last` the final ones; `average` an exponential
    moving average of all steps with `average_decay`. Only `best`, `early_stopping` and the plateau schedule
    look at a validation part; without any of them all training slices are trained on.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {
        "weights": {"best": {}, "last": {}, "average": {"average_decay": 0.99}}
    }
    epochs: int = Field(100, ge=1)
    half_size: float = Field(
        0.0, ge=0, lt=1, description="share of the epochs, from the first, on slices of half the side: faster epochs"
    )
    batch_size: int = Field(16, ge=1, description="global: shared out among the workers")
    early_stopping: int | None = Field(15, ge=1, description="epochs without a better validation score; None: off")
    weights: Literal["best", "last", "average"] = "best"
    average_decay: float | None = Field(None, gt=0, lt=1, description="per step; 0.99 when weights is average")
    seed: int = Field(0, ge=0, lt=2**32)  # fit multiplies it, into 63 bits
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast where the device gains from it"
    )

    @property
    def half_size_epochs(self) -> int:
        """The last epoch is always of full size: it is what the weights are used at."""
        return min(round(self.half_size * self.epochs), self.epochs - 1)

    @property
    def epoch_costs(self) -> list[float]:
        """What each epoch costs, about, relative to the others: as its pixels."""
        return [0.25] * self.half_size_epochs + [1.0] * (self.epochs - self.half_size_epochs)
