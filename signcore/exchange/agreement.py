"""Ranks compare what they were given before anything depends on it, so that what differs is an error on all of them.

A rank that raised by itself would leave the others waiting in a collective. So it says that it is about to, and
everybody raises.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from .. import checks, frameworks
from ..dtypes import name_of
from ..rule import Rule
from ..tree import flatten
from .transport import DisagreementError, Transport

FACTS = ("rule", "options", "hyper", "grads", "params", "step", "weights", "bucket", "ranks")
TEXT = 4096  # bytes of a description that are compared where a digest differs


def digest(text: str) -> int:
    """31 bits of a text."""
    return zlib.crc32(text.encode()) >> 1


def describe(
    rule: Rule, params: Any, grads: Any, state: Any, hyper: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, str]:
    """What must be the same on every rank, by the name under which an error speaks of it."""
    leaves = flatten(params)
    return {
        "rule": type(rule).__name__,
        "options": _shown({f.name: getattr(rule, f.name) for f in fields(rule) if f.name not in hyper}),
        "hyper": _shown(hyper),
        "grads": _shown({g.path: "given" for g in flatten(grads) if g.value is not None}),
        "params": _shown({p.path: f"{_name(p.value)}{tuple(p.value.shape)}" for p in leaves if p.value is not None}),
        "step": repr(int(frameworks.to_numpy(state.step))),
        **{name: repr(value) for name, value in extra.items()},
    }


def _name(array: Any) -> str:
    return str(name_of(array.dtype))


def _shown(values: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> str:
    if hasattr(value, "dtype") and not checks.is_number(value):
        return repr(frameworks.to_numpy(value).tolist())
    if callable(value) and " at 0x" in repr(value):  # an address says nothing to another process
        return f"{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def agree(
    transport: Transport, like: Any, facts: Mapping[str, str], problem: BaseException | None, *numbers: int
) -> list[list[int]]:
    """Raise on every rank where one has a problem or other facts.

    Parameters
    ----------
    transport : Transport
    like : array
        Beside which the numbers are made that are exchanged.
    facts : dict
        What must be the same everywhere, see `describe`.
    problem : exception or None
        What this rank is about to raise.
    *numbers : int
        What every rank wants to know of all others, from 0 to 2**31 - 1.

    Returns
    -------
    list of list of int
        The numbers of every rank.

    Raises
    ------
    BaseException
        This rank's own problem.
    DisagreementError
        Another rank's problem, or facts that differ: which, of which rank, and both values.
    """
    words = [int(problem is not None), *(digest(text) for text in facts.values()), *numbers]
    every = _gathered(transport, like, words)
    failed = [n for n, row in enumerate(every) if row[0]]
    if failed:
        texts = _texts(transport, like, "" if problem is None else f"{type(problem).__name__}: {problem}")
        if problem is not None:
            raise problem
        raise DisagreementError(f"rank {failed[0]} stops before this step: {texts[failed[0]]}; nothing was changed")
    for k, name in enumerate(facts, start=1):
        others = [n for n, row in enumerate(every) if row[k] != every[0][k]]
        if others:
            texts = _texts(transport, like, facts[name])
            raise DisagreementError(
                f"`{name}` of rank {others[0]} differs from rank 0's: {_difference(texts[others[0]], texts[0])}; "
                f"nothing was changed: give every rank the same"
            )
    return [row[1 + len(facts) :] for row in every]


def _gathered(transport: Transport, like: Any, words: list[int]) -> list[list[int]]:
    xp = frameworks.namespace(like)
    mine = frameworks.constant(xp, words, xp.int32, like)
    found: list[list[int]] = frameworks.to_numpy(transport.gather(mine)).tolist()
    return found


def _texts(transport: Transport, like: Any, text: str) -> list[str]:
    """A text of each rank, cut to the same length."""
    xp = frameworks.namespace(like)
    mine = frameworks.constant(xp, list(text.encode()[:TEXT].ljust(TEXT, b"\0")), xp.uint8, like)
    rows = frameworks.to_numpy(transport.gather(mine))
    return [np.asarray(row).tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def _difference(theirs: str, ours: str) -> str:
    """Two descriptions without what they have in common."""
    try:
        left, right = json.loads(theirs), json.loads(ours)
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        shown = [f"{name} is {left.get(name, 'missing')} and not {right.get(name, 'missing')}" for name in names]
    except (ValueError, AttributeError):
        return f"{theirs} and not {ours}"
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def words_agree(transport: Transport, like: Any, problem: BaseException | None, words: Any) -> None:
    """The same of the losses by which every rank decides, as `Rule.apply` hands them over."""
    raw = [0, 0, 0, 0] if words is None else frameworks.to_numpy(words).astype(np.int64).view(np.int32).tolist()
    every = _gathered(transport, like, [int(problem is not None), *raw])
    failed = [n for n, row in enumerate(every) if row[0]]
    if failed:
        if problem is not None:
            raise problem
        raise DisagreementError(f"`value_fn` of rank {failed[0]} raised an error; nothing was changed")
    for n, row in enumerate(every):
        if row != every[0]:
            raise DisagreementError(
                f"the losses by which rank {n} decides are other numbers than rank 0's, for the same params; nothing "
                f"was changed: `value` and `value_fn` must give the loss of all ranks together, the same on each"
            )
