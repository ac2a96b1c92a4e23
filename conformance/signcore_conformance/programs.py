"""Random straight-line programs over the primitives of the arithmetic contract, which shrink when they fail.

A program is drawn as a list of numbers that mean nothing to each other, so hypothesis may delete or lower any of
them, and `_assemble` reads that list as instructions. It knows between which powers of two each value lies. Where a
primitive would leave the contract (a subnormal result, an infinite one, the square root of a negative number), it
puts instructions before it that bring the operands back; everything else stands as it was drawn, so that primitives
follow each other directly, which is where compilers fuse.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from signcore import bits, frameworks, ops, tally
from signcore import random as noise
from signcore.dtypes import FORMATS, name_of
from signcore.frameworks import namespace

SIZE = 101  # elements of an input: whole vectors of every instruction set, and a rest
SHORTEST, LONGEST = 5, 60  # instructions as drawn, before those that keep the operands inside the contract


class Bounds(NamedTuple):
    """Between which powers of two the finite magnitudes of a value lie, zeros aside."""

    low: int
    high: int
    finite: bool = True  # whether no element is infinite


class Limits(NamedTuple):
    """Exponents of a dtype that programs have to respect, and where operands are brought back to."""

    digits: int
    normal: int
    flush: int
    top: int
    moderate: int


LIMITS = {
    name: Limits(fmt.digits, round(math.log2(fmt.normal)), round(math.log2(fmt.flush)), top, moderate)
    for name, top, moderate in (("float32", 127, 30), ("float64", 1000, 240))
    for fmt in (FORMATS[name],)
}


# -- how bounds carry over: each function takes the dtype's limits and the bounds of all operands ------------------


def _same(_: Limits, v: Bounds) -> Bounds:
    return v


def _product(_: Limits, a: Bounds, b: Bounds) -> Bounds:
    return Bounds(a.low + b.low, a.high + b.high, a.finite and b.finite)


def _complement(_: Limits, beta: Bounds, v: Bounds) -> Bounds:
    return v._replace(low=v.low - 24)  # no beta is within 2**-24 of 1, other than 1


def _sum(limits: Limits, a: Bounds, b: Bounds) -> Bounds:
    # what is left when two numbers nearly cancel is a multiple of the smaller one's last bit
    return Bounds(min(a.low, b.low) - limits.digits + 1, max(a.high, b.high) + 1, a.finite and b.finite)


def _either(_: Limits, *choices: Bounds) -> Bounds:
    return Bounds(min(b.low for b in choices), max(b.high for b in choices), all(b.finite for b in choices))


def _chosen(limits: Limits, _: Bounds, *choices: Bounds) -> Bounds:
    return _either(limits, *choices)


def _flushed_sum(limits: Limits, _: Bounds, a: Bounds, b: Bounds) -> Bounds | None:
    # the products may be subnormal: what is flushed in the end does not show it, if stored numbers went in
    if min(a.low, b.low) < limits.flush:
        return None
    return Bounds(limits.flush, max(a.high, b.high) + 1, a.finite and b.finite)


def _descended(limits: Limits, lr: Bounds, u: Bounds, decay: Bounds, p: Bounds) -> Bounds | None:
    return _flushed_sum(limits, lr, u, p)


def _flushed(limits: Limits, v: Bounds) -> Bounds:
    return v._replace(low=max(v.low, limits.flush))


def _at_least(_: Limits, v: Bounds, least: Bounds) -> Bounds:
    return v._replace(low=max(v.low, least.low))


def _at_least_or_one(_: Limits, v: Bounds, least: Bounds) -> Bounds:
    return Bounds(min(0, max(v.low, least.low)), max(v.high, 0), v.finite)


def _at_most(_: Limits, v: Bounds, most: Bounds) -> Bounds:
    return Bounds(min(v.low, most.low), min(v.high, most.high) if v.finite else most.high)


def _unit(_: Limits, *operands: Bounds) -> Bounds:
    return Bounds(0, 0)


def _drawn(_: Limits) -> Bounds:
    return Bounds(-24, 3)


def _total(limits: Limits, *operands: Bounds) -> Bounds | None:
    # of SIZE < 2**7 numbers, or of their products, which must not vanish
    bits = limits.digits - 1
    low, high = sum(v.low - bits for v in operands), sum(v.high for v in operands) + 7
    return None if low + 2 * bits < limits.flush else Bounds(low, high, all(v.finite for v in operands))


def _length(limits: Limits, v: Bounds) -> Bounds | None:
    # the squares are added
    return None if 2 * v.low < limits.flush or 2 * v.high > -limits.flush else Bounds(v.low, v.high + 4, v.finite)


def _root(limits: Limits, v: Bounds) -> Bounds | None:
    return None if v.low < limits.flush else Bounds(v.low // 2, -(-v.high // 2), v.finite)


def _ratio(limits: Limits, a: Bounds, b: Bounds) -> Bounds | None:
    found = Bounds(a.low - b.high, a.high - b.low, a.finite)
    return None if min(a.low, found.low) < limits.flush or max(a.high, found.high) > -limits.flush else found


def _angle(_: Limits, v: Bounds) -> Bounds:
    return Bounds(v.low, 1)


def _half(_: Limits, v: Bounds) -> Bounds:
    return Bounds(min(max(v.low, -24), 15), min(v.high, 16), v.finite and v.high < 16)


def _brain(limits: Limits, v: Bounds) -> Bounds:
    return Bounds(min(max(v.low, -126), 127), min(v.high, 128), v.finite and v.high < 127)


# -- the primitives ------------------------------------------------------------------------------------------------


def _stored(v: Any, name: str) -> Any:
    """A value stored in 16 bits and read again."""
    narrow = ops.narrow(v, frameworks.dtype(namespace(v), name), FORMATS[name])
    return ops.cast(ops.widen(narrow), v.dtype)


def _everywhere(total: Any, like: Any) -> Any:
    """A reduction's result in the shape of its operands."""
    return namespace(like).broadcast_to(total, like.shape)


