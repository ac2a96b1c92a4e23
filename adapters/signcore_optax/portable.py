"""Params and a rule's state inside of an optax state as the core's checkpoint, which every backend reads, and back."""

from __future__ import annotations

from typing import Any

import jax

from signcore import Rule, checks
from signcore.checkpoint import Checkpoint
from signcore.marks import WHOLE
from signcore.tree import Leaf
from signcore.tree import flatten as core_leaves

from .leaves import flatten
from .placement import beside
from .variables import pure, refilled


def export(rule: Rule, params: Any, state: Any) -> Checkpoint:
    """Rule, params and state as the core takes them: dicts of arrays by path.

    Parameters
    ----------
    rule : signcore.Rule
        With the hyperparameters to save; an optax state has none.
    params : tree of arrays
        What the rule sees: under a mask, the masked params; of Flax NNX, ``nnx.state(model, nnx.Param)``.
    state : optax state
        Of the rule's transformation, or of a chain, a wrapper (`flax.nnx.Optimizer`) and the like that hold one of it.

    Returns
    -------
    signcore.checkpoint.Checkpoint
        For `signcore.checkpoint.save`. The paths are those of the core for the same dicts, lists and tuples.

    Raises
    ------
    TypeError
        There is no state of the rule in `state`, or more than one.

    Examples
    --------
    >>> import jax.numpy as jnp, signcore as sc
    >>> from signcore_optax import from_rule
    >>> rule, params = sc.rule(sc.rules()[0], lr=0.1), {"w": jnp.ones(2)}
    >>> export(rule, params, from_rule(rule).init(params)).state.step
    Array(0, dtype=int32)
    """
    own = _own(rule, pure(state))
    shape, leaves = flatten(pure(params))
    fields = {
        name: getattr(own, name)
        if kind in WHOLE
        else shape.named(shape.leaves_of(f"state.{name}", getattr(own, name), "params"))
        for name, kind in rule.kinds.items()
    }
    return Checkpoint(rule, shape.named(leaves), own._replace(**fields))


def restore(saved: Checkpoint, params: Any, state: Any) -> tuple[Any, Any]:
    """Params and optax state with what was saved in the places of their own; nothing else of `state` changes.

    Parameters
    ----------
    saved : signcore.checkpoint.Checkpoint
        Of `export`, or of `signcore.checkpoint.load` with its params as `like`.
    params, state : trees
        Of ``tx.init(params)``: their structure and their places on devices are used.

    Raises
    ------
    TypeError, ValueError
        The states of another rule, or other paths, shapes or dtypes.

    Examples
    --------
    >>> import jax.numpy as jnp, signcore as sc
    >>> from signcore_optax import from_rule
    >>> rule, params = sc.rule(sc.rules()[0], lr=0.1), {"w": jnp.ones(2)}
    >>> state = from_rule(rule).init(params)
    >>> params, state = restore(export(rule, {"w": jnp.zeros(2)}, state), params, state)
    >>> params["w"]
    Array([0., 0.], dtype=float32)
    """
    shape, leaves = flatten(pure(params))
    inner = pure(state)
    fresh = _own(saved.rule, inner)
    core = _by_path(saved.params)
    present = [name for name, p in zip(shape.names, leaves, strict=True) if p is not None]
    checks.same_structure("saved", sorted(core), "params", sorted(present))
    for name, p in zip(shape.names, leaves, strict=True):
        _fits("saved", name, core.get(name), p)
    fields: dict[str, Any] = {}
    for field, kind in saved.rule.kinds.items():
        value, own = getattr(saved.state, field), getattr(fresh, field)
        if kind in WHOLE:
            _fits(f"saved.state.{field}", "", value, own)
            fields[field] = beside(value, leaves)
            continue
        column = _by_path(value)
        placed = shape.leaves_of(f"state.{field}", own, "params")
        for name, p in zip(shape.names, placed, strict=True):
            _fits(f"saved.state.{field}", name, column.get(name), p)
        fields[field] = shape.build(
            {name: _at(column.get(name), p) for name, p in zip(shape.names, placed, strict=True)}
        )
    new = fresh._replace(**fields)
    is_own = _is_own(saved.rule)
    inner = jax.tree.map(lambda node: new if is_own(node) else node, inner, is_leaf=is_own)
    arrays = shape.build({name: _at(core.get(name), p) for name, p in zip(shape.names, leaves, strict=True)})
    return refilled(params, arrays), refilled(state, inner)


def _own(rule: Rule, state: Any) -> Any:
    """The one state of the rule in an optax state."""
    is_own = _is_own(rule)
    found = [node for node in jax.tree.leaves(state, is_leaf=is_own) if is_own(node)]
    if len(found) != 1:
        raise TypeError(
            f"`state` holds {len(found)} states of {type(rule).__name__}, a {rule.State.__name__}; pass the state of "
            f"an optimizer that has the rule once, or the part of it that has"
        )
    return found[0]


def _by_path(tree: Any) -> dict[str, Any]:
    return {leaf.path: leaf.value for leaf in core_leaves(tree) if leaf.value is not None}


def _is_own(rule: Rule) -> Any:
    return lambda node: isinstance(node, rule.State)


def _fits(argument: str, path: str, value: Any, own: Any) -> None:
    """What was saved must be there where there is one, an array of the same shape and dtype."""
    if (value is None) != (own is None):
        where = checks.place(argument, path)
        raise ValueError(f"{where} is {'None' if value is None else 'an array'}, and the params have the opposite")
    if value is not None:
        checks.same_home(argument, Leaf(path, value), "params", Leaf(path, own))
        checks.same_shape(argument, Leaf(path, value), "params", Leaf(path, own))
        checks.same_dtype(argument, Leaf(path, value), "params", Leaf(path, own))


def _at(value: Any, own: Any) -> Any:
    """A value on the devices of another of its shape."""
    return value if value is None or not getattr(own, "committed", False) else jax.device_put(value, own.sharding)
