"""A search space: a YAML file that says which Experiments a study may try (format: `search_spaces/*.yaml`).

This module imports neither torch nor Ray, so that a space is checked in well under a second before anything starts
(`braintum/tuning/space_check.py` holds the checks). Paths are fields of Experiment, such as `optim.lr`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from braintum.config import Experiment, merge, parse_settings, read_settings
from braintum.models.registry import architectures
from braintum.settings import ConfigError, Part, Where, one_line, parse_yaml
from braintum.tuning.parameter import Parameter, Scalar, holds
from braintum.tuning.parts import COSTS, Budget, Racing, Resources, Sampler, Scheduler

if TYPE_CHECKING:
    import optuna

ARCHITECTURE = "model.name"
"""The path under which a joint study asks Optuna for the architecture."""
_NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
_NAMING = "expected letters A to Z, digits, _ and -, a letter or digit first"

METRIC_TASK = {
    "dice": "segmentation",
    "dice_all": "segmentation",
    "iou": "segmentation",
    "pixel_accuracy": "segmentation",
    "accuracy": "classification",
    "macro_f1": "classification",
}
"""The metrics that are known after every epoch, all the better the larger, and the task each belongs to."""


def _by_name(names: Any) -> Any:
    """A list of architectures as a mapping without overrides of their own."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        if len(set(names)) < len(names):
            raise ValueError("an architecture stands there twice")
        return {name: {} for name in names}
    return names


