"""ALIAS that keeps no gradient: the memory-efficient form of Medyakov et al. (arXiv 2506.03725), reconstructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..bounded import Bounded
from ..fields import Hyper
from ..marks import OwnPacked, PerLeaf, Scalar, Shared, Stream, Vote
from ..ops import flush


class ALIASCompactMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class ALIASCompactState(NamedTuple):
    step: Shared  # int32, steps done
    eta: Scalar  # l_inf0 and all ratios, 0 at first
    gap: Scalar  # f(x_0) - lower_bound, of option II
    d: Scalar  # estimate of f(x_0) - min f, of option I
    total: Scalar  # sum of <g, displacement>, of option I
    size: Scalar  # |g|_1 of the last gradient, of norm="agreement"
    most: Scalar  # its largest number, of the other two
    least: Scalar  # and its smallest
    rate: Scalar  # the last gamma, of option I
    moved: Scalar  # norm of the last displacement
    signs: OwnPacked  # uint8, a bit for each sign of the last gradient, of option I
    last: PerLeaf  # int32, the step of that gradient, from 1 on
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class ALIASCompact(Bounded):
    """ALIAS with a bound on |g - g_prev| from numbers, so that no array is kept; option I needs a bit per coordinate.

    ::

        bound = |g|_1 + |g_prev|_1, or of the extremes max(max g - min g_prev, max g_prev - min g)
        eta   = eta + bound/moved, from l_inf0 on; with norm="linf_d": n*bound/moved for n coordinates
        total = total + gamma_prev*<g, sign(g_prev)>
        gap   = max(gap, total), from d0 on; or without d0: f(x_0) - lower_bound
        lr    = lr * min(gamma_max, sqrt(gap/eta))
        moved = lr if any sign is not 0, else 0; with norm="l1inf": lr times the signs that are not
        delta = -(lr * (sign(g) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1.0
        Factor of the rate, dimensionless.
    norm : {"agreement", "linf_d", "l1inf"}, default "agreement"
        The bound. "agreement" (ours) and "linf_d" are above ALIAS's numerator, so that the rate is below ALIAS's;
        "linf_d" by far. "l1inf" divides the extremes by |displacement|_1, our reading of the paper: its rate may be n
        times too large and needs `gamma_max`. The first is the default because it is the tightest that is safe.
    l_inf0 : float, default 100.0
        First estimate of the smoothness, above 0; it stays in the sum. 100 is of the scripts for ALIAS.
    lower_bound : float, default 0.0
        Of option II, below the loss of the first step, which `value=` passes; 0 in all of those scripts. With
        `maximize` below the negative of the value.
    d0 : float, optional
        Takes option I, as in ALIAS; needs a sign_zero that fits in a bit, no weight_decay or lower_bound, and one
        worker. None is ALIAS's.
    gamma_max : float, optional
        Ceiling of the rate before `lr`, above 0. None is ALIAS's, whose code hides one of 1e-3.
    weight_decay : float, default 0.0
        Decoupled, at the rate found, at least 0. `moved` leaves it out, which errs on the side of a smaller rate.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the paper's.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; no state is of `state_dtype`.

    Notes
    -----
    Experimental: a reconstruction of what the paper describes as its memory-efficient form, whose denominator could not
    be read; no published code has it. The bounds do not vanish when g = g_prev, so eta grows in every step and the rate
    falls like 1/t: meant for gradients that are mostly noise. Several workers use the mean of |g|_1, the extremes of
    all, and signs before the vote: where all are tied nothing moves, and `moved` is lr all the same. Of a leaf without
    a gradient the next step takes nothing into total; a step without any gradient leaves all estimates.
    Deviations: the displacement is lr*sign(g), before it is rounded to the parameters' dtype.

    Raises
    ------
    ValueError
        A number out of range, an unknown option, "l1inf" without `gamma_max`, a `d0` with what it excludes; in the
        first step, a loss that is not above `lower_bound`. Where values are unknown that makes the parameters NaN.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.ALIASCompact(l_inf0=1.0)
    >>> x = np.asarray([3.0], dtype=np.float32)
    >>> x, state = rule.step(x, x, rule.init(x), value=4.0)  # a rate of 2
    >>> x, state = rule.step(x, x, state)  # eta = 1 + (1 + 3)/2
    >>> x, state.eta
    (array([-0.15470052], dtype=float32), array(3., dtype=float32))
    """

    State = ALIASCompactState
    Message = ALIASCompactMessage

    def argument_leaf(self, p: Any, g: Any, s: ALIASCompactState, h: Hyper, noise: Any) -> tuple[Any, Any]:
        return flush(g), self.marked(s)
