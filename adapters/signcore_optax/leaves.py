"""Trees as JAX sees them, to and from the dict of path and leaf that the core works on.

JAX's tree library flattens, so every registered container works (modules, FrozenDict, MaskedNode). The paths
are the core's, because they name leaves in messages and key their noise; variables of Flax NNX are no part of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from signcore import checks

from .variables import is_variable


def _is_none(node: Any) -> bool:
    return node is None


def as_array(leaf: Any) -> Any:
    """NumPy arrays and Python numbers as JAX takes them; anything else as it is, for the core to judge."""
    return jnp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic, float, int)) else leaf


def concrete(leaf: Any) -> Any:
    """Zeros for a leaf of which only shape and dtype are given: no value enters a first state."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return leaf


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and jnp.issubdtype(leaf.dtype, jnp.floating)


class Shape(NamedTuple):
    """Structure of a tree: names of its leaves (None is one) and JAX's tree definition."""

    names: list[str]
    treedef: Any

    def named(self, leaves: list[Any]) -> dict[str, Any]:
        """Leaves as the core takes them."""
        return dict(zip(self.names, leaves, strict=True))

    def build(self, named: dict[str, Any]) -> Any:
        """The tree that has these leaves."""
        return self.treedef.unflatten([named[name] for name in self.names])

    def leaves_of(self, argument: str, tree: Any, like: str = "grads") -> list[Any]:
        """Leaves of a tree that must have this structure; where this one has None, it may have a leaf."""
        return [as_array(leaf) for leaf in self._fitting(argument, tree, like)]

    def params_beside(self, grads: list[Any], params: Any) -> tuple[list[Any], dict[str, Any]]:
        """Leaves of the params, and by name what a whole model holds beside params, None among them here.

        It has no gradient and is nothing that has one: a function, a number, integers.
        """
        leaves = self._fitting("params", params, "grads")
        rest = {n: p for n, p, g in zip(self.names, leaves, grads, strict=True) if g is None and not _is_floating(p)}
        return [None if name in rest else as_array(p) for name, p in zip(self.names, leaves, strict=True)], rest

    def _fitting(self, argument: str, tree: Any, like: str) -> list[Any]:
        try:
            return list(self.treedef.flatten_up_to(tree))
        except ValueError as error:
            checks.same_structure(argument, flatten(tree)[0].names, like, self.names)
            raise ValueError(
                f"`{argument}` and `{like}` have the same leaves in different containers; pass trees of one "
                f"structure: {error}"
            ) from None

    def elsewhere(self, grad_fn: Any, named: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
        """What a function of trees gives at other leaves, by name; `rest` is what else its tree holds."""
        return self.named(self.leaves_of("grad_fn", grad_fn(self.build(named | rest)), "params"))

    def spread(self, argument: str, prefix: Any, tree: Any) -> list[Any]:
        """Leaves of `prefix`, a tree that may end above the leaves of `tree`: one for each leaf of `tree`."""
        found: list[Any] = []

        def visit(value: Any, below: Any) -> None:
            found.extend([value] * len(jax.tree.leaves(below, is_leaf=_is_none)))

        try:
            jax.tree.map(visit, prefix, tree, is_leaf=_is_none)
        except ValueError as error:
            raise ValueError(
                f"`{argument}` does not fit the params; pass a tree of their structure or a prefix of it: {error}"
            ) from None
        return found


def flatten(tree: Any) -> tuple[Shape, list[Any]]:
    """Structure and leaves of a tree."""
    pairs, treedef = tree_flatten_with_path(tree, is_leaf=lambda node: node is None or is_variable(node))
    if any(is_variable(node) for _, node in pairs):  # its key, the first below it, is dropped
        below = [(path, tree_flatten_with_path(node, is_leaf=_is_none)[0]) for path, node in pairs]
        pairs = [(path + inner[1:], leaf) for path, leaves in below for inner, leaf in leaves]
        treedef = jax.tree.structure(tree, is_leaf=_is_none)
    names: list[str] = []
    seen: set[str] = set()
    for path, _ in pairs:
        name = keystr(path, simple=True, separator="/")
        while name in seen:  # {"a/b": ...} beside {"a": {"b": ...}}
            name += "'"
        seen.add(name)
        names.append(name)
    return Shape(names, treedef), [as_array(leaf) for _, leaf in pairs]
