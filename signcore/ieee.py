"""The operations of IEEE-754, one rounding each on every backend: a product before a sum, a root, a quotient.

Addition and subtraction need no help. A product may be fused into a following sum, which drops its rounding;
a library's own ``sqrt`` and ``/`` may be an ulp off. Each function says how it is repaired; frameworks.py says
where, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import frameworks
from .dtypes import Format, format_of
from .frameworks import namespace


def compute_format(x: Any) -> Format:
    """Format of an array that arithmetic is done on; TypeError for integers."""
    fmt = format_of(x)
    if fmt is None:
        raise TypeError(f"arithmetic on {x.dtype}; pass float32 or float64")
    return fmt


def where(condition: Any, x: Any, y: Any) -> Any:
    """``xp.where`` in the namespace of the condition; scalars take the arrays' dtype."""
    return namespace(condition).where(condition, x, y)


def product(a: Any, b: Any) -> Any:
    """``round(a * b)``, one rounding, also where a compiler would fuse it into a following sum.

    The added term is -0.0 for every finite product, which the compiler cannot know. If it contracts, it
    gets ``fma(a, b, -0.0)``, which is the rounded product; an infinite one is added to itself. The test must
    not depend on the sign of the product: LLVM knows that of a square and would drop the guard. Only
    inexact products that feed ``+`` or ``-`` need this; a sign times a scalar, or a power of two, is exact.

    Parameters
    ----------
    a, b : array or float
        At least one array, float32 or float64; broadcast.

    Returns
    -------
    array
        0.5 ulp.

    Examples
    --------
    >>> import numpy as np
    >>> product(0.5, np.asarray([3.0, -2.0], dtype=np.float32))
    array([ 1.5, -1. ], dtype=float32)
    """
    return _guarded(a * b)


def _guarded(q: Any) -> Any:
    """A value as it was rounded: no compiler may take it together with what follows."""
    if not frameworks.contracts(q):
        return q
    return q + where(namespace(q).abs(q) > compute_format(q).largest, q, -0.0)


def _as_array(x: Any, like: Any) -> Any:
    return frameworks.constant(namespace(like), x, like.dtype, like) if isinstance(x, (int, float)) else x


def sqrt(x: Any) -> Any:
    """Correctly rounded square root, whatever the backend's own sqrt does.

    float32 goes through float64, whose error is far below the distance of any square root of a 24-bit
    number to a rounding boundary. float64 is corrected by its exact residual where the native one is not
    one rounding.

    Parameters
    ----------
    x : array, float32 or float64, any shape
        Of zero, infinity, NaN and negative numbers the root is IEEE's (0, infinity, NaN, NaN). Subnormal numbers are
        outside of the contract: some backends take them for zero.

    Returns
    -------
    array of `x`'s shape and dtype
        0.5 ulp.

    Examples
    --------
    >>> import numpy as np
    >>> sqrt(np.asarray([4.0, 2.0], dtype=np.float32))
    array([2.       , 1.4142135], dtype=float32)
    """
    xp = namespace(x)
    if compute_format(x).name == "float32":
        if frameworks.has_exact_float32(xp):
            return xp.sqrt(x)
        with frameworks.float64_scope(xp):
            return xp.astype(xp.sqrt(xp.astype(x, xp.float64)), x.dtype)
    if frameworks.has_exact_sqrt(x):
        return _guarded(xp.sqrt(x))  # XLA takes sqrt(a) * sqrt(a) for a
    moderate, back = _moderate(xp, x)
    fits = (moderate > 0.0) & (moderate < _HUGE)
    moderate = xp.where(fits, moderate, 1.0)
    root = _nearest(xp, xp.sqrt(moderate), lambda s: _residual(moderate, s, s), lambda r, s: r / (s + s))
    return xp.where(fits, root * back, xp.sqrt(x))


