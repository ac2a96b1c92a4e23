"""Counter-based random words: Threefry-2x32 with 20 rounds, in int32.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A word depends on (key, counter)
alone, so any slice of a leaf, on any shard, draws what the whole leaf would. int32 because torch lacks
arithmetic on uint32 and JAX lacks int64 unless x64 is on; two's complement addition is the same.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from . import frameworks

# Rotation distances of Threefry-2x32 and the parity constant of its key schedule (Salmon et al., table 2).
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def stream_key(seed: int, name: str) -> np.ndarray:
    """Two int32 key words of the stream that belongs to a leaf's name.

    Parameters
    ----------
    seed : int
    name : str
        The leaf's path.

    Returns
    -------
    numpy.ndarray, int32, shape (2,)

    Examples
    --------
    >>> stream_key(0, "w").shape
    (2,)
    """
    digest = hashlib.blake2s(f"{seed}/{name}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, dtype="<i4").astype(np.int32)


def _rotate(x: Any, distance: int) -> Any:
    # >> keeps the sign on int32, so the bits that it shifts in are masked away
    return (x << distance) | ((x >> (32 - distance)) & ((1 << distance) - 1))


def threefry(key: Any, counter: Any) -> tuple[Any, Any]:
    """Threefry-2x32-20 of a pair of int32 keys and a pair of int32 counters, elementwise.

    Parameters
    ----------
    key, counter : pair of int32 arrays
        Broadcast against each other.

    Returns
    -------
    pair of int32 arrays

    Examples
    --------
    Random123's known answer for zero key and zero counter is 6b200159 99ba4efe:

    >>> zero = np.zeros(1, np.int32)
    >>> [f"{int(word[0]) & 0xffffffff:08x}" for word in threefry((zero, zero), (zero, zero))]
    ['6b200159', '99ba4efe']
    """
    k = (key[0], key[1], (key[0] ^ key[1]) ^ _PARITY)
    x0, x1 = counter[0] + k[0], counter[1] + k[1]
    for group in range(5):
        for distance in _ROTATIONS[4 * (group % 2) : 4 * (group % 2) + 4]:
            x0 = x0 + x1
            x1 = _rotate(x1, distance) ^ x0
        x0, x1 = x0 + k[(group + 1) % 3], x1 + k[(group + 2) % 3] + (group + 1)
    return x0, x1


def words(key: Any, step: Any, size: int, start: int = 0) -> Any:
    """`size` random int32 words for the elements from `start` on of one leaf, at one step.

    Parameters
    ----------
    key : int32 array, shape (2,)
        The leaf's stream.
    step : int32 0-d array
        Folded into the key.
    size, start : int
        Elements and the global index of the first; the counter is that index in 64 bits.

    Returns
    -------
    int32 array, shape (size,)
    """
    xp = frameworks.namespace(key)
    folded = threefry((key[0:1], key[1:2]), (xp.reshape(step, (1,)), key[0:1] * 0))
    parts = []
    while size > 0:
        count = min(size, _HALF - start % _HALF)  # within a part, the low half counts up in int32
        low = start % (2 * _HALF)
        low = low - 2 * _HALF if low >= _HALF else low
        index = _arange(xp, count, key) + low
        parts.append(threefry(folded, (index, index * 0 + start // (2 * _HALF)))[0])
        start, size = start + count, size - count
    return parts[0] if len(parts) == 1 else xp.concat(parts or [key[0:0]])


_HALF = 2**31


def _arange(xp: Any, size: int, like: Any) -> Any:
    where = frameworks.device(like)
    if where is None:
        return xp.arange(size, dtype=xp.int32)
    return xp.arange(size, dtype=xp.int32, device=where)
