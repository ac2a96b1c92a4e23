"""(4/pi) arcsin on [-1, 1]: correctly rounded for float32, at most one ulp off for float64.

The sequence runs in float64, from + - *, abs, minimum, where and sqrt. Its float32 result is proven by
enumeration of every input (tools/prove_arcsin.py, docs/results/arcsin.json): the true value is never within
2**-53.9 of a rounding boundary, and neither contraction into FMAs nor the last bit of sqrt can move the float64
value across one, so the products need no guard there. The float64 result is what the sequence gives, operation
by operation; its largest error seen is 0.781 ulp.

Where values can be looked at, the library's own float64 arcsine, which no library has more than a few ulps off,
is rounded instead; a block with a value within 32 ulps of a rounding boundary, one in a hundred, goes through
the sequence. That is twice to five times as fast, and the same function: there is only one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import blocks, frameworks
from .ieee import product, sqrt

# Q in (4/pi) asin(s) = HEAD*s + s*Q(s*s) on [0, 1/2], minimax, with HEAD = 1 for float32 results and 5/4 for
# float64 ones, whose product with 53 bits needs one rounding at most; relative errors 2**-51.9 and 2**-59.2
# (tools/arcsin_coefficients.py).
_Q32 = (
    0.2732395447351627,
    0.21220659078939805,
    0.0954929658074695,
    0.056841054905025626,
    0.038683342964290976,
    0.02848854564413001,
    0.022045320026156907,
    0.018233722965662388,
    0.011953395098484063,
    0.023215799976542106,
    -0.014861256504030598,
    0.0401060560441885,
)
_Q64 = (
    0.023239544735162685,
    0.21220659078919554,
    0.09549296585468066,
    0.05684105115045276,
    0.03868349068136215,
    0.028485194039760298,
    0.022092677007833843,
    0.017801805685903085,
    0.014507072335092021,
    0.013759190659732917,
    0.004602201443750545,
    0.027905125390893157,
    -0.027092032363743506,
    0.04175455304560643,
)


def _reduced(xp: Any, a: Any, root: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Half-angle reduction, f(a) = 2 - 2 f(sqrt((1 - a)/2)) above 1/2: (is above, s, s*s)."""
    above = a > 0.5
    square = xp.minimum(a * a, 0.5 - 0.5 * a)  # they cross at 1/2
    return above, xp.where(above, root(square), a), square


def _horner(coefficients: tuple[float, ...], s: Any, square: Any, times: Callable[[Any, Any], Any]) -> Any:
    """``s * Q(square)``."""
    r = times(square, coefficients[-1])
    for c in coefficients[-2:0:-1]:
        r = times(r + c, square)
    return times(r + coefficients[0], s)


def _for_float32(xp: Any, a: Any, root: Callable[[Any], Any]) -> Any:
    above, s, square = _reduced(xp, a, root)
    r = s + _horner(_Q32, s, square, lambda x, y: x * y)
    return xp.where(above, 2.0 - 2.0 * r, r)


def _for_float64(xp: Any, a: Any) -> Any:
    above, s, square = _reduced(xp, a, sqrt)
    r = _horner(_Q64, s, square, product)
    c = product(s, 134217729.0)  # 2**27 + 1: Veltkamp's splitting, so that what follows is exact without a guard
    high = c - (c - s)
    low = s - high
    r = r + 1.25 * low
    # what sqrt rounded away, times f'(s)/(2s), which is near 1.5 where it matters
    lost = product((square - high * high) - product(low, s + high), 1.5)
    return xp.where(above, (2.0 - 2.5 * high) - 2.0 * (r + lost), 1.25 * high + r)


def _sequence(m: Any) -> Any:
    xp = frameworks.namespace(m)
    a = xp.abs(m)
    with frameworks.float64_scope(xp):
        if m.dtype == xp.float64:
            u = _for_float64(xp, a)
        else:
            u = xp.astype(_for_float32(xp, xp.astype(a, xp.float64), xp.sqrt), m.dtype)
    return xp.where(m < 0.0, -u, u)


def _rounded_native(m: Any) -> Any:
    """The library's float64 arcsine times 4/pi, rounded once: right unless it is near a rounding boundary."""
    xp = frameworks.namespace(m)
    u = xp.asin(xp.astype(m, xp.float64))
    u *= 4.0 / math.pi
    u += 0.0  # -0.0 becomes +0.0, as in the sequence
    # The 29 bits that float32 drops, counted from 32 below the boundary.
    dropped = u.view(xp.int64) + (32 - 2**28)
    dropped &= 2**29 - 1
    return _sequence(m) if bool(xp.any(dropped <= 64)) else xp.astype(u, m.dtype)


def arcsin4pi(m: Any) -> Any:
    """``(4/pi) * arcsin(m)``, the response of AASS.

    Parameters
    ----------
    m : array, float32 or float64, any shape
        In [-1, 1]. Subnormal numbers are outside of the contract: some backends take them for zero.

    Returns
    -------
    array of `m`'s shape and dtype, in [-2, 2]
        float32: 0.5 ulp, correctly rounded for every normal number. float64: below 0.8 ulp, one operation sequence.
        Outside of [-1, 1] NaN.

    Examples
    --------
    >>> import numpy as np
    >>> arcsin4pi(np.asarray([0.0, 0.1, -1.0], dtype=np.float32))
    array([ 0.        ,  0.12753712, -2.        ], dtype=float32)
    """
    if not frameworks.is_host(m):
        return _sequence(m)
    wide = m.dtype == frameworks.namespace(m).float64
    return blocks.mapped(_sequence if wide else _rounded_native, m)
