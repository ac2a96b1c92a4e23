"""Signs packed into bits, eight a byte, and votes on packed signs without unpacking them.

The layout is planar. n coordinates take nb = ceil(n/8) bytes, and coordinate c is bit c // nb (bit 0 is the lowest)
of byte c % nb; so bit k of byte i is coordinate k*nb + i. Bits of coordinates from n on are padding and 0. For n = 11:

====== ===== ===== ===== ===== ===== ===== ===== =====
.      bit 0 bit 1 bit 2 bit 3 bit 4 bit 5 bit 6 bit 7
====== ===== ===== ===== ===== ===== ===== ===== =====
byte 0 c = 0 c = 2 c = 4 c = 6 c = 8 c=10  0     0
byte 1 c = 1 c = 3 c = 5 c = 7 c = 9 0     0     0
====== ===== ===== ===== ===== ===== ===== ===== =====

>>> import numpy as np
>>> s = np.asarray([1, -1, -1, 1, 1, 1, -1, -1, 1, -1, 1], dtype=np.float32)
>>> [f"{byte:08b}" for byte in pack(s)]  # written from bit 7 down to bit 0
['00110101', '00000110']

The coordinates of one bit, a plane, are neighbours: eight slices of a leaf are combined elementwise, which every
library vectorises. ``np.packbits`` combines eight neighbours, so its bytes are others. As nb depends on n, bytes are
read back with the n that they were packed with, and a slice of the bytes is not the bytes of a slice.

One bit tells +1 from everything else. Signs with zeros take two: the nb bytes of s > 0, then the nb bytes of s < 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import blocks, checks, frameworks, ops
from .dtypes import FORMATS, name_of
from .frameworks import namespace
from .tree import Leaf

__all__ = ["count", "majority", "majority_ternary", "pack", "pack_ternary", "popcount", "unpack", "unpack_ternary"]


def pack(s: Any) -> Any:
    """One bit per coordinate, planar: 1 where s > 0, else 0.

    A zero or NaN is read back as -1, so this is for signs without zeros: settle them first, by the policy "plus",
    "minus" or "random", or use `pack_ternary`.

    Parameters
    ----------
    s : array, float16, bfloat16, float32 or float64, any shape
        Packed in C order by the sign of the flushed value, as `signcore.ops.sign` takes it: libraries disagree on
        whether a subnormal is above zero.

    Returns
    -------
    uint8 array, shape (ceil(s.size / 8),)

    Raises
    ------
    TypeError
        `s` is no array of a float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> pack(np.asarray([1.0, -1.0, 1.0], dtype=np.float32))
    array([5], dtype=uint8)
    """
    flat, nb, least = _flat(s)
    return _by_columns(lambda start, stop: _gather(flat, nb, start, stop, lambda x: x >= least), flat, nb, _FEW_ROWS)


def unpack(packed: Any, size: int, dtype: str) -> Any:
    """The signs in {-1, +1} that `pack` put into bits.

    Parameters
    ----------
    packed : uint8 array, shape (ceil(size / 8),)
    size : int
        Number of coordinates that were packed.
    dtype : {"float16", "bfloat16", "float32", "float64"}

    Returns
    -------
    array, shape (size,)

    Raises
    ------
    TypeError
        `packed` is no array of uint8, or `size` no int.
    ValueError
        `packed` has not the bytes of `size` coordinates, or the library lacks `dtype`.

    Examples
    --------
    >>> import numpy as np
    >>> unpack(np.asarray([5], dtype=np.uint8), 3, "float32")
    array([ 1., -1.,  1.], dtype=float32)
    """
    target = _readable(packed, size, dtype, 1)

    def signs(k: int, start: int, stop: int) -> Any:
        bit = _plane(packed[start:stop], k)
        return bit + bit - 1

    return _values(signs, packed, size, target)


def pack_ternary(s: Any) -> Any:
    """Two bits per coordinate: the plane of s > 0, then the plane of s < 0, each as `pack` lays it out.

    Parameters
    ----------
    s : array, float16, bfloat16, float32 or float64, any shape
        As for `pack`; zeros and NaN are 0 in both planes.

    Returns
    -------
    uint8 array, shape (2 * ceil(s.size / 8),)

    Raises
    ------
    TypeError
        `s` is no array of a float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> pack_ternary(np.asarray([1.0, -1.0, 0.0], dtype=np.float32))
    array([1, 2], dtype=uint8)
    """
    flat, nb, least = _flat(s)
    xp = namespace(flat)

    def both(start: int, stop: int) -> Any:
        plus = _gather(flat, nb, start, stop, lambda x: x >= least)
        return xp.stack([plus, _gather(flat, nb, start, stop, lambda x: x <= -least)])

    return xp.reshape(_by_columns(both, flat, nb, _FEW_ROWS), (-1,))


def unpack_ternary(packed: Any, size: int, dtype: str) -> Any:
    """The signs in {-1, 0, +1} that `pack_ternary` put into bits; zeros are +0.0.

    Parameters
    ----------
    packed : uint8 array, shape (2 * ceil(size / 8),)
        A coordinate with both bits, which `pack_ternary` never makes, is 0, here and in a vote.
    size : int
        Number of coordinates that were packed.
    dtype : {"float16", "bfloat16", "float32", "float64"}

    Returns
    -------
    array, shape (size,)

    Raises
    ------
    TypeError
        `packed` is no array of uint8, or `size` no int.
    ValueError
        `packed` has not the bytes of `size` coordinates, or the library lacks `dtype`.

    Examples
    --------
    >>> import numpy as np
    >>> unpack_ternary(np.asarray([1, 2], dtype=np.uint8), 3, "float32")
    array([ 1., -1.,  0.], dtype=float32)
    """
    target = _readable(packed, size, dtype, 2)
    planes = namespace(packed).reshape(packed, (2, -(-size // 8)))

    def signs(k: int, start: int, stop: int) -> Any:
        return _plane(planes[0, start:stop], k) - _plane(planes[1, start:stop], k)

    return _values(signs, packed, size, target)


def popcount(packed: Any) -> Any:
    """Number of set bits of each byte, by additions within the byte.

    Parameters
    ----------
    packed : uint8 array, any shape

    Returns
    -------
    uint8 array of `packed`'s shape

    Raises
    ------
    TypeError
        `packed` is no array of uint8.

    Examples
    --------
    >>> import numpy as np
    >>> popcount(np.asarray([0, 5, 255], dtype=np.uint8))
    array([0, 2, 8], dtype=uint8)
    """
    _check_bytes("packed", packed)

    def body(arrays: list[Any], start: int) -> tuple[Any]:
        x = arrays[0]
        x = x - ((x >> 1) & 0x55)  # in each pair of bits their number, then in each four, then in all eight
        x = (x & 0x33) + ((x >> 2) & 0x33)
        return ((x + (x >> 4)) & 0x0F,)

    return blocks.run(body, [packed])[0]


def count(stacked: Any) -> Any:
    """Number of set bits per coordinate over all workers, itself in planes: vertical counters.

    Parameters
    ----------
    stacked : uint8 array, shape (M, nb)
        Packed bits of M workers.

    Returns
    -------
    uint8 array, shape (M.bit_length(), nb)
        Row b holds, in the layout of the votes, bit b of each coordinate's count.

    Raises
    ------
    TypeError
        `stacked` is no array of uint8.
    ValueError
        No workers.

    Examples
    --------
    Three workers; both votes of three, two, one and none of them:

    >>> import numpy as np
    >>> [f"{byte:04b}" for byte in count(np.asarray([[0b0111], [0b0011], [0b0001]], dtype=np.uint8))[:, 0]]
    ['0101', '0011']
    """
    _check_votes(stacked)
    xp = namespace(stacked)
    return _by_columns(lambda a, b: xp.stack(_counts(stacked[:, a:b])), stacked, stacked.shape[1], _MANY_ROWS)


def majority(stacked: Any, ties: str = "plus", coins: Any = None) -> Any:
    """Majority vote on one-bit signs: `signcore.vote.majority` of the unpacked signs, packed.

    Padding stays 0 without knowing the size: nobody votes for it, and none of at least one worker is no tie.

    Parameters
    ----------
    stacked : uint8 array, shape (M, nb)
        What `pack` made of the signs of M workers.
    ties : {"plus", "minus", "random"}
        What an undecided coordinate becomes, which only an even M can have; one bit has no zero.
    coins : uint8 array, shape (nb,), optional
        For ``"random"``, and only then: the bits that undecided coordinates take, 1 for +1.

    Returns
    -------
    uint8 array, shape (nb,)

    Raises
    ------
    TypeError
        `stacked` or `coins` is no array of uint8.
    ValueError
        Unknown `ties`, no workers, or `coins` missing, superfluous or of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> votes = np.asarray([[0b011], [0b001]], dtype=np.uint8)
    >>> [f"{majority(votes, ties)[0]:03b}" for ties in ("plus", "minus")]
    ['011', '001']
    """
    checks.choice("ties", ties, ("plus", "minus", "random"))
    _check_votes(stacked)
    _check_coins(coins, ties, stacked)
    workers, nb = stacked.shape

    def body(start: int, stop: int) -> Any:
        *low, highest = _counts(stacked[:, start:stop])  # the highest bit alone is more than half of the workers
        undecided = ~highest
        more = ~undecided  # not `highest`, which is the caller's memory when there is one worker
        for b, bit in reversed(list(enumerate(low))):  # from the highest on: is the count above M // 2, or equal?
            if workers // 2 // 2**b % 2:
                undecided = undecided & bit
            else:
                more = more | (undecided & bit)  # these may stay undecided, too: more they are
        if ties == "minus" or workers % 2:
            return more
        return more | (undecided if coins is None else undecided & coins[start:stop])

    return _by_columns(body, stacked, nb, _MANY_ROWS)


def majority_ternary(stacked: Any) -> Any:
    """Majority vote on signs with zeros: `signcore.vote.majority` of the unpacked signs, packed.

    Parameters
    ----------
    stacked : uint8 array, shape (M, 2 * nb)
        What `pack_ternary` made of the signs of M workers.

    Returns
    -------
    uint8 array, shape (2 * nb,)
        As from `pack_ternary`; a tie is 0, and so is a coordinate on which everybody votes 0.

    Raises
    ------
    TypeError
        `stacked` is no array of uint8.
    ValueError
        No workers, or an odd number of bytes.

    Examples
    --------
    >>> import numpy as np
    >>> first, second = [1.0, 0.0, 1.0], [0.0, -1.0, -1.0]
    >>> votes = np.stack([pack_ternary(np.asarray(s, dtype=np.float32)) for s in (first, second)])
    >>> unpack_ternary(majority_ternary(votes), 3, "float32")
    array([ 1., -1.,  0.], dtype=float32)
    """
    _check_votes(stacked)
    workers, width = stacked.shape
    if width % 2:
        raise ValueError(f"`stacked` has shape {tuple(stacked.shape)}; pass what pack_ternary made: (M, 2 * nb)")
    xp = namespace(stacked)
    planes = xp.reshape(stacked, (workers, 2, width // 2))

    def body(start: int, stop: int) -> Any:
        first, *higher = _counts(planes[:, :, start:stop])
        plus, minus = first[0, :] & ~first[1, :], first[1, :] & ~first[0, :]
        for bit in higher:  # a higher bit overrules where the counts differ in it
            equal = ~(bit[0, :] ^ bit[1, :])
            plus, minus = bit[0, :] & ~bit[1, :] | plus & equal, bit[1, :] & ~bit[0, :] | minus & equal
        return xp.stack([plus, minus])

    return xp.reshape(_by_columns(body, stacked, width // 2, _MANY_ROWS), (width,))


# -- the work ----------------------------------------------------------------------------------------------


# Bytes of a plane worked on at a time, on NumPy: what takes many rows of them gets fewer, to stay in the cache.
_FEW_ROWS, _MANY_ROWS = blocks.SIZE, blocks.SIZE // 4


def _by_columns(body: Callable[[int, int], Any], like: Any, width: int, step: int) -> Any:
    """``body(start, stop)``, the columns from `start` to `stop`, for all `width`; on NumPy `step` at a time."""
    if width <= step or not frameworks.is_eager_numpy(like):
        return body(0, width)
    parts = [body(start, min(start + step, width)) for start in range(0, width, step)]
    return np.concatenate(parts, axis=-1)


def _flat(s: Any) -> tuple[Any, int, float]:
    """The leaf as a vector, its bytes per plane, and the smallest magnitude that has a sign."""
    checks.array("s", Leaf("", s))
    flat = namespace(s).reshape(s, (-1,))
    return flat, -(-flat.shape[0] // 8), FORMATS[FORMATS[name_of(s.dtype)].compute].flush


def _gather(flat: Any, nb: int, start: int, stop: int, holds: Callable[[Any], Any]) -> Any:
    """Bytes `start` to `stop`: the bit of each coordinate is whether it `holds`."""
    xp, size = namespace(flat), flat.shape[0]
    packed = None
    for k in range(7, -1, -1):
        part = flat[min(k * nb + start, size) : min(k * nb + stop, size)]
        bits = xp.astype(holds(ops.widen(part)), xp.uint8)
        lacking = stop - start - part.shape[0]
        if lacking:
            bits = xp.concat([bits, frameworks.constant(xp, [0] * lacking, xp.uint8, bits)])
        packed = bits if packed is None else packed * 2 + bits  # NumPy shifts bytes more slowly
    return packed


def _plane(packed: Any, k: int) -> Any:
    """Bit k of each byte as int8: casts and sums of single bytes cost less than those of floats."""
    return namespace(packed).astype((packed >> k) & 1, namespace(packed).int8)


def _values(row: Callable[[int, int, int], Any], packed: Any, size: int, dtype: Any) -> Any:
    """The numbers ``row(k, start, stop)`` of bit k of each byte of a plane, one row after the other."""
    xp, nb = namespace(packed), -(-size // 8)
    if not frameworks.is_eager_numpy(packed):
        rows = xp.stack([row(k, 0, nb) for k in range(8)])
        return xp.astype(xp.reshape(rows, (-1,))[:size], dtype)
    out = np.empty((8, nb), dtype)
    for start in range(0, nb, _FEW_ROWS):
        stop = min(start + _FEW_ROWS, nb)
        for k in range(8):
            out[k, start:stop] = row(k, start, stop)
    return out.reshape(-1)[:size]


def _counts(votes: Any) -> list[Any]:
    """Number of set bits over the first axis, bit b of it in row b."""
    return [plane[0, ...] for plane in _counters(votes, 1)]


def _counters(votes: Any, voters: int) -> list[Any]:
    """Sums of bits over the first axis, lowest bit first, each with `voters` rows, by a tree of full adders.

    Twice as many voters hold half of the votes each, and one vote of an odd number goes in as the carry. So M votes
    take about M full adders on bytes, but a compiler sees a number of operations that grows as the square of log(M):
    adders on one row after the other, M of them, took XLA a minute to compile for M = 512.
    """
    half, odd = votes.shape[0] // voters // 2, votes.shape[0] // voters % 2
    if half == 0:
        return [votes]
    pairs = _counters(votes[: 2 * half * voters, ...], 2 * voters)
    carry = votes[2 * half * voters :, ...] if odd else None
    sums = []
    for pair in pairs:
        a, b = pair[:voters, ...], pair[voters:, ...]
        either = a ^ b
        if carry is None:
            sums.append(either)
            carry = a & b
        else:
            sums.append(either ^ carry)
            carry = (a & b) | (either & carry)
    return [*sums, carry]


# -- checks ------------------------------------------------------------------------------------------------


def _check_bytes(argument: str, value: Any) -> None:
    try:
        namespace(value)
    except TypeError:
        raise TypeError(
            f"`{argument}` is a {type(value).__name__}, not an array of an Array API library; pass packed bytes"
        ) from None
    if name_of(value.dtype) != "uint8":
        raise TypeError(f"`{argument}` has dtype {name_of(value.dtype)}; pass packed bytes, uint8, as pack makes them")


def _readable(packed: Any, size: int, dtype: str, planes: int) -> Any:
    """The dtype object called `dtype`, when `packed` holds the planes of `size` coordinates."""
    _check_bytes("packed", packed)
    checks.integer("size", size)
    if size < 0:
        raise ValueError(f"`size` is {size}; pass the number of coordinates that were packed")
    checks.choice("dtype", dtype, FORMATS)
    expected = (planes * -(-size // 8),)
    if tuple(packed.shape) != expected:
        raise ValueError(
            f"`packed` has shape {tuple(packed.shape)}, and `size` {size} takes {expected}; "
            f"pass the size with which it was packed"
        )
    xp = namespace(packed)
    target = frameworks.dtype(xp, dtype)
    if xp.result_type(target) != target:
        raise ValueError(f"`dtype` is {dtype!r}, which {frameworks.library(xp)} has switched off; choose another")
    return target


def _check_votes(stacked: Any) -> None:
    _check_bytes("stacked", stacked)
    if len(stacked.shape) != 2 or stacked.shape[0] == 0:
        raise ValueError(
            f"`stacked` has shape {tuple(stacked.shape)}; stack the packed bytes of at least one worker: (M, bytes)"
        )


def _check_coins(coins: Any, ties: str, stacked: Any) -> None:
    if (coins is None) == (ties == "random"):
        given = "not given" if coins is None else "given"
        raise ValueError(f"`coins` are {given} and `ties` is {ties!r}; pass coins with ties='random', and only then")
    if coins is None:
        return
    _check_bytes("coins", coins)
    checks.same_home("coins", Leaf("", coins), "stacked", Leaf("", stacked))
    if tuple(coins.shape) != tuple(stacked.shape[1:]):
        raise ValueError(
            f"`coins` has shape {tuple(coins.shape)}, and `stacked` {tuple(stacked.shape)}; "
            f"pass one bit per coordinate: {tuple(stacked.shape[1:])}"
        )
