"""What settings are made of: frozen strict parts, YAML, and errors of one line.

This module and all that stand on it up to `braintum.config` import neither torch nor Ray, so that a configuration or
a search space is checked in milliseconds on any machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

Where = tuple[int | str, ...]
"""The path to a field, as pydantic gives it."""


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that names the field, the value and what is allowed."""


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string (it wants a dot); people write it in every recipe, so here it is a float.

    Dates stay the strings they are written as: no setting is one. A key that stands twice in one mapping is refused:
    PyYAML would take the last in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        line_of: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in line_of:
                first = line_of[key.value]
                raise ConfigError(f"line {line}: {key.value}: stands there twice, first in line {first}; remove one")
            line_of[key.value] = line
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag != "tag:yaml.org,2002:timestamp"]
    for first, forms in _Yaml.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Parses YAML (floats such as `1e-4` included). Raises ConfigError naming `source` and the line."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return yaml.load(text, Loader=_Yaml)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, (error.problem or "").replace("'<stream end>'", "the end")
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source}: not valid YAML: {where}{problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character, or a tag (`!!float x`) that does not fit
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None


class Part(BaseModel):
    """A frozen, strict part of an Experiment: unknown fields and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def option(self, field: str) -> Any:
        """The value of an option that this part's choices use.

        For fields that are None unless used (see `PartWithOptions`); reading one that is not is a bug, not a setting.
        """
        value = getattr(self, field)
        if value is None:
            raise AssertionError(f"{type(self).__name__}.{field} is not an option of {self}")
        return value


class PartWithOptions(Part):
    """A part some of whose fields, such as `name`, decide which other fields have an effect.

    `OPTIONS` maps each deciding field to its values, and these to the fields that belong to them and their defaults. A
    field of another value is refused (a setting without effect is an error); the resolved defaults are written out with
    every run. None stands for an option that is not given, and is a value like any other elsewhere.
    """

    OPTIONS: ClassVar[dict[str, dict[str, dict[str, Any]]]]

    @classmethod
    def options_of(cls, decider: str) -> dict[str, None]:
        """The fields that belong to any value of a deciding field, in order."""
        return {field: None for fields in cls.OPTIONS[decider].values() for field in fields}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        filled = dict(value)
        for decider, of_values in cls.OPTIONS.items():
            chosen = value.get(decider, cls.model_fields[decider].default)
            options = of_values.get(chosen) if isinstance(chosen, str) else None
            if options is None:  # for pydantic to refuse
                continue
            for field in sorted(cls.options_of(decider).keys() - options):
                if value.get(field) is not None:
                    users = ", ".join(v for v, fields in of_values.items() if field in fields)
                    raise ValueError(
                        f"{field} has no effect with {decider}={chosen}; it belongs to {users}. Leave it out"
                    )
            filled |= {field: default for field, default in options.items() if value.get(field) is None}
        return filled


_MEMBER = re.compile(r"str|int|float|bool|(literal|dict|tuple)\[.*")
"""What pydantic adds to the place of an error for each member of a union."""


def one_line(error: ValidationError, near: Callable[[Where], str]) -> str:
    """A pydantic error as `field: value: what is allowed`, joined by semicolons.

    `near`: from the place of an unknown field to what the message says of the fields that there are.
    """
    items = [item for item in error.errors() if not _follows(item)]
    unions = _unions([item["loc"] for item in items])
    lines: dict[Any, str] = {}
    for item in items:
        place, value, message = item["loc"], item.get("input"), _message(item, near)
        union = next((place[:i] for i in range(len(place)) if place[:i] in unions), None)
        if union is not None and union in lines:  # what another member would take
            if len(place) == len(union) + 1:
                lines[union] += f" or {message.removeprefix('Input should be ')}"
            continue
        if not isinstance(value, Mapping | BaseModel) and item["type"] not in ("extra_forbidden", "missing"):
            message = f"{value!r}: {message}"
        where = ".".join(map(str, place if union is None else union))
        line = f"{where}: {message}" if where else message
        lines[line if union is None else union] = line
    return "; ".join(lines.values())


def _message(item: ErrorDetails, near: Callable[[Where], str]) -> str:
    limits = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            return "no such field" + near(item["loc"])
        case "missing":
            return "missing"
        case "too_short":
            return f"expected {limits['min_length']} or more, found {limits['actual_length'] or 'none'}"
        case "too_long":
            return f"expected {limits['max_length']}, found {limits['actual_length']}"
    return item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _follows(item: ErrorDetails) -> bool:
    """Whether entries are too few only because those that are there cannot be used, which is said of each."""
    return item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]


def _unions(places: list[Where]) -> set[Where]:
    """Where an error is of a union: that is, of several of its members."""
    members: dict[Where, set[str]] = defaultdict(set)
    for place in places:
        for i, part in enumerate(place):
            if isinstance(part, str) and _MEMBER.fullmatch(part):
                members[place[:i]].add(part)
    return {place for place, found in members.items() if len(found) > 1}
