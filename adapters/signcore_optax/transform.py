"""A rule as an optax gradient transformation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from signcore import Rule
from signcore.marks import WHOLE

from .arguments import bound
from .decay import decay_mask, require_params
from .leaves import Shape, as_array, concrete, flatten
from .mixed import beside_params, in_dtype_of, one_dtype, refuse_trials, stand_ins
from .placement import beside
from .workers import Workers


def from_rule(
    rule: Rule, *, mask: Any = None, axis_name: str | None = None, weights: Sequence[float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The gradient transformation that does a rule's steps.

    Parameters
    ----------
    rule : signcore.Rule
    mask : tree of bool, or function of params that returns one, optional
        False keeps weight decay off a leaf; a prefix of the params' tree will do.
    axis_name : str, optional
        Step together with the devices along this axis of a `jax.shard_map` (`jax.pmap`), in which `init` and `update`
        are called: each has its own gradients, which are not averaged, and signs travel. See `specs` for the state.
    weights : sequence of float, optional
        What each device's vote counts, for a rule with ``aggregation="weighted"``.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``init(params)`` gives the rule's own state, its per-parameter fields as trees of the params' structure.
        ``update(grads, state, params=None, **extra)`` gives the rule's delta in the gradients' dtypes, and
        needs `params` only where the delta depends on them; they may be a whole model, whose other leaves have no
        gradients. Of the extra arguments `value` (the loss), `value_fn` and `grad_fn` (functions of params) reach the
        rule; the functions are given those of the others that they have parameters for, as by optax's line searches.

    Raises
    ------
    TypeError, ValueError
        When updating: what `signcore.Rule.step` raises; params missing although they decay; a mask that does
        not fit them; gradients of another dtype than the params', for a rule that compares losses.

    Examples
    --------
    >>> import jax.numpy as jnp, optax, signcore as sc
    >>> tx = from_rule(sc.rule(sc.rules()[0], lr=1e-3))
    >>> params = {"w": jnp.ones(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"w": jnp.ones(2)}, state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> state.step
    Array(1, dtype=int32)
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"`rule` is {rule!r}; pass a rule of signcore, made by signcore.rule(name, lr=...)")
    kinds = rule.kinds
    workers = Workers(rule, axis_name, weights)

    def init(params: Any) -> Any:
        shape, leaves = flatten(params)
        leaves = [concrete(leaf) for leaf in leaves]
        state = rule.init(shape.named(leaves))
        fields: dict[str, Any] = {}
        for name, value in state._asdict().items():
            if value is None:
                fields[name] = None
            elif kinds[name] in WHOLE:
                fields[name] = beside(jnp.asarray(value), leaves)
            else:
                column = [value[leaf] for leaf in shape.names]
                if kinds[name] not in ("element", "copy"):
                    column = [v if v is None else beside(v, [p]) for v, p in zip(column, leaves, strict=True)]
                fields[name] = shape.treedef.unflatten(column)
        return workers.begun(type(state)(**fields), shape)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value: Any = None,
        value_fn: Any = None,
        grad_fn: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        value_fn, grad_fn = bound(value_fn, extra), bound(grad_fn, extra)
        if not isinstance(state, rule.State):
            raise TypeError(
                f"`state` is a {type(state).__name__}, {type(rule).__name__} needs a {rule.State.__name__}; "
                f"make one with init(params)"
            )
        state = workers.entered(state)
        shape, grads = flatten(updates)
        ps, decayed = None, None
        rest: dict[str, Any] = {}
        if params is not None:
            ps, rest = shape.params_beside(grads, params)
            decayed = decay_mask(mask, shape, params) if rule.needs_params else None
        whole = {name: as_array(getattr(state, name)) for name, kind in kinds.items() if kind in WHOLE}
        columns = _columns(state, shape, kinds)
        if ps is None:
            require_params(rule)
            ps = stand_ins(rule, grads, columns)
        refuse_trials(rule, shape.names, ps, grads)
        pairs = [one_dtype(p, g) for p, g in zip(ps, grads, strict=True)]
        copies = {name: column for name, column in columns.items() if kinds[name] == "copy"}
        columns |= {name: beside_params(column, [p for p, _ in pairs]) for name, column in copies.items()}
        delta, new = workers.delta(
            shape.named([p for p, _ in pairs]),
            shape.named([g for _, g in pairs]),
            state._replace(**whole, **{name: shape.named(column) for name, column in columns.items()}),
            decay_mask=decayed,
            value=value,
            value_fn=None if value_fn is None else lambda named: value_fn(shape.build(named | rest)),
            grad_fn=None if grad_fn is None else lambda named: shape.elsewhere(grad_fn, named, rest),
        )
        deltas = [in_dtype_of(delta[name], g) for name, g in zip(shape.names, grads, strict=True)]
        after = {name: getattr(new, name) for name in columns}
        for name, column in copies.items():  # the words of params, which their dtype holds
            after[name] = shape.named(beside_params([after[name][leaf] for leaf in shape.names], column))
        after = {name: shape.build(column) for name, column in after.items()}
        return shape.treedef.unflatten(deltas), workers.left(new._replace(**after))

    return optax.GradientTransformationExtraArgs(init, update)


def _columns(state: Any, shape: Shape, kinds: dict[str, str]) -> dict[str, list[Any]]:
    """Per-leaf fields of a state, in the order of the leaves; fields that a rule leaves None are not here."""
    return {
        name: shape.leaves_of(f"state.{name}", value)
        for name, value in state._asdict().items()
        if value is not None and kinds[name] not in WHOLE
    }