class SearchSpace(Part):
    """A checked search space. `load` reads one; `suggest` and `experiment` turn it into trials.

    One without `parameters` is a comparison: there is nothing to choose, so it has no trials, and each architecture is
    cross-validated with its own settings.
    """

    name: str
    architectures: Annotated[dict[str, dict[str, Any]], BeforeValidator(_by_name)] = Field(
        min_length=1,
        description="a list, or a mapping of each to overrides of its own, {unet: {model.width: 8}}; an entry of "
        "another name says what it is, {no_cbam: {model.name: braintumnet, model.cbam: false}}",
    )
    joint: bool = Field(False, description="one study of all architectures, instead of one each")
    base: str | dict[str, Any] | None = Field(
        None, description="a recipe, a .yaml file (from the space's folder) or URL, or settings; None: the defaults"
    )
    overrides: dict[str, Any] = Field({}, description="path: value, on top of the base")
    folds: int | None = Field(None, ge=2, description="None: all that the source has, else 5")
    trials: int = Field(0, ge=0, description="in all, shared out equally among the architectures")
    seeds: int = Field(1, ge=1, description="how often each winner is cross-validated, each time with another seed")
    resources: Resources = Resources()
    score: dict[str, float] = Field({"dice": 0.5, "macro_f1": 0.5}, min_length=1, description="metric: weight")
    objectives: tuple[str, ...] = Field(
        (), description="metrics and costs: the winner is chosen on their Pareto front, as the study's summary says"
    )
    sampler: Sampler = Sampler()
    scheduler: Scheduler = Field(default_factory=lambda: Scheduler.model_validate({}))
    budget: Budget = Field(Budget(), description="no trial is placed that would not end within it")
    racing: Racing | None = Field(None, description="stops trials that have lost at the end of a fold; None: does not")
    parameters: dict[str, Parameter] = Field({}, description="what is searched; without any it is a comparison")

    @model_validator(mode="after")
    def _has_something_to_try(self) -> Self:
        if self.parameters and not self.trials:
            raise ValueError("trials: expected 1 or more, found none")
        fields = type(self).model_fields
        idle = [f for f in ("trials", "joint", "objectives", "score", "scheduler", "budget", "racing")
                if getattr(self, f) != fields[f].get_default(call_default_factory=True)]  # fmt: skip
        for field in [*idle, *(["sampler.name"] if self.sampler.name != Sampler().name else [])]:
            if not self.parameters:
                raise ValueError(f"{field}: has no effect without parameters: nothing is searched. Leave it out")
        return self

    @field_validator("name")
    @classmethod
    def _of_a_study(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(_NAMING)
        return name

    @field_validator("architectures")
    @classmethod
    def _known(cls, entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        known = architectures()
        for entry, own in entries.items():
            name = own.get(ARCHITECTURE, entry)
            if name == "cascade":
                raise ValueError("cascade is a command of its own, of two trainings: braintum cascade --help")
            if name not in known:
                raise ValueError(
                    f"{name!r} is not an architecture; known: {', '.join(known)}. An entry of another name says which "
                    f"it is: {{{ARCHITECTURE}: {known[0]}}}"
                )
            if name != entry and (entry in known or not re.fullmatch(_NAME, entry)):
                raise ValueError(f"{entry!r} cannot stand for {name}: {_NAMING}, and no other architecture's name")
        return entries

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(objectives):
            if name not in METRIC_TASK and name not in COSTS:
                raise ValueError(f"{name!r} is not known; choose from {', '.join([*METRIC_TASK, *COSTS])}")
            if name in objectives[:i]:
                raise ValueError(f"{name!r} stands there twice; remove one")
        return objectives

    @field_validator("score")
    @classmethod
    def _weights(cls, score: dict[str, float]) -> dict[str, float]:
        for metric, weight in score.items():
            if metric not in METRIC_TASK:
                raise ValueError(f"{metric!r} is not known after every epoch; choose from {', '.join(METRIC_TASK)}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"{metric}: {weight}: the weight must be above 0")
        return score

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        trials: int | None = None,
        folds: int | None = None,
        seeds: int | None = None,
        budget: Mapping[str, float] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """Reads and checks a space at a path or URL; what else is given replaces what it says.

        A path that is no file may name one of braintum's own ("quick", "search_spaces/quick.yaml"). A `base` that is
        a file is looked for beside the space.
        Raises ConfigError: one line with the file, the field and what is allowed.
        """
        from braintum.tuning.space_check import check, refuse_without_effect

        missing = f"{path}: no such file; a search space is a .yaml file, or one of braintum's: {', '.join(shipped())}"
        path = _found(str(path))
        settings = parse_yaml(_read(str(path), missing), str(path))
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: expected a search space: name, architectures, trials, parameters ...")
        base = settings.get("base")
        if isinstance(base, str) and base.endswith((".yaml", ".yml")):
            place = _beside(str(path), base)
            settings = {**settings, "base": parse_settings(_read(place, f"{path}: base: {place}: no such file"), place)}
        options = {"trials": trials, "folds": folds, "seeds": seeds}
        given: dict[str, Any] = {field: value for field, value in options.items() if value is not None}
        if budget:
            own_budget = settings.get("budget")
            given["budget"] = {**(own_budget if isinstance(own_budget, dict) else {}), **budget}
        try:
            space = cls.model_validate_json(json.dumps({**settings, **given}))
        except ValidationError as error:
            raise ConfigError(f"{path}: {one_line(error, _siblings)}") from None
        except (TypeError, ValueError) as error:  # YAML has values that JSON lacks: bytes, a list in itself
            raise ConfigError(f"{path}: {error}") from None
        for name in sorted(set(overrides or {}) & set(space.parameters)):
            raise ConfigError(f"--set {name}: is searched; to fix it take it out of `parameters` in {path}")
        own = {n: {p: v for p, v in o.items() if p not in (overrides or {})} for n, o in space.architectures.items()}
        space = space.model_copy(update={"overrides": {**space.overrides, **(overrides or {})}, "architectures": own})
        try:
            check(space)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        for name in overrides or {}:
            refuse_without_effect(space, name)
        return space

    @cached_property
    def _base(self) -> dict[str, Any]:
        return self.base if isinstance(self.base, dict) else read_settings(self.base)

    def experiment(self, architecture: str, values: Mapping[str, Any]) -> Experiment:
        """The Experiment of a trial: the base, the overrides (the architecture's own last), then the trial's values.

        Raises ConfigError.
        """
        own = self.architectures[architecture]
        paths = {**self.overrides, ARCHITECTURE: architecture, **own, **values}
        return Experiment.from_dict(merge(self._base, paths), architecture)

    def model_name(self, architecture: str) -> str:
        """What the registry calls an entry of `architectures`."""
        return str(self.architectures[architecture].get(ARCHITECTURE, architecture))

    def fixed(self, architecture: str) -> dict[str, Any]:
        """Every setting that is not searched by its path, and `tasks`: what conditions are compared with."""
        return self._fixed[architecture]

    @cached_property
    def _fixed(self) -> dict[str, dict[str, Any]]:
        return {name: {p: v for p, v in facts.items() if p not in self.parameters} for name, facts in self._all.items()}

    @cached_property
    def _all(self) -> dict[str, dict[str, Any]]:
        settings = {}
        for name in self.architectures:
            experiment = self.experiment(name, {})
            parts, tasks = experiment.to_dict(), experiment.model.tasks
            settings[name] = {f"{part}.{field}": v for part, fields in parts.items() for field, v in fields.items()}
            settings[name]["tasks"] = "both" if len(tasks) == 2 else next(iter(tasks))
        return settings

    def may_exist(self, path: str, architecture: str) -> bool:
        """Whether a parameter's conditions on what is fixed hold for an architecture; others depend on the trial."""
        when = self.parameters[path].when
        fixed = {cause: values for cause, values in when.items() if cause not in self.parameters}
        return holds(fixed, self.fixed(architecture))

    def suggest(self, trial: optuna.trial.BaseTrial, architecture: str | None = None) -> tuple[str, dict[str, Scalar]]:
        """Asks Optuna for an architecture (where none is given: a joint study) and for each parameter that exists.

        Conditions are resolved in the order of the file.
        """
        if architecture is None:
            architecture = trial.suggest_categorical(ARCHITECTURE, list(self.architectures))
        values: dict[str, Scalar] = {}
        for path, parameter in self.parameters.items():
            if holds(parameter.when, {**self._fixed[architecture], **values}):
                values[path] = parameter.suggest(path, trial)
        return architecture, values

    def defaults(self, architecture: str) -> dict[str, Scalar]:
        """The base's own values, for a first trial to enqueue; those outside their range are left to the sampler.

        A joint study's hold the architecture too.
        """
        values: dict[str, Scalar] = {}
        for path, parameter in self.parameters.items():
            value = self._all[architecture].get(path)
            if holds(parameter.when, {**self._fixed[architecture], **values}) and value in parameter:
                values[path] = value
        return {ARCHITECTURE: architecture, **values} if self.joint else values

    def shares(self) -> dict[str, int]:
        """Studies by name and the trials of each: one for every architecture, or one joint study of all.

        None of a comparison.
        """
        if not self.parameters:
            return {}
        if self.joint:
            shares = {self.name: self.trials}
        else:
            each, rest = divmod(self.trials, len(self.architectures))
            shares = {name: each + (i < rest) for i, name in enumerate(self.architectures)}
        if self.sampler.name != "grid":
            return shares
        return {name: min(share, len(self.grid(None if self.joint else name))) for name, share in shares.items()}

    def grid(self, architecture: str | None) -> list[dict[str, Scalar]]:
        """Every combination of values that a trial may have, in the order of the file; None: of a joint study."""
        if architecture is not None:
            return self._grids[architecture]
        return [{ARCHITECTURE: name, **point} for name, points in self._grids.items() for point in points]

    @cached_property
    def _grids(self) -> dict[str, list[dict[str, Scalar]]]:
        grids: dict[str, list[dict[str, Scalar]]] = {}
        for name in self.architectures:
            points: list[dict[str, Scalar]] = [{}]
            for path, parameter in self.parameters.items():
                points = [
                    {**point, **more}
                    for point in points
                    for more in (
                        [{path: value} for value in parameter.all_values]
                        if holds(parameter.when, {**self._fixed[name], **point})
                        else [{}]
                    )
                ]
            grids[name] = points
        return grids

    def settings(self) -> dict[str, Any]:
        """All but `trials`, `seeds`, `resources` and `budget`, as plain values."""
        return self.model_dump(mode="json", by_alias=True, exclude=self._left_out)

    @property
    def _left_out(self) -> set[str]:
        """What a study may be resumed with another one of, and a field that is as if it were not there."""
        return {
            "trials",
            "seeds",
            "resources",
            "budget",
            *(field for field in ("objectives", "racing") if not getattr(self, field)),
        }

    @property
    def digest(self) -> str:
        """16 hex digits of all that decides what a trial means: not of `trials`, `seeds`, `resources` and `budget`."""
        settings = self.model_dump(mode="json", exclude=self._left_out)
        bases = [self.experiment(architecture, {}).to_dict() for architecture in self.architectures]
        return hashlib.sha256(json.dumps([settings, bases]).encode()).hexdigest()[:16]


def shipped() -> dict[str, Path]:
    """The search spaces that come with braintum, by name: in a wheel inside the package, in a checkout beside it."""
    package = Path(str(resources.files("braintum")))
    files = [*(package / "search_spaces").glob("*.yaml")] or [*(package.parent / "search_spaces").glob("*.yaml")]
    return {file.stem: file for file in sorted(files)}


def _found(path: str) -> str:
    """`path`, or the file of the shipped space that it names where there is no such file."""
    if "://" in path or Path(path).exists():
        return path
    return str(shipped().get(path.removeprefix("search_spaces/").removesuffix(".yaml"), path))


def _read(place: str, if_missing: str) -> bytes:
    """The content of a file or URL. Raises ConfigError where there is none."""
    try:
        if "://" not in place:
            return Path(place).read_bytes()
        from braintum.storage import read_bytes

        return read_bytes(place)
    except IsADirectoryError:
        raise ConfigError(f"{place}: a folder; give a .yaml file in it") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(if_missing) from None


def _beside(place: str, name: str) -> str:
    """`name` from the folder of the file or URL `place`; absolute paths and URLs stay what they are."""
    if "://" in name or os.path.isabs(name):
        return name
    scheme, mark, path = place.rpartition("://")
    return scheme + mark + os.path.normpath(os.path.join(os.path.dirname(path), name))


def _siblings(where: Where) -> str:
    """What an error says of an unknown field of a space: the fields that stand there."""
    parts: dict[str, type[Part]] = {
        "resources": Resources,
        "sampler": Sampler,
        "scheduler": Scheduler,
        "budget": Budget,
        "racing": Racing,
        "parameters": Parameter,
    }
    cls: type[Part] = SearchSpace if len(where) == 1 else parts[str(where[0])]
    return f"; fields: {', '.join(field.alias or name for name, field in cls.model_fields.items())}"
