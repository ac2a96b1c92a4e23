"""Trees as JAX sees them, to and from the dict of path and leaf that the core works on.

JAX's tree library flattens, so every registered container works (modules, FrozenDict, MaskedNode). The paths
are the core's, because they name leaves in messages and key their noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from signcore import checks


def _is_none(node: Any) -> bool:
    return node is None


def as_array(leaf: Any) -> Any:
    """NumPy arrays and Python numbers as JAX takes them; anything else as it is, for the core to judge."""
    return jnp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic, float, int)) else leaf


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
        try:
            return [as_array(leaf) for leaf in self.treedef.flatten_up_to(tree)]
        except ValueError as error:
            checks.same_structure(argument, flatten(tree)[0].names, like, self.names)
            raise ValueError(
                f"`{argument}` and `{like}` have the same leaves in different containers; pass trees of one "
                f"structure: {error}"
            ) from None

    def elsewhere(self, grad_fn: Any, named: dict[str, Any]) -> dict[str, Any]:
        """What a function of trees gives at other leaves, by name."""
        return self.named(self.leaves_of("grad_fn", grad_fn(self.build(named)), "params"))

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
    pairs, treedef = tree_flatten_with_path(tree, is_leaf=_is_none)
    names: list[str] = []
    seen: set[str] = set()
    for path, _ in pairs:
        name = keystr(path, simple=True, separator="/")
        while name in seen:  # {"a/b": ...} beside {"a": {"b": ...}}
            name += "'"
        seen.add(name)
        names.append(name)
    return Shape(names, treedef), [as_array(leaf) for _, leaf in pairs]
