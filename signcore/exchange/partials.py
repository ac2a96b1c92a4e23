"""Partials of what the ranks measured, merged by all-reduces of integers, whose order does not matter."""

from __future__ import annotations

import math
from typing import Any

from .. import limbs
from ..dtypes import name_of
from ..frameworks import namespace
from ..rule import Rule
from .transport import Transport


def over_workers(rule: Rule) -> list[str]:
    """Names of the partials that are merged over the workers."""
    return [name for name, how in rule._partials.items() if how.over == "workers"]


def merged(rule: Rule, partials: dict[str, Any], transport: Transport) -> dict[str, Any]:
    """The partials of `Rule.measure`, those over workers merged over all ranks, in few collectives."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in over_workers(rule):
        kinds.setdefault((rule._partials[name].merge, str(name_of(partials[name].dtype))), []).append(name)
    whole = dict(partials)
    for (merge, _), names in kinds.items():
        xp = namespace(partials[names[0]])
        vector = xp.concat([xp.reshape(partials[name], (-1,)) for name in names])
        vector = transport.sum(vector) if merge == "sum" else transport.max(vector)
        at = 0
        for name in names:
            shape = partials[name].shape
            part = xp.reshape(vector[at : at + math.prod(shape)], shape)
            at += math.prod(shape)
            counts = merge == "max" or rule._partials[name].kind in ("count", None) or name == "value"
            whole[name] = part if counts else limbs.carried(part)
    return whole
