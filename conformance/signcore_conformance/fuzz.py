"""Random programs over the primitives of the arithmetic contract: every backend must give NumPy's words.

NumPy is the reference because its operations are one rounding each and nothing sees two of them together. What is
found is shrunk by hypothesis (programs.py) in a worker process of the backend that differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from signcore import checks, frameworks

from . import words
from .backends import BACKENDS, Backend, compiled, is_short, tree_map
from .compare import versions
from .programs import TABLE, Program, program, shrink
from .worker import each, outcomes

MARK = "signcore-fuzz "
PACK = 20  # programs in one function where each compilation takes seconds
SHARE = 500  # programs of one worker process
LEAST = 0.05  # share of the programs that every primitive must occur in

# Those that are a plain call of a function; the others drive whole rules.
ROWS = tuple(backend for backend in BACKENDS if backend.drive is None and backend.name != "numpy")


class Options(NamedTuple):
    """What a run covers."""

    programs: int
    seed: int
    compile: int
    guard: bool = True


class Result(NamedTuple):
    """One program on one backend: what a worker process prints."""

    backend: str
    number: int
    seconds: float
    problem: str | None


@dataclass
class Outcome:
    """What a run found."""

    results: list[Result] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


# -- one comparison ------------------------------------------------------------------------------------------------


def outputs(backend: Backend, programs: tuple[Program, ...]) -> list[list[np.ndarray]]:
    """What programs return on a backend, compiled together where it compiles."""
    functions = [program.function() for program in programs]

    def packed(given: Any) -> Any:
        return [function(**inputs) for function, inputs in zip(functions, given, strict=True)]

    given = [tree_map(backend.to, program.inputs()) for program in programs]
    # kept where it took long, for the shrinker comes back; other backends would fill the memory with thousands
    run = compiled(backend, programs, packed) if backend.main_variant_only else backend.wrap(packed)
    found = run(given)
    return [[backend.back(array) for array in arrays] for arrays in found]


def reference(program: Program) -> list[np.ndarray]:
    """NumPy's words."""
    with np.errstate(all="ignore"):
        return [np.asarray(array) for array in program.function()(**program.inputs())]


def difference(program: Program, got: list[np.ndarray]) -> tuple[str, str] | None:
    """The first output that differs, and how; None when none does."""
    for name, a, b in zip(program.outputs, got, reference(program), strict=True):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return name, f"{name} is {a.dtype.name}{list(a.shape)}, expected {b.dtype.name}{list(b.shape)}"
        wrong = words.different(a, b)
        if len(wrong):
            i = int(wrong[0])
            lines = [
                f"{name}[{i}] is {_word(a, i)}, expected {_word(b, i)}: {words.ulps(a[i], b[i], a.dtype)} ulps; "
                f"{len(wrong)} of {a.size} elements differ"
            ]
            given = program.only(name).inputs().items()
            lines += [
                f"{source}{f'[{i}]' if x.shape else ''} is {_word(x, i if x.shape else 0)}" for source, x in given
            ]
            return name, "\n".join(lines)
    return None


def _word(array: np.ndarray, index: int) -> str:
    return f"{words.hexadecimal(array, index)} ({array.reshape(-1)[index].item()!r})"


def problems(backend: Backend, programs: tuple[Program, ...]) -> list[tuple[str, str] | None]:
    """Of each program the output that differs and how; where running them together fails, halves are tried."""
    try:
        found = outputs(backend, programs)
        return [difference(program, got) for program, got in zip(programs, found, strict=True)]
    except Exception:
        if len(programs) == 1:
            return [(programs[0].outputs[-1], "raised\n" + traceback.format_exc(limit=-4))]
        middle = len(programs) // 2
        return problems(backend, programs[:middle]) + problems(backend, programs[middle:])


# -- a worker's share ----------------------------------------------------------------------------------------------


class Job(dict[str, Any]):
    """What one worker does: ``backends``, ``options``, ``first``, ``last``; ``x64``: JAX's float64, None elsewhere.

    With ``shrink`` it reports that program instead.
    """


def wanted(backend: Backend, program: Program, x64: bool | None) -> bool:
    """Whether a backend runs a program, in a worker with or without x64."""
    return program.dtypes <= set(backend.dtypes) and x64 in (None, program.dtype == "float64")


