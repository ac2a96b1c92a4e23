"""The whole suite: which jobs there are, two at a time, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .backends import ALL, BACKENDS, Backend, device_name, is_short
from .cells import MINIMUM, Cell, Plan, mixed_dtypes, tasks, wanted
from .compare import versions
from .worker import Job, each, start
from .workloads import NAMES

PARTS = 3  # of a long job, so that no core idles while the last one runs


@dataclass
class Results:
    """Everything that a run found."""

    plan: Plan
    backends: list[Backend]
    not_run: dict[str, str]
    cells: list[Cell] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def empty_cells(self) -> list[str]:
        """Cells that compared fewer words than they must."""
        words: dict[tuple[str, str, str, str], int] = {}
        for cell in self.cells:
            key = (cell.rule, cell.backend, cell.dtype, cell.workload)
            words[key] = words.get(key, 0) + cell.words
        missing = []
        for rule in self.plan.rules:
            for backend in self.backends:
                if rule not in self.plan.rules_of(backend):
                    continue
                dtypes = self.plan.dtypes_of(backend)
                must = [(dtype, workload) for dtype in dtypes for workload in self.plan.workloads_of(backend, dtype)]
                for dtype, workload in must + [("mixed", "mixed")] * self.plan.mixes(backend):
                    found = words.get((rule, backend.name, dtype, workload), 0)
                    if found < MINIMUM:
                        missing.append(f"{rule} x {backend.name} x {dtype} x {workload}: {found} words")
        return missing

    def far_from_ties(self) -> list[str]:
        """Near-tie workloads in which fewer than 5 % of the signs hang on an ulp."""
        return sorted(
            {
                f"{cell.rule} in {cell.dtype}: {cell.near:.1%}"
                for cell in self.cells
                if cell.workload == "near-ties" and cell.near is not None and cell.near < 0.05
            }
        )

    def mismatches(self) -> list[dict[str, Any]]:
        """All mismatches."""
        return [cell.mismatch for cell in self.cells if cell.mismatch is not None]

    @property
    def words(self) -> int:
        """Words compared."""
        return sum(cell.words for cell in self.cells)

    @property
    def passed(self) -> bool:
        """Whether everything that was asked for was run and agreed."""
        return bool(self.cells) and not (self.mismatches() or self.errors or self.empty_cells() or self.far_from_ties())

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "passed": self.passed,
            "words": self.words,
            "mismatches": self.mismatches(),
            "errors": self.errors,
            "empty_cells": self.empty_cells(),
            "backends": [backend.name for backend in self.backends],
            "not_run": self.not_run,
            "versions": versions(),
            "device": device_name(),
            "cells": [cell._asdict() for cell in self.cells],
        }


def jobs(backends: Iterable[Backend], plan: Plan) -> list[Job]:
    """One job per group; JAX's float64 is a job of its own, with x64 on, and long jobs are cut in parts, by rules."""
    found: dict[tuple[str, bool], Job] = {}
    for backend in backends:
        for dtype in plan.dtypes_of(backend):
            x64 = dtype == "float64" and backend.group.startswith("jax")
            job = found.setdefault((backend.group, x64), Job(backends=[], dtypes=[], plan=plan, x64=x64))
            for key, name in (("backends", backend.name), ("dtypes", dtype)):
                if name not in job[key]:
                    job[key].append(name)
    parts: list[Job] = []
    for job in found.values():
        count = 1 if plan.quick or is_short(job["backends"]) else PARTS
        rules = [plan.rules[k::count] for k in range(count)]
        parts += [Job({**job, "plan": plan._replace(rules=some)}) for some in rules if some]
    return sorted(parts, key=lambda job: is_short(job["backends"]))


def names_in(text: str) -> list[str]:
    """Names that a user separates by commas or blanks."""
    return text.replace(",", " ").split()


def choose(names: Iterable[str] | None) -> tuple[list[Backend], dict[str, str]]:
    """The backends to run and, by name, why others cannot."""
    run, not_run = [], {}
    for backend in BACKENDS:
        if names is not None and backend.name not in names:
            continue
        reason = backend.missing()
        if reason is None:
            run.append(backend)
        else:
            not_run[backend.name] = reason
    return run, not_run


def cells_expected(backends: Iterable[Backend], plan: Plan) -> int:
    """How many cells a run yields, for the progress bar."""
    total = 0
    for job in jobs(backends, plan):
        for backend in (b for b in BACKENDS if b.name in job["backends"]):
            for rule in job["plan"].rules:
                total += sum(wanted(t, backend, plan) for dtype in job["dtypes"] for t in tasks(rule, dtype, plan))
                mixes = rule in plan.rules_of(backend) and mixed_dtypes(backend, plan, tuple(job["dtypes"]))
                total += bool(mixes)
    return total


def execute(plan: Plan, names: Iterable[str] | None = None, on_cell: Callable[[Cell], None] | None = None) -> Results:
    """Run everything, as many processes at a time as there are cores."""
    backends, not_run = choose(names)
    results = Results(plan, backends, not_run)

    def take(found: Cell | str) -> None:
        if isinstance(found, str):
            results.errors.append(found)
            return
        results.cells.append(found)
        if on_cell is not None:
            on_cell(found)

    # looked up when it is called, so that a test can put another in its place
    each(jobs(backends, plan), lambda job: start(job), take)
    return results


__all__ = ["ALL", "NAMES", "Results", "choose", "execute"]
