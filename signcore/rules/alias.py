"""ALIAS, sign descent that finds its own rate (Medyakov et al., ICLR 2026, arXiv 2506.03725, options I and II)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..estimator import TwoPoints
from ..fields import Hyper
from ..marks import Copy, OwnCopy, PerLeaf, Scalar, Shared, Stream, Vote
from ..ops import flush


class ALIASMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class ALIASState(NamedTuple):
    step: Shared  # int32, steps done
    eta: Scalar  # l_inf0 and all ratios, 0 at first
    gap: Scalar  # f(x_0) - lower_bound, of option II
    d: Scalar  # estimate of f(x_0) - min f, of option I
    total: Scalar  # sum of <g, x_prev - p>, of option I
    g_prev: OwnCopy  # params' dtype, gradient of the last update; not with sample="same"
    x_prev: Copy  # params' dtype, parameters of the last update
    started: PerLeaf  # int32, 1 once the leaf has these two
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class ALIAS(TwoPoints):
    """Sign descent at the best constant rate in hindsight, as far as the past tells it.

    ::

        eta   = eta + |g - g_prev|_1 / |x_prev - p|_inf, from l_inf0 on
        total = total + <g, x_prev - p>
        gap   = max(gap, total), from d0 on; or without d0: f(x_0) - lower_bound
        lr    = lr * min(gamma_max, sqrt(gap/eta))
        delta = -(lr * (sign(g) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1.0
        Factor of the rate, dimensionless; 1 is the paper, which has no learning rate.
    l_inf0 : float, default 100.0
        First estimate of the smoothness, above 0; it stays in the sum, as in the authors' code, whose scripts take 100.
        Too large, the first steps are too small; a tenth makes them sqrt(10) times longer, until the ratios dominate.
    lower_bound : float, default 0.0
        Of option II, below the loss of the first step, which `value=` passes; 0 in all scripts. With `maximize` the
        value is what is raised, and this is below its negative: minus an upper bound.
    d0 : float, optional
        Takes option I: a guess of f(x_0) - min f from below, above 0; needs no loss, and allows no `lower_bound`. Too
        small, many steps are lost until d has grown. None, the scripts' choice, is option II, the better one in noise.
    gamma_max : float, optional
        Ceiling of the rate before `lr`, above 0. None is the paper; 1e-3 is the ceiling that the code hides.
    update_gap : int, default 1
        The estimates change in every so many-th step, with differences over as many; the scripts take 10 and 20. Under
        noise the rate grows with its square.
    warmup_steps : int, default 0
        So many steps at `warmup_lr` (default 1e-3, the scripts') come first; a multiple of `update_gap`.
    warmup_lr : float, array or schedule, default 1e-3
        Rate of the warm-up; without one it does nothing.
    scope : {"global", "group", "leaf"}, default "global"
        What has a rate of its own; the paper has one, the code one per group.
    sample : {"consecutive", "same"}, default "consecutive"
        Whether g_prev is the last gradient, of another sample (the published runs), or this sample at x_prev (the
        theory), from `grad_fn=`.
    weight_decay : float, default 0.0
        Decoupled, at the rate found, at least 0.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the paper's.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; no state is of `state_dtype`.

    Notes
    -----
    For f -> 4f with l_inf0, lower_bound and d0 times 4, and for x -> 2x with l_inf0/4, steps are the same to the bit.
    For convex f and one worker d stays below f(x_0) - min f. Workers send signs and two numbers, whose means are used:
    the vote withstands hostile workers, a mean does not. One that sends NaN or 1e30 spoils the rate of all; where
    workers are not trusted, take a rule with a fixed rate. A scope that begins late has the gap of the others.
    Deviations: total has the displacement as it was, decay and gaps included; a step that moved nothing adds no ratio.
    With `nonfinite="propagate"` one gradient that is not finite, or an eta that overflows, spoils every later rate.

    Raises
    ------
    ValueError
        A number out of range, an unknown option, `update_gap` does not divide `warmup_steps`; in the first step, a loss
        that is not above `lower_bound`. Where values are unknown (under jit, on a GPU) that makes the parameters NaN.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.ALIAS(l_inf0=4.0)
    >>> x = np.asarray([3.0], dtype=np.float32)  # f(x) = 2 x^2: the rates are 3/sqrt(2 (t + 1))
    >>> x, state = rule.step(x, 4 * x, rule.init(x), value=18.0)
    >>> x, state = rule.step(x, 4 * x, state)
    >>> x, state.eta
    (array([-0.62132025], dtype=float32), array(8., dtype=float32))
    """

    State = ALIASState
    Message = ALIASMessage

    def argument_leaf(self, p: Any, g: Any, s: ALIASState, h: Hyper, noise: Any) -> tuple[Any, ALIASState]:
        g = flush(g)
        return g, self.remembered(p, g, s, h)
