"""Gradients whose dtype is not the parameters'.

optax keeps an update in its gradient's dtype. The core wants one dtype per leaf, so both are widened to the
dtype in which the parameter's state is computed, and the delta is rounded to the gradient's.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from signcore import Rule, checks, ops
from signcore.dtypes import Format, format_of, name_of
from signcore.marks import marks


def _format(leaf: Any) -> Format | None:
    return format_of(leaf) if hasattr(leaf, "dtype") else None


def one_dtype(p: Any, g: Any) -> tuple[Any, Any]:
    """A parameter and its gradient as they are, or both in the parameter's compute dtype."""
    fmt = _format(p)
    if fmt is None or _format(g) is None or p.dtype == g.dtype:
        return p, g
    return p.astype(fmt.compute), g.astype(fmt.compute)


def refuse_trials(rule: Rule, names: list[str], params: list[Any], grads: list[Any]) -> None:
    """Raise where a rule would try another point than the one that is stored.

    The caller adds an update that was rounded to the gradient's dtype, and rounds the sum to the parameter's; after
    both the loss may be above the one that was tried.
    """
    if "value_fn" not in rule.needs:
        return
    for name, p, g in zip(names, params, grads, strict=True):
        if _format(p) is not None and _format(g) is not None and p.dtype != g.dtype:
            raise ValueError(
                f"{checks.place('grads', name)} has dtype {name_of(g.dtype)}, {checks.place('params', name)} has "
                f"{name_of(p.dtype)}, and {type(rule).__name__} decides by the loss at the very parameters that will "
                f"be stored; cast the gradients to the parameters' dtype"
            )


def beside_params(column: list[Any], params: list[Any]) -> list[Any]:
    """Copies of params in the dtypes of the params that stand beside them; the values fit in both."""
    return [v if v is None or p is None else v.astype(p.dtype) for v, p in zip(column, params, strict=True)]


def in_dtype_of(delta: Any, g: Any) -> Any:
    """A delta rounded to the dtype of the gradient that the caller gave."""
    fmt = _format(g)
    if delta is None or fmt is None or delta.dtype == g.dtype:
        return delta
    return ops.narrow(delta, g.dtype, fmt)


def stand_ins(rule: Rule, grads: list[Any], columns: dict[str, list[Any]]) -> list[Any]:
    """Arrays of the params' shapes and compute dtypes where the caller passed no params; no value is read."""
    kinds = marks(rule.State)
    element = next((column for name, column in columns.items() if kinds[name].kind == "element"), grads)
    if rule.state_dtype is not None:
        return grads
    return [_like(g, kept) for g, kept in zip(grads, element, strict=True)]


def _like(g: Any, kept: Any) -> Any:
    fmt, kept_fmt = _format(g), _format(kept)
    if fmt is None or kept_fmt is None or fmt.compute == kept_fmt.compute:
        return g
    return jnp.asarray(g, dtype=kept.dtype)
