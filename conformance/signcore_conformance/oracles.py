"""What each primitive must give, from Python's own arithmetic, fractions and mpmath. Imports nothing of signcore."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from . import reference
from .reference import FLUSH, Scalar, Tools, round_to

Oracle = Callable[..., Any]


def _scalar(x: Any) -> Scalar:
    return Scalar(float(x), np.asarray(x).dtype.name)


def _tools(x: Any, noise: Any = None) -> Tools:
    return Tools(np.asarray(x).dtype.name, noise)


def nearest(exact: Fraction, dtype: str) -> float:
    """The float nearest to a fraction, ties to even; 0 where it would be subnormal."""
    digits, least, most = (24, -126, 128) if dtype == "float32" else (53, -1022, 1024)
    size = abs(exact)
    if size < Fraction(2) ** least:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += int(size >= Fraction(2) ** exponent)  # 2**(exponent - 1) <= size < 2**exponent
    ulp = Fraction(2) ** (exponent - digits)
    rounded = round(size / ulp) * ulp
    value = math.inf if rounded >= Fraction(2) ** most else float(rounded)
    return -value if exact < 0 else value


# -- elementwise arithmetic --------------------------------------------------------------------------------------


def product_sum(a: Any, b: Any, c: Any) -> float:
    """round(round(a*b) + c)."""
    return (_scalar(a) * _scalar(b) + _scalar(c)).value


def ema(beta: float) -> Oracle:
    """flush(round(round(beta*m) + round((1 - beta)*g)))."""

    def of(m: Any, g: Any) -> float:
        old, rate = _scalar(m), Scalar(beta, np.asarray(m).dtype.name)
        return float(_tools(m).flush(rate * old + (1.0 - rate) * _scalar(g)).value)

    return of


def descent(lr: float, decay: float) -> Oracle:
    """flush(-(lr*(u + decay*p))), each operation rounded."""

    def of(u: Any, p: Any) -> float:
        dtype = np.asarray(u).dtype.name
        total = _scalar(u) + Scalar(decay, dtype) * _scalar(p)
        return float(_tools(u).flush(-Scalar(lr, dtype) * total).value)

    return of


def flush(x: Any) -> float:
    """0 below the threshold."""
    return float(_tools(x).flush(_scalar(x)).value)


def sign(zero: str) -> Oracle:
    """Sign of the flushed value, zeros by the policy."""
    return lambda u, w: _tools(u, w if zero == "random" else None).sign(_scalar(u), zero).value


def clamp(bound: float) -> Oracle:
    """Moved into [-bound, bound]."""
    return lambda x: x if math.isnan(x) else min(max(float(x), -bound), bound)


def sqrt(x: Any) -> float:
    """The nearest root: its neighbours' midpoints squared, compared exactly."""
    x = abs(x)
    if not 0.0 < float(x) < math.inf:
        return float(x)
    exact = Fraction(float(x))
    with mpmath.workprec(200):
        guess = x.dtype.type(float(mpmath.sqrt(mpmath.mpf(float(x)))))
    for candidate in (np.nextafter(guess, x.dtype.type(0)), guess, np.nextafter(guess, x.dtype.type(np.inf))):
        low, high = (np.nextafter(candidate, x.dtype.type(end)) for end in (0.0, np.inf))
        middles = [(Fraction(float(candidate)) + Fraction(float(other))) / 2 for other in (low, high)]
        if middles[0] ** 2 < exact < middles[1] ** 2:
            return float(candidate)
    raise AssertionError(f"no root of {x!r} near {guess!r}")


def quotient(a: Any, b: Any) -> float:
    """The nearest to the fraction."""
    return nearest(Fraction(float(a)) / Fraction(float(b)), np.asarray(a).dtype.name)


def third(a: Any) -> float:
    """A third, rounded once."""
    return nearest(Fraction(float(a)) / 3, np.asarray(a).dtype.name)


