"""ALIAS with momentum and a schedule: ours, with the rate of Medyakov et al. (arXiv 2506.03725, options I and II)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..estimator import TwoPoints
from ..fields import Hyper, Number, number
from ..marks import Copy, Own, OwnCopy, PerLeaf, Scalar, Shared, Stream, Vote
from ..ops import ema, flush


class ALIASMomentumMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class ALIASMomentumState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, 0 at first
    eta: Scalar  # l_inf0 and all ratios, 0 at first
    gap: Scalar  # f(x_0) - lower_bound, of option II
    d: Scalar  # estimate of f(x_0) - min f, of option I
    total: Scalar  # sum of <g, x_prev - p>, of option I
    g_prev: OwnCopy  # params' dtype, gradient of the last update; not with sample="same"
    x_prev: Copy  # params' dtype, parameters of the last update
    started: PerLeaf  # int32, 1 once the leaf has these two
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class ALIASMomentum(TwoPoints):
    """Signum at ALIAS's rate, times a schedule.

    ::

        eta   = eta + |g - g_prev|_1 / |x_prev - p|_inf, from l_inf0 on
        total = total + <g, x_prev - p>
        gap   = max(gap, total), from d0 on; or without d0: f(x_0) - lower_bound
        lr    = lr * min(gamma_max, sqrt(gap/eta))
        m     = beta*m + (1 - beta)*g
        delta = -(lr * (sign(m) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1.0
        Factor c_t of the rate, dimensionless. The published runs end by a cosine from 1 to 0.1; it enters the estimates
        by the displacement alone. 1, no schedule, is the default because a schedule needs to know how long a run is.
    beta : float, default 0.9
        Weight of the past, in [0, 1); Signum's. 0 is `signcore.ALIAS` to the bit, for finite gradients.
    l_inf0 : float, default 100.0
        First estimate of the smoothness, above 0; it stays in the sum. 100 is of the authors' scripts.
    lower_bound : float, default 0.0
        Of option II, below the loss of the first step, which `value=` passes; 0 in all of their scripts. With
        `maximize` below the negative of the value.
    d0 : float, optional
        Takes option I: a guess of f(x_0) - min f from below, above 0; needs no loss, allows no `lower_bound`.
    gamma_max : float, optional
        Ceiling of the rate before `lr`, above 0; None is the paper, 1e-3 the ceiling that the code hides.
    update_gap : int, default 1
        The estimates change in every so many-th step, with differences over as many; 1 as in the paper and the
        code's constructor, 10 and 20 in the scripts.
    warmup_steps : int, default 0
        So many steps at `warmup_lr` come first; a multiple of `update_gap`. The momentum averages from the start.
    warmup_lr : float, array or schedule, default 1e-3
        Rate of the warm-up, not times `lr`; the scripts'. Without a warm-up it does nothing.
    scope : {"global", "group", "leaf"}, default "global"
        What has a rate of its own.
    sample : {"consecutive", "same"}, default "consecutive"
        Whether g_prev is the last gradient, of another sample, or this sample at x_prev, from `grad_fn=`.
    weight_decay : float, default 0.0
        Decoupled, at the rate found, at least 0; the authors' runs have 0, 1e-3 and 0.01.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the paper's.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`. Each worker averages its own gradients.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; `state_dtype` is m's.

    Notes
    -----
    Experimental: no paper has it, so there is no equation to name; the rate is as in `signcore.ALIAS`. The published
    code has an option of momentum that does nothing, because its buffer is never stored. Here eta is made of the raw
    gradients and of the displacement as it was, so that for convex f and one worker d stays below f(x_0) - min f
    whatever moved the parameters.
    Deviations from ALIAS: the sign is the average's, and `lr` is meant to be a schedule.

    Raises
    ------
    ValueError
        A number out of range, an unknown option, `update_gap` does not divide `warmup_steps`; in the first step, a loss
        that is not above `lower_bound`. Where values are unknown (under jit, on a GPU) that makes the parameters NaN.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.ALIASMomentum(beta=0.5, l_inf0=1.0, d0=4.0)
    >>> x = np.asarray([3.0], dtype=np.float32)
    >>> x, state = rule.step(x, x, rule.init(x))
    >>> x, state = rule.step(x, x, state)  # <g, x_prev - p> is 2, still below d0
    >>> x, state.m, state.total
    (array([-0.41421354], dtype=float32), array([1.25], dtype=float32), array(2., dtype=float32))
    """

    beta: Number = number(0.9, below=1.0)

    State = ALIASMomentumState
    Message = ALIASMomentumMessage

    def argument_leaf(self, p: Any, g: Any, s: ALIASMomentumState, h: Hyper, noise: Any) -> tuple[Any, Any]:
        g = flush(g)
        m = ema(h.beta, s.m, g)
        return m, self.remembered(p, g, s, h)._replace(m=m)
