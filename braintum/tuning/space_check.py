"""Checks of a search space against the Experiment's schema, made before anything starts. No torch, no Ray.

Every parameter is tried at its ends (and every choice) for every architecture it exists for, alone and together with
every other one, so that a study does not fail an hour in on a combination that could never train.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from braintum.config import Experiment
from braintum.models.registry import model_config_class
from braintum.settings import ConfigError, Part
from braintum.tuning.parameter import Scalar, allowed, same

if TYPE_CHECKING:
    from braintum.tuning.space import SearchSpace

MOST_POINTS = 10_000
"""Combinations that a grid may have."""
TASKS = ("segmentation", "classification", "both")


def check(space: SearchSpace) -> None:
    """Raises ConfigError, one line, for the first thing in the space that cannot be used."""
    from braintum.tuning.parts import COSTS
    from braintum.tuning.space import ARCHITECTURE, METRIC_TASK

    if space.parameters and not space.joint and space.trials < len(space.architectures):
        raise ConfigError(
            f"trials: {space.trials}: too few for {len(space.architectures)} architectures; give at least one each"
        )
    for_all = {*space.overrides, *space.parameters}
    if ARCHITECTURE in for_all:
        raise ConfigError(f"{ARCHITECTURE}: architectures are listed under `architectures`")
    if "training.seed" in for_all.union(*space.architectures.values()):
        raise ConfigError("training.seed: has no effect, since each trial has a seed of its own; set sampler.seed")
    bases = {architecture: space.experiment(architecture, {}) for architecture in space.architectures}
    metrics = {
        name: [metric for metric in space.score if METRIC_TASK[metric] in base.model.tasks]
        for name, base in bases.items()
    }
    for name, known in metrics.items():
        if not known:
            raise ConfigError(f"score: {', '.join(space.score)}: {name} has none of these metrics")
    if space.joint and len({tuple(known) for known in metrics.values()}) > 1:
        raise ConfigError("joint: scores of architectures with different tasks do not compare; set joint: false")
    most = max(
        sum(o in COSTS or METRIC_TASK[o] in base.model.tasks for o in space.objectives) for base in bases.values()
    )
    if space.objectives and most < 2:
        raise ConfigError(
            f"objectives: {', '.join(space.objectives)}: a Pareto front is of two or more different objectives of an "
            f"architecture; the architectures are {', '.join(space.architectures)}"
        )
    if "energy" in space.objectives and space.resources.trials_per_gpu > 1:
        raise ConfigError("objectives: energy: a GPU reports that of all its trials; set resources.trials_per_gpu: 1")
    fewest = min(base.training.epochs for base in bases.values()) * (space.folds or 1)
    if space.parameters and space.scheduler.name != "none" and space.scheduler.option("grace_epochs") >= fewest:
        raise ConfigError(f"scheduler.grace_epochs: must be less than the epochs of a trial, {fewest}")
    _check_sampler(space)
    for path in space.parameters:
        _check_conditions(space, path)
        _check_path(space, path)
    for architecture in space.architectures:
        _check_values(space, architecture)


def _check_sampler(space: SearchSpace) -> None:
    """Whether there is what the sampler needs."""
    name, parameters, points = space.sampler.name, space.parameters, len(space.architectures)
    for path, parameter in parameters.items():
        if name == "grid" and parameter.choice is None and parameter.integer is None:
            raise ConfigError(
                f"parameters.{path}: sampler.name: grid: has no end of values; list some by `choice`, or use sobol"
            )
        points *= len(parameter.all_values) if name == "grid" else 1
    if points > MOST_POINTS:
        raise ConfigError(f"sampler.name: grid: {points:,} combinations are too many to list; use sobol")
    for architecture in space.architectures if name == "cmaes" else ():
        always = [
            path
            for path, parameter in parameters.items()
            if parameter.choice is None
            and not parameter.when.keys() & parameters.keys()
            and space.may_exist(path, architecture)
        ]
        if len(always) < 2:
            raise ConfigError(
                f"sampler.name: cmaes: needs two numbers or more that every trial of {architecture} has, and there "
                f"{f'is {always[0]}' if always else 'are none'}; use tpe"
            )


def _check_path(space: SearchSpace, path: str) -> None:
    """Whether the path is a field of every architecture that the parameter exists for."""
    users = [name for name in space.architectures if next(_contexts(space, name, path), None) is not None]
    if not users:
        raise ConfigError(f"parameters.{path}.when: holds for no architecture of {', '.join(space.architectures)}")
    for name in users:
        fields = _fields(space, name)
        if path not in fields:
            raise ConfigError(
                f"parameters.{path}: no such field of {name}{_near(path, fields)}{_elsewhere(space, path)}"
            )


def _check_conditions(space: SearchSpace, path: str) -> None:
    """Whether what `when` names is known, stands before the parameter, and can take the values asked for."""
    before = list(space.parameters)[: list(space.parameters).index(path)]
    for cause, values in space.parameters[path].when.items():
        where = f"parameters.{path}.when.{cause}"
        if cause == "tasks":
            possible: tuple[Scalar, ...] = TASKS
        elif cause == "model.name":
            possible = tuple({space.model_name(name): None for name in space.architectures})
        elif cause in before:
            parameter = space.parameters[cause]
            if parameter.choice is None and parameter.integer is None:
                raise ConfigError(f"{where}: a condition needs a choice or an int parameter")
            possible = parameter.choice if parameter.choice is not None else parameter.checked
        elif cause in space.parameters:
            raise ConfigError(f"{where}: must stand before {path} under `parameters`")
        else:
            fields = {field for name in space.architectures for field in _fields(space, name)}
            if cause not in fields:
                raise ConfigError(f"{where}: no such field{_near(cause, fields)}")
            continue
        for value in allowed(values):
            if not any(same(value, other) for other in possible):
                raise ConfigError(f"{where}: {value!r} cannot occur; it is one of {', '.join(map(str, possible))}")


def _check_values(space: SearchSpace, architecture: str) -> None:
    """Tries every checked value alone, then the ends of every two parameters together."""
    tasks = space.experiment(architecture, {}).model.tasks
    for path, values in _alone(space, architecture):
        experiment = _try(space, architecture, values, path)
        if experiment.model.tasks != tasks:
            raise ConfigError(
                f"parameters.{path}: {values[path]!r} changes the tasks of {architecture}; "
                "list the architectures to compare instead"
            )
        if path in experiment.without_effect:
            raise ConfigError(
                f"parameters.{path}: has no effect {experiment.without_effect[path]}; "
                "leave it out or restrict it, such as with when: {tasks: both}"
            )
    for a, b in combinations(space.parameters, 2):
        for context_a, context_b in product(_contexts(space, architecture, a), _contexts(space, architecture, b)):
            for value_a, value_b in product(space.parameters[a].ends, space.parameters[b].ends):
                values = {**context_a, a: value_a}
                if all(same(values.get(path, v), v) for path, v in {**context_b, b: value_b}.items()):
                    _try(space, architecture, {**values, **context_b, b: value_b}, f"{a} with {b}")


def refuse_without_effect(space: SearchSpace, path: str) -> None:
    """Raises ConfigError for a path whose fixed value does nothing in any trial of a checked space."""
    reason = None
    for architecture in space.architectures:
        for values in ({}, *(values for _, values in _alone(space, architecture))):
            reason = space.experiment(architecture, values).without_effect.get(path)
            if reason is None:
                return
    raise ConfigError(f"--set {path}: has no effect {reason}; leave it out")


def _alone(space: SearchSpace, architecture: str) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """Every parameter with each of its checked values, and what makes it exist."""
    for path, parameter in space.parameters.items():
        for context in _contexts(space, architecture, path):
            for value in parameter.checked:
                yield path, {**context, path: value}


def _try(space: SearchSpace, architecture: str, values: Mapping[str, Any], what: str) -> Experiment:
    try:
        return space.experiment(architecture, values)
    except ConfigError as error:
        raise ConfigError(f"parameters.{what}: {error}") from None


def _contexts(space: SearchSpace, architecture: str, path: str) -> Iterator[dict[str, Scalar]]:
    """The ways in which a parameter comes to exist: values of the parameters that its conditions name."""
    parameter = space.parameters[path]
    causes = [cause for cause in parameter.when if cause in space.parameters]
    if path in causes or not space.may_exist(path, architecture):
        return
    options: list[list[dict[str, Scalar]]] = [
        [
            {**context, cause: value}
            for context in _contexts(space, architecture, cause)
            for value in allowed(parameter.when[cause])
            if value in space.parameters[cause]
        ]
        for cause in causes
    ]
    for combination in product(*options):
        merged: dict[str, Scalar] = {}
        for context in combination:
            merged |= context
        if all(same(merged[p], v) for context in combination for p, v in context.items()):
            yield merged


def _fields(space: SearchSpace, architecture: str) -> set[str]:
    """Every path of an Experiment of this architecture."""
    defaults = Experiment()
    parts: dict[str, type[Part]] = {part: type(getattr(defaults, part)) for part in Experiment.model_fields}
    parts["model"] = model_config_class(space.model_name(architecture))
    return {f"{part}.{field}" for part, cls in parts.items() for field in cls.model_fields}


def _near(path: str, fields: set[str]) -> str:
    close = difflib.get_close_matches(path, sorted(fields), n=3, cutoff=0.6)
    part = path.split(".")[0]
    others = sorted(field for field in fields if field.split(".")[0] == part)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; fields: {', '.join(others)}" if others else f"; parts: {', '.join(Experiment.model_fields)}"


def _elsewhere(space: SearchSpace, path: str) -> str:
    """The way out where only other architectures have the field."""
    having = {space.model_name(name): None for name in space.architectures if path in _fields(space, name)}
    return f" Restrict it with when: {{model.name: [{', '.join(having)}]}}" if having else ""
