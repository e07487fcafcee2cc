"""Experiment: the whole configuration of one training, and the registry of architectures' options.

This module imports neither torch nor Ray, so that a configuration or a search space is checked in milliseconds
on any machine. An architecture registers its options here (`@register`, see `braintum/models/`); the network
itself is imported when it is built.

Reading: `Experiment` at the bottom is made of the parts above it. `Experiment.load` reads YAML, `with_overrides`
applies `a.b=c`, `digest` names it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

if TYPE_CHECKING:
    from torch import nn

Task = Literal["segmentation", "classification"]


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that names the field, the value and what is allowed."""


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string (it wants a dot); people write it in every recipe, so here it is a float."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML (floats such as `1e-4` included). Raises ConfigError naming `source` and the line."""
    try:
        return yaml.load(text, Loader=_Yaml)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


class Part(BaseModel):
    """A frozen, strict part of an Experiment: unknown fields and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def option(self, field: str) -> Any:
        """The value of an option that this part's `name` uses.

        For fields that are None unless used (see `NamedPart`); reading one that is not used is a bug, not a setting.
        """
        value = getattr(self, field)
        if value is None:
            raise AssertionError(f"{type(self).__name__}.{field} is not an option of {getattr(self, 'name', '?')}")
        return value


class NamedPart(Part):
    """A part whose `name` decides which other fields have an effect.

    `OPTIONS` maps each name to the fields that belong to it and their defaults. A field of another name is refused
    (a setting without effect is an error); the resolved defaults are written out with every run.
    """

    OPTIONS: ClassVar[dict[str, dict[str, Any]]]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("name", cls.model_fields["name"].default)
        options = cls.OPTIONS.get(name)
        if options is None:
            return value
        every = {field for fields in cls.OPTIONS.values() for field in fields}
        for field in sorted(every - set(options)):
            if value.get(field) is not None:
                users = ", ".join(n for n, fields in cls.OPTIONS.items() if field in fields)
                raise ValueError(f"{field} has no effect with name={name}; it belongs to {users}. Leave it out")
        given = {field: v for field, v in value.items() if v is not None}
        return {**options, **given}


class ModelConfig(Part):
    """Options of an architecture. Subclass it, decorate with `@register("name")`, and give it `build`.

    `divisor` is what a slice's height and width must be divisible by.
    """

    name: str

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that the network has an output for."""
        raise NotImplementedError(f"{type(self).__name__} does not say its tasks")

    @property
    def divisor(self) -> int:
        """Height and width of a slice must be multiples of this."""
        return 1

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        """The network: `forward(image_BCHW) -> Output` (braintum.models.output)."""
        raise NotImplementedError(f"{type(self).__name__} does not build a network")


C = TypeVar("C", bound=type[ModelConfig])
_REGISTRY: dict[str, tuple[type[ModelConfig], dict[str, Any]]] = {}


def register(name: str, **preset: Any) -> Callable[[C], C]:
    """Registers an architecture's options under `name`; `preset` overrides the class's defaults under that name.

    Raises ValueError if the name is taken.
    """

    def decorate(cls: C) -> C:
        if name in _REGISTRY:
            raise ValueError(
                f"architecture {name!r} is registered twice: {_REGISTRY[name][0].__name__}, {cls.__name__}"
            )
        _REGISTRY[name] = (cls, preset)
        return cls

    return decorate


def architectures() -> list[str]:
    """The names of all registered architectures, sorted."""
    return sorted(_REGISTRY)


def model_config_class(name: str) -> type[ModelConfig]:
    """The options class of an architecture. Raises ConfigError with the known names."""
    if name not in _REGISTRY:
        raise ConfigError(f"model.name: {name!r} is not an architecture; known: {', '.join(architectures())}")
    return _REGISTRY[name][0]


def _resolve_model(value: Any) -> Any:
    if isinstance(value, ModelConfig):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name", "unet"), str):
        raise ValueError("expected options with a name, such as {name: unet, width: 16}")
    value = {"name": "unet", **value}
    cls, preset = _REGISTRY.get(value["name"], (None, {}))
    if cls is None:
        raise ValueError(f"{value['name']!r} is not an architecture; known: {', '.join(architectures())}")
    try:
        return cls.model_validate_json(json.dumps({**preset, **value}))
    except ValidationError as error:  # said here: nested, pydantic would print its own several lines
        raise ValueError(_one_line(error, f"; fields of {value['name']}: {', '.join(cls.model_fields)}")) from None


