"""Elementwise functions over numbers, arrays and trees: computed in float64, rounded once to the compute dtype.

In float64 the operations of ieee.py have one rounding each on every backend, nothing of float32 overflows on the way,
and NumPy does not warn of quotients that are taken out afterwards. What comes in and what goes out is flushed as
`signcore.ops.flush` does it, because libraries disagree on subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import checks, frameworks
from .frameworks import namespace
from .ieee import quotient, where
from .ops import cast, flush, widen
from .tree import Leaf, flatten, unflatten


def over_leaves(function: Callable[..., Any], given: dict[str, Any], stacked: str = "") -> Any:
    """``function`` of float64 arrays, leaf by leaf, rounded once to each leaf's compute dtype and flushed.

    The first argument that is larger gives the structure; a number or 0-d array stands for every leaf, and leaves of
    the argument called `stacked` have one more axis in front. Numbers alone give a number.
    """
    if all(checks.is_number(value) for value in given.values()):
        return float(_of_leaf(function, given, np.zeros(1), "")[0])
    if stacked:  # a NumPy scalar is an array of one coordinate there
        given = {name: np.asarray(value) if isinstance(value, np.generic) else value for name, value in given.items()}
    arrays = {name: value for name, value in given.items() if not checks.is_number(value)}
    larger = (name for name, value in arrays.items() if name != stacked and not _is_scalar(value))
    lead = next(larger, next(iter(arrays)))
    trees = {
        name: value
        for name, value in arrays.items()
        if name in (lead, stacked) or not _is_scalar(value) or _is_scalar(arrays[lead])
    }
    leaves = {name: flatten(tree) for name, tree in trees.items()}
    for name in trees:
        checks.same_structure(name, [leaf.path for leaf in leaves[name]], lead, [leaf.path for leaf in leaves[lead]])
        checks.same_containers(name, trees[name], lead, trees[lead])
    found: list[Any] = []
    for k in range(len(leaves[lead])):
        row = {name: leaves[name][k] for name in trees}
        if all(leaf.value is None for leaf in row.values()):
            found.append(None)
            continue
        row = {name: _widened(name, leaf, lead, row[lead], name == stacked) for name, leaf in row.items()}
        operands = {name: row[name].value if name in row else value for name, value in given.items()}
        found.append(_of_leaf(function, operands, row[lead].value, lead))
    return unflatten(trees[lead], found)


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "dtype") and tuple(value.shape) == ()


def _widened(name: str, leaf: Leaf, lead: str, like: Leaf, stacked: bool) -> Leaf:
    checks.array(name, leaf)
    checks.array(lead, like)
    checks.same_home(name, leaf, lead, like)
    one = leaf
    if stacked:
        stack_size(name, [leaf])
        one = Leaf(leaf.path, leaf.value[0, ...])
    checks.same_shape(name, one, lead, like)
    leaf = Leaf(leaf.path, widen(leaf.value))
    checks.same_dtype(name, leaf, lead, Leaf(like.path, widen(like.value)))
    return leaf


def _of_leaf(function: Callable[..., Any], operands: dict[str, Any], like: Any, lead: str) -> Any:
    xp = namespace(like)
    with frameworks.float64_scope(xp):
        wide = []
        for name, value in operands.items():
            if checks.is_number(value):
                value = frameworks.constant(xp, float(value), xp.float64, like)
            checks.array(name, Leaf("", value))
            checks.same_home(name, Leaf("", value), lead, Leaf("", like))
            wide.append(cast(flush(widen(value)), xp.float64))
        out = flush(cast(function(*wide), like.dtype))
        return out if tuple(out.shape) == tuple(like.shape) else xp.broadcast_to(out, like.shape)


def stack_size(argument: str, leaves: list[Leaf]) -> int:
    """How many are stacked in front of each leaf, the same number everywhere; 1 for no leaves."""
    sizes = {tuple(leaf.value.shape)[:1] for leaf in leaves}
    if len(sizes) > 1 or sizes & {(), (0,)}:
        shapes = ", ".join(str(tuple(leaf.value.shape)) for leaf in leaves)
        raise ValueError(
            f"`{argument}` has leaves of shapes {shapes}; stack the same number, N >= 1, in front of each: (N, ...)"
        )
    return int(sizes.pop()[0]) if sizes else 1


def in_range(allowed: checks.Range, **given: Any) -> None:
    """Numbers must lie in a range; what is in arrays is not looked at, it may be traced."""
    for name, value in given.items():
        if checks.is_number(value):
            checks.number(name, value, allowed)


def ratio(a: Any, b: Any, otherwise: float) -> Any:
    """``a / b``, and `otherwise` where b is 0."""
    some = b > 0.0
    return where(some, quotient(a, where(some, b, 1.0)), otherwise)
