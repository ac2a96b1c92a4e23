"""Exact numbers as small integer arrays that an all-reduce can add: fixed point in limbs of 12 bits.

A partial is an int32 vector: the limbs of a number, lowest first, and three counts of what is no number (NaN,
+inf, -inf). The limbs stand for ``2**unit * sum(limb[i] * 4096**i)``. They may be of any sign, up to 2**29, or
below 2**30 when positive, so 2**18 partials may be added word by word before a carry is needed. `carried` gives the
one form in which every limb but the last is in [0, 4096): it depends on the number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import frameworks, opaque
from .dtypes import FORMATS
from .ieee import product, sqrt

BITS = 12
FLAGS = 3


class Layout(NamedTuple):
    """Which powers of two the limbs of a compute dtype cover."""

    compute: str
    unit: int  # exponent of the lowest bit
    windows: int  # of 36 bits, three limbs

    @property
    def limbs(self) -> int:
        """Number of limbs."""
        return 3 * self.windows


# float32: from 2**-246, the lowest bit of a product of two numbers of at least 2**-100, to 2**308, which leaves room
# for 2**50 such products and 2**180 numbers. float64: from 2**-1006, the lowest bit of the rounding error of a
# product of at least 2**-900, to 2**1080, room for 2**55 numbers. Even, so that the root of the unit is a power of two.
LAYOUTS = {"float32": Layout("float32", -268, 16), "float64": Layout("float64", -1008, 58)}


SHAPES = {name: (layout.limbs + FLAGS,) for name, layout in LAYOUTS.items()}


def layout_of(partial: Any) -> Layout:
    """The layout of a partial, which its length tells."""
    return next(layout for name, layout in LAYOUTS.items() if SHAPES[name] == tuple(partial.shape[-1:]))


def of_integer(number: int, flags: Sequence[bool], layout: Layout) -> np.ndarray:
    """The partial of ``number * 2**unit``."""
    digits = []
    for _ in range(layout.limbs - 1):
        digits.append(number & (1 << BITS) - 1)
        number >>= BITS
    return np.asarray([*digits, number, *flags], dtype=np.int32)


def carried(partial: Any) -> Any:
    """The same number with every limb but the last in [0, 4096), and of the counts at most one, 1."""
    xp = frameworks.namespace(partial)
    size = layout_of(partial).limbs
    nan, plus, minus = (partial[..., size + k : size + k + 1] > 0 for k in range(FLAGS))
    nan = nan | (plus & minus)
    flags = [xp.astype(flag, xp.int32) for flag in (nan, plus & ~nan, minus & ~nan)]
    return xp.concat([_carry(xp, partial[..., :size]), *flags], axis=-1)


def _carry(xp: Any, limbs: Any) -> Any:
    """Carries without a loop over the limbs, for limbs from -2**29 to 2**30 - 1."""
    size = limbs.shape[-1]
    inner = np.arange(size) < size - 1
    # 2**30 for each limb, taken back from the next one: nothing is negative any more but the last
    bias = np.where(inner, 2**30, 0) - np.where(np.arange(size) > 0, 2**18, 0)
    low = frameworks.constant(xp, np.where(inner, 4095, -1), xp.int32, limbs)
    keep = frameworks.constant(xp, inner.astype(np.int32), xp.int32, limbs)
    place = frameworks.constant(xp, np.arange(1, size + 1), xp.int32, limbs)
    limbs = limbs + frameworks.constant(xp, bias, xp.int32, limbs)
    for _ in range(3):  # up to 2**31, then 2**20, 2**13, and at last 4096
        limbs = (limbs & low) + _moved(xp, (limbs >> BITS) * keep)
    # A limb of 4096 carries, and so does one of 4095 that is carried into: what a limb passes on is decided by the
    # nearest limb below, or itself, that is not 4095. Its place, doubled, plus whether it is 4096, is the largest.
    code = xp.where(limbs == 4095, 0, 2 * place + xp.astype(limbs == 4096, xp.int32)) * keep
    below = xp.expand_dims(place, axis=1) >= xp.expand_dims(place, axis=0)
    carry = xp.max(xp.where(below, xp.expand_dims(code, axis=-2), 0), axis=-1) & 1
    return (limbs + _moved(xp, carry * keep)) & low


def _moved(xp: Any, carries: Any) -> Any:
    """Every carry beside the limb that it belongs to."""
    return xp.concat([carries[..., :1] * 0, carries[..., :-1]], axis=-1)


def rounded(partial: Any, *, root: bool = False) -> Any:
    """The number, or its square root, in the layout's dtype.

    Parameters
    ----------
    partial : int32 array
        One partial or, stacked, several.
    root : bool
        The square root: of a float32 layout correctly rounded; of a float64 layout the correctly rounded root of
        the number rounded to 53 bits, 0.75 ulp.

    Returns
    -------
    array of the shape of `partial` without its last axis
        The number rounded once, to nearest even. Below the smallest normal number it is 0, above the largest
        infinity; what was no number gives NaN or an infinity as in a floating-point sum.
    """
    return _rounded(partial, root)


@opaque.operation(
    "rounded",
    "(Tensor partial, bool root) -> Tensor",
    lambda partial, root: partial.new_empty(
        partial.shape[:-1], dtype=frameworks.dtype(frameworks.namespace(partial), layout_of(partial).compute)
    ),
)
def _rounded(partial: Any, root: bool) -> Any:
    xp = frameworks.namespace(partial)
    layout = layout_of(partial)
    fmt = FORMATS[layout.compute]
    with frameworks.float64_scope(xp):
        partial = carried(partial)
        limbs, flags = partial[..., : layout.limbs], partial[..., layout.limbs :] > 0
        negative = limbs[..., -1:] < 0
        limbs = _carry(xp, xp.where(negative, -limbs, limbs))
        place = frameworks.constant(xp, np.arange(layout.limbs), xp.int32, limbs)
        # The six limbs from the highest that is not zero on hold 61 bits at least; of the others it counts
        # whether any is not zero.
        highest = xp.max(xp.where(limbs != 0, place, 5), axis=-1, keepdims=True)
        six = [
            xp.sum(xp.where(place == highest - k, limbs, 0), axis=-1, keepdims=True, dtype=xp.int32) for k in range(6)
        ]
        parts = [xp.astype(digit, xp.float64) for digit in six]
        rest = xp.any((limbs != 0) & (place < highest - 5), axis=-1, keepdims=True)
        head = parts[0] * 2.0**24 + (parts[1] * 2.0**12 + parts[2])
        tail = parts[3] * 2.0**24 + (parts[4] * 2.0**12 + parts[5]) + 0.5 * xp.astype(rest, xp.float64)
        exponents = 12 * (np.arange(layout.limbs) - 5) + layout.unit
        exponents = exponents // 2 if root else exponents
        powers = frameworks.constant(xp, np.exp2(exponents.astype(np.float64)), xp.float64, limbs)
        power = xp.sum(xp.where(place == highest, powers, 0.0), axis=-1, keepdims=True)
        head = head * 2.0**36
        value = head + tail
        if root:
            value = _root(xp, layout, value, (head - value) + tail)
        elif layout.compute == "float32":
            # 25 bits at least, and the half below them that tells whether anything follows: one rounding is left
            value = head + 2.0**35 * xp.astype(tail > 0.0, xp.float64)
        value = value * power
        value = xp.where(value < fmt.normal, 0.0, value)
        value = xp.where(negative, -value, value)
        for k, special in enumerate((np.nan, np.inf, -np.inf)):
            value = xp.where(flags[..., k : k + 1], special, value)
        return xp.astype(xp.reshape(value, partial.shape[:-1]), frameworks.dtype(xp, layout.compute))


def _root(xp: Any, layout: Layout, value: Any, error: Any) -> Any:
    """Square root of ``value + error``, where `error` is what rounding left of `value`."""
    if layout.compute == "float64":
        return sqrt(value)
    near = xp.sqrt(value)
    # Its cast to float32 is right unless it is next to a number of 25 bits, which may be the middle of two of
    # float32. Then the sign of the exact residual decides, and a nudge by 2**-30 carries it through the cast.
    split = product(near, 2.0**28 + 1.0)
    middle = split - (split - near)
    residual = (value - middle * middle) + error  # a square of 25 bits is exact, and so is the difference
    nudge = xp.astype(residual > 0.0, xp.float64) - xp.astype(residual < 0.0, xp.float64)
    return xp.where(xp.abs(near - middle) <= near * 2.0**-48, middle + nudge * (middle * 2.0**-30), near)
