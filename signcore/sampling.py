"""Samples made from random words: uniform numbers, coins, unbiased signs and unbiased rounding.

Each takes the words as an argument, one per element, and uses the upper 24 bits of a word: as an unsigned number k
they are uniform on 0 ... 2**24 - 1, and every probability below is a count of such k, exact.
"""

from __future__ import annotations

import math
from typing import Any

from . import checks, frameworks, ops
from .dtypes import FORMATS, format_of, name_of
from .tree import Leaf


def top_bits(words: Any) -> Any:
    """The upper 24 bits of random words, as numbers from 0 to 2**24 - 1.

    Parameters
    ----------
    words : int32 array

    Returns
    -------
    int32 array of the same shape

    Raises
    ------
    TypeError
        For what is not an array of int32.

    Examples
    --------
    >>> import numpy as np
    >>> top_bits(np.asarray([0, 255, 256, -1], np.int32)).tolist()
    [0, 0, 1, 16777215]
    """
    kind = name_of(words.dtype) if hasattr(words, "dtype") else type(words).__name__
    if kind != "int32":
        raise TypeError(f"`words` is of {kind}; pass the int32 array that random.words draws")
    return (words >> 8) & 0xFFFFFF  # >> keeps the sign


def uniform(words: Any, dtype: str = "float32") -> Any:
    """Uniform numbers in [0, 1): multiples of 2**-24, each with probability 2**-24.

    Parameters
    ----------
    words : int32 array
    dtype : {"float32", "float64"}
        The numbers are the same in both.

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
    >>> uniform(np.asarray([0, 1 << 30, -1], np.int32)).tolist()
    [0.0, 0.25, 0.9999999403953552]
    """
    checks.choice("dtype", dtype, ("float32", "float64"))
    k, xp = top_bits(words), frameworks.namespace(words)
    with frameworks.float64_scope(xp):
        return xp.astype(k, frameworks.dtype(xp, dtype)) * 2.0**-24


def bernoulli(words: Any, p: Any) -> Any:
    """Coins that show True with probability `p`, rounded up to a multiple of 2**-24.

    Parameters
    ----------
    words : int32 array
    p : number or floating-point array in [0, 1]
        Broadcast against the words; entries of an array below its dtype's flush threshold (`signcore.ops.flush`)
        count as zero, and NaN gives False. The values of an array are checked when they are at hand.

    Returns
    -------
    bool array: ``uniform(words) < p``

    Raises
    ------
    TypeError, ValueError
        For words that are not int32, a `p` that is no number or array of them, or not in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> words = np.asarray([0, 1 << 30, -1], np.int32)
    >>> bernoulli(words, 0.25).tolist()
    [True, False, False]
    """
    if checks.is_number(p):
        checks.number("p", p, checks.Range(0.0, maximum=1.0))
        least = math.ceil(float(p) * 2.0**24)  # scaling is exact, and no comparison rounds `p` to float32
        return top_bits(words) < least
    if not hasattr(p, "dtype") or format_of(p) is None:
        raise TypeError(f"`p` is {p!r}; pass a number in [0, 1], or a floating-point array of them")
    p = ops.widen(p)
    if frameworks.is_on_host(p):
        values = frameworks.on_host(p)
        if bool(frameworks.namespace(values).any((values < 0.0) | (values > 1.0))):
            raise ValueError("`p` is an array with entries outside of [0, 1]; clip it")
    p = ops.flush(p)  # backends disagree on whether a subnormal is above zero
    return uniform(words, name_of(p.dtype)) < p


def stochastic_sign(v: Any, scale: Any, words: Any) -> Any:
    """Random signs whose mean is ``v/scale``: an unbiased one-bit message.

    With a uniform on the multiples of 2**-23 in [-1, 1), the sign is +1 where ``round(scale*a) < v`` and -1 elsewhere.
    Its mean is ``v/scale`` exactly where that is a multiple of 2**-23, and within 2**-23 of it elsewhere; beyond
    ``|v| = scale`` it is the sign of `v`. The l2 norm of a gradient, its largest magnitude, a constant and an array
    of magnitudes are all `scale`.

    Parameters
    ----------
    v : array
        float16 and bfloat16 are widened to float32; subnormals count as zero.
    scale : number or array
        Not negative; broadcast against `v` and rounded to its arithmetic's dtype.
    words : int32 array of the shape of `v`

    Returns
    -------
    array like `v`
        +1 or -1; 0 where `v` is NaN, and where `scale` is not a positive finite number: zero (with all below the
        flush threshold of `signcore.ops.flush`), infinite or NaN.

    Raises
    ------
    TypeError, ValueError
        For words that are not int32 or of another shape, a negative number as `scale`.

    Notes
    -----
    The rounding keeps the counts: let ``v = scale*a`` with a on the grid. The next smaller product is ``scale*2**-23``
    below v, and floats up to `scale` are at most that far apart: it is at most the float below v, and so are it and
    all smaller ones when rounded. The products of a and of what is above are at least v, and stay so.

    References
    ----------
    Safaryan and Richtarik, "Stochastic sign descent methods", arXiv:1905.12938, definition 3 (l2 norm); Jin et al.,
    "Stochastic-sign SGD for federated learning", arXiv:2002.10940 (a constant); Chen et al., "Distributed training
    with heterogeneous data: bridging median- and mean-based algorithms", arXiv:1906.01736 (noise of a fixed scale).

    Examples
    --------
    >>> import numpy as np
    >>> words = np.asarray([0, 1 << 30, -(1 << 30), -1], np.int32)  # a = -1, -0.5, 0.5, just below 1
    >>> stochastic_sign(np.full(4, 1.0, np.float32), 2.0, words).tolist()
    [1.0, 1.0, -1.0, -1.0]
    """
    xp, k = _bits_beside("v", v, words)
    x = ops.widen(v)
    fmt = FORMATS[name_of(x.dtype)]
    if checks.is_number(scale):
        if scale < 0.0:
            raise ValueError(f"`scale` is {scale!r}; it must not be negative")
        scale = frameworks.constant(xp, ops.rounded(float(scale), fmt.name), x.dtype, x)
    scale = ops.cast(scale, x.dtype)
    live = (scale >= fmt.flush) & (scale <= fmt.largest)
    x = xp.where(xp.abs(x) < fmt.normal, 0.0, x)
    a = xp.astype(k - 2**23, x.dtype) * 2.0**-23
    below = xp.where(live, scale, 1.0) * a < x
    live = live & (x == x)
    return xp.astype(live & below, v.dtype) - xp.astype(live & ~below, v.dtype)


