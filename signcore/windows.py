"""From floats to limbs: what a vector adds to the exact sum, by windows of 36 bits.

Adding ``1.5 * 2**52 * ulp`` to a float64 and taking it away again rounds it to a multiple of `ulp`; what is left
over is exact, and goes on to the next window below. A window's multiples are integers of 36 bits, so 2**16 of
them add up exactly in float64, in any order. (The sum of integers that cannot overflow has one result.)

`by_looking` runs where values are at hand: in Python's own integers, with windows set by each block's largest
number, so that one or two are enough. `blindly` goes through all windows of the layout, without looking at a
value: under a compiler, and on a device that one should not wait for. Both give the same limbs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import frameworks
from .ieee import compute_format, exact_product
from .limbs import BITS, Layout, carried, of_integer

WINDOW = 36
ROW = 2**14  # integers of 36 bits add up exactly in float64 up to 2**17 of them; longer rows leave the cache
MANY = 2**15 * ROW  # numbers whose limbs, of four terms, stay below 2**30
BLOCK = 2**17  # numbers that are looked at together: float64 temporaries of 1 MiB


class Term(NamedTuple):
    """Numbers of a known range, to be added: ``values * 2**shift``."""

    values: Any  # float64
    shift: int
    below: int  # magnitudes are below 2**below, and multiples of 2**above
    above: int


def _split(xp: Any, x: Any) -> tuple[Any, list[Any]]:
    """(`x` with what does not count as 0, whether a NaN, an infinity or a negative one is in it).

    Numbers below the contract's threshold do not count, and what is no number is told apart.
    """
    fmt = compute_format(x)
    size = xp.abs(x)
    if frameworks.is_eager_numpy(x) and size.max() <= fmt.largest:
        return (x if size.min() >= fmt.flush else x * (size >= fmt.flush)), [False] * 3
    flags = [xp.any(x != x), xp.any(x == math.inf), xp.any(x == -math.inf)]
    return xp.where((size >= fmt.flush) & (size <= fmt.largest), x, 0.0), flags


def terms(xp: Any, kind: str, x: Any, y: Any) -> tuple[list[Term], list[Any]]:
    """What is to be added, as float64, and whether there is a NaN, an infinity, or a negative one.

    Parameters
    ----------
    kind : {"sum", "norm1", "dot"}
    x, y : float32 or float64 arrays
        `y` only for ``"dot"``.
    """
    narrow = compute_format(x).name == "float32"
    if kind != "dot":
        values, flags = _split(xp, xp.abs(x) if kind == "norm1" else x)
        values = xp.astype(values, xp.float64)
        return ([Term(values, 0, 128, -123)] if narrow else _halved(xp, values)), flags
    (a, odd), (b, also_odd) = _split(xp, x), _split(xp, y)
    flags = [False] * 3
    if not frameworks.is_eager_numpy(x) or any(odd + also_odd):
        # an infinity times a number that does not count is an infinity times 0
        tiny = compute_format(x).flush
        special = xp.where(xp.abs(x) < tiny, 0.0, x) * xp.where(xp.abs(y) < tiny, 0.0, y)
        flags = _split(xp, xp.where(xp.isfinite(x) & xp.isfinite(y), 0.0, special))[1]
    if narrow:
        return [Term(xp.astype(a, xp.float64) * xp.astype(b, xp.float64), 0, 256, -246)], flags
    for _ in range(2):  # what is large is scaled down, and the other factor up: splitting it would overflow
        large = xp.abs(a) > 2.0**800
        a, b = xp.where(large, b * 2.0**200, b), xp.where(large, a * 2.0**-200, a)
    value, error = exact_product(a, b)
    whole, overflow = _split(xp, value)
    error = xp.where(whole == 0.0, 0.0, error)
    return _halved(xp, whole) + _halved(xp, error), [p | q for p, q in zip(flags, overflow, strict=True)]


def _halved(xp: Any, values: Any) -> list[Term]:
    """Large and small numbers apart: beside the largest ones there is no room for the number that cuts a window."""
    large = xp.abs(values) >= 1.0
    return [
        Term(xp.where(large, values * 2.0**-512, 0.0), 512, 1024, -52),
        Term(xp.where(large, 0.0, values), 0, 0, -1006),
    ]


# -- where values are at hand ------------------------------------------------------------------------------------


def by_looking(kind: str, x: np.ndarray, y: np.ndarray | None, layout: Layout) -> np.ndarray:
    """The partial of NumPy vectors of the layout's dtype."""
    xp = frameworks.namespace(x)
    total, flags = 0, [False] * 3
    for start in range(0, x.size, BLOCK):
        other = None if y is None else y[start : start + BLOCK]
        with np.errstate(all="ignore"):
            found, special = terms(xp, kind, x[start : start + BLOCK], other)
        flags = [a or bool(b) for a, b in zip(flags, special, strict=True)]
        total += sum(_integer(term.values, layout.unit - term.shift) for term in found)
    return of_integer(total, flags, layout)


