"""What a checkpoint says of a rule and of its trees, as JSON, and back: names and numbers, nothing that is executed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import checks, frameworks, schedules
from ..rule import Rule, classes
from ..tree import children

UNSAVED = "unsaved"


def of_rule(rule: Rule) -> dict[str, Any]:
    """Name and hyperparameters; what JSON cannot hold is named, and `to_rule` asks for it."""
    fields = {field.name: _of_value(getattr(rule, field.name)) for field in dataclasses.fields(rule)}
    return {"name": rule.name, "hyperparameters": fields}


def _of_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) in _schedules().values():
        fields = {field.name: _of_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"schedule": type(value).__name__, "fields": fields}
    if isinstance(value, (list, tuple)):
        return {"list": [_of_value(each) for each in value]}
    if hasattr(value, "dtype") and not frameworks.is_traced(value):
        return frameworks.to_numpy(value).item()
    return {UNSAVED: repr(value)}


def to_rule(described: dict[str, Any], given: Rule | None) -> Rule:
    """The rule that was saved, or the one that is given, if it is of the saved kind.

    Raises
    ------
    ValueError
        Another rule; a rule that is not signcore's own; or a hyperparameter that could not be saved.
    """
    name, fields = described["name"], described["hyperparameters"]
    if given is not None:
        if given.name != name:
            raise ValueError(f"`rule` is {given.name!r}, and the checkpoint is of {name!r}; pass a rule of that name")
        return given
    if name not in classes():
        raise ValueError(f"`rule` is missing: the checkpoint is of {name!r}, which is no rule of signcore; pass it")
    unsaved = [f"{field}={value[UNSAVED]}" for field, value in fields.items() if _is(value, UNSAVED)]
    if unsaved:
        raise ValueError(f"`rule` is missing: {', '.join(unsaved)} could not be saved; pass the rule with a value")
    known = {field.name for field in dataclasses.fields(classes()[name])}
    if not known >= set(fields):
        raise ValueError(f"the checkpoint's {name!r} has {sorted(set(fields) - known)}, unknown here; update signcore")
    missing = sorted(known - set(fields))
    if missing:
        raise ValueError(
            f"the checkpoint's {name!r} lacks {missing}: it is damaged, or of a version without them; pass the rule"
        )
    return classes()[name](**{field: _to_value(value) for field, value in fields.items()})


def _to_value(value: Any) -> Any:
    if _is(value, "list"):
        return tuple(_to_value(each) for each in value["list"])
    if not _is(value, "schedule"):
        return value
    checks.known("schedule", value["schedule"], _schedules())
    return _schedules()[value["schedule"]](**{name: _to_value(each) for name, each in value["fields"].items()})


def _is(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _schedules() -> dict[str, type]:
    found = {name: value for name, value in vars(schedules).items() if isinstance(value, type)}
    return {
        name: cls
        for name, cls in found.items()
        if issubclass(cls, schedules.Schedule) and dataclasses.is_dataclass(cls)
    }


def of_tree(node: Any) -> Any:
    """The containers of a tree: None and "leaf" are leaves, an inner node is its kind with (key, child) pairs."""
    inner = children(node)
    if inner is None:
        return None if node is None else "leaf"
    kind = "dict" if isinstance(node, dict) else type(node).__name__
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        kind = f"NamedTuple {kind}"
    keys = [key for key in node] if isinstance(node, dict) else []
    if any(not isinstance(key, (str, int)) or isinstance(key, bool) for key in keys):
        kind = "dict of other keys"
    by_text = {} if kind == "dict of other keys" else {str(key): key for key in keys}
    return {"kind": kind, "children": [[by_text.get(key, key), of_tree(child)] for key, child in inner]}


def to_tree(described: Any, leaves: Any) -> Any:
    """Plain dicts, lists and tuples around the next of `leaves`, an iterator.

    Raises
    ------
    ValueError
        A container of another kind, which only a tree like it can give back.
    """
    if described is None or described == "leaf":
        return next(leaves)
    kind, made = described["kind"], [(key, to_tree(child, leaves)) for key, child in described["children"]]
    if kind == "dict":
        return dict(made)
    if kind in ("list", "tuple"):
        return [child for _, child in made] if kind == "list" else tuple(child for _, child in made)
    raise ValueError(f"`like` is missing, and the saved params hold a {kind}; pass params of the same structure")


def leaves_of(described: Any, path: str = "") -> list[tuple[str, bool]]:
    """Path of every leaf that was saved, and whether it was an array: None is a leaf, too."""
    if described is None or described == "leaf":
        return [(path, described is not None)]
    found = []
    for key, child in described["children"]:
        found += leaves_of(child, f"{path}/{key}" if path else str(key))
    return found
