"""Counter-based random words, Threefry-2x32 with 20 rounds in int32, and what is sampled from them.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A word depends on (key, counter)
alone, so any slice of a leaf, on any shard, draws what the whole leaf would. int32 because torch lacks
arithmetic on uint32 and JAX lacks int64 unless x64 is on; two's complement addition is the same.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from . import frameworks
from .normal import normal
from .sampling import bernoulli, stochastic_round, stochastic_sign, uniform

__all__ = [
    "bernoulli",
    "normal",
    "stochastic_round",
    "stochastic_sign",
    "stream_key",
    "threefry",
    "uniform",
    "words",
]

# Rotation distances of Threefry-2x32 and the parity constant of its key schedule (Salmon et al., table 2).
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_Binary = Callable[[Any, Any], Any]


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


def _rounds(key: Any, counter: Any, add: _Binary, xor: _Binary, rotate: Callable[[Any, int], Any]) -> tuple[Any, Any]:
    """The 20 rounds, in operations that return new arrays or that write into the counter."""
    k = (key[0], key[1], (key[0] ^ key[1]) ^ _PARITY)
    x0, x1 = add(counter[0], k[0]), add(counter[1], k[1])
    for group in range(5):
        for distance in _ROTATIONS[4 * (group % 2) : 4 * (group % 2) + 4]:
            x0 = add(x0, x1)
            x1 = xor(rotate(x1, distance), x0)
        x0, x1 = add(x0, k[(group + 1) % 3]), add(x1, k[(group + 2) % 3] + (group + 1))
    return x0, x1


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
    return _rounds(key, counter, operator.add, operator.xor, _rotate)


def words(key: Any, step: Any, size: int, start: int = 0) -> Any:
    """`size` random int32 words for the elements from `start` on of one leaf, at one step.

    They are the bits of ``jax.random.bits(jax.random.fold_in(key, step), (size,), "uint32")`` for the threefry key that
    holds the same two words, with JAX's default, ``jax_threefry_partitionable``.

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

    Examples
    --------
    >>> key, step = stream_key(0, "w"), np.asarray(3, np.int32)
    >>> words(key, step, 4)
    array([ -249031014, -1492757002,   174495769,  1551893194], dtype=int32)
    >>> words(key, step, 2, start=2)
    array([ 174495769, 1551893194], dtype=int32)
    """
    xp = frameworks.namespace(key)
    if frameworks.is_host(key) and frameworks.is_host(step):
        drawn = _written(frameworks.as_numpy(key), frameworks.as_numpy(step), size, start)
        return frameworks.constant(xp, drawn, xp.int32, key)
    folded = _folded(xp, key, step)
    parts = [key[0:0]]
    for count, low, high in _parts(size, start, _HALF):
        index = _arange(xp, count, key) + low
        x0, x1 = threefry(folded, (index * 0 + high, index))
        parts.append(x0 ^ x1)
    return parts[-1] if len(parts) <= 2 else xp.concat(parts)


def _parts(size: int, start: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Runs of at most `most` counters: (elements, low and high half of the first); the low half counts up in int32."""
    while size > 0:
        count = min(size, most, _HALF - start % _HALF)
        low = start % (2 * _HALF)
        yield count, low - 2 * _HALF if low >= _HALF else low, start // (2 * _HALF)
        start, size = start + count, size - count


def _folded(xp: Any, key: Any, step: Any) -> tuple[Any, Any]:
    """The key of one step."""
    return threefry((key[0:1], key[1:2]), (key[0:1] * 0, xp.reshape(step, (1,))))


def _turn(scratch: Any, x: Any, distance: int) -> Any:
    """`_rotate` in place, for unsigned words, whose >> shifts in zeros."""
    np.left_shift(x, distance, out=scratch)
    x >>= 32 - distance
    x |= scratch
    return x


def _written(key: Any, step: Any, size: int, start: int) -> Any:
    """The words in NumPy's memory, without temporaries, in runs that stay in the cache.

    torch's tensors on the CPU take this road, too: torch has no shift of unsigned words.
    """
    block = min(size, _BLOCK)
    index, scratch, out = np.arange(block, dtype=np.int32), np.empty((2, block), np.int32), np.empty(size, np.int32)
    folded = tuple(half.view(np.uint32) for half in _folded(np, key, step))
    at = 0
    for count, low, high in _parts(size, start, _BLOCK):
        x0, x1 = out[at : at + count], scratch[0, :count]
        x0[:] = high
        np.add(index[:count], low, out=x1)
        rotate = partial(_turn, scratch[1, :count].view(np.uint32))
        _rounds(folded, (x0.view(np.uint32), x1.view(np.uint32)), operator.iadd, operator.ixor, rotate)
        x0 ^= x1
        at += count
    return out


_BLOCK = 65536  # counters: three vectors of 256 KiB
_HALF = 2**31


def _arange(xp: Any, size: int, like: Any) -> Any:
    where = frameworks.device(like)
    if where is None:
        return xp.arange(size, dtype=xp.int32)
    return xp.arange(size, dtype=xp.int32, device=where)