class Data(Part):
    """What of the dataset is seen, and how."""

    image_size: int = Field(256, ge=16, le=2048, description="height and width that slices are resized to, pixels")
    classes: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="selects and merges labels: {class: [labels]}; slices of other labels are left out. "
        "A list [a, b] is short for {a: [a], b: [b]}. None: the card's classes",
    )
    validation: float = Field(
        0.2, gt=0, lt=1, description="share of the training part that choices inside a run may see, cut by group"
    )

    @model_validator(mode="before")
    @classmethod
    def _classes_as_map(cls, value: Any) -> Any:
        classes = value.get("classes") if isinstance(value, Mapping) else None
        if isinstance(classes, list | tuple):
            return {**value, "classes": {name: (name,) for name in classes}}
        if isinstance(classes, Mapping):  # JSON and YAML have lists only
            return {**value, "classes": {k: tuple(v) if isinstance(v, list) else v for k, v in classes.items()}}
        return value

    @model_validator(mode="after")
    def _labels_once(self) -> Self:
        labels = [label for members in (self.classes or {}).values() for label in members]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"classes: label {twice[0]!r} is in two classes")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError("classes: a classifier needs two or more classes")
        return self


class Loss(Part):
    """Loss = segmentation_weight × segmentation + classification_weight × cross-entropy.

    `bce_dice`: binary cross-entropy + 1 − soft Dice per mask channel (the U-Net paper, eq. 1 and 2).
    `dice_ce`: softmax cross-entropy over background and masks + 1 − soft Dice averaged over background and masks
    (the BrainTumNet paper, eq. 4 to 6). `dice`: 1 − soft Dice alone. Dice is per slice.
    """

    segmentation: Literal["bce_dice", "dice_ce", "dice"] = "bce_dice"
    segmentation_weight: float = Field(1.0, ge=0)
    classification_weight: float = Field(1.0, ge=0)
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: inverse class frequency")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class Optim(NamedPart):
    """The optimiser. `clip_norm`: global gradient norm, None for no clipping."""

    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "adam": {"beta1": 0.9, "beta2": 0.999},
        "adamw": {"beta1": 0.9, "beta2": 0.999},
        "sgd": {"momentum": 0.9, "nesterov": True},
    }
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-4, gt=0, le=10)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    beta1: float | None = Field(None, ge=0, lt=1)
    beta2: float | None = Field(None, ge=0, lt=1)
    momentum: float | None = Field(None, ge=0, lt=1)
    nesterov: bool | None = None


class Schedule(NamedPart):
    """The learning rate over time; `optim.lr` is its peak.

    `plateau` halves after `patience` epochs without a better validation score (per epoch); `cosine` rises linearly
    for `warmup_epochs` and falls to `final_fraction` of the peak, `one_cycle` rises by a cosine over
    `warmup_fraction` of the steps and falls to zero (both per step); `constant`.
    """

    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "plateau": {"factor": 0.5, "patience": 7},
        "cosine": {"warmup_epochs": 0.0, "final_fraction": 0.0},
        "one_cycle": {"warmup_fraction": 0.25},
        "constant": {},
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


