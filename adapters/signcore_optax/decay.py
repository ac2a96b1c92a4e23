"""Weight decay as optax's users know it: it needs the params, and a mask may keep it off some of them."""

from __future__ import annotations

from typing import Any

import jax

from signcore import Rule, checks

from .leaves import Shape


def require_params(rule: Rule) -> None:
    """Raise when a step needs the params: for their decay, or whatever else."""
    if rule.reads_params:
        raise ValueError(f"`params` is None: {type(rule).__name__} needs them; call update(grads, state, params)")
    decay = rule.weight_decay
    if not rule.needs_params or (_is_known(decay) and float(decay) == 0.0):
        return
    way_out = "call update(grads, state, params)"
    if isinstance(decay, jax.core.Tracer):
        way_out += ", or under optax.inject_hyperparams name it in static_args=('weight_decay',)"
    raise ValueError(f"`params` is None and `weight_decay` is {decay!r}: {type(rule).__name__} needs them; {way_out}")


def _is_known(value: Any) -> bool:
    return checks.is_number(value) or (isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer))


def decay_mask(mask: Any, shape: Shape, params: Any) -> Any:
    """The core's `decay_mask` from a tree of bools, a prefix of one, or a function from params to one."""
    if mask is None:
        return None
    # A module of bools may itself be callable, so its leaves are asked, as optax does.
    leaves = jax.tree.leaves(mask)
    tree = mask(params) if leaves and all(callable(leaf) for leaf in leaves) else mask
    flags = shape.spread("mask", tree, params)
    for name, flag in zip(shape.names, flags, strict=True):
        if isinstance(flag, jax.core.Tracer):
            raise TypeError(
                f"{checks.place('mask', name)} is a traced value; a mask decides what is compiled: use Python bools"
            )
    return shape.named([bool(flag) for flag in flags])
