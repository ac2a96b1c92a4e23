"""From floats to limbs: what a vector adds to the exact sum, by windows of 36 bits.

Adding ``1.5 * 2**52 * ulp`` to a float64 and taking it away again rounds it to a multiple of `ulp`; what is left
over is exact, and goes on to the next window below. A window's multiples are integers of 36 bits, so 2**17 of
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
ROW = 2**13  # integers of 36 bits add up exactly in float64 up to 2**17 of them; longer rows leave the cache
MANY = 2**15 * ROW  # numbers whose limbs, of four terms that overlap, stay below 2**30
DIGITS = 5  # of 12 bits, in the sum of a row's integers
BLOCK = 2**17  # numbers that are looked at together: float64 temporaries of 1 MiB


class Term(NamedTuple):
    """Numbers of a known range, to be added: ``values * 2**shift``."""

    values: Any  # float64
    shift: int
    below: int  # magnitudes are below 2**below, and multiples of 2**above
    above: int


def _split(xp: Any, x: Any) -> tuple[Any, Any]:
    """(`x` with what does not count as 0, the sum of what is no number in it).

    Numbers below the contract's threshold do not count.
    """
    fmt = compute_format(x)
    size = xp.abs(x)
    if frameworks.is_eager_numpy(x) and size.max() <= fmt.largest:
        return (x if size.min() >= fmt.flush else x * (size >= fmt.flush)), np.zeros((), x.dtype)
    special = xp.sum(xp.where(size <= fmt.largest, 0.0, x))
    return xp.where((size >= fmt.flush) & (size <= fmt.largest), x, 0.0), special


def terms(xp: Any, kind: str, x: Any, y: Any) -> tuple[list[Term], Any]:
    """What is to be added, as float64, and the sum of what is no number: 0, an infinity or NaN.

    Parameters
    ----------
    kind : {"sum", "norm1", "norm2", "dot"}
    x, y : float32 or float64 arrays
        `y` only for ``"dot"``.
    """
    narrow = compute_format(x).name == "float32"
    if kind in ("sum", "norm1"):
        values, special = _split(xp, xp.abs(x) if kind == "norm1" else x)
        values = xp.astype(values, xp.float64)
        return ([Term(values, 0, 128, -123)] if narrow else _halved(xp, values)), special
    a, special = _split(xp, x)
    y, (b, also) = (x, (a, special)) if kind == "norm2" else (y, _split(xp, y))
    if not frameworks.is_eager_numpy(x) or special != 0.0 or also != 0.0:
        # an infinity times a number that does not count is an infinity times 0
        tiny = compute_format(x).flush
        odd = xp.where(xp.abs(x) < tiny, 0.0, x) * xp.where(xp.abs(y) < tiny, 0.0, y)
        special = xp.sum(xp.where(xp.isfinite(x) & xp.isfinite(y), 0.0, odd))
    if narrow:
        return [Term(xp.astype(a, xp.float64) * xp.astype(b, xp.float64), 0, 256, -246)], special
    for _ in range(2):  # what is large is scaled down, and the other factor up: splitting it would overflow
        large = xp.abs(a) > 2.0**800
        a, b = xp.where(large, b * 2.0**200, b), xp.where(large, a * 2.0**-200, a)
    product = a * b
    near = xp.abs(product) >= 2.0**900  # the parts of such a product could overflow
    counts = (xp.abs(product) >= compute_format(x).flush) & (xp.abs(product) <= compute_format(x).largest)
    overflow = xp.sum(xp.where(xp.abs(product) <= compute_format(x).largest, 0.0, product))
    parts = [xp.where(counts, part, 0.0) for part in exact_product(xp.where(near, a * 2.0**-200, a), b)]
    return [term for part in parts for term in _halved(xp, part, near)], special + overflow


def _halved(xp: Any, values: Any, scaled: Any = None) -> list[Term]:
    """Large and small numbers apart: beside the largest ones there is no room for the number that cuts a window.

    Where `scaled` holds, the values are 2**-200 of what they stand for.
    """
    large = xp.abs(values) >= 1.0
    down = values * 2.0**-512
    if scaled is not None:
        large, down = large | scaled, xp.where(scaled, values * 2.0**-312, down)
    return [Term(xp.where(large, down, 0.0), 512, 1024, -52), Term(xp.where(large, 0.0, values), 0, 0, -1006)]


# -- where values are at hand ------------------------------------------------------------------------------------


def by_looking(kind: str, x: np.ndarray, y: np.ndarray | None, layout: Layout) -> np.ndarray:
    """The partial of NumPy vectors of the layout's dtype."""
    xp = frameworks.namespace(x)
    total, special = 0, 0.0
    with np.errstate(all="ignore"):
        for start in range(0, x.size, BLOCK):
            other = None if y is None else y[start : start + BLOCK]
            found, odd = terms(xp, kind, x[start : start + BLOCK], other)
            special += float(odd)
            total += sum(_integer(term.values, layout.unit - term.shift) for term in found)
    return of_integer(total, [special != special, special == math.inf, special == -math.inf], layout)


