"""StoSignSGD: stochastic signs, each coordinate in units of its largest momentum (Yu et al. 2026, arXiv 2604.15416)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Hyper, Number, number
from ..marks import Own, Shared, Stream, Vote
from ..ops import ema, flush, where
from ..sampling import drawn
from ..voting import SignRule


class StoSignSGDMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class StoSignSGDState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, 0 at first
    peak: Own  # state dtype, largest |m| so far
    stream: Stream  # two int32 words per leaf, each worker's own


@dataclass(frozen=True, kw_only=True, eq=False)
class StoSignSGD(SignRule):
    """Signs whose mean is the momentum divided by its largest magnitude so far, coordinate by coordinate.

    ::

        m     = beta*m + (1 - beta)*g
        peak  = max(peak, |m|)
        s     = sign(m + peak*z), z uniform on [-1, 1)
        delta = -(lr * (s + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0; the default is ours, that of signSGD.
    beta : float, default 0.9
        Weight of the past, in [0, 1); ours, that of Signum.
    weight_decay : float, default 0.0
        Decoupled, at least 0.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What is sent of a coordinate that has never had a gradient. A zero after others is a coin.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`; each worker's noise is its own.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    The update as in the practical form of Dingzhi Yu, Rui Pan, Yuxing Liu and Tong Zhang (2026), with momentum and
    decoupled decay. As |m| never exceeds the peak, the mean of s is ``m/peak``: exactly where that is a multiple of
    2**-23, and within 2**-23 elsewhere. The peak never decays, so one outlier slows a coordinate for ever. Deviations:
    the sign is +1 where ``peak*z < m`` for one of 2**24 values of z, so that the mean is met.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.StoSignSGD(lr=0.25, beta=0.5)
    >>> p = np.zeros(3, np.float32)
    >>> p, state = rule.step(p, np.asarray([8.0, -2.0, 0.0], dtype=np.float32), rule.init(p))
    >>> p, state = rule.step(p, np.asarray([-2.0, -2.0, 0.0], dtype=np.float32), state)
    >>> state.m, state.peak
    (array([ 1. , -1.5,  0. ], dtype=float32), array([4. , 1.5, 0. ], dtype=float32))
    """

    lr: Number = number(1e-3)
    beta: Number = number(0.9, below=1.0)

    State = StoSignSGDState
    Message = StoSignSGDMessage

    @property
    def draws_noise(self) -> bool:
        return True

    def argument_leaf(self, p: Any, g: Any, s: StoSignSGDState, h: Hyper, noise: Any) -> tuple[Any, StoSignSGDState]:
        m = ema(h.beta, s.m, flush(g))
        size = where(m < 0.0, -m, m)
        peak = where(size > s.peak, size, s.peak)
        return drawn(m, peak, noise), s._replace(m=m, peak=peak)
