"""Trees of arrays: dict, list, tuple, NamedTuple, None and bare arrays, as a list of (path, leaf).

Frameworks flatten with their own tree libraries; this one serves plain Python containers. None is a leaf,
so a missing gradient keeps its place. Keys of a dict are visited in sorted order, whatever the order of
insertion, so two dicts with the same entries are the same tree.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple


class Leaf(NamedTuple):
    """A leaf and its path, the keys joined by ``/`` (the empty string for a bare array)."""

    path: str
    value: Any


def _is_dict(node: Any) -> bool:
    return isinstance(node, dict)


def _is_namedtuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def children(node: Any) -> list[tuple[str, Any]] | None:
    """(key, child) of an inner node in the order in which it is walked; None for a leaf."""
    if _is_dict(node):
        if len({str(key) for key in node}) < len(node):
            keys = ", ".join(sorted(map(repr, node)))
            raise ValueError(f"two keys of a dict of a tree have the same name as text: {keys}; rename one of them")
        return [(str(key), node[key]) for key in sorted(node, key=str)]
    if _is_namedtuple(node):
        return [(name, getattr(node, name)) for name in node._fields]
    if isinstance(node, (list, tuple)):
        return [(str(i), child) for i, child in enumerate(node)]
    return None


def flatten(tree: Any, path: str = "") -> list[Leaf]:
    """All leaves of a tree with their paths, in sorted-path order of dicts and in order of sequences.

    Examples
    --------
    >>> [leaf.path for leaf in flatten({"b": [1, None], "a": 2})]
    ['a', 'b/0', 'b/1']
    """
    inner = children(tree)
    if inner is None:
        return [Leaf(path, tree)]
    leaves: list[Leaf] = []
    for key, child in inner:
        leaves.extend(flatten(child, f"{path}/{key}" if path else key))
    return leaves


def first_difference(tree: Any, other: Any, path: str = "") -> str | None:
    """Path of the first node at which two trees hold other containers or keys; None when they are alike.

    A list and a tuple are alike, because gradients often come as a tuple for a list of parameters.

    Examples
    --------
    >>> first_difference({"a": [1, 2]}, {"a": {"0": 1, "1": 2}})
    'a'
    """
    mine, theirs = children(tree), children(other)
    if mine is None or theirs is None:
        return None if mine is theirs else path
    kinds = [(_is_dict(node), _is_namedtuple(node)) for node in (tree, other)]
    if kinds[0] != kinds[1] or [key for key, _ in mine] != [key for key, _ in theirs]:
        return path
    for (key, child), (_, opposite) in zip(mine, theirs, strict=True):
        found = first_difference(child, opposite, f"{path}/{key}" if path else key)
        if found is not None:
            return found
    return None


def unflatten(like: Any, values: list[Any]) -> Any:
    """A tree of the structure of `like` with `values` as its leaves, in the order of `flatten`."""
    tree, rest = _build(like, values)
    if rest != len(values):
        raise ValueError(f"{len(values)} values for a tree of {rest} leaves")
    return tree


def _build(node: Any, values: list[Any], at: int = 0) -> tuple[Any, int]:
    inner = children(node)
    if inner is None:
        return values[at], at + 1
    built = {}
    for key, child in inner:
        built[key], at = _build(child, values, at)
    if _is_dict(node):
        rebuilt = {} if type(node) is dict else copy.copy(node)  # a defaultdict keeps its factory
        rebuilt.update((key, built[str(key)]) for key in node)  # the caller's order of insertion
        return rebuilt, at
    if _is_namedtuple(node):
        return type(node)(**built), at
    return type(node)(built.values()), at
