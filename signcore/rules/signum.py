"""Signum: signSGD with momentum (Bernstein et al. 2018, arXiv 1802.04434, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Hyper, Number, flag, number, option
from ..marks import PerElement, Shared, Stream, Vote
from ..ops import descent, ema, flush, sign
from ..rule import Rule


class SignumMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class SignumState(NamedTuple):
    step: Shared  # int32, steps done
    m: PerElement  # state dtype, average of the gradients, 0 at first
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class Signum(Rule):
    """Sign of an exponential average of the gradients.

    ::

        m     = beta*m + (1 - beta)*g
        u     = m, or with nesterov: beta*m + (1 - beta)*g with the new m
        delta = -(lr * (sign(u) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0; the notebooks that accompany the paper use 1e-3 and 1e-4.
    beta : float, default 0.9
        Weight of the past, in [0, 1); the value of Bernstein et al. 2019 (arXiv 1810.05291). 0 is signSGD.
    nesterov : bool, default False
        Look ahead by one average: the sign of ``g + mu*v`` with heavy-ball ``v = m/(1 - beta)``, scaled
        by ``1 - beta``, which no sign sees.
    weight_decay : float, default 0.0
        Decoupled, at least 0: not seen by the momentum.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the papers' definition.
    seed : int, default 0
        Of the coins of ``sign_zero="random"``.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    There is no bias correction: a positive factor does not change a sign. The average starts at zero,
    not at the first gradient, and under a vote each worker keeps its own (arXiv 1810.05291, algorithm 1).
    Deviations: weight decay is decoupled; the paper's warm-up of plain signs is left to the caller.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

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
    sign_zero: str = option("zero", ("zero", "plus", "minus", "random"))
    seed: int = 0

    State = SignumState
    Message = SignumMessage

    @property
    def draws_noise(self) -> bool:
        return self.sign_zero == "random"

    def message_leaf(self, p: Any, g: Any, s: SignumState, h: Hyper, noise: Any) -> tuple[SignumMessage, SignumState]:
        g = flush(g)
        m = ema(h.beta, s.m, g)
        u = ema(h.beta, m, g) if self.nesterov else m
        return SignumMessage(sign(u, self.sign_zero, noise)), s._replace(m=m)

    def apply_leaf(self, p: Any, aggregate: SignumMessage, s: SignumState, h: Hyper) -> tuple[Any, SignumState]:
        return descent(h.lr, aggregate.sign, h.weight_decay, p), s
