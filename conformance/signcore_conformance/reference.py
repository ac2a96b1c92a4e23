"""An independent reference: formulas of rules, one rounding per operation. Imports nothing of signcore.

A rule's formula stands as text in golden/<rule>.json. It is evaluated twice over: on single numbers in plain
Python (small leaves), and on NumPy arrays with one ufunc per rounding (large leaves). Special functions come
from mpmath. What a formula may call is `FUNCTIONS` below; ``a*b + c`` means two roundings.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection
from typing import Any

import mpmath
import numpy as np

SCALARS = 16  # leaves of up to so many elements are computed number by number, larger ones by NumPy
# Magnitudes below these are stored as +0.0, by dtype.
FLUSH = {"float16": 2.0**-24, "bfloat16": 2.0**-100, "float32": 2.0**-100, "float64": 2.0**-900}


def compute_dtype(dtype: str) -> str:
    """Dtype of the arithmetic on a leaf."""
    return "float64" if dtype == "float64" else "float32"


# -- rounding a Python float ---------------------------------------------------------------------------------


def round_to(x: float, dtype: str) -> float:
    """A Python float rounded to nearest even in a dtype; overflow gives an infinity."""
    if dtype == "float64" or math.isnan(x) or math.isinf(x):
        return x
    if dtype == "bfloat16":
        (bits,) = struct.unpack("<I", struct.pack("<f", round_to(x, "float32")))
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])
    code = "<f" if dtype == "float32" else "<e"
    try:
        return float(struct.unpack(code, struct.pack(code, x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


class Scalar:
    """A float32 or float64 number whose operations round once.

    float32 operations are done in float64 and rounded again, which is exact for + - * / and sqrt because
    53 >= 2*24 + 2.
    """

    def __init__(self, value: float, dtype: str) -> None:
        self.value, self.dtype = round_to(value, dtype), dtype

    def _with(self, other: Any, operation: Any) -> Scalar:
        return Scalar(operation(self.value, _value(other, self.dtype)), self.dtype)

    def __add__(self, other: Any) -> Scalar:
        return self._with(other, lambda a, b: a + b)

    def __radd__(self, other: Any) -> Scalar:
        return self._with(other, lambda a, b: b + a)

    def __sub__(self, other: Any) -> Scalar:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Scalar:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Scalar:
        return self._with(other, _multiply)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Scalar:
        return self._with(other, _divide)

    def __neg__(self) -> Scalar:
        return Scalar(-self.value, self.dtype)

    def __lt__(self, other: Any) -> bool:
        return self.value < _value(other, self.dtype)

    def __eq__(self, other: object) -> bool:
        return self.value == _value(other, self.dtype)

    __hash__ = None  # type: ignore[assignment]

    def __gt__(self, other: Any) -> bool:
        return self.value > _value(other, self.dtype)


def _multiply(a: float, b: float) -> float:
    try:
        return a * b
    except OverflowError:
        return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _divide(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return a * math.copysign(math.inf, b)


def _value(x: Any, dtype: str) -> float:
    return x.value if isinstance(x, Scalar) else round_to(float(x), dtype)


# -- the functions of formulas, on Scalars and on arrays -----------------------------------------------------


class _Signed(Exception):
    """Raised with the argument of `sign`, for whoever wants that and not the step."""


class Tools:
    """The functions that formulas call."""

    def __init__(self, dtype: str, noise: Any, *, stop_at_sign: bool = False, vote: Any = None) -> None:
        self.dtype, self.noise, self.stop_at_sign, self.vote = dtype, noise, stop_at_sign, vote

    def functions(self) -> dict[str, Any]:
        """Name to function."""
        names = ("flush", "sign", "decayed", "clamp", "where", "absolute", "sqrt", "arcsin4pi", "stochastic_sign")
        names += ("normal", "power", "minimum", "maximum", "isfinite")
        return {name: getattr(self, name) for name in names}

    def flush(self, x: Any) -> Any:
        """+0.0 below the threshold of the compute dtype."""
        if isinstance(x, Scalar):
            return Scalar(0.0, self.dtype) if abs(x.value) < FLUSH[self.dtype] else x
        return np.where(np.abs(x) < FLUSH[self.dtype], x.dtype.type(0.0), x)

    def sign(self, x: Any, zero: str) -> Any:
        """-1, 0 or 1; what zero becomes is the policy's; NaN gives 0."""
        if self.stop_at_sign:
            raise _Signed(x)
        if self.vote is not None:
            return self.vote
        tiny = FLUSH[self.dtype]
        if isinstance(x, Scalar):
            v = x.value
            if math.isnan(v):
                s = 0.0
            elif abs(v) < tiny:
                coin = 0.0 if self.noise is None else 1.0 - 2.0 * (int(self.noise) & 1)
                s = {"zero": 0.0, "plus": 1.0, "minus": -1.0, "random": coin}[zero]
            else:
                s = math.copysign(1.0, v)
            return Scalar(s, self.dtype)
        coins = np.zeros(x.shape) if self.noise is None else 1.0 - 2.0 * (self.noise & 1)
        at_zero = {"zero": 0.0, "plus": 1.0, "minus": -1.0, "random": coins}[zero]
        s = np.where(np.abs(x) < tiny, at_zero, np.where(np.isnan(x), 0.0, np.copysign(1.0, x)))
        return s.astype(x.dtype)

    def decayed(self, u: Any, weight_decay: Any, p: Any) -> Any:
        """``u + weight_decay*p``, where no decay means no term."""
        return u if _value(weight_decay, self.dtype) == 0.0 else u + weight_decay * p

    def clamp(self, x: Any, bound: Any) -> Any:
        """Into [-bound, bound]."""
        if isinstance(x, Scalar):
            return bound if x > bound else (-bound if x < -bound else x)
        limit = x.dtype.type(_value(bound, self.dtype))
        return np.where(x > limit, limit, np.where(x < -limit, -limit, x))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where the condition holds, else ``y``."""
        if isinstance(condition, (bool, np.bool_)):
            chosen = x if condition else y
            return Scalar(chosen, self.dtype) if isinstance(chosen, float) else chosen
        x, y = (_value(v, self.dtype) if isinstance(v, (Scalar, float)) else v for v in (x, y))
        like = x if isinstance(x, np.ndarray) else y
        return np.where(condition, x, y).astype(like.dtype)

    def absolute(self, x: Any) -> Any:
        """Magnitude."""
        return Scalar(abs(x.value), self.dtype) if isinstance(x, Scalar) else np.abs(x)

    def sqrt(self, x: Any) -> Any:
        """Square root, one rounding."""
        if isinstance(x, Scalar):
            return Scalar(math.sqrt(x.value) if x.value >= 0.0 else math.nan, self.dtype)
        return np.sqrt(x)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller."""
        return self.where(x < y, x, y)

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger."""
        return self.where(x > y, x, y)

    def isfinite(self, x: Any) -> Any:
        """Whether a number is neither infinite nor NaN."""
        return math.isfinite(x.value) if isinstance(x, Scalar) else np.isfinite(x)

    def power(self, n: int, c: Any) -> Any:
        """``n**-c``, rounded once to float32; 0 below 2**-100."""
        with mpmath.workprec(200):
            exact = mpmath.mpf(n) ** -mpmath.mpf(_value(c, self.dtype))
            with mpmath.workprec(24):
                value = float(+exact)
        value = 0.0 if value < 2.0**-100 else value
        return Scalar(value, self.dtype) if isinstance(c, Scalar) else np.dtype(self.dtype).type(value)

    def stochastic_sign(self, v: Any, scale: Any) -> Any:
        """+1 where ``scale*a`` is below `v`, -1 elsewhere, for the uniform a of the words; 0 without a scale."""
        tiny, least = FLUSH[self.dtype], {"float32": 2.0**-126, "float64": 2.0**-1022}[self.dtype]
        a = ((np.asarray(self.noise) >> 8) - 2**23) * 2.0**-23
        if isinstance(v, Scalar):
            size = _value(scale, self.dtype)
            if math.isnan(v.value) or not tiny <= size < math.inf:
                return Scalar(0.0, self.dtype)
            near = 0.0 if abs(v.value) < least else v.value
            return Scalar(1.0 if round_to(size * float(a), self.dtype) < near else -1.0, self.dtype)
        size = np.asarray(scale.value if isinstance(scale, Scalar) else scale).astype(v.dtype)
        near = np.where(np.abs(v) < least, 0.0, v)
        s = np.where(size * a.astype(v.dtype) < near, 1.0, -1.0)
        return np.where(np.isnan(v) | ~((size >= tiny) & np.isfinite(size)), 0.0, s).astype(v.dtype)

    def normal(self) -> Any:
        """The standard normal number of the words, a float32 quantile."""
        words = np.asarray(self.noise) >> 8
        found = _quantiles(words)
        return Scalar(float(found), self.dtype) if found.ndim == 0 else found.astype(self.dtype)

    def arcsin4pi(self, x: Any) -> Any:
        """(4/pi) arcsin(x)."""
        if self.dtype == "float64":
            return _arcsin4pi_float64(x)
        if isinstance(x, Scalar):
            return Scalar(_arcsin4pi_float32(x.value), "float32")
        wide = np.arcsin(x.astype(np.float64)) * (4.0 / math.pi)
        result = wide.astype(np.float32)
        # float64 is good to a few of its ulps: whoever lies closer to a rounding boundary is decided by mpmath
        low = (wide * (1.0 - 2.0**-48)).astype(np.float32)
        high = (wide * (1.0 + 2.0**-48)).astype(np.float32)
        for index in np.flatnonzero(low != high):
            result.flat[index] = _arcsin4pi_float32(float(x.flat[index]))
        return result


def _quantiles(k: np.ndarray) -> np.ndarray:
    """Normal quantiles of 24 bits, the top one the sign, rounded to float32; near a boundary mpmath decides."""
    from scipy.special import ndtri

    t = (2.0 * (k & 0x7FFFFF) + 1.0) * 2.0**-25
    wide = np.asarray(-ndtri(t))
    found = wide.astype(np.float32)
    low, high = ((wide * (1.0 + side * 2.0**-44)).astype(np.float32) for side in (-1.0, 1.0))
    for index in np.flatnonzero(low != high):
        with mpmath.workprec(200):
            x = 1 - 2 * mpmath.mpf(float(t.flat[index]))
            exact = mpmath.sqrt(2) * mpmath.erfinv(x)
            with mpmath.workprec(24):
                found.flat[index] = float(+exact)
    return np.asarray(np.where(k >> 23, -found, found))


def _arcsin4pi_float32(x: float) -> float:
    with mpmath.workprec(200):
        exact = 4 / mpmath.pi * mpmath.asin(mpmath.mpf(x))
        with mpmath.workprec(24):
            return float(+exact)


# float64: the contract is an operation sequence, so it is written down again here; tests hold it against mpmath.
COEFFICIENTS = (
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


def _arcsin4pi_float64(x: Any) -> Any:
    scalar = isinstance(x, Scalar)
    v = np.asarray([x.value]) if scalar else x
    a = np.abs(v)
    above = a > 0.5
    square = np.minimum(a * a, 0.5 - 0.5 * a)
    s = np.where(above, np.sqrt(square), a)
    r = np.full_like(a, COEFFICIENTS[-1]) * square
    for c in COEFFICIENTS[-2:0:-1]:
        r = (r + c) * square
    r = (r + COEFFICIENTS[0]) * s
    c = s * 134217729.0
    high = c - (c - s)
    low = s - high
    r = r + 1.25 * low
    lost = ((square - high * high) - low * (s + high)) * 1.5
    u = np.where(above, (2.0 - 2.5 * high) - 2.0 * (r + lost), 1.25 * high + r)
    u = np.where(v < 0.0, -u, u)
    return Scalar(float(u[0]), "float64") if scalar else u


# -- noise -----------------------------------------------------------------------------------------------------


def threefry(k0: int, k1: int, c0: int, c1: Any) -> tuple[Any, Any]:
    """Threefry-2x32-20 on unsigned words, numbers or arrays."""
    mask = np.uint64(0xFFFFFFFF)
    keys = [np.uint64(k0), np.uint64(k1), np.uint64(k0 ^ k1 ^ 0x1BD11BDA)]
    x0, x1 = (np.asarray(c, dtype=np.uint64) for c in (c0, c1))
    x0, x1 = (x0 + keys[0]) & mask, (x1 + keys[1]) & mask
    for i in range(20):
        r = np.uint64([13, 15, 26, 6, 17, 29, 16, 24][i % 8])
        x0 = (x0 + x1) & mask
        x1 = ((x1 << r) | (x1 >> (np.uint64(32) - r))) & mask ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0, x1 = (x0 + keys[j % 3]) & mask, (x1 + keys[(j + 1) % 3] + np.uint64(j)) & mask
    return x0, x1


def stream_key(seed: int, name: str, worker: int | str = 0) -> np.ndarray:
    """Key of a leaf's stream of noise: the first 64 bits of BLAKE2s of the seed, the worker but the first, the name."""
    whose = f"{seed}:{worker}" if worker else f"{seed}"
    digest = hashlib.blake2s(f"{whose}/{name}".encode(), digest_size=8).digest()
    return np.asarray(struct.unpack("<II", digest), dtype=np.uint32)


