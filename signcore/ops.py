"""The primitives of the arithmetic contract: each has one result, defined to the bit, on every backend.

Arrays are float32 or float64 here; narrower leaves are widened on entry and rounded once when stored. A
hyperparameter is a Python float already rounded to the compute dtype, or a 0-d array of that dtype.
docs/arithmetic.md says why each of them is written as it is.
"""

from __future__ import annotations

import math
from typing import Any

from . import frameworks
from .arcsin import arcsin4pi
from .dtypes import Format
from .frameworks import namespace
from .ieee import compute_format, product, quotient, sqrt, where
from .sums import exact_dot, exact_sum, norm1, norm2, norm_inf

__all__ = [
    "arcsin4pi",
    "cast",
    "clamp",
    "complement",
    "descent",
    "ema",
    "exact_dot",
    "exact_sum",
    "flush",
    "narrow",
    "norm1",
    "norm2",
    "norm_inf",
    "product",
    "quotient",
    "rounded",
    "sign",
    "sqrt",
    "where",
    "widen",
]


def rounded(value: float, compute: str) -> float:
    """`value` rounded once to the compute dtype ``"float32"`` or ``"float64"``, as a Python float.

    Examples
    --------
    >>> rounded(0.9, "float32")
    0.8999999761581421
    """
    if compute == "float64":
        return float(value)
    if not math.isfinite(value):
        return value
    # float(np.float32(value)), in operations that torch.compile evaluates while it traces
    mantissa, exponent = math.frexp(value)
    if abs(value) < 2.0**-126:  # below float32's normal range there is nothing the contract could keep
        return 0.0
    if abs(value) >= 2.0**128 - 2.0**103:  # half an ulp above the largest float32: to even, which is infinity
        return math.inf if value > 0.0 else -math.inf
    return math.ldexp(float(round(mantissa * 2.0**24)), exponent - 24)


def flush(v: Any) -> Any:
    """Zero for magnitudes below the contract's threshold (2**-100 for float32, 2**-900 for float64).

    Backends disagree on subnormals; nothing that could become one is ever stored. -0.0 becomes +0.0; NaN
    and the infinities stay.

    Examples
    --------
    >>> import numpy as np
    >>> flush(np.asarray([1e-38, -0.0, -2.0], dtype=np.float32))
    array([ 0.,  0., -2.], dtype=float32)
    """
    xp = namespace(v)
    size, least = xp.abs(v), compute_format(v).flush
    if frameworks.is_eager_numpy(v):
        # The same words without NumPy's `where`, which costs as much as eight other operations.
        return v if size.size and size.min() >= least else v * xp.astype(size >= least, v.dtype) + v.dtype.type(0.0)
    return xp.where(size < least, 0.0, v)


def sign(u: Any, zero: str = "zero", noise: Any = None) -> Any:
    """Sign of the flushed value, in `u`'s dtype, with a policy for zero; NaN gives 0 under every policy.

    Parameters
    ----------
    u : array
    zero : {"zero", "plus", "minus", "random"}
        What a zero becomes: 0, +1, -1, or a fair coin.
    noise : int32 array of `u`'s shape, optional
        Random words, whose lowest bit is the coin of ``"random"``.

    Examples
    --------
    >>> import numpy as np
    >>> sign(np.asarray([3.0, -0.0, 1e-38, -1e-3], dtype=np.float32))
    array([ 1.,  0.,  0., -1.], dtype=float32)
    """
    xp = namespace(u)
    tiny = compute_format(u).flush
    if zero == "plus":
        return xp.astype(u > -tiny, u.dtype) - xp.astype(u <= -tiny, u.dtype)
    if zero == "minus":
        return xp.astype(u >= tiny, u.dtype) - xp.astype(u < tiny, u.dtype)
    s = xp.astype(u >= tiny, u.dtype) - xp.astype(u <= -tiny, u.dtype)
    if zero == "random":
        coin = 1.0 - 2.0 * xp.astype(noise & 1, u.dtype)
        # Exact. Not a `where`: JAX's refuses a sharded `u` beside words that are not (explicit mesh axes).
        return s + coin * xp.astype(xp.abs(u) < tiny, u.dtype)
    return s


