"""Functions of params as optax's line searches call them: with those extra arguments that they have parameters for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def bound(function: Any, extra: Mapping[str, Any]) -> Any:
    """A function of params alone; None and what is no function are as they are, for the core to judge."""
    if not extra or not callable(function):
        return function
    taken = {name: value for name, value in extra.items() if name in _parameters(function)}
    return functools.partial(function, **taken) if taken else function


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:  # a builtin that has none to show
        return set()