def _packed(v: Any) -> Any:
    """Signs, packed into bits and read again."""
    return bits.unpack_ternary(bits.pack_ternary(v), v.shape[0], name_of(v.dtype))


def _voted(*values: Any) -> Any:
    """The majority of three signs, as packed bits."""
    packed = namespace(values[0]).stack([bits.pack(v) for v in values])
    return bits.unpack(tally.majority(packed), values[0].shape[0], name_of(values[0].dtype))


# What the text of a program may call, besides Python's own operators and `abs`.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "maximum": lambda a, b: namespace(a).maximum(a, b),
    "minimum": lambda a, b: namespace(a).minimum(a, b),
    "stored": _stored,
    "stochastic": lambda v, name, words: ops.widen(noise.stochastic_round(v, name, words)),
    "everywhere": _everywhere,
    "packed": _packed,
    "voted": _voted,
}
for _name in ops.__all__:
    FUNCTIONS[_name] = getattr(ops, _name)
for _name in noise.__all__:
    FUNCTIONS[_name] = getattr(noise, _name)


class Primitive(NamedTuple):
    """One row of the table.

    `text` is what a line prints and what is run; ``{0}`` is the first operand. Of `operands`, each letter is one:
    ``v`` any value, ``p`` none below zero, ``u`` in [-1, 1], ``q`` in [0, 1], ``d`` a divisor, ``f`` a flushed one,
    ``w`` int32 words, and any other letter a number of `NUMBERS`.
    """

    text: str
    operands: str
    bounds: Callable[..., Bounds | None]


# Numbers are Python floats in half of the lines and 0-d arrays in the others.
NUMBERS = {
    "k": (0.9, 0.1, 1 / 3, -0.7, 2.0, 1.5, 0.999, -1.0, 1.0, 0.5, 1e-3, 3.0, 0.0, -1e-5, 2.0**-24, 0.25),
    "b": (0.9, 0.99, 0.999, 0.5, 0.1, 0.95, 0.0, 0.3, 1.0 - 2.0**-24, 2.0**-24),
    "l": (0.01, 1e-3, 1.0, 3e-4, 0.1),
    "y": (0.01, 0.1, 0.0, 1e-4),
    "c": (1.0, 0.75, 3.0, 2.0**-10, 1000.0),
    "r": (0.5, 0.1, 1.0, 0.0, 1 / 3, 2.0**-24),
}