def _integer(values: np.ndarray, unit: int) -> int:
    """The sum of multiples of ``2**unit``, in that unit."""
    total = 0
    while True:
        largest = max(float(values.max()), -float(values.min()))
        if largest == 0.0:
            return total
        assert largest < math.inf, "terms are finite"
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
            found.append(carried(_placed(xp, frameworks.added(Rows(kind, layout), ROW, *pieces), layout)))
    return found[0] if len(found) == 1 else carried(sum(found))


@dataclass(frozen=True)
class Rows:
    """What rows of numbers add to each window; hashable, so that it is compiled once."""

    kind: str
    layout: Layout

    def __call__(self, x: Any, y: Any) -> Any:
        """Digits of each window's sum, 12 bits each, of arrays of shape (rows, up to ROW), and the three flags."""
        xp = frameworks.namespace(x)
        found, special = terms(xp, self.kind, x, y)
        shifts = frameworks.constant(xp, [[[BITS * k]] for k in range(DIGITS)], xp.int64, x)
        masks = frameworks.constant(xp, [[[4095]]] * (DIGITS - 1) + [[[-1]]], xp.int64, x)
        total: Any = 0
        for term in found:
            first = -((self.layout.unit - term.below) // WINDOW) - 1  # the lowest whose multiples reach the largest
            last = (term.above - self.layout.unit) // WINDOW
            ulps = [2.0 ** (self.layout.unit - term.shift + WINDOW * j) for j in range(first, last - 1, -1)]
            counts = xp.astype(frameworks.descended(xp, _window, term.values, ulps), xp.int64)
            digits = (xp.expand_dims(xp.flip(counts, axis=0), axis=0) >> shifts) & masks
            sums = xp.sum(xp.astype(digits, xp.int32), axis=2, dtype=xp.int32)
            total = total + _padded(xp, sums, last, self.layout.windows - 1 - first)
        special = xp.reshape(special, (1,))
        flags = [xp.astype(flag, xp.int32) for flag in (special != special, special == math.inf, special == -math.inf)]
        return xp.concat([xp.reshape(total, (-1,)), *flags])


def _padded(xp: Any, sums: Any, before: int, after: int) -> Any:
    where = frameworks.device(sums)
    zeros = [xp.zeros((DIGITS, n), dtype=sums.dtype, device=where) for n in (before, after)]
    return xp.concat([zeros[0], sums, zeros[1]], axis=1)


def _placed(xp: Any, digits: Any, layout: Layout) -> Any:
    """The digits at their limbs: three belong to their window, and two reach into the next."""
    size = DIGITS * layout.windows
    rows = xp.reshape(digits[:size], (DIGITS, layout.windows))
    here = xp.reshape(xp.stack([rows[0, :], rows[1, :], rows[2, :]], axis=1), (-1,))
    above = xp.reshape(xp.stack([rows[3, :], rows[4, :], rows[0, :] * 0], axis=1), (-1,))
    return xp.concat([here + xp.concat([above[-3:] * 0, above[:-3]]), digits[size:]])


def _window(values: Any, ulp: Any) -> tuple[Any, Any]:
    """(what is left of each number, how many ulps each row loses), for magnitudes up to 2**36 ulps."""
    xp = frameworks.namespace(values)
    offset = 1.5 * 2.0**52 * ulp
    cut = values + offset
    cut = cut - offset
    return values - cut, xp.sum(cut, axis=-1) * (1.0 / ulp)
