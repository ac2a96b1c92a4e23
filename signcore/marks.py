"""Marks on the fields of a rule's state and message, from which adapters and checkpoints derive everything.

A rule writes ``m: PerElement`` in its state; whoever stores, shards, moves or converts a state reads the
mark and never the rule's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints


class Mark(NamedTuple):
    """How a state field is laid out.

    ``shared``: one 0-d int32 for the whole state. ``scalar``: a float of the rule's scope: one 0-d array for
    scope "global", a vector with an entry per group for "group", a tree with a 0-d array per leaf for "leaf".
    ``element``: a tree of the params' structure with an array of each leaf's shape, in the state dtype.
    ``copy``: such a tree in the params' own dtypes, for what must hold their very words. ``packed``: such a tree
    with a uint8 vector of ``ceil(size/8)`` per leaf. ``leaf``: such a tree with a 0-d int32 per leaf. ``stream``:
    such a tree with the two int32 key words of the leaf's noise.

    A field that a rule's options leave unused is None (`Rule.unused`).

    ``late``: the parameters are moved by the value before, and not by the new one; a compiler writes the new one
    last (`frameworks.after`).

    ``own``: of several workers each has its own, because its own gradients went in before any vote. Everything else is
    the same words on all of them, and so is a stream of a rule with `Rule.applies_noise`.
    """

    kind: Literal["shared", "scalar", "element", "copy", "packed", "leaf", "stream"]
    late: bool = False
    own: bool = False


WHOLE = ("shared", "scalar")  # kinds of fields in use of which a state has one value, as `Rule.kinds` names them


class Wire(NamedTuple):
    """How a message field of several workers becomes one, and what it costs.

    ``vote``: the rule's `aggregation` of signs; ``weighted``: the sign of the sum of signs times their workers'
    weights; ``mean``; ``sum``; ``max``; ``scaled``: the mean of signs times the 0-d `scale` beside them, which is
    ``gathered``. `bits` per parameter; None are signs: one, or two with zeros.
    """

    aggregate: Literal["vote", "weighted", "mean", "sum", "max", "scaled", "gathered"]
    bits: float | None = 32.0


class Partial(NamedTuple):
    """How a partial of `measure` is merged, over whom, and what number it stands for.

    ``sum`` and ``max`` are what an all-reduce does with the integers. `over`: one worker's shards, or shards and
    workers. `kind`: of `signcore.sums`; ``top``, the largest number; ``count``, of elements; None for words.
    """

    merge: Literal["sum", "max"]
    over: Literal["shards", "workers"]
    kind: Literal["sum", "dot", "norm1", "norm2", "norm_inf", "top", "count"] | None = None


Shared = Annotated[Any, Mark("shared")]
Scalar = Annotated[Any, Mark("scalar")]
PerElement = Annotated[Any, Mark("element")]
Late = Annotated[Any, Mark("element", late=True)]
Copy = Annotated[Any, Mark("copy")]
PerLeaf = Annotated[Any, Mark("leaf")]
Stream = Annotated[Any, Mark("stream", own=True)]
Own = Annotated[Any, Mark("element", own=True)]
OwnLate = Annotated[Any, Mark("element", late=True, own=True)]
OwnCopy = Annotated[Any, Mark("copy", own=True)]
OwnPacked = Annotated[Any, Mark("packed", own=True)]
Vote = Annotated[Any, Wire("vote", None)]
WeightedVote = Annotated[Any, Wire("weighted", None)]
Mean = Annotated[Any, Wire("mean")]
MeanOfSigns = Annotated[Any, Wire("mean", None)]
Scaled = Annotated[Any, Wire("scaled", None)]
Scale = Annotated[Any, Wire("gathered", 0.0)]  # one number a leaf


def marks(cls: type) -> dict[str, Any]:
    """Field name to its `Mark` (of a state) or `Wire` (of a message), in field order.

    Examples
    --------
    >>> from signcore.rules.lion import LionState
    >>> {name: mark.kind for name, mark in marks(LionState).items()}
    {'step': 'shared', 'm': 'element', 'stream': 'stream'}
    """
    return {name: get_args(hint)[1] for name, hint in get_type_hints(cls, include_extras=True).items()}
