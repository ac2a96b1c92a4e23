"""An independent reference: formulas of rules, one rounding per operation. Imports nothing of signcore.

A rule's formula stands as text in golden/<rule>.json. It is evaluated twice over: on single numbers in plain
Python (small leaves), and on NumPy arrays with one ufunc per rounding (large leaves). Special functions come
from mpmath. What a formula may call is `FUNCTIONS` below; ``a*b + c`` means two roundings.
"""

from __future__ import annotations

import hashlib
import math
import struct
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
        return self._with(other, lambda a, b: a / b)

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


def _value(x: Any, dtype: str) -> float:
    return x.value if isinstance(x, Scalar) else round_to(float(x), dtype)


# -- the functions of formulas, on Scalars and on arrays -----------------------------------------------------


class _Signed(Exception):
    """Raised with the argument of `sign`, for whoever wants that and not the step."""


class Tools:
    """The functions that formulas call."""

    def __init__(self, dtype: str, noise: Any, *, stop_at_sign: bool = False) -> None:
        self.dtype, self.noise, self.stop_at_sign = dtype, noise, stop_at_sign

    def functions(self) -> dict[str, Any]:
        """Name to function."""
        names = ("flush", "sign", "decayed", "clamp", "where", "absolute", "sqrt", "arcsin4pi")
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
        return Scalar(math.sqrt(x.value), self.dtype) if isinstance(x, Scalar) else np.sqrt(x)

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


def stream_key(seed: int, name: str) -> np.ndarray:
    """Key of a leaf's stream of noise: the first 64 bits of BLAKE2s of the seed and the name."""
    digest = hashlib.blake2s(f"{seed}/{name}".encode(), digest_size=8).digest()
    return np.asarray(struct.unpack("<II", digest), dtype=np.uint32)


def noise_words(seed: int, name: str, step: int, size: int) -> np.ndarray:
    """Words of a leaf at a step: key from (seed, name), the step folded in, the element's 64-bit index as counter."""
    k0, k1 = stream_key(seed, name)
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


