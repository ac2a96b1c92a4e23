"""Aggregation by slices: every rank aggregates one slice of a vector for all, and tells the others the result.

Whatever the number of ranks, a rank sends and receives each vector once on the way in and once on the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import frameworks
from ..frameworks import namespace
from .transport import Transport


def by_slices(planes: Any, transport: Transport, combine: Callable[[Any], Any]) -> Any:
    """``combine`` of what all ranks hold, of shape (planes, n), in any number of planes.

    Parameters
    ----------
    planes : array, shape (P, n)
        This rank's.
    transport : Transport
    combine : function
        From (ranks, P, k), the slices of k columns of all ranks in order, to (Q, k).

    Returns
    -------
    array, shape (Q, n)
    """
    xp, size = namespace(planes), transport.size
    count, n = planes.shape
    rows = transport.exchange(rows_of(planes, size))
    k = rows.shape[1] // count
    mine = combine(xp.reshape(rows, (size, count, k)))
    every = transport.gather(xp.reshape(mine, (-1,)))
    made = xp.permute_dims(xp.reshape(every, (size, mine.shape[0], k)), (1, 0, 2))
    return xp.reshape(made, (mine.shape[0], size * k))[:, :n]


def rows_of(planes: Any, size: int) -> Any:
    """Columns dealt out in order to `size` ranks, each with the same number of them: shape (size, planes * k)."""
    xp = namespace(planes)
    count, n = planes.shape
    k = -(-n // size)
    if k * size > n:
        padding = frameworks.constant(xp, [[0] * (k * size - n)] * count, planes.dtype, planes)
        planes = xp.concat([planes, padding], axis=1)
    if count == 1:
        return xp.reshape(planes, (size, k))
    return xp.reshape(xp.permute_dims(xp.reshape(planes, (count, size, k)), (1, 0, 2)), (size, count * k))
