"""The views of the dataset that a search space asks for, and whether they can be trained on."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import product
from typing import Any

import ray

from braintum.config import Experiment
from braintum.data.folds import at_most, held_out_folds, split, without
from braintum.data.schema import DataError
from braintum.data.table import SliceTable
from braintum.parts import Data
from braintum.settings import ConfigError
from braintum.training.fit import refuse_without_targets, usable_rows
from braintum.tuning.parameter import holds
from braintum.tuning.space import SearchSpace
from braintum.tuning.trial import Outer

_WITHIN = {"validation", "window"}
"""Settings of the data that change nothing of what the table holds."""


def view(data: Data) -> str:
    """The name of a view of the dataset: the settings that decide what the table holds."""
    return json.dumps(data.model_dump(mode="json", exclude=_WITHIN), sort_keys=True)


def views_of(space: SearchSpace) -> dict[str, Data]:
    """Every view of the dataset that the space can ask for. Raises ConfigError for a range of views."""
    searched: dict[str, list[Any]] = {}
    for path, parameter in space.parameters.items():
        if path.startswith("data.") and path.removeprefix("data.") not in _WITHIN:
            if parameter.choice is None:
                raise ConfigError(f"parameters.{path}: a search over the data needs a choice, not a range")
            searched[path] = [*parameter.choice, *([_ABSENT] if parameter.when else [])]
    views: dict[str, Data] = {}
    for name in space.architectures:
        for values in product(*searched.values()):
            given = {path: v for path, v in zip(searched, values, strict=True) if v is not _ABSENT}
            if not _occurs(space, name, given, searched):
                continue
            data = space.experiment(name, given).data
            views.setdefault(view(data), data)
    return views


def _occurs(space: SearchSpace, architecture: str, given: dict[str, Any], searched: Collection[str]) -> bool:
    """Whether a trial can have these of the searched settings, and lack the others, as far as conditions tell here."""
    facts = {**space.fixed(architecture), **given}
    for path in searched:
        when = space.parameters[path].when
        known = {cause: values for cause, values in when.items() if cause in facts or cause in searched}
        if path in given and not holds(known, facts):
            return False
        if path not in given and known == when and holds(when, facts):
            return False
    return True


_ABSENT = object()
"""The value of a parameter whose condition does not hold."""


def refuse_unusable(
    space: SearchSpace, tables: dict[str, ray.ObjectRef[SliceTable]], outer: Outer | None = None
) -> tuple[SliceTable, int]:
    """Raises DataError where an architecture's own settings could not be trained on a fold.

    `outer`: a fold that trials never see; it is looked at too. Returns a table (any: all have the same slices' digest)
    and the number of a trial's folds.
    """
    for name in space.architectures:
        experiment = space.experiment(name, {})
        table: SliceTable = ray.get(tables[view(experiment.data)])
        if outer is None:
            names = list(held_out_folds(table, space.folds, seed=0))
            _refuse_unusable(space, experiment, table, names, space.folds)
            continue
        _refuse_unusable(space, experiment, table, [outer[0]], outer[1])
        inner = without(table, *outer, seed=0)
        folds = at_most(inner, space.folds)
        try:
            names = list(held_out_folds(inner, folds, seed=0))
            _refuse_unusable(space, experiment, inner, names, folds)
        except DataError as error:
            raise DataError(f"--nested: without outer fold {outer[0]}: {error}") from None
    return table, len(names)


def _refuse_unusable(
    space: SearchSpace, experiment: Experiment, table: SliceTable, names: list[str], folds: int | None
) -> None:
    for fold in names:
        rows = split(table, fold, folds, seed=0)
        usable_rows(experiment, table, rows.train, space.resources.workers)
        refuse_without_targets(experiment, table, rows.held_out, f"held-out (fold {fold})")
