"""Signs packed into bits, eight a byte.

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

__all__ = ["pack", "pack_ternary", "popcount", "unpack", "unpack_ternary"]


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
    return blocks.by_columns(
        lambda start, stop: _gather(flat, nb, start, stop, lambda x: x >= least), flat, nb, _FEW_ROWS
    )


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

    return xp.reshape(blocks.by_columns(both, flat, nb, _FEW_ROWS), (-1,))


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
    checks.packed("packed", packed)

    def body(arrays: list[Any], start: int) -> tuple[Any]:
        x = arrays[0]
        x = x - ((x >> 1) & 0x55)  # in each pair of bits their number, then in each four, then in all eight
        x = (x & 0x33) + ((x >> 2) & 0x33)
        return ((x + (x >> 4)) & 0x0F,)

    return blocks.run(body, [packed])[0]


# -- the work ----------------------------------------------------------------------------------------------


# Bytes of a plane worked on at a time, on NumPy.
_FEW_ROWS = blocks.SIZE


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


# -- checks ------------------------------------------------------------------------------------------------


def _readable(packed: Any, size: int, dtype: str, planes: int) -> Any:
    """The dtype object called `dtype`, when `packed` holds the planes of `size` coordinates."""
    checks.packed("packed", packed)
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