def noise_words(key: np.ndarray, step: int, size: int) -> np.ndarray:
    """Words of a leaf at a step: the step folded into its key, the element's 64-bit index as counter."""
    k0, k1 = key
    f0, f1 = threefry(int(k0), int(k1), 0, step)
    index = np.arange(size, dtype=np.uint64)
    x0, x1 = threefry(int(f0), int(f1), index >> np.uint64(32), index & np.uint64(0xFFFFFFFF))
    return np.asarray(x0 ^ x1)


# -- one step --------------------------------------------------------------------------------------------------


def _widen(x: np.ndarray, dtype: str) -> np.ndarray:
    return x.astype(np.dtype(compute_dtype(dtype)))


def _narrow(x: np.ndarray, dtype: Any, *, stored: bool) -> np.ndarray:
    """Rounded to a leaf's or state's dtype; float64 reaches the 16-bit dtypes by way of float32."""
    name = np.dtype(dtype).name
    if stored:
        x = np.where(np.abs(x) < FLUSH[name], x.dtype.type(0.0), x)
    if x.dtype == np.float64 and name in ("float16", "bfloat16"):
        x = x.astype(np.float32)
    return x.astype(dtype)


class _Leaf:
    """The names of one leaf while its formulas run: of each number by itself, or of whole arrays."""

    def __init__(self, values: dict[str, Any], dtype: str, noise: Any, *, whole: bool = False) -> None:
        self.dtype, self.shape, self.noise = dtype, values["p"].shape, noise
        size = math.prod(self.shape)
        self.whole = whole or size > SCALARS or size == 0
        if self.whole:
            self.scopes = [dict(values)]
        else:
            self.scopes = [
                {
                    name: Scalar(float(v.flat[i]), dtype) if isinstance(v, np.ndarray) else v
                    for name, v in values.items()
                }
                for i in range(size)
            ]

    def give(self, values: dict[str, Any]) -> None:
        """Make numbers known to the leaf, in its dtype; integers, booleans and texts stay as they are."""
        for scope in self.scopes:
            for name, value in values.items():
                number = value.value if isinstance(value, Scalar) else value
                if isinstance(number, float):
                    scope[name] = np.dtype(self.dtype).type(number) if self.whole else Scalar(number, self.dtype)
                else:
                    scope[name] = number

    def run(self, lines: list[tuple[str, Any]], *, stop_at_sign: bool = False, vote: Any = None) -> None:
        """Run assignments; `vote`, of a whole leaf, takes the place of the sign."""
        noise = None if self.noise is None else self.noise.reshape(-1)
        for i, scope in enumerate(self.scopes):
            mine = self.noise if self.whole or noise is None else noise[i]
            scope |= {"__builtins__": {}} | Tools(self.dtype, mine, stop_at_sign=stop_at_sign, vote=vote).functions()
            with np.errstate(all="ignore"):
                for name, code in lines:
                    scope[name] = eval(code, scope)

    def value(self, name: str) -> Any:
        """A value as an array of the leaf's shape; what is no float as it is."""
        if self.whole:
            found = self.scopes[0][name]
            return np.broadcast_to(found, self.shape) if isinstance(found, (np.ndarray, np.floating)) else found
        found = [scope[name] for scope in self.scopes]
        if not isinstance(found[0], Scalar):
            return found[0]
        return np.asarray([v.value for v in found], dtype=self.dtype).reshape(self.shape)