class Reference:
    """A rule by its formula: ``step(params, grads, state)`` on dicts of NumPy arrays by path.

    Parameters
    ----------
    formula : list of str
        Assignments, in order; ``delta`` must be among them.
    state : dict
        Name of each per-leaf state field to ``"element"`` or ``"leaf"``.
    numbers, options : dict
        Hyperparameters: rounded to the compute dtype, and as they are.
    """

    def __init__(
        self, formula: list[str], state: dict[str, str], numbers: dict[str, float], options: dict[str, Any]
    ) -> None:
        self.lines = [line.partition(" = ")[::2] for line in formula]
        self.code = [(name, compile(text, text, "eval")) for name, text in self.lines]
        self.fields, self.numbers, self.options = state, numbers, options

    def init(self, params: dict[str, np.ndarray]) -> dict[str, Any]:
        """State before the first step."""
        state: dict[str, Any] = {"step": 0}
        for field, kind in self.fields.items():
            state[field] = {
                path: np.zeros(p.shape, self._state_dtype(p)) if kind == "element" else np.zeros((), np.int32)
                for path, p in params.items()
            }
        if self.options.get("sign_zero") == "random":
            seed = self.options.get("seed", 0)
            state["stream"] = {path: stream_key(seed, path).view(np.int32) for path in params}
        return state

    def _state_dtype(self, p: np.ndarray) -> Any:
        name = self.options.get("state_dtype") or compute_dtype(p.dtype.name)
        if name == "bfloat16":
            import ml_dtypes

            return ml_dtypes.bfloat16
        return np.dtype(name)

    def step(
        self, params: dict[str, np.ndarray], grads: dict[str, np.ndarray], state: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """One step; a gradient that is missing leaves its leaf alone."""
        wide = [_widen(g, g.dtype.name) for g in grads.values()]
        if self.options.get("nonfinite") == "skip" and not all(np.isfinite(g).all() for g in wide):
            return params, state
        new_params, new_state = dict(params), {**state, "step": state["step"] + 1}
        for field in self.fields:
            new_state[field] = dict(state[field])
        for path, g in grads.items():
            p = params[path]
            old = {field: state[field][path] for field in self.fields}
            new_params[path], new = self.leaf(p, g, old, self._noise(path, state["step"], g))
            for field, value in new.items():
                new_state[field][path] = value
        return new_params, new_state

    def _noise(self, path: str, step: int, g: np.ndarray) -> np.ndarray | None:
        if self.options.get("sign_zero") != "random":
            return None
        return noise_words(self.options.get("seed", 0), path, step, g.size).astype(np.int64).reshape(g.shape)

    def leaf(self, p: np.ndarray, g: np.ndarray, old: dict[str, Any], noise: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The formula on one leaf: new parameters and new state."""
        dtype = p.dtype.name
        values = self.evaluate(p, g, old, noise)
        delta = _narrow(values["delta"], p.dtype, stored=True)
        new_p = _narrow(_widen(p, dtype) + _widen(delta, dtype), p.dtype, stored=False)
        new = {}
        for field, kind in self.fields.items():
            if kind == "element":
                new[field] = _narrow(values[field], self._state_dtype(p), stored=True)
            else:
                new[field] = np.asarray(int(values[field]), np.int32)
        return new_p, new

    def evaluate(self, p: np.ndarray, g: np.ndarray, old: dict[str, Any], noise: Any) -> dict[str, Any]:
        """All values of the formula, in the compute dtype, as arrays of the leaf's shape."""
        dtype = compute_dtype(p.dtype.name)
        wide = {"p": _widen(p, p.dtype.name), "g": _widen(g, p.dtype.name)}
        if self.options.get("maximize"):
            wide["g"] = -wide["g"]
        wide |= {f: old[f].astype(wide["p"].dtype) for f, kind in self.fields.items() if kind == "element"}
        flags = {f: int(old[f]) for f, kind in self.fields.items() if kind == "leaf"}
        if p.size > SCALARS:
            with np.errstate(all="ignore"):
                return self._run(wide | flags, dtype, noise)
        columns: dict[str, list[float]] = {}
        last: dict[str, Any] = dict(flags)
        for i in range(p.size):
            one = {name: Scalar(float(value.flat[i]), dtype) for name, value in wide.items()}
            last = self._run(one | flags, dtype, None if noise is None else noise.flat[i])
            for name, value in last.items():
                if isinstance(value, Scalar):
                    columns.setdefault(name, []).append(value.value)
        names = [name for name, _ in self.lines] + [f for f, kind in self.fields.items() if kind == "element"]
        arrays = {n: np.asarray(columns.get(n, []), dtype=dtype).reshape(-1) for n in names}
        arrays = {n: a.reshape(p.shape) for n, a in arrays.items() if a.size == p.size and n not in flags}
        if p.size == 0:
            last = self._run(wide | flags, dtype, noise)
        return last | arrays

    def argument(self, p: np.ndarray, g: np.ndarray, old: dict[str, Any]) -> np.ndarray | None:
        """What the first `sign` of the formula is given, None for a rule without one."""
        dtype = compute_dtype(p.dtype.name)
        wide = {"p": _widen(p, p.dtype.name), "g": _widen(g, p.dtype.name)}
        if self.options.get("maximize"):
            wide["g"] = -wide["g"]
        values: dict[str, Any] = dict(wide)
        for field, kind in self.fields.items():
            values[field] = old[field].astype(dtype) if kind == "element" else int(old[field])
        try:
            with np.errstate(all="ignore"):
                self._run(values, dtype, None, stop_at_sign=True)
        except _Signed as found:
            return np.asarray(found.args[0])
        return None

    def _run(self, values: dict[str, Any], dtype: str, noise: Any, *, stop_at_sign: bool = False) -> dict[str, Any]:
        tools = Tools(dtype, noise, stop_at_sign=stop_at_sign)
        scalar = isinstance(values["p"], Scalar)
        kind = (lambda v: Scalar(v, dtype)) if scalar else np.dtype(dtype).type
        scope = dict(values) | {name: kind(v) for name, v in self.numbers.items()} | self.options
        scope |= {"__builtins__": {}} | tools.functions()
        for name, code in self.code:
            scope[name] = eval(code, scope)
        names = {name for name, _ in self.lines} | set(self.fields)
        return {name: scope[name] for name in names}


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
