"""Every primitive on every backend, eager and compiled, word by word against NumPy, and NumPy against an oracle.

``python -m signcore_conformance primitives [--quick] [--backends ...] [--json FILE]``. A backend has to give NumPy's
words for a million points of each primitive (for all 2**24 of a normal); NumPy's words are held against Python's own
arithmetic, fractions and mpmath, for a sample of the points or, of sums and bits, for all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from signcore import bits, frameworks, ops, random, sums, tally
from signcore.dtypes import FORMATS

from . import oracles, worker
from .backends import BACKENDS, Backend, by_group, compiled
from .compare import versions
from .words import different, hexadecimal

MARK = "signcore-primitive "
POINTS, QUICK = 2**20, 2**14
EDGES = 100  # points at the front that are drawn from the edges of the range
SAMPLE = 300  # points that an oracle in Python decides


class Primitive(NamedTuple):
    """One row: what is called, on what, and who knows the answer."""

    name: str
    call: Callable[..., Any]
    inputs: Callable[[np.random.Generator, int, str], list[np.ndarray]]
    oracle: Callable[..., Any]  # of single numbers; of whole arrays where `whole`
    dtypes: tuple[str, ...] = ("float32", "float64")
    whole: bool = False
    beside: str | None = None  # another dtype that the library must have


class Finding(NamedTuple):
    """What one worker found for one primitive on one backend."""

    primitive: str
    backend: str
    dtype: str
    points: int
    decided: int  # points that the oracle decided (on NumPy alone)
    mismatch: str | None


# -- points ------------------------------------------------------------------------------------------------------


def _numbers(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    """Numbers of the contract's whole range and its edges: no subnormals."""
    fmt = FORMATS[dtype]
    reach = 100.0 if dtype == "float32" else 800.0
    x = np.exp2(rng.uniform(-reach, reach, size)) * rng.choice([-1.0, 1.0], size)
    x[::3] = rng.standard_normal(x[::3].size)
    below = np.nextafter(np.asarray(fmt.flush, dtype), np.asarray(0, dtype))
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, fmt.flush, -fmt.flush, below, -below, fmt.largest]
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    x[:EDGES] = rng.choice(np.asarray(edges, dtype), x[:EDGES].size)
    return x


