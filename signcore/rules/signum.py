"""Signum: signSGD with momentum (Bernstein et al. 2018, arXiv 1802.04434, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import checks
from ..fields import Hyper, Number, flag, number, option
from ..marks import Own, PerLeaf, Shared, Stream, Vote
from ..ops import complement, ema, flush, product, where
from ..voting import SignRule


class SignumMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class SignumState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, 0 at first
    started: PerLeaf  # int32, 1 once the leaf has a velocity, only for form="heavy_ball"
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class Signum(SignRule):
    """Sign of an exponential average of the gradients.

    ::

        m     = beta*m + (1 - beta)*g
        u     = m, or with nesterov: beta*m + (1 - beta)*g with the new m
        delta = -(lr * (sign(u) + weight_decay*p))

    and with ``form="heavy_ball"``::

        m     = g at first, then beta*m + (1 - dampening)*g
        u     = m, or with nesterov: g + beta*m with the new m

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0; the notebooks that accompany the paper use 1e-3 and 1e-4.
    beta : float, default 0.9
        Weight of the past, in [0, 1); the value of Bernstein et al. 2019 (arXiv 1810.05291). 0 is signSGD.
    nesterov : bool, default False
        Look ahead by one average: the sign of ``g + mu*v`` with heavy-ball ``v = m/(1 - beta)``, scaled
        by ``1 - beta``, which no sign sees.
    form : {"average", "heavy_ball"}, default "average"
        The paper's average, or the velocity of torch's SGD, which starts at the first gradient.
    dampening : float, default 0.0
        Of the heavy ball, in [0, 1]; it does not damp the first gradient. 0, torch's default, gives the signs of
        the average.
    weight_decay : float, default 0.0
        Decoupled, at least 0: not seen by the momentum.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the papers' definition.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    There is no bias correction: a positive factor does not change a sign. The average starts at zero,
    not at the first gradient, and under a vote each worker keeps its own (arXiv 1810.05291, algorithm 1).
    The undamped heavy ball is ``m/(1 - beta)``; damped, the first gradient counts ``1/(1 - dampening)`` times more.
    Deviations: weight decay is decoupled; the paper's warm-up of plain signs is left to the caller.

    Raises
    ------
    ValueError
        A number out of range, an unknown option, or dampening of an average.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.Signum(lr=0.25, beta=0.5)
    >>> p = np.asarray([0.0, 0.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([1.0, -8.0], dtype=np.float32), rule.init(p))
    >>> p, state = rule.step(p, np.asarray([-2.0, 2.0], dtype=np.float32), state)
    >>> p, state.m
    (array([0. , 0.5], dtype=float32), array([-0.75, -1.  ], dtype=float32))
    """

    lr: Number = number(1e-3)
    beta: Number = number(0.9, below=1.0)
    nesterov: bool = flag(False)
    form: str = option("average", ("average", "heavy_ball"))
    dampening: Number = number(0.0, maximum=1.0)

    State = SignumState
    Message = SignumMessage

    def check(self) -> None:
        if self.form == "average" and checks.is_number(self.dampening) and self.dampening != 0:
            raise ValueError(f"`dampening` is {self.dampening!r} and `form` is 'average'; pass form='heavy_ball'")

    def unused(self) -> set[str]:
        """No flag without a first gradient that differs."""
        return super().unused() | ({"started"} if self.form == "average" else set())

    def argument_leaf(self, p: Any, g: Any, s: SignumState, h: Hyper, noise: Any) -> tuple[Any, SignumState]:
        g = flush(g)
        if self.form == "average":
            m = ema(h.beta, s.m, g)
            return ema(h.beta, m, g) if self.nesterov else m, s._replace(m=m)
        later = flush(product(h.beta, s.m) + product(complement(h.dampening, g), g))
        m = where(s.started > 0, later, g)
        u = g + product(h.beta, m) if self.nesterov else m
        return u, s._replace(m=m, started=s.started * 0 + 1)
