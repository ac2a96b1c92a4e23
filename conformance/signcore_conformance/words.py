"""Words: arrays as the integers of their bits. Exact means bits; NaN is compared by class."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(array: Any) -> np.ndarray:
    """The unsigned integers of an array's words, as a vector."""
    array = np.ascontiguousarray(array).reshape(-1)
    return array.view(_INTEGERS[array.dtype.itemsize])


def is_nan(array: np.ndarray) -> np.ndarray:
    """Which words are NaN (False for integers)."""
    flat = np.asarray(array).reshape(-1)
    return np.asarray(flat != flat)


def different(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Indices of words that differ; two NaNs are equal whatever their payload."""
    wrong = bits(a) != bits(b)
    if wrong.any():
        wrong &= ~(is_nan(a) & is_nan(b))
    return np.flatnonzero(wrong)


def ordered(array: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats: neighbours differ by one, zero is 0."""
    word = bits(array)
    top = 1 << (8 * word.dtype.itemsize - 1)
    magnitude = (word & word.dtype.type(top - 1)).astype(np.int64)
    return np.where(word >= word.dtype.type(top), -magnitude, magnitude)


def from_ordered(order: np.ndarray, dtype: Any) -> np.ndarray:
    """The inverse of `ordered`."""
    dtype = np.dtype(dtype)
    unsigned = _INTEGERS[dtype.itemsize]
    top = 1 << (8 * dtype.itemsize - 1)
    magnitude = np.abs(order).astype(unsigned)
    word = np.where(order < 0, magnitude | unsigned(top), magnitude)
    return np.asarray(word.astype(unsigned).view(dtype))


def ulps(a: Any, b: Any, dtype: Any) -> int:
    """How many floats lie between two."""
    pair = ordered(np.asarray([a, b], dtype=dtype))
    return abs(int(pair[0]) - int(pair[1]))


def hexadecimal(array: np.ndarray, index: int) -> str:
    """One word in hexadecimal."""
    word = bits(array)[index]
    return f"{int(word):0{2 * word.dtype.itemsize}x}"


class Digest:
    """SHA-256 over a trajectory's words, NaNs made alike."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, array: np.ndarray) -> None:
        """Append an array: its dtype, shape and words."""
        array = np.array(array)
        self._sha.update(f"{array.dtype.name}{array.shape}".encode())
        word = bits(array).copy()
        word[is_nan(array)] = np.iinfo(word.dtype).max
        self._sha.update(word.tobytes())

    def hex(self) -> str:
        """The digest."""
        return self._sha.hexdigest()