def _integer(values: np.ndarray, unit: int) -> int:
    """The sum of multiples of ``2**unit``, in that unit."""
    total = 0
    while True:
        largest = max(float(values.max()), -float(values.min()))
        if largest == 0.0:
            return total
        # at most 2**45 ulps each, so that 2**17 of them stay below 2**63
        ulp = max(math.frexp(largest)[1] - 45, unit)
        offset = np.float64(math.ldexp(1.5, ulp + 52))
        cut = values + offset
        # the bits' sum less the offsets' is the sum of the multiples, modulo 2**64
        count = int(cut.view(np.int64).sum()) - values.size * int(offset.view(np.int64))
        total += ((count + 2**63) % 2**64 - 2**63) << (ulp - unit)
        cut -= offset
        values = values - cut


# -- without looking ---------------------------------------------------------------------------------------------


def blindly(kind: str, x: Any, y: Any, layout: Layout) -> Any:
    """The partial of vectors of the layout's dtype, one fixed sequence of operations."""
    xp = frameworks.namespace(x)
    found = []
    with frameworks.float64_scope(xp):
        for start in range(0, x.shape[0], MANY):
            pieces = [None if v is None else v if v.shape[0] <= MANY else v[start : start + MANY] for v in (x, y)]
            found.append(frameworks.added(Rows(kind, layout), ROW, *pieces))
    return found[0] if len(found) == 1 else sum(map(carried, found))


@dataclass(frozen=True)
class Rows:
    """What rows of numbers add to the partial; hashable, so that it is compiled once."""

    kind: str
    layout: Layout

    def __call__(self, x: Any, y: Any) -> Any:
        """Int32 partial of arrays of shape (rows, up to ROW), not carried."""
        xp = frameworks.namespace(x)
        found, flags = terms(xp, self.kind, x, y)
        total = [0] * 5
        for term in found:
            first = -((self.layout.unit - term.below) // WINDOW) - 1  # the lowest whose multiples reach the largest
            last = (term.above - self.layout.unit) // WINDOW
            ulps = [2.0 ** (self.layout.unit - term.shift + WINDOW * j) for j in range(first, last - 1, -1)]
            counts = frameworks.descended(xp, _window, term.values, ulps)
            counts = xp.astype(xp.flip(counts, axis=0), xp.int64)
            digits = [(counts >> (BITS * k)) & 4095 for k in range(4)] + [counts >> 48]
            for k, digit in enumerate(digits):
                column = xp.sum(xp.astype(digit, xp.int32), axis=1, dtype=xp.int32)
                total[k] = total[k] + _padded(xp, column, last, self.layout.windows - 1 - first)
        here = xp.reshape(xp.stack(total[:3], axis=1), (-1,))
        above = xp.reshape(xp.stack([*total[3:], total[0] * 0], axis=1), (-1,))
        limbs = here + xp.concat([above[-3:] * 0, above[:-3]])
        return xp.concat([limbs, xp.stack([xp.astype(xp.asarray(flag), xp.int32) for flag in flags])])


def _padded(xp: Any, column: Any, before: int, after: int) -> Any:
    zeros = [xp.zeros((n,), dtype=column.dtype, device=frameworks.device(column)) for n in (before, after)]
    return xp.concat([zeros[0], column, zeros[1]])


def _window(values: Any, ulp: Any) -> tuple[Any, Any]:
    """(what is left of each number, how many ulps each row loses), for magnitudes up to 2**36 ulps."""
    xp = frameworks.namespace(values)
    offset = 1.5 * 2.0**52 * ulp
    cut = values + offset
    cut = cut - offset
    return values - cut, xp.sum(cut, axis=-1) * (1.0 / ulp)
