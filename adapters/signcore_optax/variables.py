"""Variables of Flax NNX: nodes of a tree with one child, the array.

`flax.nnx.Optimizer` calls `init` with variables and `update` with their arrays, so a variable must not show
in the name of a leaf. They are known by their type's name, because nothing here needs Flax.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
from jax.tree_util import default_registry


@cache
def _is_variable_type(kind: Any) -> bool:
    return any(base.__name__ == "Variable" and base.__module__.startswith("flax.nnx.") for base in kind.__mro__)


def is_variable(node: Any) -> bool:
    """Whether a node of a tree is a variable of Flax NNX, and no dict or dataclass with a `value`."""
    kind: Any = type(node)
    return _is_variable_type(kind)


def pure(tree: Any) -> Any:
    """The tree with what its variables hold in their places."""
    return jax.tree.map(lambda node: _held(node) if is_variable(node) else node, tree, is_leaf=is_variable)


def _held(variable: Any) -> Any:
    one_level = default_registry.flatten_one_level(variable)
    assert one_level is not None
    return one_level[0][0]


def refilled(like: Any, tree: Any) -> Any:
    """The variables of `like`, new ones with the same metadata, around the leaves of a pure tree of its structure."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))
