"""Marks on the fields of a rule's state and message, from which adapters and checkpoints derive everything.

A rule writes ``m: PerElement`` in its state; whoever stores, shards, moves or converts a state reads the
mark and never the rule's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints


class Mark(NamedTuple):
    """How a state field is laid out.

    ``shared``: one 0-d int32 for the whole state. ``element``: a tree of the params' structure with an
    array of each leaf's shape, in the state dtype. ``leaf``: such a tree with a 0-d int32 per leaf.
    ``stream``: such a tree with the two int32 key words of the leaf's noise, or None for a rule without noise.
    """

    kind: Literal["shared", "element", "leaf", "stream"]


class Wire(NamedTuple):
    """How a message field of several workers becomes one: by ``vote``, ``mean``, ``sum`` or ``max``."""

    aggregate: Literal["vote", "mean", "sum", "max"]


class Partial(NamedTuple):
    """How a partial of `measure` is merged, and over whom."""

    merge: Literal["sum", "max"]
    over: Literal["shards", "workers"]  # one worker's shards, or shards and workers


Shared = Annotated[Any, Mark("shared")]
PerElement = Annotated[Any, Mark("element")]
PerLeaf = Annotated[Any, Mark("leaf")]
Stream = Annotated[Any, Mark("stream")]
Vote = Annotated[Any, Wire("vote")]
Mean = Annotated[Any, Wire("mean")]


def marks(cls: type) -> dict[str, Any]:
    """Field name to its `Mark` (of a state) or `Wire` (of a message), in field order.

    Examples
    --------
    >>> from signcore.rules.lion import LionState
    >>> {name: mark.kind for name, mark in marks(LionState).items()}
    {'step': 'shared', 'm': 'element', 'stream': 'stream'}
    """
    return {name: get_args(hint)[1] for name, hint in get_type_hints(cls, include_extras=True).items()}
