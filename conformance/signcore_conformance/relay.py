"""``python -m signcore_conformance relay``: one run that changes backend every few steps through checkpoint files.

Every word of params and state after every leg must be the independent reference's, which never stops. The backends
follow each other so that every ordered pair of them occurs: along a closed walk over all pairs, from which each rule
takes the next part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

import signcore as sc
from signcore import checkpoint, checks

from . import golden
from .backends import ALL, BACKENDS, Backend
from .compare import Trace, compare, trace, versions
from .legs import leg_of
from .suite import choose, names_in
from .worker import each, outcomes
from .workloads import relayed

STEPS, LEG = 300, 20
MARK = "signcore-leg "


class Leg(NamedTuple):
    """What one leg was: a line from a worker process."""

    rule: str
    dtype: str
    before: str | None
    backend: str
    words: int
    problem: str | None


class Job(dict[str, Any]):
    """What one worker does: ``dtype``, ``rules``, ``backends``, ``steps``, ``leg`` and whether JAX has ``x64``."""


def walk(names: list[str]) -> list[str]:
    """A closed walk over `names` in which every ordered pair of two of them occurs once (Hierholzer's algorithm)."""
    left = {name: [other for other in names if other != name] for name in names}
    path, stack = [], names[:1]
    while stack:
        ways = left[stack[-1]]
        if ways:
            stack.append(ways.pop())
        else:
            path.append(stack.pop())
    return path[::-1]


def order(names: list[str], rules: int, legs: int) -> list[list[str]]:
    """The backends of each rule's legs: the walk in pieces, over and over."""
    around = walk(names)[:-1] or names
    pieces = []
    for k in range(rules):
        first = k * (legs - 1)  # a piece begins with the last of the one before, so that no pair falls between two
        pieces.append([around[(first + i) % len(around)] for i in range(legs)])
    return pieces


def run(job: Job) -> Iterator[Leg]:
    """The legs of a worker's rules in one dtype."""
    by_name = {backend.name: backend for backend in BACKENDS}
    for name, names in zip(job["rules"], job["order"], strict=True):
        rule = golden.variants(name)[0]
        with tempfile.TemporaryDirectory() as folder:
            yield from _run(rule, job["dtype"], [by_name[n] for n in names], job, Path(folder) / "run")


def _run(rule: sc.Rule, dtype: str, backends: list[Backend], job: Job, path: Path) -> Iterator[Leg]:
    workload = relayed(dtype, job["steps"])
    like = workload.tree(workload.params)
    checkpoint.save(path, rule, like, rule.init(like))
    truths = list(trace(workload, rule))
    inputs = [workload.tree(each) for each in workload.inputs]
    before = None
    for k, backend in enumerate(backends):
        last = (k + 1) * job["leg"]
        leg = Leg(rule.name, dtype, before, backend.name, 0, None)
        try:
            leg_of(backend)(backend, path, rule, like, inputs[last - job["leg"] : last])
            leg = _compared(leg, checkpoint.load(path, like, rule=rule), truths[last - 1])
        except Exception:
            leg = leg._replace(problem="raised\n" + traceback.format_exc(limit=-4))
        yield leg
        if leg.problem is not None:
            return
        before = backend.name


def _compared(leg: Leg, found: checkpoint.Checkpoint, truth: Trace) -> Leg:
    outcome = compare([(found.params, found.state)], [truth])
    problem = None if outcome.mismatch is None else json.dumps({**outcome.mismatch, "step": int(found.state.step)})
    return leg._replace(words=sum(outcome.words.values()), problem=problem)


def jobs(rules: list[str], dtypes: list[str], backends: list[Backend], steps: int, leg: int) -> list[Job]:
    """One worker per dtype, JAX's float64 needs a switch; those with the most backends first."""
    found = []
    for dtype in dtypes:
        names = [backend.name for backend in backends if dtype in backend.dtypes]
        pieces = order(names, len(rules), steps // leg)
        x64 = dtype == "float64"
        found.append(Job(dtype=dtype, rules=rules, backends=names, order=pieces, steps=steps, leg=leg, x64=x64))
    return sorted(found, key=lambda job: -len(job["backends"]))


def verdict(legs: list[Leg], work: list[Job], errors: list[str]) -> list[str]:
    """What is wrong: legs that differ, are missing, or pairs of backends that no leg changed between."""
    wrong = [*errors]
    for leg in legs:
        if leg.problem is not None:
            wrong.append(f"{leg.rule}, {leg.dtype}, {leg.before or 'the start'} to {leg.backend}: {leg.problem}")
    for job in work:
        mine = [leg for leg in legs if leg.dtype == job["dtype"]]
        for rule, names in zip(job["rules"], job["order"], strict=True):
            done = [leg.backend for leg in mine if leg.rule == rule]
            if done != names and not any(leg.problem for leg in mine if leg.rule == rule):
                wrong.append(f"{rule}, {job['dtype']}: {len(done)} of {len(names)} legs were run")
    return wrong


def pairs(legs: list[Leg], dtype: str) -> set[tuple[str, str]]:
    """Ordered pairs of backends between which a run in a dtype changed."""
    return {(leg.before, leg.backend) for leg in legs if leg.dtype == dtype and leg.before not in (None, leg.backend)}  # type: ignore[misc]


def execute(work: list[Job]) -> tuple[list[Leg], list[str]]:
    """All legs, as many processes at a time as there are cores, with a progress bar."""
    legs: list[Leg] = []
    errors: list[str] = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("relay", total=sum(len(names) for job in work for names in job["order"]))

        def take(found: Any) -> None:
            if isinstance(found, str):
                errors.append(found)
                return
            legs.append(Leg(*found))
            progress.update(task, advance=1, description=f"{legs[-1].rule} {legs[-1].dtype} on {legs[-1].backend}")

        each(work, lambda job: outcomes(__name__, job, MARK), take)
    return legs, errors


def main(arguments: list[str]) -> int:
    """Exit status 0 when no word differed and every ordered pair of backends occurred, else 1; 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance relay", description=__doc__)
    parser.add_argument("--rules", type=names_in, default=sc.rules(), help="comma-separated; default: all")
    parser.add_argument("--dtypes", type=names_in, default=list(ALL), help=f"default: {','.join(ALL)}")
    parser.add_argument("--backends", type=names_in, help="comma-separated; default: all that can run")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--leg", type=int, default=LEG, help=f"steps between two changes of backend; default: {LEG}")
    options = parser.parse_args(arguments)
    try:
        for argument, values, known in (
            ("--rules", options.rules, sc.rules()),
            ("--dtypes", options.dtypes, ALL),
            ("--backends", options.backends or [], [backend.name for backend in BACKENDS]),
        ):
            for value in values:
                checks.known(argument, value, known)
        checks.count("--leg", options.leg, 1)
        checks.count("--steps", options.steps, 1)
        if options.steps % options.leg:
            raise ValueError(f"`--steps` is {options.steps} and `--leg` {options.leg}, which does not divide it")
    except ValueError as error:
        parser.error(str(error))
    backends, missing = choose(options.backends)
    work = jobs(options.rules, options.dtypes, backends, options.steps, options.leg)
    legs, errors = execute(work)
    return _show(legs, errors, work, missing)


def _show(legs: list[Leg], errors: list[str], work: list[Job], missing: dict[str, str]) -> int:
    found = verdict(legs, work, errors)
    for job in work:
        mine, n = [leg for leg in legs if leg.dtype == job["dtype"]], len(job["backends"])
        print(
            f"{job['dtype']:9s} {len(job['rules'])} rules, {len(mine)} legs on {n} backends, "
            f"{len(pairs(legs, job['dtype']))} of {n * (n - 1)} ordered pairs, {sum(leg.words for leg in mine):,} words"
        )
        lacking = n * (n - 1) - len(pairs(legs, job["dtype"]))
        if lacking and len(job["rules"]) * (job["steps"] // job["leg"] - 1) >= n * (n - 1):
            found.append(f"{job['dtype']}: {lacking} ordered pairs of backends did not occur")
    for name, reason in missing.items():
        print(f"not run: {name} ({reason})")
    for text in found:
        print(f"FAILED: {text}")
    if not legs:
        print("FAILED: no leg was run")
    if found or not legs:
        print("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
        return 1
    print(f"passed: {sum(leg.words for leg in legs):,} words compared, 0 differ")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with np.errstate(all="ignore"):
        for found in run(Job(json.loads(sys.argv[1]))):
            print(MARK + json.dumps(found), flush=True)
