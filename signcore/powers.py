"""Negative powers of a step counter, for noise that is annealed: n**-c, rounded to float32, the same on every backend.

No library's ``pow`` or ``log`` is asked: the sequence below is of + - * on float64, each product one rounding, and of
numbers out of tables that integers give. Its error is about 2**-54 relatively before the one rounding to float32, so
that it is the correctly rounded power in all but about one case out of 2**29 (tests/test_powers.py goes through
500,000, all of which are). All backends round alike also there.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from . import checks, frameworks
from .ieee import exact_product, product, sqrt, where
from .ops import cast, flush

_PIECES = 32
_LARGEST = 128.0  # of c: 2**-128 is nothing, as is all below _NOTHING
_NOTHING = 2.0**-100
_BITS = 120  # of the integers behind the tables


def _log2(numerator: int, denominator: int) -> int:
    """log2 of a number in [1, 2), in units of 2**-_BITS, by squaring: each time it passes 2 gives a bit."""
    x, found = (numerator << 2 * _BITS) // denominator, 0
    for _ in range(_BITS):
        x = (x * x) >> (2 * _BITS)
        bit = x >> (2 * _BITS + 1)
        x >>= bit
        found = 2 * found + bit
    return found


def _split(value: int, unit: int) -> tuple[float, float]:
    """``value * 2**-_BITS`` as a multiple of ``2**-unit``, and the rest."""
    high = (value + (1 << (_BITS - unit - 1))) >> (_BITS - unit)
    return math.ldexp(high, -unit), math.ldexp(value - (high << (_BITS - unit)), -_BITS)


def _roots() -> list[int]:
    """2**-(j/32) in units of 2**-_BITS, by square roots of integers."""
    halves = [1 << (_BITS - 1)]  # 2**-1, then 2**-(1/2), ... 2**-(1/32)
    for _ in range(5):
        halves.append(math.isqrt(halves[-1] << _BITS))
    roots = []
    for j in range(_PIECES):
        x = 1 << _BITS
        for k in range(5):
            x = (x * halves[5 - k]) >> _BITS if j >> k & 1 else x
        roots.append(x)
    return roots


# A number in [1 + i/32, 1 + (i + 1)/32) times _NEAR[i] is close to 1, and the product is exact: _NEAR has 9 bits.
_STEPS = [256] + [round(256 / (1.0 + (2 * i + 1) / (2 * _PIECES))) for i in range(1, _PIECES)]
_NEAR = tuple(k / 256 for k in _STEPS)
_LOG = tuple(_split(_log2(256, k), 20) for k in _STEPS)  # -log2(_NEAR), the first of each with 21 bits
_ROOT = tuple(_split(x, 50) for x in _roots())
_HALF = tuple(2.0**-k for k in range(102))
# log2(1 + t)/t by Taylor, below 2**-60 from it for 0 <= t < 1/32, and (2**-r - 1)/r, for |r| below 1/63
_LOG_TAYLOR = tuple((-1) ** k * 1.4426950408889634 / (k + 1) for k in range(13))
_EXP_TAYLOR = tuple((-0.6931471805599453) ** k / math.factorial(k) for k in range(1, 9))


def power(n: Any, c: Any) -> Any:
    """``n**-c`` as a float32 number.

    Parameters
    ----------
    n : int32 array
        At least 1.
    c : number or 0-d float32 or float64 array
        At least 0; NaN gives NaN.

    Returns
    -------
    float32 array of the shape of `n`
        The correctly rounded power, but for about one case in 2**29 where it is next to it; 0 below 2**-100.

    Examples
    --------
    >>> power(np.asarray([1, 4, 100], np.int32), 0.5).tolist()
    [1.0, 0.5, 0.10000000149011612]
    """
    xp = frameworks.namespace(n)
    if checks.is_number(c) and not n.shape and frameworks.is_on_host(n):
        return frameworks.constant(xp, _known(int(frameworks.on_host(n)), float(c)), xp.float32, n)
    with frameworks.float64_scope(xp):
        if checks.is_number(c):
            c = frameworks.constant(xp, min(float(c), _LARGEST), xp.float64, n)
        flat = _rounded(xp, xp.astype(xp.reshape(n, (-1,)), xp.float64), xp.reshape(xp.astype(c, xp.float64), (1,)))
        return xp.reshape(flat, n.shape)


def annealed(alpha: Any, gamma: Any, step: Any, compute: str) -> Any:
    """``sqrt(alpha * (1 + step)**-gamma)``: deviation of noise whose variance alpha is annealed, a 0-d array.

    Parameters
    ----------
    alpha, gamma : float or 0-d array of the compute dtype
    step : 0-d int32 array
    compute : {"float32", "float64"}

    Examples
    --------
    >>> float(annealed(0.25, 1.0, np.asarray(3, np.int32), "float32"))
    0.25
    """
    n = where(step < 2**31 - 1, step, 2**31 - 2) + 1
    xp = frameworks.namespace(step)
    return sqrt(flush(product(alpha, cast(power(n, gamma), frameworks.dtype(xp, compute)))))


@lru_cache(maxsize=256)
def _known(n: int, c: float) -> float:
    """The same of numbers: every leaf of a tree asks for it."""
    return float(_rounded(frameworks.namespace(np.empty(0)), np.asarray([float(n)]), np.asarray([min(c, _LARGEST)]))[0])


def _rounded(xp: Any, n: Any, c: Any) -> Any:
    """2**-(c * log2(n)) of float64 vectors, rounded to float32."""
    nan = c - c
    c = where(c < _LARGEST, c, _LARGEST)
    whole, left = _logarithm(xp, n)
    x, error = exact_product(c, whole)
    rest = error + product(c, left)
    nothing = x + rest > 100.0
    x, rest = where(nothing, 100.0, x), where(nothing, 0.0, rest)
    count = xp.floor((x + rest) * _PIECES + 0.5)
    halvings = xp.floor(count * (1.0 / _PIECES))
    j, k = (xp.astype(i, xp.int32) for i in (count - halvings * _PIECES, halvings))
    r = (x - count * (1.0 / _PIECES)) + rest
    high, low = (_looked_up(xp, [pair[side] for pair in _ROOT], j, n) for side in (0, 1))
    y = high + (product(high, product(r, _polynomial(_EXP_TAYLOR, r))) + low)
    y = where(nothing, 0.0, y * _looked_up(xp, _HALF, k, n))
    return xp.astype(where(y < _NOTHING, 0.0, y) + nan, xp.float32)


def _logarithm(xp: Any, n: Any) -> tuple[Any, Any]:
    """log2(n) as the sum of a number of at most 26 bits and a small one."""
    word = frameworks.bits(n)
    exponent = xp.astype((word >> 52) - 1023, xp.float64)
    n = frameworks.from_bits((word & (2**52 - 1)) | (1023 << 52))  # its digits, in [1, 2)
    i = xp.astype(xp.floor((n - 1.0) * _PIECES), xp.int32)
    t = n * _looked_up(xp, _NEAR, i, n) - 1.0  # exact
    high, low = (_looked_up(xp, [pair[side] for pair in _LOG], i, n) for side in (0, 1))
    return exponent + high, product(t, _polynomial(_LOG_TAYLOR, t)) + low


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    value = x * 0.0 + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = product(value, x) + coefficient
    return value


def _looked_up(xp: Any, table: Any, index: Any, like: Any) -> Any:
    return xp.take(frameworks.constant(xp, list(table), xp.float64, like), index)
