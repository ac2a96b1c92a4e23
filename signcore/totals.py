"""Scalars of a whole tree: measured as partials that any shards and workers can merge, then finished as numbers.

A rule's scalars belong to its scope: the whole tree, each group (leaves that stand in one container), or each leaf.
Inside of this file, and in `Rule.advance`, a scalar is a vector with an entry per scope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import frameworks, limbs, ops, sums
from .ieee import product, quotient
from .marks import Partial
from .tree import Leaf

if TYPE_CHECKING:
    from .rule import Rule

SCOPES = ("global", "group", "leaf")


def scope_of(scope: str, leaves: list[Leaf]) -> list[int]:
    """The index of each leaf's scope."""
    if scope == "global":
        return [0] * len(leaves)
    if scope == "leaf":
        return list(range(len(leaves)))
    groups: dict[str, int] = {}
    return [groups.setdefault(leaf.path.rpartition("/")[0], len(groups)) for leaf in leaves]


def count_of(scope: str, leaves: list[Leaf]) -> int:
    """How many scopes there are."""
    return max(scope_of(scope, leaves), default=0) + 1


def shape_of(scope: str, leaves: list[Leaf]) -> tuple[int, ...]:
    """Shape of a scalar that is kept once for the state: of scope "global" or "group"."""
    return () if scope == "global" else (count_of(scope, leaves),)


def wide(leaves: list[Leaf]) -> str:
    """Dtype of scalars: float64 where a leaf is float64, else float32."""
    found = any(leaf.value is not None and str(leaf.value.dtype).endswith("float64") for leaf in leaves)
    return "float64" if found else "float32"


def partial(kind: Any, pieces: list[Any], compute: str, xp: Any, like: Any) -> Any:
    """One scope's partial, from what its leaves give: arrays, or pairs of them for "dot"."""
    if kind == "count":
        size = sum(math.prod(piece.shape) for piece in pieces)
        # of two words, or of three for float64: as everywhere, the shape of a partial tells its compute dtype
        return frameworks.constant(xp, [size >> 16, size & 0xFFFF] + [0] * (compute == "float64"), xp.int32, like)
    if kind == "top":
        return frameworks.automatic(lambda *each: _top(list(each), compute, xp, like), *pieces)
    if not pieces:
        return nothing(kind, compute, xp, like)
    if kind != "dot":
        return frameworks.automatic(lambda *each: sums.partial(kind, list(each), compute=compute), *pieces)
    half = len(pieces)
    return frameworks.automatic(
        lambda *each: sums.partial(kind, list(each[:half]), list(each[half:]), compute=compute),
        *(pair[0] for pair in pieces),
        *(pair[1] for pair in pieces),
    )


def nothing(kind: Any, compute: str, xp: Any, like: Any) -> Any:
    """The partial of no leaf."""
    if kind == "norm_inf":
        return frameworks.constant(xp, 0, xp.int64 if compute == "float64" else xp.int32, like)
    if kind in ("top", "count"):
        return partial(kind, [], compute, xp, like)
    return frameworks.constant(xp, np.zeros(limbs.SHAPES[compute], np.int32), xp.int32, like)


def measured(
    rule: Rule, work: Any, names: Mapping[str, Partial], leaf: Any, fields: Any, scope: str | None = None
) -> dict[str, Any]:
    """Partials of what ``leaf(p, g, s, h, ...)`` gives of each leaf, stacked over the scopes.

    `fields` is called for fields of the state that are evaluated and not stored.
    """
    first = scope is None
    scope = rule.scope if scope is None else scope
    xp, count = frameworks.namespace(work.like), count_of(scope, work.leaves)

    def compute() -> dict[str, Any]:
        pieces: dict[str, list[list[Any]]] = {name: [[] for _ in range(count)] for name in names}
        extra = fields()
        for i, made in enumerate(work.each(leaf, extra)):
            for name in names if made is not None else ():
                pieces[name][work.scope[i]].append(made[name])
        return {
            name: stacked([partial(how.kind, each, work.wide, xp, work.like) for each in pieces[name]])
            for name, how in names.items()
        }

    def stacked(found: list[Any]) -> Any:
        return found[0] if scope == "global" else xp.stack(found)

    due = rule.due(work.state) if first else None
    if due is None:
        return compute()
    work.make_numbers()
    none = {name: stacked([nothing(how.kind, work.wide, xp, work.like)] * count) for name, how in names.items()}
    found: dict[str, Any] = frameworks.only_if(due, compute, none)
    return found


