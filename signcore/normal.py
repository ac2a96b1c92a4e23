"""Normal numbers from random words: the quantile of 24 bits, correctly rounded to float32.

The quantile runs in float64, from + - *, log and sqrt, and is rounded once. Its float32 result is proven by enumeration
of every input (tools/prove_normal.py, docs/results/normal.json): the float64 value is off by less than 2**-49.9,
relatively, and may be off by another 2**-48 without a change of any word. So neither contraction into FMAs nor two ulps
in a library's log and sqrt matter, and the products need no guard.
"""

from __future__ import annotations

from typing import Any

from . import blocks, checks, frameworks
from .sampling import top_bits

# z = x * P(u) is the quantile of (1 + x)/2, where u = sqrt(4 - log(1 - x*x)) * _SCALE - _OFFSET is in [-1, 1]; Giles,
# "Approximating the erfinv function", GPU Computing Gems 2, 2011, has the variable under the root. Relative error
# 2**-52.5 (tools/normal_coefficients.py).
_SCALE, _OFFSET = 0.8111320486511959, 2.622264097302392
_P = (
    3.3590821686877708,
    2.185721147999855,
    -0.1482552133916155,
    -0.020815703013087425,
    0.11552107948566583,
    -0.12093570824020282,
    0.052495675705407176,
    0.026542238278564643,
    -0.05691466837829034,
    0.03277803975778067,
    0.007035993337631703,
    -0.025419635101403996,
    0.01665903073110832,
    0.0013048943287829271,
    -0.010812165982149695,
    0.008110743244229317,
    -0.00035218222582731793,
    -0.004427889613503938,
    0.003871077395057397,
    -0.0007523073947294625,
    -0.0016256211616034093,
    0.002122409586296899,
    -0.0008897380413089709,
    -0.0010161909503870008,
    0.00149268068986639,
    -7.05412351325742e-05,
    -0.0009358603755178196,
    0.00033858673656959014,
    0.00034184805481452527,
    -0.0001913256792638093,
    -7.218977987697662e-05,
    5.1844581361063965e-05,
    6.902893147762131e-06,
    -5.922956949747401e-06,
)


def normal(words: Any, dtype: str = "float32") -> Any:
    """Standard normal numbers, the correctly rounded quantile of a uniform grid.

    The sign is a word's top bit, the magnitude that of the quantile of ``t = (2*j + 1) * 2**-25`` with j its next 23
    bits: 2**24 numbers of equal probability, symmetric about zero, from 7.5e-08 to 5.42 in magnitude.

    Parameters
    ----------
    words : int32 array
    dtype : {"float32", "float64"}
        float64 holds the same float32 numbers.

    Returns
    -------
    array of the shape of `words`

    Raises
    ------
    TypeError, ValueError
        For words that are not int32, another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> normal(np.asarray([0, 1 << 29, -1], np.int32)).tolist()
    [5.419983386993408, 1.1503492593765259, -7.470334395520695e-08]
    """
    checks.choice("dtype", dtype, ("float32", "float64"))
    k, xp = top_bits(words), frameworks.namespace(words)
    if not frameworks.is_host(words):
        return _rounded(xp, k, dtype)
    return blocks.mapped(lambda k: _rounded(xp, k, dtype), k)


def _rounded(xp: Any, k: Any, dtype: str) -> Any:
    with frameworks.float64_scope(xp):
        # the sign is k's top bit, 2*j + 1 the rest with a bit behind
        z = _magnitude(xp, xp.astype(2 * (k & 0x7FFFFF) + 1, xp.float64)) * xp.astype(1 - (k >> 23) * 2, xp.float64)
        if dtype == "float32":
            return xp.astype(z, xp.float32)
        c = z * 536870913.0  # 2**29 + 1: Veltkamp's splitting rounds to float32's 24 bits; a cast there and back may go
        return c - (c - z)


def _magnitude(xp: Any, n: Any) -> Any:
    """-quantile(n * 2**-25) in float64, within 2**-49.9, for odd n below 2**24."""
    x = 1.0 - n * 2.0**-24
    u = xp.sqrt(4.0 - xp.log(n * (2.0**25 - n) * 2.0**-48)) * _SCALE - _OFFSET  # the logarithm's argument is exact
    p = u * _P[-1]
    for c in _P[-2:0:-1]:
        p += c  # in place, where arrays can be
        p *= u
    return (p + _P[0]) * x