# Simple ones first: a failing program shrinks towards them.
PRIMITIVES = {
    "add": Primitive("{0} + {1}", "vv", _sum),
    "subtract": Primitive("{0} - {1}", "vv", _sum),
    "negative": Primitive("-{0}", "v", _same),
    "abs": Primitive("abs({0})", "v", _same),
    "scaled": Primitive("product({0}, {1})", "vk", _product),
    "product": Primitive("product({0}, {1})", "vv", _product),
    "flush": Primitive("flush({0})", "v", _flushed),
    "ema": Primitive("ema({0}, {1}, {2})", "bvv", _flushed_sum),
    "complement": Primitive("product(complement({0}, {1}), {1})", "bv", _complement),
    "descent": Primitive("descent({0}, {1}, {2}, {3})", "lvyv", _descended),
    "clamp": Primitive("clamp({0}, {1})", "vc", _at_most),
    "sign": Primitive("sign({0})", "v", _unit),
    "sign-plus": Primitive("sign({0}, 'plus')", "v", _unit),
    "sign-minus": Primitive("sign({0}, 'minus')", "v", _unit),
    "sign-random": Primitive("sign({0}, 'random', {1})", "vw", _unit),
    "where-positive": Primitive("where({0} > 0.0, {1}, {2})", "vvv", _chosen),
    "where-greater": Primitive("where({0} > {1}, {0}, {2})", "vvv", _either),
    "where-least": Primitive("where({0} >= {1}, {2}, {1})", "vvv", _either),
    "where-less": Primitive("where({0} < {1}, {0}, {2})", "vvv", _either),
    "where-most": Primitive("where({0} <= {1}, {2}, {1})", "vvv", _either),
    "where-equal": Primitive("where({0} == {1}, {2}, {0})", "vvv", _either),
    "where-unequal": Primitive("where({0} != {1}, {2}, {0})", "vvv", _either),
    "maximum": Primitive("maximum({0}, {1})", "ff", _either),
    "minimum": Primitive("minimum({0}, {1})", "ff", _either),
    "sqrt": Primitive("sqrt({0})", "p", _root),
    "quotient": Primitive("quotient({0}, {1})", "vd", _ratio),
    "arcsin4pi": Primitive("arcsin4pi({0})", "u", _angle),
    "uniform": Primitive("uniform({0}, '{dtype}')", "w", _drawn),
    "normal": Primitive("normal({0}, '{dtype}')", "w", _drawn),
    "bernoulli": Primitive("where(bernoulli({0}, {1}), {2}, {3})", "wqvv", _chosen),
    "bernoulli-number": Primitive("where(bernoulli({0}, {1}), {2}, 0.0)", "wrv", _chosen),
    "stochastic-sign": Primitive("stochastic_sign({0}, {1}, {2})", "vpw", _unit),
    "stochastic-sign-number": Primitive("stochastic_sign({0}, {1}, {2})", "vlw", _unit),
    "packed": Primitive("packed({0})", "v", _unit),
    "voted": Primitive("voted({0}, {1}, {2})", "vvv", _unit),
    "norm_inf": Primitive("everywhere(norm_inf({0}), {0})", "v", _same),
}
# Dear to compile, so a program has one of these at most, and which one its number says: each of them in a sixteenth.
SUMS = {
    "exact_sum": Primitive("everywhere(exact_sum({0}), {0})", "v", _total),
    "exact_dot": Primitive("everywhere(exact_dot({0}, {1}), {0})", "vv", _total),
    "norm1": Primitive("everywhere(norm1({0}), {0})", "v", _total),
    "norm2": Primitive("everywhere(norm2({0}), {0})", "v", _length),
}
# Not all backends have 16 bits; the random ones are for float32 alone.
NARROW = {
    "float16": Primitive("stored({0}, 'float16')", "v", _half),
    "bfloat16": Primitive("stored({0}, 'bfloat16')", "v", _brain),
}
RANDOM_NARROW = {
    "stochastic-float16": Primitive("stochastic({0}, 'float16', {1})", "vw", _half),
    "stochastic-bfloat16": Primitive("stochastic({0}, 'bfloat16', {1})", "vw", _brain),
}
# What brings operands back into a primitive's domain, besides `abs`, `flush` and `clamp`.
HELPERS = {
    "lift": Primitive("where(abs({0}) < {1}, 0.0, {0})", "vc", _at_least),
    "divisor": Primitive("where(abs({0}) < {1}, 1.0, {0})", "vc", _at_least_or_one),
}
TABLE = PRIMITIVES | SUMS | NARROW | RANDOM_NARROW | HELPERS


