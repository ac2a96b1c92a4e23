"""A rule's functional state as torch keeps state: a dict per parameter.

Fields that a rule marks as shared are one 0-d tensor in every parameter's dict, equal in all of a group, as
torch's own optimizers keep their step counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from signcore import Rule

States = dict[torch.Tensor, dict[str, Any]]  # an optimizer's `state`


def kept(rule: Rule, kinds: Mapping[str, str]) -> list[str]:
    """Names of the fields that a parameter's dict holds under a rule."""
    return [name for name, kind in kinds.items() if kind != "stream" or rule.draws_noise]


def join(
    rule: Rule, kinds: Mapping[str, str], params: list[torch.Tensor], names: list[str], states: States
) -> list[torch.Tensor]:
    """Give a state to those parameters of a group that have a gradient and no state; returns them.

    A parameter that joins takes the shared fields of those before it. A field that an option brought in
    later is added to the states that lack it.
    """
    wanted = kept(rule, kinds)
    lacking = [
        j for j, p in enumerate(params) if p.grad is not None and any(name not in states.get(p, {}) for name in wanted)
    ]
    if not lacking:
        return []
    fresh = rule.init([params[j] for j in lacking], names=[names[j] for j in lacking])
    before = next((states[p] for p in params if states.get(p)), {})
    joining = [params[j] for j in lacking if not states.get(params[j])]
    for at, j in enumerate(lacking):
        own = states[params[j]]
        for name in wanted:
            if kinds[name] == "shared":
                own.setdefault(name, before.get(name, getattr(fresh, name)).clone())
            else:
                own.setdefault(name, getattr(fresh, name)[at])
    return joining


def joined(rule: Rule, kinds: Mapping[str, str], columns: Mapping[str, list[Any]]) -> Any:
    """The functional state of a group, from the columns of its parameters' dicts."""
    fields: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind == "stream" and not rule.draws_noise:
            fields[name] = None
        else:
            fields[name] = columns[name][0] if kind == "shared" else columns[name]
    return rule.State(**fields)


def store(kinds: Mapping[str, str], params: list[Any], columns: Mapping[str, list[Any]], new: Any, after: Any) -> None:
    """Write a group's step into its parameters and states, in place.

    Parameters
    ----------
    new : list
        Per parameter, the change, or while torch.compile traces the new value. The sum is the same to the
        bit; a compiler that joins two steps could otherwise keep a 16-bit parameter in 32 bits between them.
    after : NamedTuple
        The new state.
    """
    for p, value in zip(params, new, strict=True):
        if p is None:
            continue
        if torch.compiler.is_compiling():
            p.copy_(value)
        else:
            p.add_(value)
    for name, kind in kinds.items():
        if kind == "shared":
            for old in columns[name]:
                old.copy_(getattr(after, name))
        elif kind != "stream":  # a stream's key never changes
            for old, value in zip(columns[name], getattr(after, name), strict=True):
                if old is not None:
                    old.copy_(value)