def finished(names: Mapping[str, Partial], partials: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Merged partials as vectors of numbers; sums over workers become means."""
    found = {}
    for name, total in partials.items():
        if name == "nonfinite":
            continue
        if name == "value":
            found[name] = _mean_value(total)
            continue
        how = names[name]
        value = _number(how.kind, total)
        mean = workers > 1 and how.over == "workers" and how.merge == "sum"
        found[name] = quotient(value, float(workers)) if mean else value
    return found


def _number(kind: Any, total: Any) -> Any:
    xp = frameworks.namespace(total)
    if kind == "count":
        dtype = frameworks.dtype(xp, "float32" if total.shape[-1] == 2 else "float64")
        value = product(xp.astype(total[..., 0:1], dtype), 65536.0) + xp.astype(total[..., 1:2], dtype)
    elif kind == "top":
        value = frameworks.from_bits(_mirrored(total))
    elif kind == "norm_inf":
        value = frameworks.from_bits(total)
    else:
        value = limbs.rounded(total, root=kind == "norm2")
    return xp.reshape(value, (-1,))


def of_value(value: Any, compute: str, xp: Any, like: Any) -> Any:
    """The partial of a loss: the exact sum of all losses that are merged, and their number."""
    dtype = frameworks.dtype(xp, compute)
    if not hasattr(value, "dtype") or frameworks.namespace(value) is not xp:
        value = frameworks.constant(xp, value, dtype, like)
    found = sums.partial("sum", xp.reshape(xp.astype(xp.asarray(value), dtype), (1,)), compute=compute)
    return xp.concat([found, frameworks.constant(xp, [1], xp.int32, like)])


def _mean_value(total: Any) -> Any:
    xp = frameworks.namespace(total)
    found = xp.reshape(limbs.rounded(total[:-1]), (1,))
    return quotient(found, xp.astype(total[-1:], found.dtype))


def merge(rule: Rule, first: dict[str, Any], second: dict[str, Any], *, over: str) -> dict[str, Any]:
    """Partials of two shards, or of two workers (`over`), as those of both; what is not merged stays the first's."""
    merged = dict(first)
    for name, mine in first.items():
        how = rule._partials[name]
        if over == "workers" and how.over == "shards":
            continue
        xp = frameworks.namespace(mine)
        if how.merge == "max":
            merged[name] = xp.maximum(mine, second[name])
        elif how.kind in ("count", None) or name == "value":
            merged[name] = mine + second[name]
        else:
            merged[name] = limbs.carried(mine + second[name])
    return merged


def _top(pieces: list[Any], compute: str, xp: Any, like: Any) -> Any:
    """Largest number as an integer of the same order; of no numbers the least, NaN above all."""
    dtype = frameworks.dtype(xp, compute)
    found = [frameworks.constant(xp, -math.inf, dtype, like)]
    found += [xp.max(xp.astype(piece, dtype)) for piece in pieces if math.prod(piece.shape)]
    bad = [xp.any(piece != piece) for piece in pieces if math.prod(piece.shape)]
    value = xp.max(xp.stack(found))
    if bad:
        value = xp.where(xp.any(xp.stack(bad)), math.nan, value)
    # +0.0 for either zero: XLA drops the addition of zero that would make it so
    return _mirrored(frameworks.bits(ops.flush(value)))


def _mirrored(words: Any) -> Any:
    """Words of floats to integers of their order, and back."""
    xp = frameworks.namespace(words)
    shift = 63 if words.dtype == xp.int64 else 31
    return words ^ ((words >> shift) & (2**shift - 1))
