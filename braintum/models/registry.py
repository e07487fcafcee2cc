"""The registry of architectures: what can be asked of each, by name.

An architecture registers its options (`@register`, see the files beside this one); its network is imported when it is
built, so that nothing here needs torch.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from braintum.settings import ConfigError, Part, one_line

if TYPE_CHECKING:
    from torch import nn

Task = Literal["segmentation", "classification"]


class ModelConfig(Part):
    """Options of an architecture. Subclass it, decorate with `@register("name")`, and give it `build`.

    `SMALL`: options with which the architecture is as small as it can sensibly be, for tests and for a first look on a
    CPU; it then takes slices of 32×32.
    """

    SMALL: ClassVar[dict[str, Any]] = {}
    VARIANTS: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Further options, beside those that a type lists, that the contract test tries on top of SMALL."""

    name: str
    init_from: str | None = Field(
        None,
        min_length=1,
        description="safetensors file or URL whose weights a training starts from, as far as they fit",
    )

    @field_validator("init_from")
    @classmethod
    def _seen_from_everywhere(cls, url: str | None) -> str | None:
        """A worker's working directory, and home, are others than those in which a path was meant."""
        return url if url is None or "://" in url else os.path.abspath(os.path.expanduser(url))

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that the network has an output for."""
        raise NotImplementedError(f"{type(self).__name__} does not say its tasks")

    def for_size(self, side: int) -> Self:
        """These options with those that follow from the slices' height and width filled in, where they are None.

        An Experiment holds the result, so that what is recorded and saved says how the network was built.
        """
        return self

    @property
    def divisor(self) -> int:
        """Height and width of a slice must be multiples of this."""
        return 1

    @property
    def smallest(self) -> int:
        """The smallest height and width of a slice."""
        return self.divisor

    @property
    def smallest_batch(self) -> int:
        """The fewest slices that a worker can be trained on at a time, at the smallest height and width."""
        return 1

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        """The network: `forward(image_BCHW) -> Output` (braintum.models.output)."""
        raise NotImplementedError(f"{type(self).__name__} does not build a network")


class SegmenterConfig(ModelConfig):
    """Options that every segmenter has: a classification head on its deepest features, so that all compare."""

    classify: bool = Field(False, description="a classification head on the deepest features")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="before the last layer of the head, 0.5 if none; needs classify"
    )

    @model_validator(mode="after")
    def _dropout_has_an_effect(self) -> Self:
        if self.dropout is not None and not self.classify:
            raise ValueError("dropout has no effect with classify=false. Leave it out")
        return self

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset(("segmentation", "classification") if self.classify else ("segmentation",))


class SliceClassifierConfig(ModelConfig):
    """Options that every network that only classifies has. Its class gives `dropout` the published rate, if not 0."""

    dropout: float = Field(0.0, ge=0, lt=1, description="before the last layer")

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset(("classification",))


C = TypeVar("C", bound=type[ModelConfig])
_REGISTRY: dict[str, tuple[type[ModelConfig], dict[str, Any]]] = {}
_BROKEN: dict[str, str] = {}
"""Why an architecture of another package is not there, by the name of its entry point."""


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


def load_entry_points() -> None:
    """Imports the modules that installed packages name in the group `braintum.models`.

    One that cannot be imported is no reason for the others to fail: it is said where its name is asked for.
    """
    for entry in entry_points(group="braintum.models"):
        try:
            entry.load()
        except Exception as error:  # noqa: BLE001 - other people's code may raise anything
            package = entry.dist.name if entry.dist is not None else entry.value
            _BROKEN[entry.name] = f"{package} cannot be loaded: {type(error).__name__}: {error}"


def _unknown(name: str) -> str:
    if name in _BROKEN:
        return f"{name!r}: {_BROKEN[name]}"
    command = ", but a command of its own: braintum cascade --help" if name == "cascade" else ""
    return f"{name!r} is not an architecture{command}; known: {', '.join(architectures())}"


def architectures() -> list[str]:
    """The names of all registered architectures, sorted."""
    return sorted(_REGISTRY)


def model_config_class(name: str) -> type[ModelConfig]:
    """The options class of an architecture. Raises ConfigError with the known names."""
    if name not in _REGISTRY:
        raise ConfigError(f"model.name: {_unknown(name)}")
    return _REGISTRY[name][0]


def resolve_model(value: Any) -> Any:
    """Plain options with a `name` as the options of that architecture, its preset applied. Raises ValueError."""
    if isinstance(value, ModelConfig):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name", "unet"), str):
        raise ValueError("expected options with a name, such as {name: unet, width: 16}")
    value = {"name": "unet", **value}
    cls, preset = _REGISTRY.get(value["name"], (None, {}))
    if cls is None:
        raise ValueError(_unknown(value["name"]))
    try:
        return cls.model_validate_json(json.dumps({**preset, **value}))
    except ValidationError as error:  # said here: nested, pydantic would print its own several lines
        fields = f"; fields of {value['name']}: {', '.join(cls.model_fields)}"
        raise ValueError(one_line(error, lambda _: fields)) from None


def without_derived(options: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Options without those that would be filled in alike if they were left out: by others of them, or by `side`.

    What is saved has them. Where another option or size is asked for they must follow it, and not stand as if chosen.
    """
    kept = dict(options)
    cls, _ = _REGISTRY.get(str(kept.get("name", "unet")), (None, {}))
    optional = () if cls is None else tuple(name for name, info in cls.model_fields.items() if info.default is None)
    for field in optional:
        if kept.get(field) is not None:
            bare = {name: value for name, value in kept.items() if name != field}
            try:
                filled = resolve_model(bare).for_size(side).model_dump(mode="json")
            except ValueError:  # it is needed, or something else is wrong, which is said later
                continue
            if filled[field] == kept[field]:
                kept = bare
    return kept


def options_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of each architecture's options, with its preset's values as defaults."""
    schemas = {}
    for name in architectures():
        cls, preset = _REGISTRY[name]
        schemas[name] = schema = cls.model_json_schema()
        schema["properties"]["name"] = {"const": name}
        named = set() if name == "unet" else {"name"}  # options without a name are a unet's
        schema["required"] = sorted(named | set(schema.get("required", ())))
        for field, value in preset.items():
            schema["properties"][field]["default"] = value
    return schemas
