"""Hyperparameters: how a rule declares them, and how a call turns them into constants of the compute dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from . import checks, frameworks, ops
from .checks import Range
from .schedules import Schedule

# A Python number, a 0-d array or traced value, or a schedule (called with the state's step).
Number: TypeAlias = Any


def number(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float = 0.0,
    maximum: float | None = None,
    below: float | None = None,
    why: str = "",
) -> Any:
    """A numeric hyperparameter with its range; a call may override it with `hyper=`."""
    return dataclasses.field(default=default, metadata={"range": Range(minimum, maximum, below, why)})


def option(default: Any, choices: Iterable[Any]) -> Any:
    """A static option; it is part of what is compiled, so a call cannot override it."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


def flag(default: bool) -> Any:
    """A static yes or no."""
    return option(default, (False, True))


def ranges(cls: type) -> dict[str, Range]:
    """Name to allowed range of the numeric hyperparameters of a rule's class."""
    return {field.name: field.metadata["range"] for field in dataclasses.fields(cls) if "range" in field.metadata}


def check_field(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise when a value does not fit its declaration."""
    if "range" in field.metadata:
        checks.number(field.name, value, field.metadata["range"])
    elif "choices" in field.metadata:
        checks.choice(field.name, value, field.metadata["choices"])
    elif field.type == "int":
        checks.integer(field.name, value)


class Hyper:
    """The numbers of one call as attributes: Python floats rounded to the compute dtype, or 0-d arrays of it."""

    lr: Any
    weight_decay: Any

    if TYPE_CHECKING:  # the others are named by each rule's own fields

        def __getattr__(self, name: str) -> Any: ...


def resolve(value: Any, compute: str, step: Any) -> Any:
    """One number, rounded once to the compute dtype, so that its spelling does not matter.

    A Python float, a 0-d array, a tensor and a traced value give the same bits.
    """
    if isinstance(value, Schedule):
        value = value(step, compute)
    elif callable(value):
        made = value(step)  # a foreign schedule: taken as given, when it is one number
        if not (checks.is_number(made) or hasattr(made, "dtype")):
            raise TypeError(f"the schedule {value!r} returned {made!r}; it must return a number or a 0-d array")
        value = made
    if checks.is_number(value):
        return ops.rounded(float(value), compute)
    xp = frameworks.namespace(step)
    wanted = frameworks.dtype(xp, compute)
    if hasattr(value, "dtype") and frameworks.namespace(value) is xp:
        return xp.reshape(xp.astype(xp.asarray(value), wanted), ())
    return xp.reshape(frameworks.constant(xp, value, wanted, step), ())
