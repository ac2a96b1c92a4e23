"""Fields of the ranks' messages as one, each as the rule's `Wire` declares it, to the bit as `simulate` does.

Signs travel as bits: those of a vote go to the rank that counts their slice, and one bit, or two where zeros may be,
comes back. Means of signs travel as the narrowest integers that hold their sum. Only what a rule declares as numbers
does so as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import frameworks, ops, random, tally
from ..bits import pack_ternary, unpack, unpack_ternary
from ..dtypes import name_of
from ..frameworks import namespace
from ..marks import Wire
from ..rule import Rule
from ..tree import flatten, unflatten
from ..walk import words_of
from . import packing
from .slices import by_slices, rows_of
from .transport import Transport


def aggregation_of(rule: Rule, wire: Wire) -> str:
    """How a field is aggregated; a vote as the rule's option says."""
    return str(getattr(rule, "aggregation", "majority")) if wire.aggregate == "vote" else wire.aggregate


def carries_signs(wire: Wire) -> bool:
    """Whether a field holds nothing but -1, 0 and 1."""
    return wire.bits is None


def ternary(rule: Rule) -> bool:
    """Whether signs may be zero and take two bits."""
    return getattr(rule, "sign_zero", "zero") == "zero"


def has_zeros(rule: Rule, message: Any, xp: Any, like: Any) -> Any:
    """0-d int32, 1 where a sign of a rule that promised none is zero: that of NaN is."""
    found = frameworks.constant(xp, 0, xp.int32, like)
    for name in (name for name, wire in rule._wires.items() if carries_signs(wire)):
        for _, signs in flatten(getattr(message, name)):
            if signs is not None:
                found = found | xp.astype(xp.any(signs == 0.0), xp.int32)
    return found


def aggregated(
    rule: Rule,
    message: Any,
    params: Any,
    state: Any,
    transport: Transport,
    *,
    zeros: Any = False,
    bucket: int,
    weights: Sequence[float] | None = None,
) -> Any:
    """The message of all ranks together.

    Parameters
    ----------
    rule : Rule
    message : message
        This rank's.
    params : tree
    state : state
        Before the step.
    transport : Transport
    zeros : bool or 0-d bool, default False
        Whether any rank's signs have zeros although the rule promised none; the same on all ranks.
    bucket : int
        Most coordinates that travel together.
    weights : sequence of float, optional
        Of the ranks, for weighted votes.

    Returns
    -------
    message
    """
    sends = rule.sends(state)
    fields: dict[str, Any] = {}
    for name, wire in rule._wires.items():
        mine = getattr(message, name)
        if wire.aggregate == "gathered":
            fields[name] = None
            continue
        column = flatten(mine)
        present = [i for i, leaf in enumerate(column) if leaf.value is not None]
        leaves = [column[i].value for i in present]
        if name not in sends or not leaves:
            fields[name] = mine
            continue
        scales = [flatten(message.scale)[i].value for i in present] if wire.aggregate == "scaled" else []
        paths = [flatten(params)[i].path for i in present]
        combine = _Field(rule, wire, transport, state.step, zeros, weights)
        made: list[Any] = []
        for each in packing.buckets(leaves, bucket):
            made += combine(leaves[each], paths[each], scales[each])
        values: list[Any] = [None] * len(column)
        for i, value in zip(present, made, strict=True):
            values[i] = value
        fields[name] = unflatten(mine, values)
    return rule.Message(**fields)


