"""SOS, search of the optimal step size: sign descent at a constant rate that bisection finds (arXiv 2506.03725v3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from . import checks, sums
from .rule import Rule, rule
from .tree import flatten, unflatten

__all__ = ["Found", "sos"]


class Found(NamedTuple):
    """What a search found."""

    lr: float  # the rate
    params: Any  # where the run at that rate ended
    runs: int  # how many runs the search took
    bracketed: bool  # False if no rate was too large, or the first one was


class _Run(NamedTuple):
    """One probe."""

    params: Any
    phi: float  # the rate that the run says was right; 0 for one that diverged


def sos(
    params: Any,
    grad_fn: Callable[[Any], Any],
    steps: int,
    *,
    value_fn: Callable[[Any], Any] | None = None,
    lower_bound: float | None = None,
    start: float = 1e-8,
    max_runs: int = 64,
    with_rule: Rule | None = None,
) -> Found:
    """The constant rate at which ``lr = N(lr)/D(lr)`` over a run, within a factor of two (experimental).

    ``D`` is the sum of ``|g_{t+1} - g_t|_1`` and ``N`` the largest sum of ``<g_{t+1}, x_t - x_{t+1}>`` along the
    run, or ``f(x_0) - lower_bound``. Rates are squared in number of doublings until one is above its ``N/D``; then the
    bracket is halved in the logarithm until it is a factor of two wide. Its lower end is returned.

    Parameters
    ----------
    params : array or tree of arrays
        x_0 of every run.
    grad_fn : function of params
        Full gradients; each probe is a run of its own.
    steps : int
        T, at least 1, of each run.
    value_fn : function of params, optional
        The loss; needed with `lower_bound`, and otherwise only to see that a run diverged.
    lower_bound : float, optional
        Below the loss. None, the default because it needs no knowledge, takes N along the run.
    start : float, default 1e-8
        The first and smallest rate, above 0; a run at it should be too short to get anywhere. 1e-8 is ours.
    max_runs : int, default 64
        After so many runs the lower end is returned as it is; 11 are usual from 1e-8 on.
    with_rule : Rule, optional
        Another rule than signSGD, whose lr the search sets; its own N is the same, of the displacement as it was. One
        whose steps need gradients alone.

    Returns
    -------
    Found

    Raises
    ------
    TypeError, ValueError
        An argument is out of range; `lower_bound` without `value_fn`, or not below f(x_0).

    Notes
    -----
    A reconstruction in the style of Carmon and Hinder (2022) from a summary of the paper's version 3; its last version
    has no such algorithm. A run that meets a number that is not finite counts as one whose rate was too large.

    Examples
    --------
    >>> import numpy as np
    >>> found = sos(np.asarray([3.0]), lambda x: x, steps=100)  # sqrt(4.5/100) would be 0.2121
    >>> round(found.lr, 5), found.runs
    (0.16777, 11)
    """
    checks.count("steps", steps, 1)
    checks.count("max_runs", max_runs, 1)
    for name, number in (("start", start), ("lower_bound", lower_bound)):
        if not (checks.is_number(number) or (name == "lower_bound" and number is None)):
            raise TypeError(f"`{name}` is {number!r}; pass a number")
    checks.number("start", start, checks.Range(2.0**-100))
    checks.function("grad_fn", grad_fn, "gradients")
    if value_fn is not None:
        checks.function("value_fn", value_fn, "the loss")
    used = rule("signsgd") if with_rule is None else with_rule
    checks.is_rule("with_rule", used, Rule)
    if used.needs:
        raise ValueError(
            f"`with_rule` needs {', '.join(sorted(used.needs))} ({type(used).__name__}); pass a rule whose steps need "
            f"gradients alone, which is all that a search gives them"
        )
    gap = None
    if lower_bound is not None:
        if value_fn is None:
            raise TypeError(
                f"`value_fn` is missing and `lower_bound` is {lower_bound!r}; pass the loss, a function of params"
            )
        first = _loss(value_fn, params)
        gap = first - lower_bound
        if not gap > 0.0:
            raise ValueError(
                f"`value_fn(params)` is {first!r} and `lower_bound` is {lower_bound!r}; pass a smaller one"
            )
    runs = 0

    def probe(lr: float) -> _Run:
        nonlocal runs
        runs += 1
        return _run(used, params, grad_fn, value_fn, steps, lr, gap)

    low, best = start, probe(start)
    if low > best.phi:
        return Found(low, best.params, runs, False)
    high, k = low, 0
    while runs < max_runs:
        # 2**(2**k): doublings of the exponent, so that the number of runs is the logarithm of a logarithm
        high = start * 2.0 ** min(2**k, 1000)
        made = probe(high)
        if high > made.phi or not math.isfinite(high):
            break
        low, best, k = high, made, k + 1
    else:
        return Found(low, best.params, runs, False)
    while high > 2.0 * low and runs < max_runs:
        middle = math.sqrt(low) * math.sqrt(high)
        made = probe(middle)
        if middle <= made.phi:
            low, best = middle, made
        else:
            high = middle
    return Found(low, best.params, runs, True)


def _run(used: Rule, params: Any, grad_fn: Any, value_fn: Any, steps: int, lr: float, gap: float | None) -> _Run:
    """A run, and N/D of it: of exact sums over the tree, added up as Python's floats."""
    x, state, descended, most, turned = params, used.init(params), 0.0, 0.0, 0.0
    g = _gradients(grad_fn, x)
    for _ in range(steps):
        try:
            new, state = used.step(x, g, state, hyper={"lr": lr})
        except FloatingPointError:  # nonfinite="raise"
            return _Run(x, 0.0)
        after = _gradients(grad_fn, new)
        turned += float(sums.norm1(_difference(after, g)))
        descended += float(sums.exact_dot(after, _difference(x, new)))
        most = max(most, descended)
        x, g = new, after
        if not math.isfinite(turned + descended) or (value_fn is not None and not math.isfinite(_loss(value_fn, x))):
            return _Run(x, 0.0)
    found = most if gap is None else gap
    return _Run(x, found / turned if turned > 0.0 else math.inf)


def _gradients(grad_fn: Any, params: Any) -> Any:
    grads = grad_fn(params)
    checks.returned("grad_fn(params)", grads, "gradients, a tree like the params")
    return grads


def _loss(value_fn: Any, params: Any) -> float:
    value = value_fn(params)
    checks.loss_of(value)
    return float(value)


def _difference(x: Any, y: Any) -> Any:
    pairs = zip(flatten(x), flatten(y), strict=True)
    return unflatten(x, [None if a.value is None or b.value is None else a.value - b.value for a, b in pairs])
