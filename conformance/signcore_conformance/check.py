"""Holds somebody else's step function against a rule."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import signcore as sc
from signcore.tree import flatten

from .backends import ALL, BACKENDS, Backend, Step, extras, tree_map
from .compare import Outcome, compare, expected, find
from .report import describe
from .workloads import LARGE, QUICK_NAMES, Workload, numpy_dtype

WORKLOADS = (*QUICK_NAMES, "mixed")


class Verdict(NamedTuple):
    """What `check` found; true when nothing differs."""

    words: int
    mismatch: dict[str, Any] | None

    def __bool__(self) -> bool:
        return self.mismatch is None

    def __str__(self) -> str:
        return describe(self.mismatch) if self.mismatch else f"identical: {self.words:,} words compared"


class _Wrong(Exception):
    """What is wrong with a step that cannot be compared."""

    def __init__(self, step: int, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.mismatch = {"step": step, "path": path, "problem": problem}


def check(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    rule: sc.Rule,
    *,
    dtype: str = "float32",
    backend: str = "numpy",
    workloads: tuple[str, ...] = QUICK_NAMES,
) -> Verdict:
    """Run a step function on the suite's workloads and report the first word that differs from the rule's.

    The trees hold leaves of 0 to 100,000 elements, a 0-d leaf and None. With ``nonfinite="raise"`` the step must
    raise where a gradient holds inf or NaN, which ends that workload.

    Parameters
    ----------
    step : callable
        ``(params, grads, state) -> (params, state)``; trees of arrays, the state as ``rule.init`` makes it. It
        must not write to what it is given (a buffer donated to ``jax.jit`` is not written to). For a rule that needs
        more than gradients it is called with the keywords ``value``, ``value_fn`` and ``grad_fn`` that the rule needs.
    rule : Rule
        What `step` claims to compute; one of signcore's own, all of its hyperparameters numbers.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Of parameters and gradients, the workload "mixed" aside.
    backend : str
        Whose arrays `step` is given: "numpy", "torch", "jax", "array-api-strict".
    workloads : tuple of str
        Which of "random", "near-ties", "hostile", "recorded" (the default) and "mixed" to run; "mixed" is one tree
        with a leaf of every dtype that the backend has, for a `step` that takes them all.

    Returns
    -------
    Verdict
        True in a condition when all words of parameters and state are the same; ``str()`` of it tells the
        first difference: workload, step, path, index, both words in hexadecimal, ulps. A step that raises,
        returns something else than params and state, or changes its inputs is a difference too.

    Raises
    ------
    TypeError, ValueError
        `step` is no function, `rule` no rule or one with a schedule or array, a name is unknown, no workload is
        named, or the backend or its dtype is missing here. Nothing was run.

    Examples
    --------
    >>> import signcore as sc
    >>> rule = sc.SignSGD(lr=0.5)
    >>> bool(check(rule.step, rule, workloads=("recorded",)))
    True
    """
    _check_rule(step, rule)
    sc.checks.choice("dtype", dtype, ALL)
    sc.checks.known("backend", backend, [b.name for b in BACKENDS])
    chosen = next(b for b in BACKENDS if b.name == backend)
    dtypes = _dtypes(chosen, rule, dtype)
    if not isinstance(workloads, (tuple, list)) or not workloads:
        raise ValueError(f"`workloads` is {workloads!r}; pass a tuple of names out of {', '.join(WORKLOADS)}")
    for name in workloads:
        sc.checks.known("workloads", name, WORKLOADS)
    total = 0
    for name in workloads:
        mixed = dtypes if name == "mixed" else ()
        with np.errstate(all="ignore"):  # hostile gradients overflow on purpose
            outcome = _hold(step, rule, chosen, (name, rule, dtype, LARGE, mixed))
        total += sum(outcome.words.values())
        if outcome.mismatch is not None:
            head = {"rule": repr(rule), "dtype": "mixed" if mixed else dtype, "workload": name}
            return Verdict(total, head | outcome.mismatch)
    return Verdict(total, None)


def _check_rule(step: Any, rule: Any) -> None:
    if not callable(step):
        raise TypeError(f"`step` is {step!r}; pass a function (params, grads, state) -> (params, state)")
    if not isinstance(rule, sc.Rule):
        raise TypeError(f"`rule` is {rule!r}; pass a rule, such as signcore.Lion(lr=1e-3)")
    sc.checks.known("rule", rule.name, sc.rules())
    for name, value in rule.numbers().items():
        if not sc.checks.is_number(value):
            raise TypeError(
                f"`rule` has {name}={value!r}, and what it is held against computes with numbers; pass "
                f"rule.replace({name}=...) with a number, and a `step` that uses the same"
            )


def _dtypes(backend: Backend, rule: sc.Rule, dtype: str) -> tuple[str, ...]:
    """The dtypes that a backend has here; raises when it, `dtype` or the rule's state_dtype is not there."""
    if reason := backend.missing():
        raise ValueError(f"`backend` is {backend.name!r}, but {reason}; install what is missing or choose another")
    empty = [np.zeros(0, numpy_dtype(name)) for name in backend.dtypes]
    # JAX without x64 gives float32 where float64 is asked for
    have = tuple(array.dtype.name for array in empty if backend.back(backend.to(array)).dtype == array.dtype)
    for argument, wanted in (("`dtype` is", dtype), ("`rule` has state_dtype", rule.state_dtype or dtype)):
        way_out = f"choose one of {', '.join(map(repr, have))}, or another `backend`"
        if wanted in backend.dtypes:
            way_out = "enable x64 first: jax.config.update('jax_enable_x64', True)"
        if wanted not in have:
            raise ValueError(f"{argument} {wanted!r}, which `backend` {backend.name!r} does not have; {way_out}")
    return have


