"""(4/pi) arcsin on [-1, 1]: correctly rounded for float32, at most one ulp off for float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import frameworks

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


def _positive(xp: Any, a: Any, product: Callable[[Any, Any], Any], wide: bool) -> Any:
    large = a > 0.5
    t = xp.where(large, 0.5 - 0.5 * a, product(a, a))
    s = xp.sqrt(t)
    if wide:
        s = xp.where(large, s, a)
    q = _Q64 if wide else _Q32
    r = product(t, q[-1])
    for c in q[-2:0:-1]:
        r = product(r + c, t)
    r = product(r + q[0], s)
    if not wide:
        r = r + s
        return xp.where(large, 2.0 - 2.0 * r, r)
    c = product(s, 134217729.0)
    high = c - (c - s)
    low = s - high
    r = r + 1.25 * low
    sqrt_error = product((t - high * high) - product(low, s + high), 1.5)
    return xp.where(large, (2.0 - 2.5 * high) - 2.0 * (r + sqrt_error), 1.25 * high + r)


def arcsin4pi(m: Any, product: Callable[[Any, Any], Any]) -> Any:
    """See `signcore.ops.arcsin4pi`."""
    xp = frameworks.namespace(m)
    a = xp.abs(m)
    with frameworks.float64_scope(xp):
        wide = m.dtype == xp.float64
        u = _positive(xp, a if wide else xp.astype(a, xp.float64), product, wide)
        u = u if wide else xp.astype(u, m.dtype)
    return xp.where(m < 0.0, -u, u)
