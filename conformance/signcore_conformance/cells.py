"""A cell: one rule on one backend in one dtype under one workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import signcore as sc

from . import golden, words
from .backends import Backend, functional
from .compare import compare, expected, find
from .workloads import NAMES

# Fewest words that a cell must have compared: the digits network alone has 2,410 parameters.
MINIMUM = 10_000


class Plan(NamedTuple):
    """What a run covers."""

    rules: tuple[str, ...]
    dtypes: tuple[str, ...]
    large: int
    quick: bool = False
    full: bool = False
    workloads: tuple[str, ...] = NAMES


class Cell(NamedTuple):
    """A result, as it travels from a worker process to the report."""

    rule: str
    backend: str
    dtype: str
    workload: str
    words: int
    mismatch: dict[str, Any] | None = None
    near: float | None = None


def run(backend: Backend, plan: Plan, dtypes: tuple[str, ...]) -> Iterator[Cell]:
    """All cells of one backend in the given dtypes."""
    for name in plan.rules:
        every = golden.variants(name)
        if plan.quick or (backend.main_variant_only and not plan.full):
            every = every[:1]
        for dtype in dtypes:
            for workload in plan.workloads:
                yield _cell(backend, every[0], dtype, workload, plan)
            if "random" in plan.workloads:
                for i, rule in enumerate(every[1:], start=1):
                    if rule.state_dtype in (None, *backend.dtypes):
                        yield _cell(backend, rule, dtype, "random", plan, variant=i)
            if "hostile" in plan.workloads:
                yield from _policies(backend, every[0], dtype, plan)
        yield _mixed(backend, every[0], dtypes, plan)


def _command(cell: Cell) -> str:
    return (
        f"python -m signcore_conformance --rules {cell.rule} --backends {cell.backend} --dtypes {cell.dtype}"
        f" --workloads {cell.workload}"
    )


def _result(cell: Cell, rule: sc.Rule, mismatch: dict[str, Any] | None, counted: int) -> Cell:
    if mismatch is None:
        return cell._replace(words=counted)
    head = {"rule": repr(rule), "backend": cell.backend, "dtype": cell.dtype, "workload": cell.workload}
    return cell._replace(words=counted, mismatch={**head, **mismatch, "command": _command(cell)})


def _cell(backend: Backend, rule: sc.Rule, dtype: str, workload: str, plan: Plan, variant: int = 0) -> Cell:
    cell = Cell(rule.name, backend.name, dtype, workload, 0)
    made = find(workload, rule, dtype, plan.large, backend.dtypes)
    outcome = compare(backend.run(rule, made), expected(workload, rule, dtype, plan.large, backend.dtypes))
    mismatch = outcome.mismatch
    if mismatch is None and workload == "random":
        known = golden.load(rule.name)["words"].get(f"{variant}/{dtype}", {}).get("sha256")
        if known != outcome.digest:
            problem = f"SHA-256 {outcome.digest} is not the golden file's {known} for variant {variant}"
            mismatch = {"step": len(made.inputs) - 1, "path": "", "problem": problem}
    return _result(cell._replace(near=made.near), rule, mismatch, sum(outcome.words.values()))


def _policies(backend: Backend, rule: sc.Rule, dtype: str, plan: Plan) -> Iterator[Cell]:
    """The hostile workload again: its inf and NaN skipped, and refused."""
    if not backend.main_variant_only or plan.full or (dtype == "float32" and not plan.quick):
        yield _cell(backend, rule.replace(nonfinite="skip"), dtype, "hostile", plan)
    yield _refusal(backend, rule.replace(nonfinite="raise"), dtype, plan)


def _refusal(backend: Backend, rule: sc.Rule, dtype: str, plan: Plan) -> Cell:
    """With "raise", an eager step must stop at the first inf, a traced one when it is traced."""
    cell = Cell(rule.name, backend.name, dtype, "hostile", 0)
    made = find("hostile", rule, dtype, plan.large, backend.dtypes)
    truth = expected("hostile", rule.replace(nonfinite="propagate"), dtype, plan.large, backend.dtypes)
    at = 0 if backend.traced else next(k for k, g in enumerate(made.inputs) if not np.isfinite(g["w1"]).all())
    first, last = made.inputs[0], made.inputs[at]
    short = made._replace(inputs=[*made.inputs[:at], last] if at else [first])
    done, message = 0, "no error was raised"
    try:
        outcome = compare(backend.run(rule, short), truth[: len(short.inputs)])
        done = sum(outcome.words.values())
    except Exception as error:
        message = str(error)
        wanted = "skip" if backend.traced else "holds inf or NaN"
        if wanted in message and "nonfinite" in message:
            return cell
    return _result(cell, rule, {"step": at, "path": "", "problem": f"nonfinite='raise': {message}"}, done)


def _mixed(backend: Backend, rule: sc.Rule, dtypes: tuple[str, ...], plan: Plan) -> Cell:
    """A tree with a leaf of every dtype; its words count for the workload, not for one dtype."""
    cell = Cell(rule.name, backend.name, "mixed", "mixed", 0)
    made = find("mixed", rule, "mixed", plan.large, backend.dtypes)
    usable = backend.dtypes if "float64" in dtypes or not backend.group.startswith("jax") else dtypes
    if usable != backend.dtypes:
        made = find("mixed", rule, "mixed", plan.large, usable)
    outcome = compare(backend.run(rule, made), expected("mixed", rule, "mixed", plan.large, usable))
    return _result(cell, rule, outcome.mismatch, sum(outcome.words.values()))


def golden_words(rule: sc.Rule, dtype: str, large: int) -> dict[str, Any]:
    """What a golden file holds of a variant in a dtype, from the NumPy backend, checked against the reference."""
    numpy = Backend("numpy", "numpy", drive=functional)
    made = find("random", rule, dtype, large, numpy.dtypes)
    outcome = compare(numpy.run(rule, made), expected("random", rule, dtype, large, numpy.dtypes))
    if outcome.mismatch is not None:
        raise AssertionError(f"NumPy and the reference disagree: {outcome.mismatch}")
    *_, (params, state) = numpy.run(rule, made)
    held = {"params": params["edge"][2]}
    for name, mark in type(rule)._marks.items():
        if mark.kind == "element":
            held[name] = getattr(state, name)["edge"][2]
    return {"sha256": outcome.digest} | {
        name: " ".join(f"{int(w):0{2 * value.dtype.itemsize}x}" for w in words.bits(value)[:8])
        for name, value in held.items()
    }