def drawn(v: Any, scale: Any, words: Any) -> Any:
    """What a rule takes the sign of whose signs are drawn: `stochastic_sign`, and `v` itself where `scale` is zero.

    So a policy for zeros and `v` decide where there is nothing to draw from. NaN where `v` or `scale` is no number, or
    `scale` infinite.

    Parameters
    ----------
    v : float32 or float64 array
    scale : finite number, or array of its dtype
    words : int32 array of the shape of `v`

    Examples
    --------
    >>> import numpy as np
    >>> v, words = np.asarray([0.5, -0.25], np.float32), np.asarray([0, 0], np.int32)
    >>> drawn(v, 1.0, words).tolist(), drawn(v, 0.0, words).tolist()
    ([1.0, 1.0], [0.5, -0.25])
    """
    s = stochastic_sign(v, scale, words)
    if not checks.is_number(scale):
        v = ops.where(scale <= FORMATS[name_of(v.dtype)].largest, v, math.nan)
    return ops.where(s == 0.0, v, s)


def _bits_beside(argument: str, array: Any, words: Any) -> tuple[Any, Any]:
    """The namespace of a float array, and the bits of the words that belong to it, one for each element."""
    checks.array(argument, Leaf("", array))
    k = top_bits(words)
    checks.same_home("words", Leaf("", words), argument, Leaf("", array))
    checks.same_shape("words", Leaf("", words), argument, Leaf("", array))
    return frameworks.namespace(array), k


# float32's fraction bits that a dtype lacks, and the words of its largest finite number, infinity and NaN.
_TARGETS = {"bfloat16": (16, 0x7F7F, 0x7F80, 0x7FC0), "float16": (13, 0x7BFF, 0x7C00, 0x7E00)}


def stochastic_round(x: Any, dtype: str, words: Any) -> Any:
    """float32 rounded at random to one of its two neighbours in bfloat16 or float16, with mean `x`.

    The neighbour away from zero is taken with a probability that is the distance from the other, in units of their
    distance, rounded up to a multiple of 2**-24: exact but for float16 results below 2**-14 whose `x` has lower bits
    than that. What `dtype` holds does not change, infinities and NaN included. Finite numbers beyond its
    largest become the largest, never infinite: no mean would be infinity's.

    Parameters
    ----------
    x : array
        float32; float16 and bfloat16 are widened. float32's subnormals become zero in float16.
    dtype : {"bfloat16", "float16"}
    words : int32 array of the shape of `x`

    Returns
    -------
    array of the target dtype

    Raises
    ------
    TypeError, ValueError
        For words that are not int32 or of another shape, a float64 array, a dtype that the library lacks.

    Notes
    -----
    All of it is done on words, from float32's to those of the target, whose magnitudes are in the order of the
    numbers. So no cast can be deleted by a compiler, and none sees a subnormal.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.full(4, 1.0 + 2.0**-11, np.float32)  # halfway between two float16
    >>> stochastic_round(x, "float16", np.asarray([0, 1 << 30, -(1 << 30), -1], np.int32)).tolist()
    [1.0009765625, 1.0009765625, 1.0, 1.0]
    """
    checks.choice("dtype", dtype, _TARGETS)
    xp, k = _bits_beside("x", x, words)
    target = frameworks.dtype(xp, dtype)
    if name_of(x.dtype) == "float64":
        raise TypeError("`x` has dtype float64; pass float32, which has room for every bfloat16 and float16")
    bits = ops.widen(x).view(xp.int32)
    size = bits & 0x7FFFFFFF
    lost, largest, infinity, nan = _TARGETS[dtype]
    whole, part = size >> lost, (size & ((1 << lost) - 1)) << (24 - lost)
    if dtype == "float16":  # 112 is the difference of the exponents' biases
        whole, part = _below_float16(xp, size, whole - (112 << 10), part)
    raised = whole + xp.astype(k < part, xp.int32)
    near = xp.where(raised < largest, raised, largest)
    near = xp.where(size < 0x7F800000, near, infinity)
    near = xp.where(size > 0x7F800000, nan, near)
    return xp.astype(near | ((bits >> 31) << 15), xp.int16).view(target)


def _below_float16(xp: Any, size: Any, whole: Any, part: Any) -> tuple[Any, Any]:
    """`whole` and `part`, where float16 is subnormal as multiples of 2**-24 and what is left, in 2**-24 of that."""
    small = size < (113 << 23)
    y = xp.where(small & (size >= (1 << 23)), size, 0).view(xp.float32) * 2.0**24
    count = xp.astype(y, xp.int32)
    left = xp.astype(xp.ceil((y - xp.astype(count, xp.float32)) * 2.0**24), xp.int32)
    return xp.where(small, count, whole), xp.where(small, left, part)
