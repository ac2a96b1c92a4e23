"""A cell: one rule on one backend in one dtype under one workload."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

import signcore as sc

from . import golden, words
from .backends import ALL, Backend, functional
from .compare import compare, expected, find
from .workloads import NAMES, SMALL, TWO, USUAL

# Fewest words that a cell must have compared: the digits network alone has 2,410 parameters.
MINIMUM = 10_000


class Plan(NamedTuple):
    """What a run covers; no `dtypes` means those that every backend runs by default."""

    rules: tuple[str, ...]
    dtypes: tuple[str, ...]
    large: int
    quick: bool = False
    full: bool = False
    workloads: tuple[str, ...] = NAMES

    def dtypes_of(self, backend: Backend) -> tuple[str, ...]:
        """In which dtypes a backend is run."""
        chosen = self.dtypes or (backend.quick_dtypes if self.quick else ALL if self.full else backend.usual_dtypes)
        return tuple(dtype for dtype in chosen if dtype in backend.dtypes)

    def rules_of(self, backend: Backend) -> tuple[str, ...]:
        """Which rules: all, but in quick runs a few where each costs a compilation."""
        few = self.quick and backend.secondary and self.rules == tuple(sc.rules())
        return tuple(golden.representatives()) if few else self.rules

    def whole(self, backend: Backend, dtype: str) -> bool:
        """Whether a backend runs the large leaf and the network in a dtype: with ``--full`` all do in float32."""
        return not backend.costly or (self.full and dtype == "float32")

    def workloads_of(self, backend: Backend, dtype: str) -> tuple[str, ...]:
        """Under which workloads."""
        few = not self.whole(backend, dtype) or (backend.secondary and not self.full)
        return tuple(name for name in self.workloads if not (few and name == "digits"))

    def mixes(self, backend: Backend) -> bool:
        """Whether a backend runs the mixed tree: not in one dtype alone, nor by default where each tree is compiled."""
        return len(self.dtypes_of(backend)) > 1 and (self.full or self.quick or not backend.costly)

    def large_of(self, backend: Backend, task: Task) -> int:
        """Elements of the large leaf, or which smaller tree: for options, and where each leaf costs a compilation."""
        if self.whole(backend, task.dtype):
            # a costly backend would compile another tree; elsewhere each word costs, and random ones are enough of them
            here = task.is_main and (backend.costly or not self.full or task.workload == "random")
            return self.large if here else min(self.large, USUAL) if task.is_main else SMALL
        stands_beside = backend.secondary and (self.quick or not backend.traced)
        return TWO if stands_beside or (task.dtype != "float32" and not self.quick) else SMALL


class Task(NamedTuple):
    """What one cell runs: a rule with its options in a dtype under a workload."""

    rule: sc.Rule
    dtype: str
    workload: str
    variant: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the rule as every backend runs it, and not one of its options."""
        return self.variant == 0 and self.rule.nonfinite == "propagate"


class Cell(NamedTuple):
    """A result, as it travels from a worker process to the report."""

    rule: str
    backend: str
    dtype: str
    workload: str
    words: int
    mismatch: dict[str, Any] | None = None
    near: float | None = None


def tasks(name: str, dtype: str, plan: Plan) -> Iterator[Task]:
    """Everything that is run of a rule in a dtype, the mixed tree aside."""
    main, *others = golden.variants(name)
    for workload in plan.workloads:
        yield Task(main, dtype, workload)
    if "random" in plan.workloads:
        for i, rule in enumerate(others, start=1):
            yield Task(rule, dtype, "random", i)
    if "hostile" in plan.workloads:
        yield Task(main.replace(nonfinite="skip"), dtype, "hostile")
        yield Task(main.replace(nonfinite="raise"), dtype, "hostile")


def wanted(task: Task, backend: Backend, plan: Plan) -> bool:
    """Whether a backend runs a task.

    Options cost a compilation each: backends that stand beside others leave them out; where steps are compiled, quick
    and usual runs do, and ``--full`` runs them in float32 alone, and not where compiling takes longest. Usual runs have
    them in every dtype on NumPy alone.
    """
    if task.dtype not in plan.dtypes_of(backend) or task.rule.state_dtype not in (None, *backend.dtypes):
        return False
    if task.workload not in plan.workloads_of(backend, task.dtype) or task.rule.name not in plan.rules_of(backend):
        return False
    if task.is_main:
        return True
    if plan.quick:
        return task.variant == 0 and len(backend.quick_dtypes) > 1 and not backend.traced
    one_dtype = backend.traced or backend.secondary if plan.full else backend.name != "numpy"
    if one_dtype and task.dtype != "float32":
        return False
    few = backend.main_variant_only or backend.secondary or (backend.traced and not plan.full)
    return task.variant == 0 or not few


def run(backends: Iterable[Backend], plan: Plan, dtypes: tuple[str, ...]) -> Iterator[Cell]:
    """All cells of some backends in the given dtypes; side by side, so that they share a reference."""
    backends = list(backends)
    for name in plan.rules:
        for dtype in dtypes:
            for task in tasks(name, dtype, plan):
                for backend in backends:
                    if wanted(task, backend, plan):
                        yield _run(backend, task, plan)
        for backend in backends:
            mixed = mixed_dtypes(backend, plan, dtypes)
            if mixed and name in plan.rules_of(backend):
                yield _run(backend, Task(golden.variants(name)[0], "mixed", "mixed"), plan, mixed)