class Reference:
    """A rule by its formula: ``step(params, grads, state)`` on dicts of NumPy arrays by path.

    Parameters
    ----------
    formula : list of str
        Assignments, in order; ``delta`` must be among them.
    state : dict
        Name of each state field in use, but step and stream, to its kind: "element", "copy", "packed", "leaf" (an
        integer), "leaf scalar", "scalar", "shared".
    numbers, options : dict
        Hyperparameters: rounded to the compute dtype, and as they are.
    stages : list of dict
        What is done before `formula`: assignments on each leaf (``"formula"``), numbers measured over each scope
        (``"measure"``), assignments on those (``"scalars"``).
    scope : str, optional
        "global", "group" or "leaf": of the state's scalars, and of the stages that name no other.
    accept : str, optional
        Whether the step is made, of the losses `value` and `trial`.
    needs : collection of str
        What `step` must be given beside the gradients: "value", "value_fn", "grad_fn". Gradients are evaluated once
        more, as `g_at`, at the field of the state that the option `grad_at` names.
    """

    def __init__(
        self,
        formula: list[str],
        state: dict[str, str],
        numbers: dict[str, float],
        options: dict[str, Any],
        stages: list[dict[str, Any]] | None = None,
        scope: str | None = None,
        accept: str | None = None,
        needs: Collection[str] = (),
    ) -> None:
        self.needs = needs
        self.lines = _compiled(formula)
        self.stages = [
            (
                _compiled(stage.get("formula", [])),
                {name: _measure(how) for name, how in stage.get("measure", {}).items()},
                _compiled(stage.get("scalars", [])),
                stage.get("scope"),
            )
            for stage in stages or []
        ]
        self.fields, self.numbers, self.options = state, numbers, options
        # Which assigned scalars must be finite: those that stay, and those that a leaf reads.
        read = [code for formula, *_ in self.stages for _, code in formula] + [code for _, code in self.lines]
        self.kept = {*self._named("scalar", "leaf scalar"), *(name for code in read for name in code.co_names)}
        self.scope = scope or options.get("scope", "global")
        self.accept = accept

    def _named(self, *kinds: str) -> list[str]:
        return [name for name, kind in self.fields.items() if kind in kinds]

    def init(self, params: dict[str, np.ndarray], worker: int = 0) -> dict[str, Any]:
        """State before the first step; each worker has noise of its own, but where it is applied after the vote."""
        state: dict[str, Any] = {"step": 0}
        wide = _widest(params)
        for field, kind in self.fields.items():
            if kind == "shared":
                state[field] = np.zeros((), np.int32)
            elif kind == "scalar":
                groups = set(_scopes(self.scope, list(params)).values())
                state[field] = np.zeros(() if self.scope == "global" else (len(groups),), wide)
            else:
                state[field] = {path: self._zeros(kind, p, wide) for path, p in params.items()}
        if self.options.get("draws_noise"):
            seed = self.options.get("seed", 0)
            state["stream"] = {path: stream_key(seed, path, worker).view(np.int32) for path in params}
        return state

    def _zeros(self, kind: str, p: np.ndarray, wide: str) -> np.ndarray:
        if kind == "packed":
            return np.zeros(-(-p.size // 8), np.uint8)
        if kind in ("leaf", "leaf scalar"):
            return np.zeros((), np.int32 if kind == "leaf" else wide)
        return np.zeros(p.shape, p.dtype if kind == "copy" else self._state_dtype(p))

    def _state_dtype(self, p: np.ndarray) -> Any:
        name = self.options.get("state_dtype") or compute_dtype(p.dtype.name)
        if name == "bfloat16":
            import ml_dtypes

            return ml_dtypes.bfloat16
        return np.dtype(name)

    def step(
        self,
        params: dict[str, np.ndarray],
        grads: dict[str, np.ndarray],
        state: dict[str, Any],
        value: float = 0.0,
        value_fn: Any = None,
        grad_fn: Any = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """One step; a gradient that is missing leaves its leaf alone."""
        skips = self.options.get("nonfinite") == "skip"
        if skips and not all(np.isfinite(_widen(g, g.dtype.name)).all() for g in grads.values()):
            return params, state
        way = -1.0 if self.options.get("maximize") else 1.0  # a gain is a loss the other way round, as gradients are
        value = way * value
        past = self.options.get("grad_at")
        evaluated = {} if past is None else grad_fn(state[past])
        leaves = {path: self._leaf(params[path], g, path, state, evaluated) for path, g in grads.items()}
        scalars, finite = self._staged(params, leaves, state, value)
        if skips and not finite:
            return params, state
        new_params, new_state = dict(params), {**state, "step": state["step"] + 1}
        for field in self.fields:
            if isinstance(state[field], dict):
                new_state[field] = dict(state[field])
        for path, leaf in leaves.items():
            leaf.run(self.lines)
            new_params[path] = self._moved(params[path], leaf)
            for field, new in self._kept(params[path], leaf, scalars[path]).items():
                new_state[field][path] = new
        for field in self._named("scalar", "shared"):
            new_state[field] = self._scalar(field, state[field], scalars, list(params))
        if self.accept is not None:
            losses = {"value": float(value), "trial": way * float(value_fn(new_params))}
            if not eval(self.accept, {"__builtins__": {}, **losses}):
                new_params = dict(params)
        return new_params, new_state

    def _leaf(
        self,
        p: np.ndarray,
        g: np.ndarray,
        path: str,
        state: dict[str, Any],
        evaluated: dict[str, np.ndarray] | None = None,
        *,
        whole: bool = False,
    ) -> _Leaf:
        """A leaf with everything that its formulas may name."""
        dtype = compute_dtype(p.dtype.name)
        values: dict[str, Any] = {"p": _widen(p, p.dtype.name), "g": _widen(g, p.dtype.name)}
        if self.options.get("maximize"):
            values["g"] = -values["g"]
        for field in self._named("element", "copy"):
            values[field] = state[field][path].astype(dtype)
        for field in self._named("packed"):
            values[field] = _unpacked(state[field][path], p).astype(dtype)
        if evaluated:
            values["g_at"] = _widen(evaluated[path], p.dtype.name)
        leaf = _Leaf(values, dtype, self._noise(path, state, g), whole=whole)
        leaf.give({name: float(value) for name, value in self.numbers.items()})
        leaf.give(self.options | {"step": int(state["step"])})
        leaf.give({field: int(state[field][path]) for field in self._named("leaf")})
        leaf.give({field: int(state[field]) for field in self._named("shared")})
        return leaf

    def _noise(self, path: str, state: dict[str, Any], g: np.ndarray) -> np.ndarray | None:
        if not self.options.get("draws_noise"):
            return None
        key = state["stream"][path].view(np.uint32)
        return noise_words(key, int(state["step"]), g.size).astype(np.int64).reshape(g.shape)

    def _staged(
        self, params: dict[str, np.ndarray], leaves: dict[str, _Leaf], state: dict[str, Any], value: float
    ) -> tuple[dict[str, dict[str, Any]], bool]:
        """Every leaf's scalars after all stages; and whether they and what was measured are finite."""
        wide = _widest(params)
        scalars: dict[str, dict[str, Any]] = {path: {} for path in params}
        finite = math.isfinite(value)
        for formula, measure, lines, own in self.stages:
            for leaf in leaves.values():
                leaf.run(formula)
            scope = own or self.scope
            whose = _scopes(scope, list(params))
            for key in dict.fromkeys(whose.values()):
                mine = [path for path in params if whose[path] == key]
                names: dict[str, Any] = {name: Scalar(float(v), wide) for name, v in self.numbers.items()}
                names |= self.options | {"step": int(state["step"]), "value": Scalar(flushed(value, wide), wide)}
                if scope == self.scope:
                    for field in self._named("shared"):
                        names[field] = int(state[field])
                    for field in self._named("scalar", "leaf scalar"):
                        held = state[field][mine[0]] if isinstance(state[field], dict) else state[field]
                        names[field] = Scalar(float(np.atleast_1d(held)[key if np.ndim(held) else 0]), wide)
                names |= scalars[mine[0]]
                names |= {"__builtins__": {}} | Tools(wide, None).functions()
                for name, (kind, codes, condition) in measure.items():
                    if condition is not None and not eval(condition, names):
                        names[name] = Scalar(0.0, wide)
                        continue
                    parts = [self._parts(leaves[path], codes) for path in mine if path in leaves]
                    names[name] = Scalar(measured(kind, parts, wide), wide)
                    nothing = kind == "top" and names[name].value == -math.inf
                    finite = finite and (nothing or math.isfinite(names[name].value))
                for name, code in lines:
                    names[name] = eval(code, names)
                    if isinstance(names[name], Scalar) and name in self.kept:
                        finite = finite and math.isfinite(names[name].value)
                kept = {*measure, *(name for name, _ in lines)}
                for path in mine:
                    scalars[path] |= {name: names[name] for name in kept}
                    if path in leaves:
                        leaves[path].give(scalars[path])
        return scalars, finite

    def _parts(self, leaf: _Leaf, codes: list[Any]) -> list[np.ndarray]:
        leaf.run([(f"_part{i}", code) for i, code in enumerate(codes)])
        return [np.asarray(leaf.value(f"_part{i}")).reshape(-1) for i in range(len(codes))]

    def _moved(self, p: np.ndarray, leaf: _Leaf) -> np.ndarray:
        delta = _narrow(np.asarray(leaf.value("delta")), p.dtype, stored=True)
        dtype = p.dtype.name
        with np.errstate(all="ignore"):
            return _narrow(_widen(p, dtype) + _widen(delta, dtype), p.dtype, stored=False)

    def _kept(self, p: np.ndarray, leaf: _Leaf, scalars: dict[str, Any]) -> dict[str, Any]:
        """The leaf's fields of the next state."""
        new: dict[str, Any] = {}
        for field, kind in self.fields.items():
            if kind == "element":
                new[field] = _narrow(np.asarray(leaf.value(field)), self._state_dtype(p), stored=True)
            elif kind == "copy":
                new[field] = _narrow(np.asarray(leaf.value(field)), p.dtype, stored=False)
            elif kind == "packed":
                new[field] = _packed(np.asarray(leaf.value(field)))
            elif kind == "leaf":
                new[field] = np.asarray(int(leaf.value(field)), np.int32)
            elif kind == "leaf scalar" and field in scalars:
                new[field] = np.asarray(scalars[field].value, scalars[field].dtype)
        return new

    def _scalar(self, field: str, old: Any, scalars: dict[str, dict[str, Any]], paths: list[str]) -> Any:
        whose = _scopes(self.scope, paths)
        new = np.array(old)
        for path in paths:
            if field in scalars[path]:
                value = scalars[path][field]
                number = value.value if isinstance(value, Scalar) else value
                if self.fields[field] == "shared" or self.scope == "global":
                    new[()] = number
                else:
                    new[whose[path]] = number
        return new

    def together(
        self,
        params: dict[str, np.ndarray],
        grads: list[dict[str, np.ndarray]],
        states: list[dict[str, Any]],
        weights: list[float] | None = None,
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """One step of several workers who vote on the sign: of a formula with one `sign`, without stages.

        A worker's sign is that of its own argument, with coins from its own noise; the answer to all takes its place
        in the formula: the sign of their sum, undecided as `ties` says, or under ``aggregation="mean"`` their mean;
        under "weighted" the sign of their sum with the workers' weights, in the order of the workers.
        """
        new_params = dict(params)
        new_states = [{**state, "step": state["step"] + 1} for state in states]
        for state in new_states:
            state |= {field: dict(state[field]) for field in self.fields if isinstance(state[field], dict)}
        for path, p in params.items():

            def leaf(n: int, path: str = path, p: np.ndarray = p) -> _Leaf:
                return self._leaf(p, grads[n][path], path, states[n], whole=True)

            sent = [self._sent(leaf(n), p) for n in range(len(grads))]
            vote = self._vote(sent, path, int(states[0]["step"]), weights or [1.0] * len(sent))
            for n, state in enumerate(new_states):
                mine = leaf(n)
                mine.run(self.lines, vote=vote)
                new_params[path] = self._moved(p, mine)
                for field, new in self._kept(p, mine, {}).items():
                    state[field][path] = new
        return new_params, new_states

    def _sent(self, leaf: _Leaf, p: np.ndarray) -> np.ndarray:
        try:
            leaf.run(self.lines, stop_at_sign=True)
        except _Signed as found:
            u = np.broadcast_to(np.asarray(found.args[0]), p.shape).astype(leaf.dtype)
            return np.asarray(Tools(leaf.dtype, leaf.noise).sign(u, self.options["sign_zero"]))
        raise ValueError("the formula has no sign to vote on")

    def _vote(self, signs: list[np.ndarray], path: str, step: int, weights: list[float]) -> np.ndarray:
        kind = signs[0].dtype.type
        total = np.zeros_like(signs[0])
        for s, weight in zip(signs, weights, strict=True):
            total = (total + s * kind(weight)).astype(kind)
        if self.options["aggregation"] == "mean":
            return np.asarray(total / kind(len(signs)))
        key = stream_key(self.options.get("seed", 0), path, "ties")
        coins = noise_words(key, step, total.size).astype(np.int64).reshape(total.shape)
        return np.asarray(Tools(total.dtype.name, coins).sign(total, self.options["ties"]))

    def argument(self, p: np.ndarray, g: np.ndarray, path: str, state: dict[str, Any]) -> np.ndarray | None:
        """What the first `sign` of the formula is given; None for a rule without one that its leaf alone decides.

        Numbers measured over the tree are NaN here, since no one leaf has them: a sign of what depends on them is
        none that a leaf's gradient decides by itself.
        """
        leaf = self._leaf(p, g, path, state, whole=True)
        measured = [name for _, measure, lines, _ in self.stages for name in (*measure, *dict(lines))]
        leaf.give(dict.fromkeys([*measured, *self._named("scalar", "leaf scalar")], math.nan))
        try:
            for formula, *_ in self.stages:
                leaf.run(formula, stop_at_sign=True)
            leaf.run(self.lines, stop_at_sign=True)
        except _Signed as found:
            x = found.args[0]
            argument = np.broadcast_to(np.asarray(x.value if isinstance(x, Scalar) else x), p.shape)
            return None if p.size and np.isnan(argument).all() else argument
        return None


def _compiled(lines: list[str]) -> list[tuple[str, Any]]:
    pairs = [line.partition(" = ")[::2] for line in lines]
    return [(name, compile(text, text, "eval")) for name, text in pairs]


def _measure(how: Any) -> tuple[str, list[Any], Any]:
    """(kind, compiled expressions, condition) of a measured number."""
    if isinstance(how, list):
        how = {"kind": how[0], "of": how[1:]}
    condition = compile(how["if"], how["if"], "eval") if "if" in how else None
    return how["kind"], [compile(text, text, "eval") for text in how["of"] or ["p"]], condition


def _widest(params: dict[str, np.ndarray]) -> str:
    return "float64" if any(p.dtype.name == "float64" for p in params.values()) else "float32"


def _scopes(scope: str, paths: list[str]) -> dict[str, int]:
    """Each path's scope, by number: in the order of the sorted paths."""
    paths = sorted(paths)
    if scope == "global":
        return dict.fromkeys(paths, 0)
    if scope == "leaf":
        return {path: i for i, path in enumerate(paths)}
    groups: dict[str, int] = {}
    return {path: groups.setdefault(path.rpartition("/")[0], len(groups)) for path in paths}


def _packed(s: np.ndarray) -> np.ndarray:
    """Bit k of byte i is whether coordinate ``k*bytes + i`` is positive."""
    flat = (s.reshape(-1) > 0).astype(np.uint8)
    count = -(-flat.size // 8)
    planes = np.concatenate([flat, np.zeros(8 * count - flat.size, np.uint8)]).reshape(8, count)
    return np.asarray(sum((planes[k] << k for k in range(8)), np.zeros(count, np.uint8)), np.uint8)


def _unpacked(packed: np.ndarray, like: np.ndarray) -> np.ndarray:
    """+1 where a bit is set, else -1."""
    planes = np.stack([(packed >> k) & 1 for k in range(8)]).reshape(-1)[: like.size]
    return np.where(planes > 0, 1.0, -1.0).reshape(like.shape)


# -- exact sums ------------------------------------------------------------------------------------------------


def flushed(x: float, dtype: str) -> float:
    """A number as a sum takes it: rounded to the dtype, 0 below its threshold."""
    x = round_to(x, dtype)
    return 0.0 if abs(x) < FLUSH[dtype] else x


def measured(kind: str, parts: list[list[np.ndarray]], dtype: str) -> float:
    """A number measured over some leaves: the exact real number, rounded once."""
    if kind == "count":
        return round_to(float(sum(part[0].size for part in parts)), dtype)
    if kind == "top":
        numbers = [np.max(part[0]) for part in parts if part[0].size]
        return math.nan if any(np.isnan(x) for x in numbers) else float(max(numbers, default=-np.inf)) + 0.0  # no -0
    columns = [[np.where(np.abs(x) < FLUSH[x.dtype.name], 0.0, x) for x in part] for part in parts]
    if kind == "norm_inf":
        sizes = [np.max(np.abs(part[0])) for part in columns if part[0].size]
        return math.nan if any(np.isnan(x) for x in sizes) else float(max(sizes, default=0.0))
    terms: list[float] = []
    with np.errstate(all="ignore"):
        for part in columns:
            x = part[0].astype(np.float64)
            if kind in ("sum", "norm1"):
                terms += (np.abs(x) if kind == "norm1" else x).tolist()
            else:
                terms += _products(x, (part[1] if kind == "dot" else part[0]).astype(np.float64), dtype)
    return _rounded_sum(terms, dtype, root=kind == "norm2")


def _products(x: np.ndarray, y: np.ndarray, dtype: str) -> list[float]:
    """Exact products as sums of floats."""
    product = x * y
    if dtype == "float32":
        return list(product.tolist())
    product = np.where(np.abs(product) < FLUSH["float64"], 0.0, product)
    split = 2.0**27 + 1.0
    high_x, high_y = (v * split - (v * split - v) for v in (x, y))
    low_x, low_y = x - high_x, y - high_y
    error = ((high_x * high_y - product) + high_x * low_y + low_x * high_y) + low_x * low_y
    error = np.where((product == 0.0) | ~np.isfinite(error), 0.0, error)
    return list(product.tolist() + error.tolist())


def _rounded_sum(terms: list[float], dtype: str, *, root: bool) -> float:
    special = [t for t in terms if not math.isfinite(t)]
    if special:
        same = all(t == special[0] for t in special)
        return special[0] if same else math.nan
    try:
        total = math.fsum(terms)
    except OverflowError:
        return math.inf
    rest = math.fsum([*terms, -total])
    least = {"float32": 2.0**-126, "float64": 2.0**-1022}[dtype]
    if root and dtype == "float32":
        with mpmath.workprec(300):
            exact = mpmath.sqrt(mpmath.mpf(total) + mpmath.mpf(rest))
            with mpmath.workprec(24):
                value = round_to(float(+exact), dtype)
    else:
        value = math.sqrt(total) if root else _nearest(total, rest, dtype)
    return value if abs(value) >= least else 0.0


def _nearest(total: float, rest: float, dtype: str) -> float:
    """``total + rest`` rounded once, where `total` is its nearest float64."""
    if dtype == "float64" or rest == 0.0:
        return round_to(total, dtype)
    below, above = round_to(total, dtype), total
    spacing = np.nextafter(np.float32(below), np.float32(math.copysign(math.inf, total - below or rest)))
    middle = (float(below) + float(spacing)) / 2.0
    if total == middle:  # a tie of float32 that the rest decides
        above = math.nextafter(total, math.copysign(math.inf, rest))
    return round_to(above, dtype)


# -- the digits network ------------------------------------------------------------------------------------------


def ordered_sum(x: np.ndarray, axis: int) -> np.ndarray:
    """Sum by halving: the upper half is added to the lower, an odd last row to the first, until one is left."""
    x = np.moveaxis(x, axis, 0)
    while len(x) > 1:
        half = len(x) // 2
        y = x[:half] + x[half : 2 * half]
        if len(x) % 2:
            y[0] = y[0] + x[-1]
        x = y
    return np.asarray(x[0])


def network(params: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gradients and loss of the 64-32-10 network: ReLU, half the squared error, mean over the batch."""
    w1, b1, w2, b2 = (_widen(params[name], params[name].dtype.name) for name in ("w1", "b1", "w2", "b2"))
    x, target = batch["x"].astype(w1.dtype), batch["t"].astype(w1.dtype)
    scale = w1.dtype.type(1.0 / len(x))
    before = ordered_sum(x[:, :, None] * w1[None], 1) + b1
    hidden = np.where(before > 0, before, w1.dtype.type(0.0))
    error = ordered_sum(hidden[:, :, None] * w2[None], 1) + b2 - target
    loss = ordered_sum((error * error).reshape(-1), 0) * (scale * w1.dtype.type(0.5))
    d2 = error * scale
    d1 = np.where(before > 0, ordered_sum(d2[:, None, :] * w2[None], 2), w1.dtype.type(0.0))
    wide = {
        "w1": ordered_sum(x[:, :, None] * d1[:, None, :], 0),
        "b1": ordered_sum(d1, 0),
        "w2": ordered_sum(hidden[:, :, None] * d2[:, None, :], 0),
        "b2": ordered_sum(d2, 0),
    }
    return {name: _narrow(g, params[name].dtype, stored=True) for name, g in wide.items()}, loss