def _finite(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    x = _numbers(rng, size, dtype)
    return np.where(np.isfinite(x), x, np.asarray(1.5, dtype)).astype(dtype)


def _summands(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    """Numbers whose products are in the range of float64, some of them just below its end."""
    x = _finite(rng, size, dtype)
    if dtype == "float32":
        return x
    x = np.where(np.abs(x) < 2.0**480, x, x * 2.0**-400)
    x[-8:] = 2.0**512 * (1.0 - 2.0 ** -rng.integers(30, 53, x[-8:].size)) * rng.choice([-1.0, 1.0], x[-8:].size)
    return x


def _many(count: int, make: Any = _numbers) -> Any:
    return lambda rng, size, dtype: [make(rng, size, dtype) for _ in range(count)]


def _moderate(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    """Numbers whose products and quotients stay in the normal range."""
    reach = 40 if dtype == "float32" else 400
    x = (np.exp2(rng.uniform(-reach, reach, size)) * rng.choice([-1.0, 1.0], size)).astype(dtype)
    x[:4] = np.asarray([1.0, -1.0, 3.0, 1.0 + np.finfo(dtype).eps], dtype)[: min(size, 4)]
    return x


def _angles(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    m = np.concatenate([rng.uniform(-1, 1, size // 2), np.exp2(rng.uniform(-40, 0, size - size // 2))])
    m[: min(size, 6)] = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5][: min(size, 6)]
    return [m.astype(dtype)]


def _words(rng: np.random.Generator, size: int) -> np.ndarray:
    w = rng.integers(-(2**31), 2**31, size).astype(np.int32)
    w[: min(size, 4)] = [0, -1, 2**31 - 1, -(2**31)][: min(size, 4)]
    return w


def _with_words(make: Any, count: int) -> Any:
    return lambda rng, size, dtype: [*(make(rng, size, dtype) for _ in range(count)), _words(rng, size)]


def _every_normal(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    """All 2**24 random bits, or every 2**10th."""
    return [(np.arange(0, 2**24, 1 if size == POINTS else 2**10, dtype=np.int64) << 8).astype(np.uint32).view(np.int32)]


def _votes(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    return [rng.integers(0, 256, (7, max(size // 8, 1))).astype(np.uint8)]


def _ternary(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    plus = rng.integers(0, 256, (6, max(size // 8, 1))).astype(np.uint8)
    minus = rng.integers(0, 256, plus.shape).astype(np.uint8) & ~plus
    return [np.concatenate([plus, minus], axis=1)]


def _signs(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    return [rng.integers(-1, 2, size - 3).astype(dtype)]  # no multiple of eight


def _bytes(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    return [rng.integers(0, 256, size // 4).astype(np.uint8)]


def _key(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    return [_words(rng, 2), np.asarray(rng.integers(0, 2**31), np.int32)]


def _blocks(rng: np.random.Generator, size: int, dtype: str) -> list[np.ndarray]:
    return [_words(rng, size // 4) for _ in range(4)]


_32 = ("float32",)
_START = 2**31 - 1000  # a seam: the low half of the counter changes its sign


def _sign(zero: str) -> Primitive:
    name = f"sign, {zero}"
    return Primitive(name, lambda u, w: ops.sign(u, zero, w), _with_words(_numbers, 1), oracles.sign(zero))


def _reduction(kind: str, trees: int) -> Primitive:
    def call(*arrays: Any) -> Any:
        partial = sums.partial(kind, *arrays)  # type: ignore[arg-type]
        return partial, sums.finish(kind, partial)  # type: ignore[arg-type]

    return Primitive(kind, call, _many(trees, _summands), oracles.reduction(kind), whole=True)


def _stored(dtype: str) -> Primitive:
    def call(x: Any) -> Any:
        return ops.widen(ops.narrow(ops.flush(x), frameworks.dtype(frameworks.namespace(x), dtype), FORMATS[dtype]))

    return Primitive(f"narrow to {dtype}", call, _many(1), oracles.narrow(dtype), _32, beside=dtype)


def _spread(dtype: str) -> Primitive:
    def call(x: Any, w: Any) -> Any:
        return ops.widen(random.stochastic_round(x, dtype, w))

    oracle = oracles.stochastic_round(dtype)
    return Primitive(f"stochastic_round to {dtype}", call, _with_words(_finite, 1), oracle, _32, beside=dtype)


PRIMITIVES = [
    Primitive("product, added", lambda a, b, c: ops.product(a, b) + c, _many(3, _moderate), oracles.product_sum),
    Primitive("ema", lambda m, g: ops.ema(ops.rounded(0.9, str(_name(m))), m, g), _many(2, _finite), oracles.ema(0.9)),
    Primitive(
        "descent",
        lambda u, p: ops.descent(ops.rounded(0.01, _name(u)), u, ops.rounded(0.1, _name(u)), p),
        _many(2, _moderate),
        oracles.descent(0.01, 0.1),
    ),
    Primitive("flush", ops.flush, _many(1), oracles.flush),
    *(_sign(zero) for zero in ("zero", "plus", "minus", "random")),
    Primitive("clamp", lambda x: ops.clamp(x, 0.75), _many(1), oracles.clamp(0.75)),
    Primitive("sqrt", lambda x: ops.sqrt(abs(x)), _many(1, _finite), oracles.sqrt),
    Primitive("quotient", ops.quotient, _many(2, _moderate), oracles.quotient),
    Primitive("quotient by a scalar", lambda a: ops.quotient(a, 3.0), _many(1, _moderate), oracles.third),
    Primitive("arcsin4pi", ops.arcsin4pi, _angles, oracles.arcsin4pi),
    _stored("float16"),
    _stored("bfloat16"),
    *(_reduction(kind, 2 if kind == "dot" else 1) for kind in ("sum", "norm1", "norm2", "dot", "norm_inf")),
    Primitive("threefry", lambda a, b, c, d: random.threefry((a, b), (c, d)), _blocks, oracles.threefry, _32),
    Primitive(
        "words", lambda key, step: random.words(key, step, 4000, _START), _key, oracles.words(_START), _32, whole=True
    ),
    Primitive("uniform", random.uniform, _with_words(_numbers, 0), oracles.uniform, _32),
    Primitive("bernoulli", lambda w: random.bernoulli(w, 0.3), _with_words(_numbers, 0), oracles.bernoulli(0.3), _32),
    Primitive(
        "stochastic_sign",
        lambda v, s, w: random.stochastic_sign(v, abs(s), w),
        _with_words(_moderate, 2),
        oracles.stochastic_sign,
        _32,
    ),
    _spread("float16"),
    _spread("bfloat16"),
    Primitive("normal", random.normal, _every_normal, oracles.normal, _32),
    Primitive("pack", bits.pack, _signs, oracles.pack, whole=True),
    Primitive("unpack", lambda b: bits.unpack(b, 8 * b.shape[0] - 5, "float32"), _bytes, oracles.unpack, _32, True),
    Primitive("pack_ternary", bits.pack_ternary, _signs, oracles.pack_ternary, whole=True),
    Primitive(
        "unpack_ternary",
        lambda b: bits.unpack_ternary(bits.pack_ternary(b), b.shape[0], "float32"),
        _signs,
        lambda s: s,
        _32,
        True,
    ),
    Primitive("popcount", bits.popcount, _bytes, lambda b: int(b).bit_count(), _32),
    Primitive("count", tally.count, _votes, oracles.count, _32, True),
    Primitive("majority of bits", lambda v: tally.majority(v[:6, ...], "minus"), _votes, oracles.majority, _32, True),
    Primitive("majority_ternary", tally.majority_ternary, _ternary, oracles.majority_ternary, _32, True),
]


def _name(x: Any) -> str:
    return "float64" if "float64" in str(x.dtype) else "float32"


# -- one worker --------------------------------------------------------------------------------------------------


def _outputs(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _inputs(primitive: Primitive, dtype: str, size: int) -> list[np.ndarray]:
    seed = sum(map(ord, primitive.name)) + len(dtype)
    return primitive.inputs(np.random.default_rng(seed), size, dtype)


def run(backend: Backend, primitive: Primitive, dtype: str, size: int) -> Finding:
    """One primitive on one backend; an exception is a mismatch."""
    inputs = _inputs(primitive, dtype, size)
    points, decided, problem = 0, 0, None
    try:
        with np.errstate(all="ignore"):
            expected = [np.asarray(out) for out in _outputs(primitive.call(*map(np.array, inputs)))]
            points = max(array.size for array in [*inputs, *expected])
            if backend.name == "numpy":
                decided, problem = _decide(primitive, inputs, expected)
            else:
                function = compiled(backend, ("primitive", primitive.name, dtype), primitive.call)
                found = [backend.back(out) for out in _outputs(function(*map(backend.to, inputs)))]
                problem = _difference(found, expected)
    except Exception:
        problem = traceback.format_exc(limit=-3)
    return Finding(primitive.name, backend.name, dtype, points, decided, problem)


def _difference(found: list[np.ndarray], expected: list[np.ndarray]) -> str | None:
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{got.dtype}{got.shape} where {want.dtype}{want.shape} belongs"
        wrong = different(got, want) if got.dtype != bool else np.flatnonzero(got != want)
        if len(wrong):
            i = int(wrong[0])
            if got.dtype == bool:
                return f"{len(wrong)} of {got.size} words, first at {i}"
            return f"{len(wrong)} of {got.size} words, first at {i}: {hexadecimal(got, i)} for {hexadecimal(want, i)}"
    return None


def _decide(primitive: Primitive, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> tuple[int, str | None]:
    """Hold NumPy's words against the oracle: (points decided, the first difference)."""
    if primitive.whole:
        want = [np.asarray(value) for value in _outputs(primitive.oracle(*inputs))]
        got = outputs[-len(want) :]
        same = [np.asarray(w, dtype=g.dtype).reshape(g.shape) for w, g in zip(want, got, strict=True)]
        return max(array.size for array in [*inputs, *outputs]), _difference(got, same)
    rng = np.random.default_rng(1)
    size = inputs[0].size
    chosen = np.unique(np.concatenate([np.arange(min(size, EDGES)), rng.integers(0, size, SAMPLE)]))
    for i in chosen:
        want = _outputs(primitive.oracle(*(array.reshape(-1)[i] for array in inputs)))
        got = [out.reshape(-1)[i] for out in outputs]
        for g, w in zip(got, want, strict=True):
            if len(different(np.asarray(g)[None], np.asarray(w, dtype=g.dtype)[None])):
                given = ", ".join(repr(array.reshape(-1)[i]) for array in inputs)
                return len(chosen), f"{g!r} for ({given}), the oracle has {w!r}"
    return len(chosen), None


# -- the command -------------------------------------------------------------------------------------------------


def _start(job: dict[str, Any]) -> Iterator[Finding | str]:
    for found in worker.outcomes("signcore_conformance.primitives", job, MARK):
        yield found if isinstance(found, str) else Finding(*found)


def jobs(backends: list[Backend], size: int, names: list[str]) -> list[dict[str, Any]]:
    """A job per framework, and one more where float64 needs JAX's x64."""
    made = []
    for group in by_group(backends):
        for dtype in ("float32", "float64"):
            made.append({"backends": group, "dtype": dtype, "size": size, "names": names, "x64": dtype == "float64"})
    return made


def cells(job: dict[str, Any]) -> list[tuple[Backend, Primitive]]:
    """What a job compares: each of its primitives on each of its backends that has the dtypes."""
    return [
        (backend, primitive)
        for backend in plain()
        for primitive in PRIMITIVES
        if backend.name in job["backends"] and primitive.name in job["names"]
        if job["dtype"] in backend.dtypes and job["dtype"] in primitive.dtypes
        if primitive.beside is None or primitive.beside in backend.dtypes
    ]


def plain() -> list[Backend]:
    """The backends that only run functions (no adapters, no loops)."""
    return [backend for backend in BACKENDS if backend.drive is None]


def main(arguments: list[str]) -> int:
    """Exit status 0 when no word differed, 1 when one did, 2 on bad usage."""
    names = [primitive.name for primitive in PRIMITIVES]
    rows = {backend.name: backend for backend in plain()}
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance primitives", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} points each instead of {POINTS}")
    parser.add_argument("--backends", nargs="+", choices=list(rows), help="default: all that can run")
    parser.add_argument("--primitives", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", metavar="FILE", help="write all findings to FILE")
    options = parser.parse_args(arguments)
    if options.json and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"`--json` is {options.json!r}, in a folder that does not exist; make the folder first")
    wanted = [rows[name] for name in options.backends or rows]
    missing = {backend.name: backend.missing() for backend in wanted}
    chosen = [backend for backend in wanted if missing[backend.name] is None]
    work = jobs(chosen, QUICK if options.quick else POINTS, options.primitives)
    total = sum(len(cells(job)) for job in work)
    found: list[Finding] = []
    errors: list[str] = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("primitives", total=total)

        def take(finding: Finding | str) -> None:
            if isinstance(finding, str):
                errors.append(finding)
                return
            found.append(finding)
            progress.update(task, advance=1, description=f"{finding.primitive} {finding.backend} {finding.dtype}")

        worker.each(work, _start, take)
    console = Console(width=None if sys.stdout.isatty() else 110)
    passed = not errors and len(found) == total and all(f.mismatch is None for f in found)
    _show(found, {name: why for name, why in missing.items() if why}, errors, passed, console)
    if options.json:
        record = {"passed": passed, "versions": versions(), "findings": [f._asdict() for f in found], "errors": errors}
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    return 0 if passed else 1


def _show(found: list[Finding], missing: dict[str, str], errors: list[str], passed: bool, console: Console) -> None:
    table = Table("primitive", "points", "decided by an oracle", "backends", "mismatches")
    for primitive in PRIMITIVES:
        mine = [f for f in found if f.primitive == primitive.name]
        if mine:
            points = {f.dtype: f.points for f in mine}
            decided = sum(f.decided for f in mine)
            backends = len({f.backend for f in mine})
            wrong = sum(f.mismatch is not None for f in mine)
            table.add_row(primitive.name, f"{sum(points.values()):,}", f"{decided:,}", str(backends), str(wrong))
    console.print(table)
    for name, why in missing.items():
        console.print(f"not run: {name} ({why})", highlight=False, soft_wrap=True)
    for finding in found:
        if finding.mismatch:
            text = f"MISMATCH {finding.primitive} on {finding.backend} in {finding.dtype}: {finding.mismatch}"
            console.print(text, highlight=False, soft_wrap=True, markup=False)
    for error in errors:
        console.print(error, highlight=False, soft_wrap=True, markup=False)
    total = sum(f.points for f in found)
    names = sorted({f.backend for f in found})
    verdict = "passed" if passed else "FAILED"
    console.print(f"{verdict}: {total:,} points on {', '.join(names)}", highlight=False, soft_wrap=True)
    if not passed:
        console.print(f"versions: {versions()}", highlight=False, soft_wrap=True)


def work(text: str) -> int:
    """Run one job given as JSON, in a process of its own."""
    job = json.loads(text)
    for backend, primitive in cells(job):
        print(MARK + json.dumps(run(backend, primitive, job["dtype"], job["size"])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(work(sys.argv[1]))
