"""A rule's functional state as torch keeps state: a dict per parameter.

Fields that a rule marks as shared are one 0-d tensor in every parameter's dict, equal in all of a group, as
torch's own optimizers keep their step counters.
"""

from __future__ import annotations

from typing import Any

import torch

from signcore import Rule, checks, frameworks, ops
from signcore.marks import WHOLE
from signcore.walk import state_format

from .sharded import laid_out, local

States = dict[torch.Tensor, dict[str, Any]]  # an optimizer's `state`


def join(
    rule: Rule, params: list[torch.Tensor], names: list[str], states: States, worker: int = 0
) -> list[torch.Tensor]:
    """Give a state to those parameters of a group that have a gradient and no state; returns them.

    A parameter that joins takes the shared fields of those before it. A field that an option brought in
    later is added to the states that lack it.
    """
    wanted = list(rule.kinds)
    lacking = [
        j for j, p in enumerate(params) if p.grad is not None and any(name not in states.get(p, {}) for name in wanted)
    ]
    if not lacking:
        return []
    checks.distinct("names", [names[j] for j in lacking], len(lacking))
    fresh = rule.init({names[j]: local(params[j]) for j in lacking}, worker=worker)  # a dict: names in messages
    before = next((states[p] for p in params if states.get(p)), {})
    joining = [params[j] for j in lacking if not states.get(params[j])]
    for j in lacking:
        own = states[params[j]]
        for name in wanted:
            if rule.kinds[name] in WHOLE:
                own.setdefault(name, before.get(name, getattr(fresh, name)).clone())
            else:
                own.setdefault(name, laid_out(getattr(fresh, name)[names[j]], params[j], rule.kinds[name]))
    return joining


def recast(rule: Rule, params: list[torch.Tensor], states: States) -> list[tuple[dict[str, Any], str, Any]]:
    """Round the per-element state of a group's parameters to the dtype that a changed option asks for.

    Returns what was there before, for a step that fails: dict, name and tensor.
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    for p in params:
        if not states.get(p):
            continue
        fmt, dtype = state_format(rule, frameworks.namespace(local(p)), p)
        for name, kind in rule.kinds.items():
            if kind == "element" and name in states[p] and states[p][name].dtype != dtype:
                before.append((states[p], name, states[p][name]))
                states[p][name] = laid_out(ops.narrow(ops.widen(local(states[p][name])), dtype, fmt), p, kind)
    return before
