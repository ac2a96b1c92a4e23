"""The factory of one rule, with the signature and the documentation of the rule's class."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from collections.abc import Sequence as Sequence  # for annotations, as the next
from typing import Any

import jax
from optax import GradientTransformationExtraArgs
from optax import ScalarOrSchedule as ScalarOrSchedule  # annotations are strings, short in help(), and looked up here

from signcore import Rule, checks
from signcore.fields import ranges

from .document import document
from .injected import InjectableSignature, Static
from .transform import from_rule

_NEW_NAMES = {"lr": "learning_rate"}
# `from_rule`'s own
_HOW = {"mask": "Any", "axis_name": "str | None", "weights": "Sequence[float] | None"}
_OLD_NAMES = {new: old for old, new in _NEW_NAMES.items()}


def factory(name: str, cls: type[Rule]) -> Callable[..., GradientTransformationExtraArgs]:
    """``factory(learning_rate, *, ..., mask=None)`` for a rule's class."""
    numbers = ranges(cls)
    parameters = _parameters(cls)
    signature = inspect.Signature(parameters, return_annotation="GradientTransformationExtraArgs")

    def build(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:
        try:
            given = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}; its arguments are {', '.join(signature.parameters)}") from None
        how = {name: _plain(given.pop(name)) for name in _HOW if name in given}
        fields = {}
        for argument, value in given.items():
            field = _OLD_NAMES.get(argument, argument)
            if field in numbers:
                checks.number(argument, value, numbers[field])
            else:
                value = _static(argument, _plain(value))
            fields[field] = value
        return from_rule(cls(**fields), **how)

    build.__name__ = build.__qualname__ = name
    build.__module__ = __package__ or ""
    build.__doc__ = document(cls, _NEW_NAMES)
    build.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": signature.return_annotation}
    build.__signature__ = InjectableSignature.of(signature, set(numbers) | set(_OLD_NAMES))  # type: ignore[attr-defined]
    return build


def _parameters(cls: type[Rule]) -> list[inspect.Parameter]:
    """The learning rate, the rule's own options, then those of every rule; only the first one by position."""
    numbers = ranges(cls)
    base = [field.name for field in dataclasses.fields(Rule)]
    fields = sorted(dataclasses.fields(cls), key=lambda field: (field.name not in _NEW_NAMES, field.name in base))
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = []
    for field in fields:
        required = field.default is dataclasses.MISSING
        found.append(
            inspect.Parameter(
                _NEW_NAMES.get(field.name, field.name),
                kind,
                default=inspect.Parameter.empty if required else field.default,
                annotation="ScalarOrSchedule" if field.name in numbers else field.type,
            )
        )
        kind = inspect.Parameter.KEYWORD_ONLY
    return [*found, *(inspect.Parameter(name, kind, default=None, annotation=a) for name, a in _HOW.items())]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Static) else value


def _static(name: str, value: Any) -> Any:
    """A static option must be a Python value: it decides what is compiled."""
    if not hasattr(value, "dtype"):
        return value
    if isinstance(value, jax.core.Tracer) or getattr(value, "ndim", 1) != 0:
        raise TypeError(
            f"`{name}` is {value!r}, and it is a static option; pass a Python value, and under "
            f"optax.inject_hyperparams name it in static_args=({name!r},)"
        )
    return value.item()
