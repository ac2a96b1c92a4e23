"""Whether the ranks still hold the same parameters and state: a digest of the words of each leaf, compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import frameworks
from ..frameworks import namespace
from ..rule import Rule
from ..tree import flatten
from .transport import DisagreementError, Transport

PERIOD = 65521  # of the weights: words that changed places show


def check(rule: Rule, params: Any, state: Any, transport: Transport) -> None:
    """Raise on every rank when the words of a leaf that all share differ on one of them.

    Raises
    ------
    DisagreementError
        Names the first such leaf and rank.
    """
    named = [(f"params {leaf.path!r}", leaf.value) for leaf in flatten(params)]
    for field in rule.shared_fields():
        named += [(f"state.{field} {leaf.path!r}", leaf.value) for leaf in flatten(getattr(state, field))]
    named = [(name, value) for name, value in named if value is not None]
    if not named:
        return
    xp = namespace(named[0][1])
    every = frameworks.to_numpy(transport.gather(xp.stack([of(value) for _, value in named])))
    for n in range(1, transport.size):
        different = np.flatnonzero((every[n] != every[0]).any(axis=-1))
        if different.size:
            raise DisagreementError(
                f"{named[int(different[0])][0]} of rank {n} holds other words than rank 0's, and {different.size} of "
                f"{len(named)} leaves differ; the replicas have parted: start again from a checkpoint"
            )


def of(array: Any) -> Any:
    """Two int64 that change when a word of an array does, or two words their places."""
    xp = namespace(array)
    flat = xp.reshape(array, (-1,))
    words = xp.astype(_words(xp, flat), xp.int64)
    place = xp.arange(words.shape[0], dtype=xp.int64, device=frameworks.device(array)) % PERIOD
    return xp.stack([xp.sum(words), xp.sum(words * (2 * place + 1))])


def _words(xp: Any, flat: Any) -> Any:
    kinds = {1: xp.uint8, 2: xp.int16, 4: xp.int32, 8: xp.int64}
    if flat.dtype in (xp.uint8, xp.int32, xp.int64):
        return flat
    size = flat.itemsize if hasattr(flat, "itemsize") else flat.element_size()
    return flat.view(kinds[size])
