"""Leaves as one flat vector and back: signs as planes of bits, one after the other.

A plane's byte is eight coordinates of its leaf (bits.py); where a slice of a bucket is cut does not matter to a vote,
which counts bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .. import bits
from ..dtypes import name_of
from ..frameworks import namespace


def buckets(leaves: list[Any], most: int) -> Iterator[slice]:
    """Runs of leaves of one dtype with at most `most` coordinates together, or one leaf that has more.

    Examples
    --------
    >>> import numpy as np
    >>> [(s.start, s.stop) for s in buckets([np.zeros(3), np.zeros(4), np.zeros(9), np.zeros(1)], 8)]
    [(0, 2), (2, 3), (3, 4)]
    """
    start, held = 0, 0
    for i, leaf in enumerate(leaves):
        size = math.prod(leaf.shape)
        if i > start and (held + size > most or leaf.dtype != leaves[start].dtype):
            yield slice(start, i)
            start, held = i, 0
        held += size
    if start < len(leaves):
        yield slice(start, len(leaves))


def planes_of(leaves: list[Any], ternary: bool) -> Any:
    """uint8 array of shape (planes, bytes): the signs of all leaves; one plane of s > 0, or also one of s < 0."""
    xp = namespace(leaves[0])
    if not ternary:
        return xp.concat([bits.pack(leaf) for leaf in leaves])[None, :]
    return xp.concat([xp.reshape(bits.pack_ternary(leaf), (2, -1)) for leaf in leaves], axis=1)


def signs_of(planes: Any, leaves: list[Any]) -> list[Any]:
    """The signs in planes as arrays like `leaves`."""
    xp, found, at = namespace(planes), [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        part = planes[:, at : at + -(-size // 8)]
        at += -(-size // 8)
        read = bits.unpack if planes.shape[0] == 1 else bits.unpack_ternary
        signs = read(xp.reshape(part, (-1,)), size, name_of(leaf.dtype))
        found.append(xp.reshape(signs, leaf.shape))
    return found


def flat(leaves: list[Any]) -> Any:
    """All numbers of leaves of one dtype as a vector."""
    xp = namespace(leaves[0])
    return xp.concat([xp.reshape(leaf, (-1,)) for leaf in leaves])


def shaped(vector: Any, leaves: list[Any]) -> list[Any]:
    """A vector cut into arrays of the shapes of `leaves`."""
    xp, found, at = namespace(vector), [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        found.append(xp.reshape(vector[at : at + size], leaf.shape))
        at += size
    return found
