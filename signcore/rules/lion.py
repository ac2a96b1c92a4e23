"""Lion, evolved sign momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Hyper, Number, number
from ..marks import OwnLate, Shared, Stream, Vote
from ..ops import ema, flush
from ..voting import SignRule


class LionMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class LionState(NamedTuple):
    step: Shared  # int32, steps done
    m: OwnLate  # state dtype, slow average of the gradients, 0 at first
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class Lion(SignRule):
    """Sign of a fast average that is formed from a slow one.

    ::

        c     = beta1*m + (1 - beta1)*g
        m     = beta2*m + (1 - beta2)*g
        delta = -(lr * (sign(c) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-4
        Step of every coordinate, at least 0; the authors' default, 3 to 10 times below AdamW's.
    beta1 : float, default 0.9
        Weight of the past in the direction, in [0, 1); the paper's.
    beta2 : float, default 0.99
        Weight of the past in the state, in [0, 1); the paper's. (0.95, 0.98) is its advice for stability.
    weight_decay : float, default 0.0
        Decoupled, at least 0. With decay every coordinate ends within ``1/weight_decay`` of zero.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; published code for the distributed form sends -1.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    With ``beta1 == beta2`` the direction equals the new state and Lion is Signum. In the distributed form
    (arXiv 2404.00438) each worker averages its own gradients and the signs are voted on.
    Deviations: both averages are two rounded products and a sum, never the interpolation
    ``m + (1 - beta)*(g - m)`` of some implementations, whose bits differ.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.Lion(lr=0.5, beta1=0.5, beta2=0.75)
    >>> p = np.asarray([1.0, 1.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([4.0, -1.0], dtype=np.float32), rule.init(p))
    >>> p, state.m
    (array([0.5, 1.5], dtype=float32), array([ 1.  , -0.25], dtype=float32))
    """

    lr: Number = number(1e-4)
    beta1: Number = number(0.9, below=1.0)
    beta2: Number = number(0.99, below=1.0)

    State = LionState
    Message = LionMessage

    def argument_leaf(self, p: Any, g: Any, s: LionState, h: Hyper, noise: Any) -> tuple[Any, LionState]:
        g = flush(g)
        c = ema(h.beta1, s.m, g)
        return c, s._replace(m=ema(h.beta2, s.m, g))