class Training(Part):
    """How long, on what, and which weights are kept.

    `weights`: `best` keeps the epoch with the best validation score; `last` the final ones; `average` an exponential
    moving average of all steps with `average_decay`. Only `best`, `early_stopping` and the plateau schedule
    look at a validation part; without any of them all training slices are trained on.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1, description="global: shared out among the workers")
    early_stopping: int | None = Field(15, ge=1, description="epochs without a better validation score; None: off")
    weights: Literal["best", "last", "average"] = "best"
    average_decay: float | None = Field(None, gt=0, lt=1, description="per step; 0.99 when weights is average")
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast where the device gains from it"
    )

    @model_validator(mode="before")
    @classmethod
    def _average(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.get("weights") == "average" and value.get("average_decay") is None:
                return {**value, "average_decay": 0.99}
            if value.get("weights", "best") != "average" and value.get("average_decay") is not None:
                raise ValueError("average_decay has no effect with weights other than average. Leave it out")
        return value


class Experiment(Part):
    """The whole configuration of a training. Defaults are the U-Net paper's (section II-F)."""

    data: Data = Data()
    model: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_resolve_model)] = Field(
        default_factory=lambda: _resolve_model({"name": "unet"})
    )
    loss: Loss = Loss()
    optim: Optim = Field(default_factory=lambda: Optim.model_validate({}))
    schedule: Schedule = Field(default_factory=lambda: Schedule.model_validate({}))
    augment: Augment = Augment()
    training: Training = Training()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.data.image_size % self.model.divisor:
            raise ValueError(
                f"data.image_size: {self.data.image_size} is not divisible by {self.model.divisor}, "
                f"which {self.model.name} needs with these options"
            )
        if self.schedule.name == "cosine" and self.schedule.option("warmup_epochs") >= self.training.epochs:
            raise ValueError("schedule.warmup_epochs: must be less than training.epochs")
        return self

    @property
    def needs_validation(self) -> bool:
        """Whether anything is chosen inside a run, so that a validation part must be cut off."""
        chosen = self.training.weights == "best" or self.training.early_stopping is not None
        return chosen or self.schedule.name == "plateau"

    @property
    def digest(self) -> str:
        """16 hex digits that stay the same for the same resolved settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All settings, resolved, as plain JSON types; `from_dict` reads them back."""
        return self.model_dump(mode="json", exclude_none=True) | {
            "training": self.training.model_dump(mode="json")  # None there is a value: early stopping off
        }

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str = "experiment") -> Self:
        """Checks plain settings. Raises ConfigError, one line for each wrong field."""
        try:
            return cls.model_validate_json(json.dumps(settings))
        except ValidationError as error:
            raise ConfigError(f"{source}: {_one_line(error)}") from None
        except TypeError as error:  # YAML knows values that no setting has, such as dates
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def load(cls, name: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Reads a YAML file, or a recipe of `braintum/configs` by name ("papers/unet"); None gives the defaults."""
        return cls.from_dict(merge(read_settings(name), overrides or {}), str(name or "defaults"))

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with dotted paths replaced, such as {"optim.lr": 3e-4}; see `merge`."""
        return type(self).from_dict(merge(self.to_dict(), overrides), "overrides")


def read_settings(name: str | Path | None) -> dict[str, Any]:
    """Plain settings of a YAML file or of a shipped recipe by name. Raises ConfigError."""
    if name is None:
        return {}
    path = Path(name)
    recipe = resources.files("braintum") / "configs" / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        text = path.read_text()
    elif recipe.is_file():
        text = recipe.read_text()
    else:
        raise ConfigError(f"{name}: neither a .yaml file nor a recipe; recipes: {', '.join(recipes())}")
    settings = parse_yaml(text, str(name))
    if not isinstance(settings, dict):
        raise ConfigError(f"{name}: expected settings such as `optim: {{lr: 1e-4}}`")
    return settings


def recipes() -> list[str]:
    """Names of the shipped recipes, such as "papers/unet"."""
    root = Path(str(resources.files("braintum"))) / "configs"
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def merge(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted paths replaced, in the order given, names first.

    Another `name` (of the model, the optimiser, the schedule) starts that part afresh from its own defaults: the
    options that stood there belonged to something else.
    """
    merged = {part: dict(v) if isinstance(v, Mapping) else v for part, v in settings.items()}
    for path in sorted(overrides, key=lambda p: not p.endswith(".name")):
        part, _, field = path.partition(".")
        if not field or "." in field:
            raise ConfigError(f"{path}: expected a path of two parts, such as optim.lr")
        if part not in Experiment.model_fields:
            raise ConfigError(f"{path}: {part!r} is not a part; parts: {', '.join(Experiment.model_fields)}")
        value = overrides[path]
        current = merged.setdefault(part, {})
        if field == "name" and current.get("name") != value:
            merged[part] = current = {}
        current[field] = value
    return merged


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["optim.lr=3e-4"]` as {"optim.lr": 0.0003}; values are YAML. Raises ConfigError."""
    parsed = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected path=value, such as optim.lr=3e-4")
        parsed[path.strip()] = parse_yaml(value, f"--set {assignment}")
    return parsed


def json_schema() -> dict[str, Any]:
    """JSON Schema of Experiment, with the options of every registered architecture under `model`."""
    schema = Experiment.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    options = []
    for name in architectures():
        cls, preset = _REGISTRY[name]
        model = cls.model_json_schema()
        definitions.update(model.pop("$defs", {}))
        model["properties"]["name"] = {"const": name}
        for field, value in preset.items():
            model["properties"][field]["default"] = value
        definitions[f"model_{name}"] = model
        options.append({"$ref": f"#/$defs/model_{name}"})
    definitions.pop("ModelConfig", None)
    schema["properties"]["model"] = {"oneOf": options, "default": {"name": "unet"}}
    return schema


def _one_line(error: ValidationError, near: str | None = None) -> str:
    """A pydantic error as `field: value: what is allowed`, joined by semicolons; `near`: what an unknown field gets."""
    lines = []
    for item in error.errors():
        where = ".".join(str(x) for x in item["loc"])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        value = item.get("input")
        if item["type"] == "extra_forbidden":
            message = "no such field" + (_near(item["loc"]) if near is None else near)
        elif not isinstance(value, Mapping | BaseModel):
            message = f"{value!r}: {message}"
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(lines)


def _near(where: tuple[int | str, ...]) -> str:
    """The fields that stand beside an unknown one."""
    parts: dict[str, type[BaseModel]] = {
        "data": Data, "loss": Loss, "optim": Optim, "schedule": Schedule, "augment": Augment, "training": Training,
    }  # fmt: skip
    if len(where) == 1:
        return f"; parts: {', '.join(Experiment.model_fields)}"
    part = parts.get(str(where[0]))
    return f"; fields: {', '.join(part.model_fields)}" if part else ""