def quotient(a: Any, b: Any) -> Any:
    """Correctly rounded ``a / b``.

    float32 goes through float64, as `sqrt` does; float64 is corrected by its exact residual where a compiler
    turns a division into a product with a reciprocal.

    Parameters
    ----------
    a, b : array, float32 or float64, or float
        At least one array; broadcast. Zeros, infinities and NaN give what IEEE says.

    Returns
    -------
    array
        0.5 ulp, unless the quotient is subnormal, which is outside of the contract.

    Examples
    --------
    >>> import numpy as np
    >>> quotient(1.0, np.asarray([3.0, 10.0], dtype=np.float32))
    array([0.33333334, 0.1       ], dtype=float32)
    """
    like = b if hasattr(b, "dtype") else a
    a, b = _as_array(a, like), _as_array(b, like)
    xp = namespace(like)
    if compute_format(like).name == "float32":
        if frameworks.has_exact_float32(xp):
            return a / b
        with frameworks.float64_scope(xp):
            return xp.astype(xp.astype(a, xp.float64) / xp.astype(b, xp.float64), like.dtype)
    if frameworks.has_exact_division(xp):
        return a / b
    above, up = _moderate(xp, a)
    below, down = _moderate(xp, b)
    fits = (xp.abs(above) < _HUGE) & (above != 0.0) & (xp.abs(below) < _HUGE) & (below != 0.0)
    above, below = xp.where(fits, above, 1.0), xp.where(fits, below, 1.0)
    ratio = _nearest(xp, above / below, lambda q: _residual(above, q, below), lambda r, q: r / below)
    back = up * (1.0 / down)  # powers of two up to 2**896 either way, squared in two exact products
    return xp.where(fits, (ratio * back) * back, a / b)


def _moderate(xp: Any, x: Any) -> tuple[Any, Any]:
    """(x moved between 2**-128 and 2**128 by a power of two, root of the power that moves it back), float64."""
    back = xp.ones_like(x)
    for exponent in (512, 256, 128):
        large, small = xp.abs(x) >= 2.0**exponent, xp.abs(x) < 2.0**-exponent
        x = xp.where(large, x * 2.0**-exponent, xp.where(small, x * 2.0**exponent, x))
        back = xp.where(large, back * 2.0 ** (exponent // 2), xp.where(small, back * 2.0 ** -(exponent // 2), back))
    return x, back


_HUGE = 2.0**500  # an infinity is above it, every number that was moved below


def _nearest(xp: Any, guess: Any, residual: Callable[[Any], Any], correction: Callable[[Any, Any], Any]) -> Any:
    """The float64 whose exact residual is smallest, from a guess that may be a few ulps off.

    Two corrections bring the guess to within an ulp; of it and its neighbour on the far side of the true
    value the one with the smaller residual is the nearest (neither a square root nor a quotient of two
    floats can be a midpoint).
    """
    for _ in range(2):
        before, step = guess, correction(residual(guess), guess)
        guess = before + step
    left = step - (guess - before)
    other = guess + (left + left)
    return xp.where(xp.abs(residual(other)) < xp.abs(residual(guess)), other, guess)


def _residual(x: Any, a: Any, b: Any) -> Any:
    """``x - a*b``, exact when ``a*b`` is within a few ulps of `x`."""
    p, error = exact_product(a, b)
    return (x - p) - error


def exact_product(a: Any, b: Any) -> tuple[Any, Any]:
    """``(p, e)`` in float64 with ``p + e == a*b`` exactly (Dekker 1971), for ``a*b`` from 2**-900 to 2**1023.

    `a` and `b` themselves are below 2**995 in magnitude.
    """
    p = product(a, b)
    ah, al = _halves(a)
    bh, bl = _halves(b)
    # partial products of 26-bit halves are exact: no guard
    return p, (((ah * bh - p) + ah * bl) + al * bh) + al * bl


def _halves(a: Any) -> tuple[Any, Any]:
    c = product(134217729.0, a)  # 2**27 + 1, Veltkamp's splitting
    high = c - (c - a)
    return high, a - high