def _hold(step: Any, rule: sc.Rule, backend: Backend, which: tuple[Any, ...]) -> Outcome:
    """The outcome of one workload."""
    workload, traces = find(*which), expected(*which)
    bad = [k for k, grads in enumerate(workload.inputs) if not all(np.isfinite(g).all() for g in grads.values())]
    stop = bad[0] if bad and rule.nonfinite == "raise" else None
    steps = _run(step, rule, workload, backend, stop)
    try:
        outcome = compare(steps, traces[:stop])
        if outcome.mismatch is None:
            list(steps)  # the step that must raise
    except _Wrong as wrong:
        return Outcome({}, wrong.mismatch, "")
    return outcome


def _run(step: Any, rule: sc.Rule, workload: Workload, backend: Backend, stop: int | None) -> Iterator[Step]:
    """The outcome of every step as NumPy trees, up to `stop`, where the step must raise."""
    params = tree_map(backend.to, workload.tree(workload.params))
    state = rule.init(params)
    for k, inputs in enumerate(workload.inputs):
        given = {"params": params, "grads": tree_map(backend.to, workload.tree(inputs)), "state": state}
        before = {path: (leaf, _words(leaf, backend)) for path, leaf in flatten(given)}
        result, raised = None, ""
        try:
            result = step(*given.values(), **extras(rule, params))
        except Exception:
            raised = "the step raised\n" + traceback.format_exc(limit=-4)
            if k != stop:
                raise _Wrong(k, raised) from None
        after = dict(flatten(given))
        for path in sorted(before.keys() | after.keys()):
            leaf, words = before.get(path, (None, None))
            if after.get(path) is not leaf or _words(leaf, backend) not in (words, None):
                raise _Wrong(k, f"the step changed its inputs: {path}", path)
        if k == stop and not raised:
            raise _Wrong(k, "a gradient holds inf or NaN, and the step did not raise as nonfinite='raise' wants")
        if k == stop:
            return
        params, state = _pair(result, rule, k)
        try:
            seen = backend.read(params, state)
        except Exception as error:
            raise _Wrong(k, f"the step returned what {backend.name} cannot read as arrays: {error}") from error
        yield seen


def _words(leaf: Any, backend: Backend) -> tuple[Any, ...] | None:
    """Dtype, shape and bytes of a leaf; None for no leaf and for a donated JAX array, which cannot be read."""
    if leaf is None or getattr(leaf, "is_deleted", bool)():
        return None
    array = backend.back(leaf)
    return array.dtype, array.shape, array.tobytes()


def _pair(result: Any, rule: sc.Rule, step: int) -> tuple[Any, Any]:
    """What a step returned, if that is params and state."""
    size = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
    if size != " of 2":
        raise _Wrong(step, f"the step returned a {type(result).__name__}{size} where (params, state) belongs")
    params, state = result
    if getattr(state, "_fields", None) != rule.State._fields:
        wanted = f"{rule.State.__name__}({', '.join(rule.State._fields)})"
        raise _Wrong(step, f"the step returned a {type(state).__name__} as state where {wanted} belongs", "state")
    return params, state
