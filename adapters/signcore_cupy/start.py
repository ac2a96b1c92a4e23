"""What a run is given, checked; where it starts to count, and what its steps get beside the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from signcore import Rule

from .forms import Form

Grads = Callable[[Any, int], Any] | Iterable[Any]
END = object()  # what comes after the last gradients


def check(rule: Any, grad_fn: Any, steps: Any, every: Any) -> None:
    """Raise when an argument of a run is none."""
    if not isinstance(rule, Rule):
        raise TypeError(f"`rule` is {rule!r}; pass a rule of signcore, made by signcore.rule(name, lr=...)")
    if not callable(grad_fn) and not isinstance(grad_fn, Iterable):
        raise TypeError(f"`grad_fn` is {grad_fn!r}; pass a function of (params, step) or an iterable of gradients")
    for name, value, least in (("steps", steps, 0), ("every", every, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` is {value!r}; pass an int of at least {least}")


def steps_done(state: Any, start: int | None) -> int:
    """Steps done before a run: `start`, or what a state says, or 0 without either."""
    if start is not None:
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"`start` is {start!r}; pass the number of steps done before, an int of at least 0")
        return start
    if state is None:
        return 0
    try:
        return int(state.step)
    except Exception as error:
        raise ValueError(
            f"`state` is a {type(state).__name__} whose step cannot be read ({error}); pass what rule.init or an "
            f"earlier run returned, and the number of steps done as `start`"
        ) from error


def inputs(rule: Rule, form: Form, step: int, grad_fn: Any, value_fn: Any) -> dict[str, Any]:
    """`value`, `value_fn` and `grad_fn` of one step, as far as its rule needs them and they were given.

    The loss is evaluated where the rule asks for it in a step from this state, or where that cannot be told without
    waiting for the device.
    """
    made: dict[str, Any] = {}
    if "value" in rule.needs and value_fn is not None and rule.asks("value", form.state):
        made["value"] = value_fn(form.params, step)
    if "value_fn" in rule.needs and value_fn is not None:
        made["value_fn"] = lambda at: value_fn(at, step)
    if "grad_fn" in rule.needs and callable(grad_fn):
        made["grad_fn"] = lambda at: grad_fn(at, step)
    return made


def gradients_of(grad_fn: Grads) -> Callable[[Any, int], Any]:
    """A function of (params, step) that gives the next gradients, or `END`."""
    if callable(grad_fn):
        return grad_fn
    iterator: Iterator[Any] = iter(grad_fn)
    return lambda params, step: next(iterator, END)