def jobs(backends: Iterable[Backend], options: Options) -> list[Job]:
    """One worker per share of the programs, group of backends and setting of x64; those that take longest first."""
    found: list[Job] = []
    for group in dict.fromkeys((b.group, b.main_variant_only) for b in backends):
        names = [b.name for b in backends if (b.group, b.main_variant_only) == group]
        count = options.compile if group[1] else options.programs
        for first in range(0, count, SHARE):
            for x64 in (False, True) if group[0].startswith("jax") else (None,):
                last = min(first + SHARE, count)
                found.append(Job(backends=names, options=options, first=first, last=last, x64=x64))
    return sorted(found, key=lambda job: is_short(job["backends"]))


def run(job: Job) -> Iterator[Result]:
    """The results of a worker's share."""
    options = Options(*job["options"])
    share = [(index, program(options.seed, index)[0]) for index in range(job["first"], job["last"])]
    for backend in (b for b in ROWS if b.name in job["backends"]):
        mine = [(index, made) for index, made in share if wanted(backend, made, job["x64"])]
        size = PACK if backend.main_variant_only else 1
        for start in range(0, len(mine), size):
            begun = time.perf_counter()
            indices, pack = zip(*mine[start : start + size], strict=True)
            found = problems(backend, pack)
            seconds = (time.perf_counter() - begun) / len(pack)
            for index, problem in zip(indices, found, strict=True):
                yield Result(backend.name, index, seconds, problem and problem[1])


def report(job: Job) -> str:
    """A failing program, shrunk, with everything that is needed to see it again."""
    options, index = Options(*job["options"]), job["shrink"]
    backend = next(b for b in ROWS if b.name in job["backends"])
    seen: dict[Program, Any] = {}

    def problem(candidate: Program) -> tuple[str, str] | None:
        if candidate not in seen:
            runs = candidate.dtypes <= set(backend.dtypes)
            seen[candidate] = problems(backend, (candidate,))[0] if runs else None
        return seen[candidate]  # type: ignore[no-any-return]

    made, drawn = program(options.seed, index)
    head = f"program {index} of seed {options.seed} differs on {backend.name}"
    if problem(made) is None:
        head, how = f"{head}, though not alone but compiled together with its neighbours", job["problem"]
    else:
        made = shrink(drawn, lambda candidate: problem(candidate) is not None)
        output, how = problem(made) or ("", "")
        alone = made.only(output)
        made, how = (alone, found[1]) if (found := problem(alone)) else (made, how)
    return "\n".join([f"{head}:", *_indented(str(made)), *_indented(how)])


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


# -- a run ---------------------------------------------------------------------------------------------------------


def _start(job: Job) -> Iterator[Any]:
    return outcomes(__name__, job, MARK)


def execute(backends: list[Backend], made: list[Program], options: Options) -> Outcome:
    """All comparisons, as many processes at a time as there are cores; then one report per backend that differs."""
    outcome = Outcome()
    plan = jobs(backends, options)
    total = sum(
        wanted(backend, one, job["x64"])
        for job in plan
        for backend in backends
        if backend.name in job["backends"]
        for one in made[job["first"] : job["last"]]
    )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("comparing", total=total)

        def take(found: Any) -> None:
            if isinstance(found, str):
                outcome.errors.append(found)
                return
            result = Result(*found)
            outcome.results.append(result)
            progress.update(task, advance=1, description=f"program {result.number} on {result.backend}")

        each(plan, _start, take)
        if not outcome.errors and len(outcome.results) != total:
            outcome.errors.append(f"{len(outcome.results)} of {total} comparisons were made")
        shrinking = [_shrinking(backend, made, options, outcome.results) for backend in backends]
        progress.update(task, description="shrinking")
        each([job for job in shrinking if job], _start, lambda text: outcome.reports.append(str(text)))
    return outcome


def _shrinking(backend: Backend, made: list[Program], options: Options, results: list[Result]) -> Job | None:
    """A job that reports the shortest of a backend's failing programs."""
    failed = [r for r in results if r.backend == backend.name and r.problem is not None]
    if not failed:
        return None
    first = min(failed, key=lambda r: (len(made[r.number].lines), r.number))
    x64 = made[first.number].dtype == "float64"
    return Job(backends=[backend.name], options=options, shrink=first.number, problem=first.problem, x64=x64)


