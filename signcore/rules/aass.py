"""AASS, Accelerated Arcsine SignSGD: momentum of signs (Korata Hiu, koratahiu.github.io/aass, 2026, sections 2-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Hyper, Number, number, option
from ..marks import PerElement, Shared, Stream, Vote
from ..ops import arcsin4pi, clamp, complement, descent, ema, product, quotient, rounded, sqrt, where
from ..voting import SignRule


class AASSMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class AASSState(NamedTuple):
    step: Shared  # int32, steps done
    m: PerElement  # state dtype, average of the signs, in [-1, 1], 0 at first
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class AASS(SignRule):
    """Normalization-then-Momentum: the average of signs, answered linearly or by an arcsine.

    ::

        s     = sign(g)
        m0, m = m, beta*m + (1 - beta)*s
        u     = m                                                     response="linear"
                (4/pi)*arcsin(min(max(m, -(1 - eps)), 1 - eps))       response="arcsine", variance="current"
                (4/pi)*atan2(m, sqrt(max(1 - m0*m0, 1e-30)))          response="arcsine", variance="lagged"
        delta = -(lr * (u + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-4
        Step at |u| = 1, at least 0; the default of the author's code. At full confidence a coordinate
        moves by ``2*lr``, so halve a learning rate that was tuned for signSGD.
    beta : float, default 0.9
        Weight of the past, in [0, 1); the author's example.
    eps : float, default 1e-6
        Clamp of the current-variance arcsine, in [0, 0.01); the author's. It caps |u| at 1.9982. The linear and the
        lagged response have no clamp, so it does nothing there.
    response : {"arcsine", "linear"}, default "arcsine"
        "linear" is the author's NtM-SignSGD.
    variance : {"current", "lagged"}, default "current"
        "current" is the published formula; "lagged" takes the variance from the average before the
        update, as the author's released code does. Needs the arcsine.
    weight_decay : float, default 0.0
        Decoupled, at least 0; the author has none.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is. "plus" lets units without gradient drift.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    m starts at 0 without correction, so the first ``1/(1 - beta)`` steps warm up. Multiplying each gradient
    by its own positive number changes nothing. Under a vote the signs are aggregated and every node keeps
    the same m. Deviations: the lagged atan2 is evaluated as an arcsine of the smaller side over the
    hypotenuse, a correctly rounded quotient, which is the same function.

    Raises
    ------
    ValueError
        A number out of range, an unknown option, or variance="lagged" with response="linear".

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.AASS(lr=1.0, beta=0.9)
    >>> p = np.asarray([0.0, 0.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([5.0, -1e-3], dtype=np.float32), rule.init(p))
    >>> p, state.m
    (array([-0.12753715,  0.12753715], dtype=float32), array([ 0.10000002, -0.10000002], dtype=float32))
    """

    lr: Number = number(1e-4)
    beta: Number = number(0.9, below=1.0)
    eps: Number = number(1e-6, below=1e-2)
    response: str = option("arcsine", ("arcsine", "linear"))
    variance: str = option("current", ("current", "lagged"))

    State = AASSState
    Message = AASSMessage

    def check(self) -> None:
        if self.response == "linear" and self.variance == "lagged":
            raise ValueError("`variance` is 'lagged' and `response` is 'linear', which has no variance; drop one")

    def argument_leaf(self, p: Any, g: Any, s: AASSState, h: Hyper, noise: Any) -> tuple[Any, AASSState]:
        return g, s

    def apply_leaf(self, p: Any, aggregate: AASSMessage, s: AASSState, h: Hyper) -> tuple[Any, AASSState]:
        m = ema(h.beta, s.m, aggregate.sign)
        if self.response == "linear":
            u = m
        elif self.variance == "current":
            u = arcsin4pi(clamp(m, complement(h.eps, m)))
        else:
            u = _lagged(m, s.m)
        return descent(h.lr, u, h.weight_decay, p), s._replace(m=m)


def _lagged(m: Any, before: Any) -> Any:
    """``(4/pi)*atan2(m, sqrt(max(1 - before**2, 1e-30)))``, by the arcsine of the smaller side."""
    size = where(m < 0.0, -m, m)
    tiny = rounded(1e-30, "float32")
    variance = 1.0 - product(before, before)
    variance = where(variance < tiny, tiny, variance)
    sigma = sqrt(variance)
    hypotenuse = sqrt(product(m, m) + variance)
    u = arcsin4pi(quotient(where(size > sigma, sigma, size), hypotenuse))
    u = where(size > sigma, 2.0 - u, u)
    return where(m < 0.0, -u, u)