class _Field:
    """One field of a message: a bucket of leaves at a time."""

    def __init__(
        self, rule: Rule, wire: Wire, transport: Transport, step: Any, zeros: Any, weights: Sequence[float] | None
    ) -> None:
        self.rule, self.transport, self.step, self.weights = rule, transport, step, weights
        self.how = aggregation_of(rule, wire)
        self.signs, self.ternary, self.zeros = carries_signs(wire), ternary(rule), zeros
        self.ties = getattr(rule, "ties", "zero")
        if transport.size == 1:  # one rank's signs are no vote
            self.ties, self.how = "zero", "majority" if self.how == "weighted" else self.how

    def __call__(self, leaves: list[Any], paths: list[str], scales: list[Any]) -> list[Any]:
        if self.how in ("mean", "sum"):
            total = self._counted(leaves) if self.signs else self._added(leaves)
            if self.how == "mean":
                total = ops.quotient(total, float(self.transport.size))
            return packing.shaped(total, leaves)
        if self.how == "max":
            return packing.shaped(by_slices(_row(leaves), self.transport, _largest)[0, :], leaves)
        function = {"majority": self._voted, "weighted": self._weighed, "scaled": self._scaled}[self.how]

        def made(wide: bool) -> list[Any]:
            return function(leaves, paths, scales, wide)

        if self.ternary or self.zeros is False or self.zeros is True:
            return made(self.ternary or self.zeros is True)
        one_bit = dict(enumerate(made(False)))
        found = frameworks.only_if(self.zeros, lambda: dict(enumerate(made(True))), one_bit)
        return [found[i] for i in one_bit]

    def _counted(self, leaves: list[Any]) -> Any:
        """Sums of signs, as integers of the narrowest width that holds them and that every engine adds."""
        xp, vector = namespace(leaves[0]), packing.flat(leaves)
        narrow = xp.int8 if self.transport.size <= 127 else xp.int32
        return xp.astype(self.transport.sum(xp.astype(vector, narrow)), vector.dtype)

    def _added(self, leaves: list[Any]) -> Any:
        """Sums of numbers, one after the other in the order of the ranks."""
        return by_slices(_row(leaves), self.transport, _summed)[0, :]

    def _voted(self, leaves: list[Any], paths: list[str], scales: list[Any], wide: bool) -> list[Any]:
        xp = namespace(leaves[0])
        planes = packing.planes_of(leaves, wide)
        if wide:
            voted = by_slices(planes, self.transport, _ternary_vote)
            return self._untied(packing.signs_of(voted, leaves), paths)
        tie, coins = "plus", None  # an odd number of ranks is never undecided
        if self.transport.size % 2 == 0:
            tie = self.ties
        if tie == "random":
            tossed = [1.0 - 2.0 * xp.astype(w & 1, xp.float32) for w in self._coins(leaves, paths)]
            rows = packing.planes_of(tossed, False)
            coins = self.transport.own(rows_of(rows, self.transport.size))
        voted = by_slices(planes, self.transport, lambda rows: tally.majority(rows[:, 0, :], tie, coins)[None, :])
        return packing.signs_of(voted, leaves)

    def _untied(self, signs: list[Any], paths: list[str]) -> list[Any]:
        if self.ties == "zero":
            return signs
        words = self._coins(signs, paths) if self.ties == "random" else [None] * len(signs)
        return [ops.sign(s, self.ties, w) for s, w in zip(signs, words, strict=True)]

    def _coins(self, leaves: list[Any], paths: list[str]) -> list[Any]:
        """Words that every rank draws alike, from streams that are no worker's."""
        found = []
        for leaf, path in zip(leaves, paths, strict=True):
            xp, seed = namespace(leaf), getattr(self.rule, "seed", 0)
            key = frameworks.constant(xp, random.stream_key(seed, path, "ties"), xp.int32, leaf)
            found.append(xp.reshape(words_of(leaf, key, self.step, 0), leaf.shape))
        return found

    def _weighed(self, leaves: list[Any], paths: list[str], scales: list[Any], wide: bool) -> list[Any]:
        """Votes that count differently: signs times weights, added in the order of the ranks."""
        dtype, weights = name_of(leaves[0].dtype), self.weights
        assert weights is not None
        xp = namespace(leaves[0])

        def combine(rows: Any) -> Any:
            read, size = (unpack_ternary if wide else unpack), 8 * rows.shape[2]
            each = [read(xp.reshape(rows[n, ...], (-1,)), size, dtype) for n in range(rows.shape[0])]
            of = frameworks.constant(xp, list(weights), each[0].dtype, each[0])
            total = _in_order([ops.product(signs, of[n]) for n, signs in enumerate(each)])
            return xp.reshape(pack_ternary(total), (2, -1))

        voted = by_slices(packing.planes_of(leaves, wide), self.transport, combine)
        return self._untied(packing.signs_of(voted, leaves), paths)

    def _scaled(self, leaves: list[Any], paths: list[str], scales: list[Any], wide: bool) -> list[Any]:
        """Means of signs times their rank's number: every rank is told all bits and adds them up itself."""
        xp, size = namespace(leaves[0]), self.transport.size
        rows = self.transport.gather(packing.planes_of(leaves, wide))
        numbers = self.transport.gather(xp.stack(scales))
        totals: list[Any] = [None] * len(leaves)
        for n in range(size):  # one rank after the other, so that no more than one has its signs as numbers
            for i, signs in enumerate(packing.signs_of(rows[n, ...], leaves)):
                part = ops.product(signs, numbers[n, i])
                totals[i] = part if n == 0 else totals[i] + part
        return [ops.quotient(total, float(size)) for total in totals]


def _row(leaves: list[Any]) -> Any:
    return packing.flat(leaves)[None, :]


def _ternary_vote(rows: Any) -> Any:
    xp = namespace(rows)
    return xp.reshape(tally.majority_ternary(xp.reshape(rows, (rows.shape[0], -1))), rows.shape[1:])


def _summed(rows: Any) -> Any:
    return _in_order([rows[n, ...] for n in range(rows.shape[0])])


def _largest(rows: Any) -> Any:
    return namespace(rows).max(rows, axis=0)


def _in_order(values: list[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