def coverage(made: list[Program]) -> dict[str, float]:
    """In which share of the programs each primitive occurs."""
    occurs = Counter(name for one in made for name in {line.primitive for line in one.lines})
    return {name: occurs[name] / len(made) for name in TABLE}


def verdict(outcome: Outcome, shares: dict[str, float], options: Options) -> list[str]:
    """What is wrong."""
    failed = [r for r in outcome.results if r.problem is not None]
    found = [*outcome.errors]
    if not outcome.results:
        found.append("no backend could run")
    if failed:
        found.append(f"{len({r.number for r in failed})} programs differ")
    if options.programs >= 100:  # fewer may miss a primitive by chance
        found += [f"{name} occurs in {share:.1%} of the programs" for name, share in shares.items() if share < LEAST]
    return found


def _number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no such number; pass a whole number from {least} on")
        return int(text)

    return read


def main(arguments: list[str]) -> int:
    """Exit status 1 when a program differs, a worker fails, or a primitive occurs too rarely."""
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance fuzz", description=__doc__)
    parser.add_argument("--programs", type=_number(1), default=200)
    parser.add_argument("--seed", type=_number(0), default=0, help="program i of a seed is always the same")
    parser.add_argument("--compile", type=_number(0), help="programs under torch.compile; default: a fifth of all")
    parser.add_argument("--backends", help="comma-separated; default: all that can run")
    parser.add_argument(
        "--without-guard", action="store_true", help="leave out the guard of products, which must be found out"
    )
    given = parser.parse_args(arguments)
    names = None if given.backends is None else given.backends.replace(",", " ").split()
    try:
        for name in names or []:
            checks.known("--backends", name, [backend.name for backend in ROWS])
    except ValueError as error:
        parser.error(str(error))
    compiles = max(1, given.programs // 5) if given.compile is None else min(given.compile, given.programs)
    options = Options(given.programs, given.seed, compiles, not given.without_guard)
    chosen = [backend for backend in ROWS if names is None or backend.name in names]
    missing = {backend.name: reason for backend in chosen if (reason := backend.missing()) is not None}
    backends = [backend for backend in chosen if backend.name not in missing]
    made = [program(options.seed, index)[0] for index in range(options.programs)]
    return _show(execute(backends, made, options), made, options, backends, missing)


def _show(
    outcome: Outcome, made: list[Program], options: Options, backends: list[Backend], missing: dict[str, str]
) -> int:
    console = Console(width=None if sys.stdout.isatty() else 130)

    def show(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    shares = coverage(made)
    show("share of the programs in which each primitive occurs:")
    console.print(", ".join(f"{name} {share:.0%}" for name, share in shares.items()), highlight=False)
    for backend in backends:
        mine = [r for r in outcome.results if r.backend == backend.name]
        failed, seconds = sum(r.problem is not None for r in mine), sum(r.seconds for r in mine)
        rate = len(mine) / (seconds or 1.0)
        show(f"{backend.name:18s} {len(mine):5d} programs, {failed:4d} differ, {rate:7.1f} per second")
    for name, reason in missing.items():
        show(f"not run: {name} ({reason})")
    for text in outcome.reports:
        show(text)
    found = verdict(outcome, shares, options)
    for text in found:
        show(f"FAILED: {text}")
    if found:
        show("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
        return 1
    lines = sum(len(one.lines) for one in made)
    show(f"{len(made)} programs of {lines} lines, seed {options.seed}: every backend gives NumPy's words")
    return 0


def _work(text: str) -> None:
    """A worker process: print each result, or the report, as a line of JSON."""
    warnings.simplefilter("ignore")
    job = Job(json.loads(text))
    if not Options(*job["options"]).guard:
        setattr(frameworks, "contracts", lambda _: False)  # noqa: B010  (mypy forbids the assignment)
    found: Iterable[Any] = [report(job)] if "shrink" in job else run(job)
    for one in found:
        print(MARK + json.dumps(one), flush=True)


if __name__ == "__main__":
    _work(sys.argv[1])