def arcsin4pi(m: Any) -> float:
    """The reference's: mpmath for float32, the sequence in float64."""
    found = _tools(m).arcsin4pi(_scalar(m))
    return float(found.value)


def narrow(dtype: str) -> Oracle:
    """Rounded once to a narrower dtype, and flushed there."""

    def of(x: Any) -> float:
        value = 0.0 if abs(float(x)) < FLUSH[dtype] else float(x)
        return round_to(value, dtype)

    return of


# -- sums --------------------------------------------------------------------------------------------------------

_LAYOUTS = {"float32": (-268, 48), "float64": (-1008, 174)}


def _integers(x: np.ndarray) -> list[tuple[int, int]]:
    """(mantissa, exponent) of what counts, as integers."""
    wide = x.astype(np.float64)
    mantissa, exponent = np.frexp(np.where(np.abs(wide) < FLUSH[x.dtype.name], 0.0, wide))
    return list(zip((mantissa * 2.0**53).astype(np.int64).tolist(), (exponent - 53).tolist(), strict=True))


def reduction(kind: str) -> Oracle:
    """(limbs of the exact sum, the sum rounded once), in Python's integers."""

    def of(x: np.ndarray, y: np.ndarray | None = None) -> Any:
        dtype = x.dtype.name
        if kind == "norm_inf":
            size = np.abs(x)
            top = np.max(np.where(size < FLUSH[dtype], 0, size))
            return [np.asarray(top, x.dtype).view("i4" if dtype == "float32" else "i8"), top]
        unit, count = _LAYOUTS[dtype]
        pairs = _integers(x)
        if kind in ("norm2", "dot"):
            least = -900 if dtype == "float64" else -200
            terms = []
            for (a, p), (b, q) in zip(pairs, pairs if y is None else _integers(y), strict=True):
                size = abs(a * b)
                if size and size.bit_length() + p + q > least:
                    terms.append((a * b, p + q))
        else:
            terms = [(abs(a) if kind == "norm1" else a, p) for a, p in pairs]
        low = min(unit, *(p for _, p in terms))
        total = sum(a << (p - low) for a, p in terms)
        overflows = {a > 0 for a, p in terms if a and abs(a).bit_length() + p > 1024}
        exact = Fraction(total) * Fraction(2) ** low
        value = nearest(exact, dtype)
        if kind == "norm2":
            with mpmath.workprec(300):
                if dtype == "float64":  # the root of 53 bits, wherever their exponent is
                    value = float(mpmath.sqrt(mpmath.mpf(nearest(exact / 4**100, dtype)))) * 2.0**100
                else:
                    value = _to_float32(mpmath.sqrt(mpmath.mpf(exact.numerator) / exact.denominator))
        if overflows:
            return [math.nan if len(overflows) == 2 else math.inf if True in overflows else -math.inf]
        scaled = exact / Fraction(2) ** unit
        assert scaled.denominator == 1
        digits = [(int(scaled) >> (12 * i)) & 4095 for i in range(count - 1)] + [int(scaled) >> (12 * (count - 1))]
        return [np.asarray([*digits, 0, 0, 0], np.int32), value]

    return of


def _to_float32(value: Any) -> float:
    return nearest(Fraction(int(mpmath.floor(value * 2**250))) / 2**250, "float32")


# -- noise -------------------------------------------------------------------------------------------------------


def _unsigned(word: Any) -> int:
    return int(word) & 0xFFFFFFFF


def _signed(word: Any) -> int:
    return (int(word) + 2**31) % 2**32 - 2**31


def threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> list[int]:
    """The reference's Threefry, in 64-bit words."""
    return [_signed(word) for word in reference.threefry(*map(_unsigned, (k0, k1, c0, c1)))]


def words(start: int) -> Oracle:
    """A leaf's words from the element `start` on, one by one."""

    def of(key: np.ndarray, step: np.ndarray) -> np.ndarray:
        folded = [int(word) for word in reference.threefry(_unsigned(key[0]), _unsigned(key[1]), 0, _unsigned(step))]
        found = []
        for i in range(start, start + 4000):
            x0, x1 = reference.threefry(*folded, i >> 32, i & 0xFFFFFFFF)
            found.append(_signed(int(x0) ^ int(x1)))
        return np.asarray(found, np.int32)

    return of


