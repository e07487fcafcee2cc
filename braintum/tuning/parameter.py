"""One dimension of a search space: its distribution, and the condition under which it exists. No torch, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from braintum.settings import Part

if TYPE_CHECKING:
    import optuna

Scalar = str | int | float | bool | None
Condition = dict[str, Scalar | tuple[Scalar, ...]]

INTEGERS_CHECKED = 64
"""An `int` range up to this size is checked value by value, a larger one at its ends."""


class Parameter(Part):
    """Exactly one of `log_uniform`, `uniform`, `int` (both ends included) and `choice`, and optionally `when`.

    `when` maps a path (or "tasks": segmentation | classification | both) to a value or a list of values; the
    parameter exists only where all of them hold.
    """

    log_uniform: tuple[float, float] | None = None
    uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int")
    choice: tuple[Scalar, ...] | None = Field(None, min_length=1)
    when: Condition = Field({}, description="exists only where every path has (one of) the value(s)")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = {"log_uniform": self.log_uniform, "uniform": self.uniform, "int": self.integer, "choice": self.choice}
        given = [name for name, form in forms.items() if form is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(forms)}; found {', '.join(given) or 'none'}")
        if self.choice is not None:
            if any(same(a, b) for i, a in enumerate(self.choice) for b in self.choice[:i]):
                raise ValueError("choice: a value stands there twice")
            return self
        low, high = self.interval
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{given[0]}: [{low}, {high}]: expected finite numbers")
        if low >= high:
            raise ValueError(f"{given[0]}: [{low}, {high}]: the first number must be less than the second")
        if self.log_uniform is not None and low <= 0:
            raise ValueError(f"log_uniform: [{low}, {high}]: must start above 0")
        return self

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of a parameter that is no choice."""
        interval = self.log_uniform or self.uniform or self.integer
        assert interval is not None, "a choice has no interval"
        return interval

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The values that stand for all: every choice, or both ends of an interval."""
        return self.interval if self.choice is None else self.choice

    @property
    def checked(self) -> tuple[Scalar, ...]:
        """The values to try before a search starts: `ends`, and every integer of a small range."""
        if self.integer is not None and self.integer[1] - self.integer[0] < INTEGERS_CHECKED:
            return self.all_values
        return self.ends

    @property
    def all_values(self) -> tuple[Scalar, ...]:
        """Every choice, or every integer: what a grid is made of."""
        if self.integer is not None:
            return tuple(range(self.integer[0], self.integer[1] + 1))
        assert self.choice is not None, "a range of numbers has no end of values"
        return self.choice

    def __contains__(self, value: object) -> bool:
        if self.choice is not None:
            return any(same(value, member) for member in self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.interval
        return low <= value <= high and (self.integer is None or value == int(value))

    def suggest(self, path: str, trial: optuna.trial.BaseTrial) -> Scalar:
        """Asks Optuna for a value under the parameter's path."""
        if self.choice is not None:
            return trial.suggest_categorical(path, list(self.choice))
        if self.integer is not None:
            return trial.suggest_int(path, *self.integer)
        return trial.suggest_float(path, *self.interval, log=self.log_uniform is not None)


def allowed(values: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """A condition's value or list of values, as a tuple."""
    return values if isinstance(values, tuple) else (values,)


def holds(when: Condition, facts: Mapping[str, Any]) -> bool:
    """Whether every condition is met by `facts` (path to value; a path that is missing meets none)."""
    return all(path in facts and any(same(facts[path], v) for v in allowed(vs)) for path, vs in when.items())


def same(a: object, b: object) -> bool:
    """Equality that tells true from 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
