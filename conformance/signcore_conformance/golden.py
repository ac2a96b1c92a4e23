"""Golden files: one JSON per rule with its formula, the variants that are run, and known words.

The formula, the variants and the demo's settings are written by hand; ``python -m signcore_conformance.regen``
fills in the words.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from importlib import resources
from typing import Any

import signcore as sc

from .reference import Reference


def folder() -> Any:
    """Where the golden files are."""
    return resources.files(__package__) / "golden"


@cache
def load(rule: str) -> dict[str, Any]:
    """A rule's golden file."""
    path = folder() / f"{rule}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no golden file for rule {rule!r}: write conformance/signcore_conformance/golden/{rule}.json with "
            f"`formula`, `variants` and `demo`, then run `make golden`"
        )
    return dict(json.loads(path.read_text()))


def variants(rule: str) -> list[sc.Rule]:
    """The rule with each of the hyperparameter sets of its golden file; the first is the main one."""
    return [sc.rule(rule, **hyper) for hyper in load(rule)["variants"]]


def reference(rule: sc.Rule) -> Reference:
    """The independent reference of a rule with its hyperparameters."""
    kinds = {name: mark.kind for name, mark in type(rule)._marks.items()}
    numbers = {name: float(value) for name, value in rule.numbers().items()}
    options = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if f.name not in numbers}
    per_leaf = {name: kind for name, kind in kinds.items() if kind in ("element", "leaf")}
    return Reference(load(rule.name)["formula"], per_leaf, numbers, options)