def uniform(w: Any) -> float:
    """The upper 24 bits."""
    return (_unsigned(w) >> 8) / 2**24


def bernoulli(p: float) -> Oracle:
    """Whether the uniform is below p, which is a float32."""
    return lambda w: uniform(w) < round_to(p, "float32")


def stochastic_sign(v: Any, s: Any, w: Any) -> float:
    """+1 where the rounded product of the scale and the uniform on [-1, 1) is below v."""
    a = 2.0 * uniform(w) - 1.0
    return 1.0 if round_to(abs(float(s)) * a, "float32") < float(v) else -1.0


def stochastic_round(dtype: str) -> Oracle:
    """One of the two neighbours, by the exact fraction."""
    digits, least, most = (11, -14, 65504.0) if dtype == "float16" else (8, -126, float((2 - 2**-7) * 2.0**127))

    def of(x: Any, w: Any) -> float:
        value = float(x)
        if abs(value) < 2.0**-126:
            return math.copysign(0.0, value)
        exponent = max(math.frexp(value)[1] - 1, least)
        ulp = Fraction(2) ** (exponent - digits + 1)
        ratio = Fraction(abs(value)) / ulp
        count = int(ratio)
        up = Fraction(uniform(w)) < ratio - count
        return math.copysign(min(float((count + up) * ulp), most), value)

    return of


def normal(w: Any) -> float:
    """Mpmath's quantile, rounded once."""
    bits = _unsigned(w) >> 8
    odd = 2 * (bits & 0x7FFFFF) + 1
    with mpmath.workprec(150):
        size = mpmath.sqrt(2) * mpmath.erfinv(1 - mpmath.mpf(odd) / 2**24)
        value = _to_float32(size)
    return -value if bits >> 23 else value


# -- bits --------------------------------------------------------------------------------------------------------


def _planes(bits: np.ndarray) -> np.ndarray:
    """Planar packing by NumPy's own: bit k of byte i is coordinate k*nb + i."""
    size = -(-bits.size // 8)
    padded = np.zeros(8 * size, np.uint8)
    padded[: bits.size] = bits
    return np.packbits(padded.reshape(8, size), axis=0, bitorder="little").reshape(-1)


def _unpacked(data: np.ndarray) -> np.ndarray:
    """Bits of each row of bytes, in the order of the coordinates."""
    return np.unpackbits(data[..., None, :], axis=-2, bitorder="little").reshape(*data.shape[:-1], -1)


def pack(s: np.ndarray) -> np.ndarray:
    """+1 as 1."""
    return _planes(s > 0)


def unpack(data: np.ndarray) -> np.ndarray:
    """+1 and -1 of all but the last five coordinates."""
    return 2.0 * _unpacked(data)[:-5] - 1.0


def pack_ternary(s: np.ndarray) -> np.ndarray:
    """The plane of +1, then that of -1."""
    return np.concatenate([_planes(s > 0), _planes(s < 0)])


def count(votes: np.ndarray) -> np.ndarray:
    """Bits of the number of votes of each coordinate."""
    total = _unpacked(votes).sum(axis=0)
    return np.stack([_planes((total >> b) & 1) for b in range(votes.shape[0].bit_length())])


def majority(votes: np.ndarray) -> np.ndarray:
    """More than half of six."""
    return _planes(_unpacked(votes[:6]).sum(axis=0) > 3)


def majority_ternary(votes: np.ndarray) -> np.ndarray:
    """The sign of the difference."""
    half = votes.shape[1] // 2
    total = _unpacked(votes[:, :half]).sum(axis=0).astype(int) - _unpacked(votes[:, half:]).sum(axis=0)
    return np.concatenate([_planes(total > 0), _planes(total < 0)])
