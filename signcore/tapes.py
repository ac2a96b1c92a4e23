"""The random words of leaves that lie one behind the other, in as many operations as those of one leaf.

Each word is that of its leaf: of the leaf's key, the step and the element's index in the leaf (random.py). Only the
lookup of the key is added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import frameworks, random

_MOST = 2**31  # elements of a vector, whose indices are int32 here


class Tape:
    """The words of some vectors, each of them made of leaves.

    Parameters
    ----------
    vectors : list of lists of (int32 array of shape (2,), int)
        Key and number of elements of each leaf, in order.
    """

    def __init__(self, vectors: list[list[tuple[Any, int]]]) -> None:
        self.vectors = vectors
        self.lookups = [self._lookup(leaves) for leaves in vectors]

    def words(self, step: Any) -> list[Any]:
        """A vector of int32 words for each vector, at one step."""
        return [self._words(*both, step) for both in zip(self.vectors, self.lookups, strict=True)]

    def _lookup(self, leaves: list[tuple[Any, int]]) -> tuple[Any, Any, Any] | None:
        """The leaves' keys and starts as arrays, and the leaf of each element: 4 bytes an element, kept."""
        key, sizes = leaves[0][0], [size for _, size in leaves]
        if len(leaves) == 1 or sum(sizes) >= _MOST or frameworks.is_host(key):
            return None  # on the host, words are faster made in scratch that stays in the cache
        xp = frameworks.namespace(key)
        starts = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
        owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        keys = xp.stack([key for key, _ in leaves], axis=1)
        return keys, frameworks.constant(xp, starts, xp.int32, key), frameworks.constant(xp, owners, xp.int32, key)

    def _words(self, leaves: list[tuple[Any, int]], lookup: tuple[Any, Any, Any] | None, step: Any) -> Any:
        xp = frameworks.namespace(leaves[0][0])
        if lookup is None:
            drawn = [random.words(key, step, size) for key, size in leaves]
            return drawn[0] if len(drawn) == 1 else xp.concat(drawn)
        keys, starts, owners = lookup
        k0, k1 = random.threefry((keys[0, :], keys[1, :]), (keys[0, :] * 0, xp.reshape(step, (1,))))
        index = random._arange(xp, owners.shape[0], owners) - xp.take(starts, owners, axis=0)
        folded = xp.take(k0, owners, axis=0), xp.take(k1, owners, axis=0)
        x0, x1 = random.threefry(folded, (index * 0, index))
        return x0 ^ x1
