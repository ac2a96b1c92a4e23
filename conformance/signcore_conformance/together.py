"""What workers of a distributed run do, and what `signcore.simulate` says that comes out: the cases of `distributed`.

Every rank simulates all of them for itself, in NumPy, and compares its own parameters and state, word by word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import signcore as sc
from signcore.frameworks import to_numpy
from signcore.tree import flatten

from . import golden
from .words import different
from .workloads import numpy_dtype

STEPS = 3
LARGE = 100_000
ALL = 2**27  # coordinates: everything in one bucket


class Case(NamedTuple):
    """A rule, how it is sent, and the dtypes of its tree."""

    rule: sc.Rule
    label: str
    bucket: int
    dtypes: tuple[str, ...]


def cases(rules: list[str], engine: str) -> Iterator[Case]:
    """What is run of each rule: as it is, in one bit, leaf by leaf, in two kinds of trees."""
    mixed, wide = ("float32", "bfloat16", "float16"), ("float64", "float32")
    for name in rules:
        rule = golden.variants(name)[0]
        yield Case(rule, "as it is", ALL, mixed)
        bit = in_one_bit(rule)
        if bit is not None:
            yield Case(bit, "one bit", ALL, ("float32",))
        if engine == "jax":
            continue  # each costs a compilation, and has the same buckets
        yield Case(rule, "leaf by leaf", 1, mixed)
        yield Case(bit or rule, "small buckets", 20, wide)


def in_one_bit(rule: sc.Rule) -> sc.Rule | None:
    """The rule with signs that are never zero, where it has such; a vote of an even number needs a tie, too."""
    options: dict[str, Any] = {}
    for name in ("sign_zero", "ties"):
        if hasattr(rule, name):
            options[name] = "plus"
    try:
        return rule.replace(**options) if "sign_zero" in options else None
    except ValueError:
        return None  # it wants zeros


def shapes(dtypes: tuple[str, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Leaves by name: around a byte, one large, of several dimensions, of none, empty."""
    sizes = {"a": (1,), "b": (7,), "c": (8,), "d": (9,), "e": (LARGE,), "f": (3, 5), "g": (), "h": (0,)}
    found = {name: (shape, dtypes[0]) for name, shape in sizes.items()}
    return found | {f"z{dtype}": ((9,), dtype) for dtype in dtypes[1:]}


def arrays(dtypes: tuple[str, ...], seed: int, whole: bool = False) -> dict[str, np.ndarray]:
    """A tree of numbers; `whole` ones from -1 to 1, so that there are zeros and ties."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (shape, dtype) in shapes(dtypes).items():
        values = rng.integers(-1, 2, size=shape) if whole else rng.normal(size=shape)
        found[name] = np.asarray(values, np.float64).astype(numpy_dtype(dtype))
    return found


def gradients(case: Case, rank: int, step: int) -> dict[str, np.ndarray]:
    """Those of a rank; in every other step with zeros and ties."""
    return arrays(case.dtypes, 1000 * step + rank + 1, whole=step % 2 == 0)


def loss(params: Any) -> Any:
    """Of all ranks together."""
    return sc.sums.norm1(params)


def inputs(case: Case, params: Any, rank: int) -> dict[str, Any]:
    """What the rule needs beside gradients, of one rank: a loss of its own, gradients of its own elsewhere."""

    def elsewhere(values: Any) -> Any:
        return {name: halved(value, rank) for name, value in values.items()}

    # a power of two times the loss: no rounding that libraries do differently
    every = {"value": lambda: loss(params) * 2.0**rank, "value_fn": lambda: loss, "grad_fn": lambda: elsewhere}
    return {name: every[name]() for name in case.rule.needs}


def halved(value: Any, rank: int) -> Any:
    """Exact, and other numbers on every rank."""
    return sc.ops.cast(sc.ops.widen(value) * 2.0 ** -(rank + 1), value.dtype)


def truth(case: Case, size: int) -> Iterator[tuple[Any, list[Any]]]:
    """Parameters and states of all ranks after every step, in one process."""
    params, states = arrays(case.dtypes, 0), None
    for step in range(STEPS):
        each = [inputs(case, params, n) for n in range(size)]
        given: dict[str, Any] = {}
        if "value" in case.rule.needs:
            given["value"] = [own["value"] for own in each]
        if "value_fn" in case.rule.needs:
            given["value_fn"] = loss
        if "grad_fn" in case.rule.needs:
            given["grad_fns"] = [own["grad_fn"] for own in each]
        grads = [gradients(case, n, step) for n in range(size)]
        params, states = sc.simulate(case.rule, params, grads, states, **given)
        yield params, states


class Line(NamedTuple):
    """What a rank found in a case."""

    engine: str
    size: int
    rank: int
    rule: str
    label: str
    words: int
    problem: str | None


def compared(found: Any, expected: Any, step: int) -> tuple[int, str | None]:
    """Words that were compared, and the first that differs."""
    count = 0
    for name in expected._fields if hasattr(expected, "_fields") else [None]:
        mine, theirs = (found, expected) if name is None else (getattr(found, name), getattr(expected, name))
        for (path, a), (_, b) in zip(flatten(mine), flatten(theirs), strict=True):
            if a is None or b is None:
                if a is not b:
                    return count, f"step {step}: {name or 'params'} {path!r} is missing on one side"
                continue
            a, b = to_numpy(a), to_numpy(b)
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return count, f"step {step}: {name or 'params'} {path!r} is {a.dtype}{a.shape}, not {b.dtype}{b.shape}"
            wrong = different(a, b)
            count += a.size
            if wrong.size:
                k = int(wrong[0])
                values = f"{a.reshape(-1)[k]!r} and not {b.reshape(-1)[k]!r}"
                return (
                    count,
                    f"step {step}: {wrong.size} words of {name or 'params'} {path!r} differ, [{k}] is {values}",
                )
    return count, None


def report(line: Line, mark: str) -> None:
    """Print a line for the parent, in one write: ranks share its pipe."""
    print(f"{mark}{json.dumps(line)}\n", end="", flush=True)
