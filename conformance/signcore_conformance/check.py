"""Holds somebody else's step function against a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import signcore as sc

from .backends import BACKENDS, Step, tree_map
from .compare import compare, expected, find
from .report import describe
from .workloads import QUICK_NAMES, SMALL, Workload


class Verdict(NamedTuple):
    """What `check` found; true when nothing differs."""

    words: int
    mismatch: dict[str, Any] | None

    def __bool__(self) -> bool:
        return self.mismatch is None

    def __str__(self) -> str:
        if self.mismatch is None:
            return f"identical: {self.words:,} words compared"
        return describe(self.mismatch)


def check(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    rule: sc.Rule,
    *,
    dtype: str = "float32",
    backend: str = "numpy",
    workloads: tuple[str, ...] = QUICK_NAMES,
) -> Verdict:
    """Run a step function on the suite's workloads and report the first word that differs from the rule's.

    Parameters
    ----------
    step : callable
        ``(params, grads, state) -> (params, state)``; trees of arrays, the state as ``rule.init`` makes it.
    rule : Rule
        What `step` claims to compute; one of signcore's own, with a golden file.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of parameters and gradients.
    backend : str
        Whose arrays `step` is given: "numpy", "torch", "jax", "array-api-strict".
    workloads : tuple of str
        Which of "random", "near-ties", "hostile", "recorded" to run.

    Returns
    -------
    Verdict
        True in a condition when all words of parameters and state are the same; ``str()`` of it tells the
        first difference: workload, step, path, index, both words in hexadecimal, ulps.

    Raises
    ------
    ValueError
        Unknown backend or workload.

    Examples
    --------
    >>> import signcore as sc
    >>> rule = sc.SignSGD(lr=0.5)
    >>> bool(check(rule.step, rule, workloads=("recorded",)))
    True
    """
    sc.checks.known("backend", backend, [b.name for b in BACKENDS])
    chosen = next(b for b in BACKENDS if b.name == backend)
    total = 0
    for name in workloads:
        sc.checks.known("workloads", name, QUICK_NAMES)
        workload = find(name, rule, dtype, SMALL)
        outcome = compare(_run(step, rule, workload, chosen), expected(name, rule, dtype, SMALL))
        total += sum(outcome.words.values())
        if outcome.mismatch is not None:
            return Verdict(total, {"rule": repr(rule), "dtype": dtype, "workload": name, **outcome.mismatch})
    return Verdict(total, None)


def _run(step: Any, rule: sc.Rule, workload: Workload, backend: Any) -> Iterator[Step]:
    params = tree_map(backend.to, workload.tree(workload.params))
    state = rule.init(params)
    for inputs in workload.inputs:
        params, state = step(params, tree_map(backend.to, workload.tree(inputs)), state)
        yield backend.read(params, state)
