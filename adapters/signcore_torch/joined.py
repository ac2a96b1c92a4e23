"""``foreach=True``: parameters of one dtype and device as one long vector, cut again after the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from signcore import Rule

ELEMENTWISE = ("element", "copy")
LARGE = 2**16  # elements of a parameter that is left by itself


def fits(rule: Rule, params: list[Any], grads: list[Any], columns: Mapping[str, list[Any]]) -> bool:
    """Whether a rule treats each coordinate by itself, and nothing would be converted by joining.

    What does not fit together is left to the rule, one parameter after the other, whose errors name it.
    """
    measures = any(partial.kind is not None for partial in rule.partials.values())
    if measures or rule.settlements or rule.needs or rule.draws_noise:
        return False
    if not set(rule.kinds.values()) <= {"shared", *ELEMENTWISE}:
        return False
    fields = [columns[name] for name, kind in rule.kinds.items() if kind in ELEMENTWISE]
    for p, g, *own in zip(params, grads, *fields, strict=True):
        if p is None:
            continue
        if g.dtype != p.dtype or any(t.shape != p.shape or t.device != p.device for t in (g, *own)):
            return False
    return True


def delta(rule: Rule, params: list[Any], grads: list[Any], state: Any, hyper: Any) -> tuple[list[Any], Any]:
    """What ``rule.delta`` gives for these lists, by fewer and longer vectors."""
    places: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        if p is not None:
            kinds = tuple(getattr(state, name)[i].dtype for name, kind in rule.kinds.items() if kind in ELEMENTWISE)
            # calls cost nothing beside the work on a large parameter, and joining would copy it
            alone = i if p.numel() >= LARGE else None
            places.setdefault((p.dtype, p.device, kinds, alone), []).append(i)
    groups = list(places.values())

    def long(column: list[Any]) -> list[Any]:
        flat = [[column[i].reshape(-1) for i in group] for group in groups]
        return [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in flat]

    def short(vectors: list[Any]) -> list[Any]:
        column: list[Any] = [None] * len(params)
        for group, vector in zip(groups, vectors, strict=True):
            for i, piece in zip(group, vector.split([params[i].numel() for i in group]), strict=True):
                column[i] = piece.reshape(params[i].shape)
        return column

    per_element = [name for name, kind in rule.kinds.items() if kind in ELEMENTWISE]
    old = state._replace(**{name: long(getattr(state, name)) for name in per_element})
    found, new = rule.delta(long(params), long(grads), old, hyper=hyper)
    return short(found), new._replace(**{name: short(getattr(new, name)) for name in per_element})
