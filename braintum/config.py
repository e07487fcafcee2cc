"""Experiment: the whole configuration of one training.

It is made of the parts in `braintum.parts`. `Experiment.load` reads YAML, `with_overrides` applies `a.b=c`, `digest`
names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from braintum.models.registry import ModelConfig, Task, options_schemas, resolve_model, without_derived
from braintum.parts import Augment, Data, Loss, Optim, Schedule, Training
from braintum.settings import ConfigError, Part, PartWithOptions, Where, one_line, parse_yaml


class Experiment(Part):
    """The whole configuration of a training. Defaults are the U-Net paper's (section II-F)."""

    data: Data = Data()
    model: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(resolve_model)] = Field(
        default_factory=lambda: resolve_model({"name": "unet"}), validate_default=True
    )
    loss: Loss = Loss()
    optim: Optim = Field(default_factory=lambda: Optim.model_validate({}))
    schedule: Schedule = Field(default_factory=lambda: Schedule.model_validate({}))
    augment: Augment = Augment()
    training: Training = Training()

    @field_validator("model")
    @classmethod
    def _of_the_slices_size(cls, model: ModelConfig, info: ValidationInfo) -> ModelConfig:
        return model.for_size(info.data["data"].image_size) if "data" in info.data else model

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.data.image_size % self.model.divisor:
            below = self.data.image_size // self.model.divisor * self.model.divisor
            raise ValueError(
                f"data.image_size: {self.data.image_size} is not divisible by {self.model.divisor}, "
                f"which {self.model.name} needs with these options; nearest are "
                + " and ".join(str(side) for side in (below, below + self.model.divisor) if side >= self.model.smallest)
            )
        if self.data.image_size < self.model.smallest:
            raise ValueError(
                f"data.image_size: {self.data.image_size} is too small for {self.model.name} with these options, "
                f"which needs {self.model.smallest} or more"
            )
        if self.data.region != "whole" and "segmentation" in self.model.tasks:
            raise ValueError(
                f"data.region: {self.data.region!r} would show {self.model.name} what it has to find; set it to whole, "
                "or choose a model that only classifies"
            )
        if self.training.half_size and self.needs_validation:
            raise ValueError(
                "training.half_size: choices inside a run compare its epochs, and those at half size do not compare: "
                "set it to 0, or use weights last or average, no early stopping, and another schedule than plateau"
            )
        weight = {"segmentation": self.loss.segmentation_weight, "classification": self.loss.classification_weight}
        if self.loss.balancing == "fixed" and not any(weight[task] for task in self.model.tasks):
            raise ValueError(f"loss: every task of {self.model.name} has weight 0, so nothing would be trained")
        if self.schedule.name == "cosine" and self.schedule.option("warmup_epochs") >= self.training.epochs:
            raise ValueError("schedule.warmup_epochs: must be less than training.epochs")
        return self

    @property
    def half_side(self) -> int:
        """Pixels of a side in epochs at half size: half the slice's, or the next larger that the model takes."""
        divisor = self.model.divisor
        return max(self.model.smallest, -(-self.data.image_size // (2 * divisor)) * divisor)

    @property
    def needs_validation(self) -> bool:
        """Whether anything is chosen inside a run, so that a validation part must be cut off."""
        chosen = self.training.weights == "best" or self.training.early_stopping is not None
        return chosen or self.schedule.name == "plateau"

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that do nothing here, by path, and why.

        A recipe may hold them, for other architectures; to ask for one, or to search it, is a mistake.
        """
        name, tasks = self.model.name, self.model.tasks
        found: dict[str, str] = {}
        for task, paths in _OF_TASK.items():
            if task not in tasks:
                found |= dict.fromkeys((*paths, *_OF_BOTH_TASKS), f"on {name}, which has {' and '.join(tasks)} only")
        if not self.needs_validation:
            found["data.validation"] = "where nothing is chosen by it (weights best, early stopping or plateau)"
        if self.training.half_size and self.half_side >= self.data.image_size:
            found["training.half_size"] = f"on {name}, which takes no slices smaller than {self.half_side} pixels"
        return found

    @property
    def digest(self) -> str:
        """16 hex digits that stay the same for the same resolved settings."""
        return digest_of(self.to_dict())

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
            raise ConfigError(f"{source}: {one_line(error, _near)}") from None
        except (TypeError, ValueError) as error:  # YAML knows values that no setting has: bytes, a list in itself
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def load(cls, name: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Reads a YAML file, or a recipe of `braintum/configs` by name ("papers/unet"); None gives the defaults."""
        return cls.from_dict(merge(read_settings(name), overrides or {}), str(name or "defaults"))

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with dotted paths replaced, such as {"optim.lr": 3e-4}; see `merge`."""
        return type(self).from_dict(merge(self.to_dict(), overrides), "overrides")


def digest_of(settings: Mapping[str, Any]) -> str:
    """16 hex digits that name plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


_OF_TASK: dict[Task, tuple[str, ...]] = {
    "segmentation": (
        "loss.segmentation",
        "loss.segmentation_weight",
        *(f"loss.{option}" for option in Loss.options_of("segmentation")),
    ),
    "classification": ("loss.classification_weight", "loss.class_weights", "loss.label_smoothing"),
}
"""Settings of one task, without effect on an architecture that lacks it."""

_OF_BOTH_TASKS = (
    "loss.balancing",
    *(f"loss.{option}" for option in Loss.options_of("balancing") if option not in Loss.OPTIONS["balancing"]["fixed"]),
)
"""Settings of how two tasks are weighed, without effect on an architecture that has one."""

_DEFAULTS = Experiment()
"""What stands where nothing else is said."""

_DECIDES: dict[str, list[str]] = {
    f"{part}.{decider}": list(value.options_of(decider))
    for part, value in _DEFAULTS
    if isinstance(value, PartWithOptions)
    for decider in value.OPTIONS
    if decider != "name"
}
"""Settings whose value decides which others of the same part have an effect: those, by path."""


def read_settings(name: str | Path | None) -> dict[str, Any]:
    """Plain settings of a YAML file or of a shipped recipe by name. Raises ConfigError."""
    if name is None:
        return {}
    path = Path(name)
    recipe = resources.files("braintum") / "configs" / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml"):
        if path.is_dir():
            raise ConfigError(f"{name}: a folder; give a .yaml file in it")
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        return parse_settings(path.read_bytes(), str(name))
    if recipe.is_file():
        return parse_settings(recipe.read_bytes(), str(name))
    raise ConfigError(f"{name}: neither a .yaml file nor a recipe; recipes: {', '.join(recipes())}")


def parse_settings(text: bytes, source: str) -> dict[str, Any]:
    """Plain settings of YAML text; a part without content has its defaults. Raises ConfigError naming `source`."""
    settings = parse_yaml(text, source)
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: expected settings such as `optim: {{lr: 1e-4}}`")
    return {part: {} if fields is None else fields for part, fields in settings.items()}


def recipes() -> list[str]:
    """Names of the shipped recipes, such as "papers/unet"."""
    root = Path(str(resources.files("braintum"))) / "configs"
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def merge(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted paths replaced, in the order given, names first.

    Another `name` (of the model, the optimiser, the schedule) starts that part afresh from its own defaults: the
    options that stood there belonged to something else. So does another value of a setting that has options
    (`loss.balancing`, `training.weights`) with these. Options of the model that were filled in from others, or from the
    slices' size, follow what is asked for.
    """
    merged = {part: dict(v) if isinstance(v, Mapping) else v for part, v in settings.items()}
    if any(path == "data.image_size" or path.startswith("model.") for path in overrides):
        _let_follow(merged)
    for path in sorted(overrides, key=lambda p: not p.endswith(".name")):
        part, _, field = path.partition(".")
        if not field or "." in field:
            raise ConfigError(f"{path}: expected a path of two parts, such as optim.lr")
        if part not in Experiment.model_fields:
            raise ConfigError(f"{path}: {part!r} is not a part; parts: {', '.join(Experiment.model_fields)}")
        value = overrides[path]
        current = merged.setdefault(part, {})
        if not isinstance(current, dict):
            continue  # for `from_dict` to refuse
        if current.get(field, getattr(getattr(_DEFAULTS, part), field, None)) != value:
            if field == "name":
                merged[part] = current = {}
            for option in _DECIDES.get(path, []):
                if f"{part}.{option}" not in overrides:
                    current.pop(option, None)
        current[field] = value
    return merged


def _let_follow(settings: dict[str, Any]) -> None:
    """Takes out the model's options that follow from the slices' size, or from other options."""
    model, data = settings.get("model"), settings.get("data", {})
    side = data.get("image_size", Data().image_size) if isinstance(data, dict) else None
    if isinstance(model, dict) and isinstance(side, int):
        settings["model"] = without_derived(model, side)


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["optim.lr=3e-4"]` as {"optim.lr": 0.0003}; values are YAML. Raises ConfigError."""
    parsed = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected path=value, such as optim.lr=3e-4")
        if not value.strip():
            raise ConfigError(f"--set {assignment}: no value, as of a variable that is not set; give null for none")
        parsed[path.strip()] = parse_yaml(value, f"--set {assignment}")
    return parsed


def json_schema() -> dict[str, Any]:
    """JSON Schema of Experiment, with the options of every registered architecture under `model`."""
    schema = Experiment.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    options = []
    for name, model in options_schemas().items():
        definitions.update(model.pop("$defs", {}))
        definitions[f"model_{name}"] = model
        options.append({"$ref": f"#/$defs/model_{name}"})
    definitions.pop("ModelConfig", None)
    schema["properties"]["model"] = {"oneOf": options, "default": {"name": "unet"}}
    return schema


def _near(where: Where) -> str:
    """The fields that stand beside an unknown one."""
    parts: dict[str, type[BaseModel]] = {
        "data": Data, "loss": Loss, "optim": Optim, "schedule": Schedule, "augment": Augment, "training": Training,
    }  # fmt: skip
    if len(where) == 1:
        return f"; parts: {', '.join(Experiment.model_fields)}"
    part = parts.get(str(where[0]))
    return f"; fields: {', '.join(part.model_fields)}" if part else ""
