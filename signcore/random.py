"""Counter-based random words, Threefry-2x32 with 20 rounds in int32, and what is sampled from them.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A word depends on (key, counter)
alone, so any slice of a leaf, on any shard, draws what the whole leaf would. int32 because torch lacks
arithmetic on uint32 and JAX lacks int64 unless x64 is on; two's complement addition is the same.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from . import checks, frameworks, opaque
from .dtypes import name_of
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
    "words_at",
]

# Rotation distances of Threefry-2x32 and the parity constant of its key schedule (Salmon et al., table 2).
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_Binary = Callable[[Any, Any], Any]


def stream_key(seed: int, name: str, worker: int | str = 0) -> np.ndarray:
    """Two int32 key words of the stream that belongs to a leaf's name.

    Parameters
    ----------
    seed : int
    name : str
        The leaf's path.
    worker : int or str, default 0
        Whose noise: each has streams of its own; a word for streams that are no worker's.

    Returns
    -------
    numpy.ndarray, int32, shape (2,)

    Examples
    --------
    >>> stream_key(0, "w").shape
    (2,)
    """
    whose = f"{seed}:{worker}" if worker else f"{seed}"
    digest = hashlib.blake2s(f"{whose}/{name}".encode(), digest_size=8).digest()
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
    step : int or 0-d array of integers
        Folded into the key, as int32.
    size, start : int
        Elements and the global index of the first, below 2**63; the counter is that index in 64 bits. For elements that
        do not follow each other, and for indices that are traced, see `words_at`.

    Returns
    -------
    int32 array, shape (size,)

    Raises
    ------
    TypeError, ValueError
        `key` is not two int32 words, `step` no integer, `size` or `start` no integer or out of range.

    Examples
    --------
    >>> key, step = stream_key(0, "w"), np.asarray(3, np.int32)
    >>> words(key, step, 4)
    array([ -249031014, -1492757002,   174495769,  1551893194], dtype=int32)
    >>> words(key, step, 2, start=2)
    array([ 174495769, 1551893194], dtype=int32)
    """
    step = _check(key, step)
    size, start = _index("size", size), _index("start", start)
    return _drawn(key, step, size, start)


@opaque.operation(
    "words",
    "(Tensor key, Tensor step, int size, int start) -> Tensor",
    lambda key, step, size, start: key.new_empty(size),
)
def _drawn(key: Any, step: Any, size: int, start: int) -> Any:
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


def words_at(key: Any, step: Any, low: Any, high: Any = 0) -> Any:
    """The words of any elements of a leaf, by their global indices: of a strided slice, or of a shard that is traced.

    Parameters
    ----------
    key : int32 array, shape (2,)
    step : int or 0-d array of integers
    low : int32 array, any shape
        The lower 32 bits of each index, in two's complement.
    high : int32 array or int, default 0
        The upper 32 bits; broadcast against `low`.

    Returns
    -------
    int32 array of the shape of `low`

    Raises
    ------
    TypeError, ValueError
        `key` is not two int32 words, `step` no integer, or an index no int32.

    Examples
    --------
    >>> key, step = stream_key(0, "w"), np.asarray(3, np.int32)
    >>> words_at(key, step, np.asarray([[3, 1]], np.int32))
    array([[ 1551893194, -1492757002]], dtype=int32)
    """
    step = _check(key, step)
    _check_words("low", low)
    if not isinstance(high, int):
        _check_words("high", high)
    xp = frameworks.namespace(key)
    flat = xp.reshape(low, (-1,))
    upper = flat * 0 + (high if isinstance(high, int) else xp.reshape(xp.broadcast_to(high, low.shape), (-1,)))
    x0, x1 = threefry(_folded(xp, key, step), (upper, flat))
    return xp.reshape(x0 ^ x1, low.shape)


def _check_words(argument: str, value: Any) -> None:
    checks.is_array(argument, value)
    if name_of(value.dtype) != "int32":
        raise TypeError(f"`{argument}` has dtype {name_of(value.dtype)}; pass int32 words")


def _check(key: Any, step: Any) -> Any:
    """The step as an int32 array beside the key, once both are what they must be."""
    _check_words("key", key)
    if tuple(key.shape) != (2,):
        raise ValueError(f"`key` has shape {tuple(key.shape)}; pass the two words of stream_key(seed, name)")
    xp = frameworks.namespace(key)
    if isinstance(step, (int, np.integer)) and not isinstance(step, bool):
        if not -(2**31) <= step < 2**31:
            raise ValueError(f"`step` is {step}; pass an integer that fits int32")
        return frameworks.constant(xp, int(step), xp.int32, key)
    checks.is_array("step", step)
    if not name_of(step.dtype).startswith(("int", "uint")) or math.prod(step.shape) != 1:
        raise TypeError(f"`step` is an array of {name_of(step.dtype)} of shape {tuple(step.shape)}; pass one integer")
    return step if name_of(step.dtype) == "int32" else xp.astype(step, xp.int32)


def _index(argument: str, value: Any) -> int:
    if hasattr(value, "dtype") and frameworks.is_traced(value):
        raise TypeError(f"`{argument}` is traced; pass a Python int, or traced indices to words_at")
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"`{argument}` is {value!r}; pass an integer from 0 to 2**63 - 1")
    return number


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
