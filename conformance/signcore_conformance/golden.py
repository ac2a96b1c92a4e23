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


@cache
def representatives() -> list[str]:
    """The fewest rules (chosen greedily) that have, between them, whatever a backend treats by itself.

    That is every kind of state field, every kind of number that is measured, every input beside gradients, every wire,
    noise, and a second round.
    """
    features = {}
    for name in sc.rules():
        rule = variants(name)[0]
        found = set(rule.kinds.values()) | {f"measures {p.kind}" for p in rule.partials.values()} | set(rule.needs)
        found |= {f"sends {wire.aggregate}" for wire in rule._wires.values()} | {f"scope {rule.scope}"}
        features[name] = (
            found | ({"noise"} if rule.draws_noise else set()) | ({"two rounds"} if rule.settlements else set())
        )
    missing: set[str] = set().union(*features.values())
    chosen: list[str] = []
    while missing:
        best = max(features, key=lambda name: len(missing & features[name]))
        chosen.append(best)
        missing -= features[best]
    return sorted(chosen)


def plain() -> list[str]:
    """Rules whose steps are elementwise, draw nothing and take nothing but gradients."""
    rules = [sc.rule(name, lr=0.1) for name in sc.rules()]
    return [r.name for r in rules if not (r.needs or r.partials or r.settlements or r.draws_noise)]


def reference(rule: sc.Rule) -> Reference:
    """The independent reference of a rule with its hyperparameters."""
    held = load(rule.name)
    numbers = {name: float(value) for name, value in rule.numbers().items() if value is not None}
    options = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if f.name not in numbers}
    options |= {"draws_noise": rule.draws_noise, "grad_at": held.get("grad_at") if rule.needs >= {"grad_fn"} else None}
    kinds = {
        name: "leaf scalar" if kind == "leaf" and type(rule)._marks[name].kind == "scalar" else kind
        for name, kind in rule.kinds.items()
        if kind != "stream" and name != "step"
    }
    accept = held.get("accept")
    return Reference(held["formula"], kinds, numbers, options, held.get("stages"), rule.scope, accept, rule.needs)