def mixed_dtypes(backend: Backend, plan: Plan, dtypes: tuple[str, ...]) -> tuple[str, ...]:
    """Dtypes of the mixed tree, none when a backend is run in one dtype alone; JAX has float64 only when it is on."""
    if not plan.mixes(backend):
        return ()
    narrow = backend.group.startswith("jax") and "float64" not in dtypes
    return tuple(dtype for dtype in backend.dtypes if not (narrow and dtype == "float64"))


def _run(backend: Backend, task: Task, plan: Plan, dtypes: tuple[str, ...] = ()) -> Cell:
    """One cell; whatever is raised is a mismatch of this cell and stops no other."""
    cell = Cell(task.rule.name, backend.name, task.dtype, task.workload, 0)
    mismatch: dict[str, Any] | None
    try:
        if task.rule.nonfinite == "raise":
            mismatch = _refusal(backend, task)
        else:
            cell, mismatch = _compare(cell, backend, task, plan, dtypes)
    except Exception:
        mismatch = {"step": None, "path": "", "problem": "raised\n" + traceback.format_exc(limit=-4)}
    if mismatch is None:
        return cell
    head = {"rule": repr(task.rule), "backend": cell.backend, "dtype": cell.dtype, "workload": cell.workload}
    return cell._replace(mismatch={**head, **mismatch, "command": _command(cell, task, plan)})


def _command(cell: Cell, task: Task, plan: Plan) -> str:
    dtypes = "" if cell.dtype == "mixed" else f" --dtypes {cell.dtype}"
    workload = "random" if cell.workload == "mixed" else cell.workload
    size = " --full" if not task.is_main else " --quick" if plan.quick else ""
    return (
        f"python -m signcore_conformance --rules {cell.rule} --backends {cell.backend}{dtypes}"
        f" --workloads {workload}{size}"
    )


def _compare(
    cell: Cell, backend: Backend, task: Task, plan: Plan, dtypes: tuple[str, ...]
) -> tuple[Cell, dict[str, Any] | None]:
    """The trajectory against the reference, and the digest of random gradients against the golden file."""
    large = plan.large_of(backend, task)
    made = find(task.workload, task.rule, task.dtype, large, dtypes)
    truth = expected(task.workload, task.rule, task.dtype, large, dtypes)
    outcome = compare(backend.run(task.rule, made), truth)
    mismatch = outcome.mismatch
    if mismatch is None and task.workload == "random" and (large == SMALL or (large > 0 and _by_leaf(task.rule))):
        known = golden.load(cell.rule)["words"].get(f"{task.variant}/{task.dtype}", {}).get("sha256")
        if known != outcome.digest:
            problem = f"SHA-256 {outcome.digest} is not the golden file's {known} for variant {task.variant}"
            mismatch = {"step": len(made.inputs) - 1, "path": "", "problem": problem}
    return cell._replace(near=made.near, words=sum(outcome.words.values())), mismatch


def _by_leaf(rule: sc.Rule) -> bool:
    """Whether a leaf's words do not depend on which other leaves there are."""
    return not rule.needs and (rule.scope == "leaf" or not {*rule.partials, *rule.settlements} - {"nonfinite"})


def _refusal(backend: Backend, task: Task) -> dict[str, Any] | None:
    """With "raise", an eager step must stop at the first inf, a traced one when it is traced."""
    made = find("hostile", task.rule, task.dtype, SMALL)
    truth = expected("hostile", task.rule.replace(nonfinite="propagate"), task.dtype, SMALL)
    at = 0 if backend.traced else next(k for k, g in enumerate(made.inputs) if not np.isfinite(g["w1"]).all())
    message = "no error was raised"
    try:
        compare(backend.run(task.rule, made._replace(inputs=made.inputs[: at + 1])), truth[: at + 1])
    except Exception as error:
        message = str(error)
        said = "skip" if backend.traced else "holds inf or NaN"
        if said in message and "nonfinite" in message:
            return None
    return {"step": at, "path": "", "problem": f"nonfinite='raise': {message}"}


def golden_words(rule: sc.Rule, dtype: str, large: int) -> dict[str, Any]:
    """What a golden file holds of a variant in a dtype, from the NumPy backend, checked against the reference."""
    numpy = Backend("numpy", "numpy", drive=functional)
    made = find("random", rule, dtype, large)
    outcome = compare(numpy.run(rule, made), expected("random", rule, dtype, large))
    if outcome.mismatch is not None:
        raise AssertionError(f"NumPy and the reference disagree: {outcome.mismatch}")
    *_, (params, state) = numpy.run(rule, made)
    held = {"params": params["edge"][2]}
    for name, mark in type(rule)._marks.items():
        if mark.kind == "element" and name in rule.kinds:
            held[name] = getattr(state, name)["edge"][2]
    return {"sha256": outcome.digest} | {
        name: " ".join(f"{int(w):0{2 * value.dtype.itemsize}x}" for w in words.bits(value)[:8])
        for name, value in held.items()
    }
