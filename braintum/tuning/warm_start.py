"""`--warm-start`: what an older study found teaches the sampler of a new one.

A trial is taken where the new space could have proposed it: same slices, folds and weights of the score, and the same
Experiment but for the seed, whichever of its settings were searched there. It becomes a finished trial of the new
study's Optuna study, with the attribute WARM_START, and is nothing but a lesson to the sampler: it is not one of the
trials asked for, cannot win, fills no rung of the scheduler, races nobody, and is in no table of the report, for it was
chosen and stopped among others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from braintum import storage
from braintum.config import Experiment
from braintum.settings import ConfigError
from braintum.training.run import MOST_TOLD, difference
from braintum.tuning.location import Location, location_of, names_storage
from braintum.tuning.parameter import Scalar, holds
from braintum.tuning.records import RECORD, SPEC, WARM_START, own_trials
from braintum.tuning.space import ARCHITECTURE, SearchSpace


@dataclass(frozen=True)
class WarmStart:
    """`url`: where the trials are from, without a password. `trials`: those of each study, which begins with them."""

    url: str
    trials: Mapping[str, list[FrozenTrial]]
    said: str


def url_of(given: str) -> str:
    """What stands for `--warm-start` in records and messages. Raises ConfigError for a storage's URL that is none."""
    return str(Location.of(given, None).shown) if names_storage(given) else storage.resolve(given)


def warm_start(given: str, space: SearchSpace, about: Mapping[str, Any]) -> WarmStart:
    """What can be taken from `given`, a study's directory or a storage, for the study that `record` tells of.

    Raises ConfigError where that is nothing, with the reasons.
    """
    url = url_of(given)
    if not space.parameters:
        raise ConfigError("--warm-start: has no effect without parameters: nothing is searched. Leave it out")
    taken: dict[str, list[FrozenTrial]] = {name: [] for name in space.shares()}
    left_out: Counter[str] = Counter()
    for label, was, trials in _finished(given, url):
        differs = difference(_question(was), _question(about))
        for trial in trials:
            try:
                if differs:
                    raise _LeftOut(differs)
                architecture, values = _proposed(space, trial)
            except _LeftOut as reason:
                left_out[str(reason)] += 1
            else:
                name = space.name if space.joint else architecture
                source = f"{label}-{trial.number}"
                taken[name].append(_taken(space, trial, source, architecture, values))
    number, every = sum(map(len, taken.values())), sum(map(len, taken.values())) + left_out.total()
    reasons = "; ".join(f"{count}: {reason}" for reason, count in left_out.most_common(MOST_TOLD))
    if number == 0:
        raise ConfigError(
            f"--warm-start {url}: none of {every} finished trials can be used: {reasons or 'none is there'}"
        )
    but = f"; left out are {reasons}" if reasons else ""
    return WarmStart(url, taken, f"warm start: {number} of {every} finished trials of {url} taken{but}")


class _LeftOut(Exception):
    """Why a trial is not taken."""


def _finished(given: str, url: str) -> Iterator[tuple[str, dict[str, Any], list[FrozenTrial]]]:
    """The Optuna studies: how to call one, what it says that it is, and its own trials that ended with a score."""
    if names_storage(given):
        location = Location.of(given, None)
    else:
        if not storage.exists(storage.join(url, RECORD)):
            raise ConfigError(f"--warm-start {given}: no {RECORD} there; give the --out of a search, or its --storage")
        location = location_of(url)
    try:
        with location.studies() as studies:
            for name, study in studies.items():
                trials = own_trials(study, TrialState.COMPLETE, TrialState.PRUNED)
                about = storage.read_json(storage.join(url, RECORD)) if RECORD not in study.user_attrs else None
                yield f"{url}#{name}", about or study.user_attrs[RECORD], [t for t in trials if t.intermediate_values]
    except FileNotFoundError as error:
        raise ConfigError(f"--warm-start {given}: {error} is not there: the search had not begun") from None


def _question(about: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for two studies' scores to be of one kind."""
    space = about.get("space", {})
    return {
        "data": {"digest": about.get("data", {}).get("digest")},
        "outer": about.get("outer"),
        "space": {name: space.get(name) for name in ("folds", "score")},
    }


def _proposed(space: SearchSpace, trial: FrozenTrial) -> tuple[str, dict[str, Scalar]]:
    """The architecture and the values by which the space would propose a trial's Experiment. Raises _LeftOut."""
    spec = json.loads(trial.user_attrs[SPEC])
    try:
        was = _settings(Experiment.from_dict(spec["experiment"]))
    except ConfigError:
        raise _LeftOut("its settings are those of another version") from None
    name = was["model.name"]
    entries = [entry for entry in space.architectures if space.model_name(entry) == name]
    if not entries:
        raise _LeftOut(f"{name} is not searched")
    entries.sort(key=lambda entry: entry != spec["architecture"])
    reasons = []
    for entry in entries:
        try:
            return entry, _values(space, entry, was)
        except _LeftOut as reason:
            reasons.append(reason)
    raise reasons[0]


def _values(space: SearchSpace, architecture: str, was: Mapping[str, Any]) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    for path, parameter in space.parameters.items():
        if holds(parameter.when, {**space.fixed(architecture), **values}):
            if was.get(path) not in parameter:
                raise _LeftOut(f"{path} is outside of what is searched")
            values[path] = was[path]
    try:
        now = _settings(space.experiment(architecture, values))
    except ConfigError as error:
        raise _LeftOut(str(error)) from None
    differs = difference(was, now)
    if differs:
        raise _LeftOut(differs)
    return values


def _settings(experiment: Experiment) -> dict[str, Any]:
    """All of an Experiment but its seed, by path."""
    parts = experiment.to_dict()
    flat = {f"{part}.{field}": value for part, fields in parts.items() for field, value in fields.items()}
    del flat["training.seed"]
    return flat


def _taken(
    space: SearchSpace, trial: FrozenTrial, source: str, architecture: str, values: Mapping[str, Scalar]
) -> FrozenTrial:
    fixed = FixedTrial({ARCHITECTURE: architecture, **values} if space.joint else dict(values))
    space.suggest(fixed, None if space.joint else architecture)
    return create_trial(
        state=trial.state,
        value=trial.value,
        params=fixed.params,
        distributions=fixed.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={WARM_START: source},
    )