# -- programs ------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """``name = primitive(operands)``; an operand is the name of a value or a Python float."""

    name: str
    primitive: str
    operands: tuple[str | float, ...]
    bounds: Bounds

    def text(self, dtype: str, *, exact: bool = False) -> str:
        """The line as Python; numbers as they were drawn, or exactly what they are in the dtype."""
        shown = [x if isinstance(x, str) else repr(ops.rounded(x, dtype) if exact else x) for x in self.operands]
        return f"{self.name} = {TABLE[self.primitive].text.format(*shown, dtype=dtype)}"


class Program(NamedTuple):
    """Lines, and the inputs that they read: arrays x0, x1, ..., 0-d arrays s0, s1, ... and words w0, w1."""

    dtype: str
    data: int
    kinds: tuple[str, ...]
    scalars: tuple[float, ...]
    lines: tuple[Line, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Values that no line reads: everything else is hidden from the comparison, and visible to the compiler."""
        read = {operand for line in self.lines for operand in line.operands}
        return tuple(line.name for line in self.lines if line.name not in read)

    @property
    def dtypes(self) -> set[str]:
        """What a backend must have to run this."""
        narrow = {line.primitive for line in self.lines if line.primitive in NARROW | RANDOM_NARROW}
        return {self.dtype} | {name.removeprefix("stochastic-") for name in narrow}

    def inputs(self) -> dict[str, np.ndarray]:
        """All inputs that a line reads, by name."""
        read = {operand for line in self.lines for operand in line.operands}
        arrays: dict[str, np.ndarray] = {}
        for i, kind in enumerate(self.kinds):
            before = arrays.get(f"x{i - 1}")
            arrays[f"x{i}"] = INPUTS[self.dtype][kind].make(_generator(self.data, i), before).astype(self.dtype)
        for i, value in enumerate(self.scalars):
            arrays[f"s{i}"] = np.asarray(value, dtype=self.dtype)
        for i in range(WORDS):
            arrays[f"w{i}"] = _generator(self.data, 10 + i).integers(-(2**31), 2**31, SIZE, dtype=np.int32)
        return {name: array for name, array in arrays.items() if name in read}

    def function(self) -> Callable[..., list[Any]]:
        """The program as a Python function of its inputs, whose constants a compiler sees as constants."""
        body = [line.text(self.dtype, exact=True) for line in self.lines]
        source = [f"def program({', '.join(self.inputs())}):", *body, f"return [{', '.join(self.outputs)}]"]
        made: dict[str, Any] = {}
        exec("\n ".join(source), dict(FUNCTIONS), made)
        return made["program"]  # type: ignore[no-any-return]

    def only(self, output: str) -> Program:
        """The lines that one output needs."""
        needed, lines = {output}, []
        for line in reversed(self.lines):
            if line.name in needed:
                needed.update(x for x in line.operands if isinstance(x, str))
                lines.append(line)
        return self._replace(lines=tuple(reversed(lines)))

    def __str__(self) -> str:
        read = self.inputs()
        heads = [f"x{i} = {kind}  # {self.dtype}" for i, kind in enumerate(self.kinds) if f"x{i}" in read]
        heads += [f"s{i} = {value!r}  # 0-d" for i, value in enumerate(self.scalars) if f"s{i}" in read]
        heads += [f"{name} = words  # int32" for name in read if name.startswith("w")]
        return "\n".join([*heads, *(line.text(self.dtype) for line in self.lines)])


# -- inputs --------------------------------------------------------------------------------------------------------

WORDS = 2


class Input(NamedTuple):
    """A kind of array: how it is made, from a generator and the input before it, and its bounds as powers of two."""

    make: Callable[[np.random.Generator, np.ndarray | None], np.ndarray]
    bounds: Bounds


def _generator(data: int, index: int) -> np.random.Generator:
    return np.random.default_rng([data, index])


def _normal(draw: np.random.Generator, _: Any = None) -> np.ndarray:
    x = draw.standard_normal(SIZE)
    return np.where(np.abs(x) < 2.0**-20, 0.0, x)


def _powers(low: float, high: float) -> Callable[[np.random.Generator, Any], np.ndarray]:
    def make(draw: np.random.Generator, _: Any) -> np.ndarray:
        return np.asarray(draw.choice([1.0, -1.0], SIZE) * np.exp2(draw.uniform(low, high, SIZE)))

    return make


def _ties(draw: np.random.Generator, _: Any) -> np.ndarray:
    return np.asarray(draw.choice([0.0, -0.0, 0.25, -0.25, 0.5, 0.75, 1.0, -1.0, 1.5, -2.0], SIZE))


def _edges(limits: Limits) -> Callable[[np.random.Generator, Any], np.ndarray]:
    least, ulp = 2.0**limits.flush, 2.0 ** (1 - limits.digits)
    values = [0.0, least, least * (1 - ulp / 2), least * (1 + ulp), 2 * least, 1.0, 1e-20, 2.0**-24, 1e4, 2.0**90]

    def make(draw: np.random.Generator, _: Any) -> np.ndarray:
        return np.asarray(draw.choice([s * v for v in values for s in (1.0, -1.0)], SIZE))

    return make


def _near(draw: np.random.Generator, before: np.ndarray | None) -> np.ndarray:
    """The input before it, or its negative, an ulp off or not at all."""
    x = _normal(draw).astype(np.float32) if before is None else before
    ulps = draw.integers(-1, 2, SIZE)
    moved = np.where(ulps < 0, np.nextafter(x, x.dtype.type(0)), np.where(ulps > 0, x + np.spacing(x), x))
    return np.asarray(np.where(np.isfinite(x) & (np.abs(x) > 2.0**-90), moved, x) * draw.choice([1.0, -1.0]))


def _nonfinite(draw: np.random.Generator, _: Any) -> np.ndarray:
    x = _normal(draw)
    x[draw.permutation(SIZE)[:6]] = [np.inf, -np.inf, np.nan, np.inf, 0.0, -0.0]
    return x


# Simple ones first, as with the primitives.
INPUTS = {
    dtype: {
        "normal": Input(_normal, Bounds(-20, 3)),
        "ties": Input(_ties, Bounds(-2, 1)),
        "edges": Input(_edges(limits), Bounds(limits.flush - 1, 90)),
        "near": Input(_near, Bounds(limits.flush - 1, 1 - limits.flush, finite=False)),
        "small": Input(_powers(limits.flush, 0.6 * limits.flush), Bounds(limits.flush, limits.flush * 3 // 5)),
        "large": Input(_powers(-0.6 * limits.flush, -limits.flush), Bounds(-limits.flush * 3 // 5, -limits.flush)),
        "wide": Input(_powers(-40.0, 40.0), Bounds(-40, 40)),
        "nonfinite": Input(_nonfinite, Bounds(-20, 3, finite=False)),
    }
    for dtype, limits in LIMITS.items()
}
KINDS = list(INPUTS["float32"])


# -- drawing -------------------------------------------------------------------------------------------------------

_AGO = (0, 0, 0, 1, 1, 2, 3, 4, 5, 7, 9, 12, 16, 25)  # how many values ago an operand was made: mostly the last ones
# What programs consist of. Arithmetic stands more often than what makes few different values of many.
_ORDER = ("add", "subtract", "scaled", "product", *PRIMITIVES, "ema", "scaled", "product", "add", "subtract")
_NARROWS = {"float32": (*NARROW, *RANDOM_NARROW), "float64": tuple(NARROW)}
_PLACE = st.integers(0, len(_AGO) - 1)
_RAW = st.tuples(st.integers(0, len(_ORDER) + 3), _PLACE, _PLACE, _PLACE, st.integers(0, 1023))
Raw = tuple[int, int, int, int, int]


class _Assembly:
    """Reads drawn numbers as lines of a program."""

    def __init__(self, dtype: str, kinds: list[str]) -> None:
        self.dtype, self.limits = dtype, LIMITS[dtype]
        self.bounds = {f"x{i}": INPUTS[dtype][kind].bounds for i, kind in enumerate(kinds)}
        self.scalars: list[float] = []
        self.lines: list[Line] = []

    def add(self, primitive: str, raw: Raw) -> None:
        """A line of a primitive, after the lines that its operands need."""
        values = list(self.bounds)
        arrays, numbers = iter(raw[1:4]), iter((raw[4] % 32, raw[4] // 32))
        operands: list[str | float] = []
        for letter in TABLE[primitive].operands:
            if letter in NUMBERS:
                operands.append(self._number(letter, next(numbers)))
            elif letter == "w":
                operands.append(f"w{raw[4] % WORDS}")
            else:
                operands.append(self._fit(letter, values[-1 - _AGO[next(arrays)] % len(values)]))
        while (found := self._inside(primitive, operands)) is None:
            worst = max((x for x in operands if x in self.bounds), key=lambda x: self._excess(str(x)))
            better = self._moderate(str(worst))
            operands = [better if x == worst else x for x in operands]
        self._line(primitive, operands, found)

    def _number(self, letter: str, drawn: int) -> str | float:
        value = NUMBERS[letter][drawn % 16 % len(NUMBERS[letter])]
        if drawn < 16:  # else an array
            return value
        if value not in self.scalars:
            self.scalars.append(value)
        return f"s{self.scalars.index(value)}"

    def _bounds(self, operand: str | float) -> Bounds:
        if isinstance(operand, str) and operand in self.bounds:
            return self.bounds[operand]
        value = self.scalars[int(operand[1:])] if isinstance(operand, str) else operand
        mantissa, exponent = math.frexp(abs(value))
        return Bounds(exponent - 1 if value else 0, exponent - (mantissa == 0.5))

    def _inside(self, primitive: str, operands: Iterable[str | float]) -> Bounds | None:
        """Bounds of the result, None when the contract does not define it."""
        known = [self._bounds(x) for x in operands if not (isinstance(x, str) and x.startswith("w"))]
        found = TABLE[primitive].bounds(self.limits, *known)
        if found is None or found.low < self.limits.normal or found.high > self.limits.top:
            return None
        return found

    def _fit(self, letter: str, operand: str) -> str:
        """The operand in the domain of a primitive's argument."""
        if letter in ("p", "q"):
            operand = self._line("abs", [operand])
        if letter in ("u", "q") and not (self.bounds[operand].finite and self.bounds[operand].high <= 0):
            return self._line("clamp", [operand, 1.0])
        if letter == "f":  # the larger of 0.0 and -0.0 is either, says IEEE; a flushed zero is 0.0
            return self._line("flush", [operand])
        if letter == "d":
            if not self.bounds[operand].finite:
                operand = self._line("clamp", [operand, 2.0**self.limits.moderate])
            return self._line("divisor", [operand, 2.0**-10])
        return operand

    def _excess(self, operand: str) -> int:
        low, high, _ = self.bounds[operand]
        return max(-low, high)

    def _moderate(self, operand: str) -> str:
        """An operand nearer to 1."""
        low, high, _ = self.bounds[operand]
        if low < self.limits.flush:
            return self._line("flush", [operand])
        size = 2.0**self.limits.moderate
        return self._line("lift", [operand, 1 / size]) if -low > high else self._line("clamp", [operand, size])

    def _line(self, primitive: str, operands: list[str | float], bounds: Bounds | None = None) -> str:
        name = f"v{len(self.lines)}"
        found = bounds or self._inside(primitive, operands)
        assert found is not None, f"{primitive} of {operands} leaves the contract"
        self.bounds[name] = found
        self.lines.append(Line(name, primitive, tuple(operands), found))
        return name


def _assemble(dtype: str, narrows: bool, total: int, data: int, kinds: list[str], raws: list[Raw]) -> Program:
    names = (*_ORDER, *_NARROWS[dtype]) if narrows else _ORDER
    assembly = _Assembly(dtype, kinds)
    for i, raw in enumerate(raws):
        assembly.add(names[raw[0] % len(names)], raw)
        if i == len(raws) // 2 and total:
            assembly.add(list(SUMS)[total % len(SUMS)], raw)
    return Program(dtype, data, tuple(kinds), tuple(assembly.scalars), tuple(assembly.lines))


# A length and then a list of that length: st.lists alone draws short ones. Compilers take long for long ones.
_LENGTHS = sorted([*range(1, LONGEST // 5 + 1)] * 6 + [*range(4, LONGEST + 1, 4)])
PROGRAMS = st.builds(
    _assemble,
    st.sampled_from(["float32", "float32", "float32", "float64"]),
    st.sampled_from([True, True, False]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    st.integers(0, 9999),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    st.sampled_from(_LENGTHS).flatmap(lambda n: st.lists(_RAW, min_size=n, max_size=n)),
)


class Found(Exception):
    """Tells hypothesis that a program is one of those it should shrink."""


def _test(take: Callable[[Program], None], database: Any = None) -> Any:
    """A hypothesis test of `take`.

    It is driven by bytes (`fuzz_one_input`) and not by hypothesis's own generator, so that a program depends on its
    number alone: workers make the programs of their share, and a failure is found again without those before it.
    The seed is of the shrinker. Health checks are for tests that people wait for.
    """

    @settings(
        database=database,
        deadline=None,
        phases=(Phase.reuse, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
    )
    @seed(0)
    @given(PROGRAMS)
    def test(program: Program) -> None:
        take(program)

    return test


def _bytes(number: int, index: int, attempt: int) -> bytes:
    return random.Random(f"{number}/{index}/{attempt}").randbytes(8192)


def _fits(program: Program, index: int) -> bool:
    """Whether a program has the length, and the sum, that are wanted of the one with this number."""
    wanted = set(list(SUMS)[index % 16 : index % 16 + 1])
    sums = {line.primitive for line in program.lines} & set(SUMS)
    return SHORTEST <= len(program.lines) <= LONGEST and sums == wanted


@functools.cache
def _maker() -> tuple[Any, list[Program]]:
    made: list[Program] = []
    return _test(made.append).hypothesis.fuzz_one_input, made


def program(number: int, index: int) -> tuple[Program, bytes]:
    """Program `index` of a seed, and the bytes that it was drawn from."""
    draw, made = _maker()
    for attempt in range(1000):
        made.clear()
        drawn = _bytes(number, index, attempt)
        draw(drawn)
        if made and _fits(made[0], index):
            return made[0], drawn
    raise AssertionError("hypothesis draws no programs")


def shrink(drawn: bytes, fails: Callable[[Program], bool]) -> Program:
    """The smallest program that hypothesis finds on the way down from a failing one."""
    failed: list[Program] = []

    def take(program: Program) -> None:
        if fails(program):
            failed.append(program)
            raise Found

    test = _test(take, InMemoryExampleDatabase())
    for run in (lambda: test.hypothesis.fuzz_one_input(drawn), test):
        try:
            run()
        except Exception as error:  # Found, or hypothesis's complaint of a failure that comes and goes
            if not failed:
                raise error
    return min(failed, key=lambda p: (len(p.lines), len(p.inputs()), len(str(p))))
