"""The form of a file's description, checked before anything of it is used: whoever made it, a checksum may fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WAY_OUT = "nothing was loaded: take another file"
DEEPEST = 200  # containers in each other


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged or truncated, or has a newer format; nothing was loaded."""


def read(path: Path, text: str) -> dict[str, Any]:
    """The description of a file.

    Raises
    ------
    CheckpointError
        It is not made as `write` makes it.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        _check(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"`path` {path} is damaged: its description has another form ({repr(error)[:200]}); {WAY_OUT}"
        ) from None
    return found


def _check(found: Any) -> None:
    _is(found, dict)
    _is(found["single"], bool)
    _is(found["extra"], dict)
    for name, tensor in _is(found["tensors"], dict).items():
        _is(tensor, dict)
        for key, kind in (("dtype", str), ("shape", list), ("sha256", str)):
            _is(tensor[key], kind)
        if not all(type(extent) is int and extent >= 0 for extent in tensor["shape"]):
            raise ValueError(f"the shape of {name!r} is {tensor['shape']!r}")
    groups = _is(found["groups"], list)
    if found["single"] and len(groups) != 1:
        raise ValueError(f"there are {len(groups)} groups, and one is said")
    for k, group in enumerate(groups):
        _is(group, dict)
        prefix = "" if found["single"] else f"{k}/"
        _is(_is(group["rule"], dict)["name"], str)
        _is(group["rule"]["hyperparameters"], dict)
        _tree(group["params"], f"{prefix}params", found["tensors"], 0)
        if not all(type(field) is str for field in _is(group["fields"], list)):
            raise ValueError(f"the fields are {group['fields']!r}")


def _tree(node: Any, place: str, tensors: dict[str, Any], depth: int) -> None:
    """Every leaf of a tree has its tensor."""
    if depth > DEEPEST:
        raise ValueError(f"there are more than {DEEPEST} containers in each other")
    if node is None:
        return
    if node == "leaf":
        if place not in tensors:
            raise ValueError(f"there is no tensor {place!r}")
        return
    _is(_is(node, dict)["kind"], str)
    for child in _is(node["children"], list):
        key, below = child
        if not isinstance(key, (str, int)):
            raise ValueError(f"a key is {key!r}")
        _tree(below, f"{place}/{key}", tensors, depth + 1)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.100} is no {kind.__name__}")
    return value
