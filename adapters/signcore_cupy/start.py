"""Where a run starts to count, and what its steps are given beside the gradients."""

from __future__ import annotations

from typing import Any

from signcore import Rule


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


def inputs(rule: Rule, params: Any, state: Any, step: int, grad_fn: Any, value_fn: Any) -> dict[str, Any]:
    """`value`, `value_fn` and `grad_fn` of one step, as far as its rule needs them and they were given.

    The loss is evaluated where the rule asks for it in a step from this state, or where that cannot be told without
    waiting for the device.
    """
    made: dict[str, Any] = {}
    if "value" in rule.needs and value_fn is not None and rule.asks("value", state):
        made["value"] = value_fn(params, step)
    if "value_fn" in rule.needs and value_fn is not None:
        made["value_fn"] = lambda at: value_fn(at, step)
    if "grad_fn" in rule.needs and callable(grad_fn):
        made["grad_fn"] = lambda at: grad_fn(at, step)
    return made