def complement(beta: Any, like: Any) -> Any:
    """``1 - beta`` formed in the dtype of `like` from the rounded `beta`: exact for beta >= 0.5."""
    return rounded(1.0 - beta, compute_format(like).name) if isinstance(beta, float) else 1.0 - beta


def ema(beta: Any, m: Any, g: Any) -> Any:
    """``beta*m + (1 - beta)*g``: two rounded products and one rounded sum, flushed.

    Examples
    --------
    >>> import numpy as np
    >>> ema(0.5, np.asarray([1.0, 1e-38], dtype=np.float32), np.asarray([2.0, 0.0], dtype=np.float32))
    array([1.5, 0. ], dtype=float32)
    """
    return flush(product(beta, m) + product(complement(beta, g), g))


def descent(lr: Any, u: Any, weight_decay: Any, p: Any) -> Any:
    """``-(lr * (u + weight_decay*p))``, flushed: the decoupled decay is inside the step, never in the sign.

    The decay term is zero where `weight_decay` is zero, also for an infinite parameter.
    """
    if isinstance(weight_decay, float):
        if weight_decay != 0.0:
            u = u + product(weight_decay, p)
    else:
        u = u + where(weight_decay == 0.0, 0.0, product(weight_decay, p))
    return flush(product(-lr, u))


def cast(x: Any, dtype: Any) -> Any:
    """`x` in a dtype that holds its values; the same array when it already has it."""
    return x if x.dtype == dtype else namespace(x).astype(x, dtype)


def widen(x: Any) -> Any:
    """A leaf in its compute dtype: float16 and bfloat16 become float32, exactly."""
    return cast(x, frameworks.dtype(namespace(x), compute_format(x).compute))


def clamp(x: Any, bound: Any) -> Any:
    """`x` moved into [-bound, bound]."""
    return where(x > bound, bound, where(x < -bound, -bound, x))


def narrow(x: Any, dtype: Any, fmt: Format, *, stored: bool = True) -> Any:
    """`x` rounded once, to nearest even, to the dtype of a stored leaf.

    Compilers delete a cast to a narrower dtype that is followed by its inverse (inductor for bfloat16, XLA
    on GPUs), so a compiled backend rounds by arithmetic first and the cast is exact, deleted or not.

    Parameters
    ----------
    x : array
        float32 or float64.
    dtype, fmt : dtype object of `x`'s library and its `Format`.
    stored : bool
        True for deltas and state, which are flushed at the target's threshold; False for parameters.
    """
    xp = namespace(x)
    if stored and fmt.flush > compute_format(x).flush:
        x = xp.where(xp.abs(x) < fmt.flush, 0.0, x)
    if fmt.name == compute_format(x).name:
        return x
    if fmt.digits < 24 and compute_format(x).name == "float64":
        x = xp.astype(x, xp.float32)  # every library takes this road from float64, with its two roundings
    if fmt.digits < 24 and frameworks.is_compiled(x):
        x = _round_to_bfloat16(xp, x) if fmt.name == "bfloat16" else _round_to_float16(xp, x)
    return xp.astype(x, dtype)


def _round_to_bfloat16(xp: Any, x: Any) -> Any:
    """Nearest even on the upper 16 bits of a float32, by integer arithmetic; a carry into inf is right."""
    bits = x.view(xp.int32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return xp.where(x != x, x, bits.view(x.dtype))


def _round_to_float16(xp: Any, x: Any) -> Any:
    """Nearest even to 11 significand bits, or to multiples of 2**-24 in float16's subnormal range.

    Adding and subtracting ``1.5 * 2**13`` times the power of two below |x| rounds to that spacing.
    """
    power = (x.view(xp.int32) & 0x7F800000).view(x.dtype)
    shift = xp.clip(power, 2.0**-14, 2.0**16) * (1.5 * 2.0**13)
    near = (x + shift) - shift
    x = xp.where(near == 0.0, x * 0.0, near)  # the sign of a parameter that is zero
    x = xp.where(x > 65504.0, math.inf, x)  # a cast that is deleted does not overflow
    return xp.where(x < -65504.0, -math.inf, x)
