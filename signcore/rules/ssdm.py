"""SSDM, stochastic sign descent with momentum (Safaryan and Richtarik 2019, arXiv 1905.12938, algorithm 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..fields import Hyper, Number, number, option
from ..marks import MeanOfSigns, Own, Partial, PerLeaf, Shared, Stream
from ..ops import descent, ema, flush, sign, where
from ..rule import Rule
from ..sampling import drawn


class SSDMMessage(NamedTuple):
    sign: MeanOfSigns  # compute dtype, shape of the leaf, in {-1, 0, 1}


class SSDMState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, the first one at first
    started: PerLeaf  # int32, 1 once the leaf has an average
    stream: Stream  # two int32 words per leaf, each worker's own


@dataclass(frozen=True, kw_only=True, eq=False)
class SSDM(Rule):
    """Signs that are drawn at random, so that their mean is the direction of the momentum; the workers' are averaged.

    ::

        m     = g at first, then beta*m + (1 - beta)*g
        s     = +1 with probability (1 + m/norm(m))/2, else -1
        delta = -(lr * (mean over workers of s + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule
        Step of a coordinate on which all workers agree, at least 0; no default, as in the paper, whose theory takes
        ``K**-0.75`` for K steps. It is some ``sqrt(d)`` times below signSGD's for d coordinates: most of each step is
        noise, ``lr*sqrt(d/M)`` long for M workers, and what is left of the mean has length lr.
    beta : float, default 0.9
        Weight of the past, in [0, 1); the theory takes ``1 - K**-0.5``. The default is ours: that of Signum.
    scope : {"global", "leaf"}, default "global"
        Whose l2 norm it is: the whole model's, as in the paper, or each leaf's, which is less noisy but has each leaf's
        own direction as its mean, so that leaves of small gradients count for as much as others.
    weight_decay : float, default 0.0
        Decoupled, at least 0; the paper has none.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What is sent when the whole m is 0: the paper's 0, or what needs one bit only. A zero among others is a coin.
    seed : int, default 0
        Of the draws; every worker has streams of its own (``init(params, worker=n)``).
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    ``norm(m) * s`` has the mean m, exactly where m/norm(m) is a multiple of 2**-23 and within 2**-23 of the norm
    elsewhere. The mean of the signs is the integer sum that the paper's server forms, divided by M in one rounding.
    A worker's norm is of its own m, no matter over how many devices that is sharded. Workers that drew the same noise
    would not average it away. Deviations: weight decay, the options `scope` and `sign_zero`, and that a leaf that
    joins late starts at its own first gradient.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.SSDM(lr=0.5)
    >>> p, g = np.zeros(4, np.float32), np.asarray([2.0, -2.0, 0.5, 0.0], dtype=np.float32)
    >>> p, state = rule.step(p, g, rule.init(p))
    >>> p, state.m
    (array([-0.5,  0.5, -0.5, -0.5], dtype=float32), array([ 2. , -2. ,  0.5,  0. ], dtype=float32))
    """

    beta: Number = number(0.9, below=1.0)
    scope: str = option("global", ("global", "leaf"))
    sign_zero: str = option("zero", ("zero", "plus", "minus", "random"))
    seed: int = 0

    State = SSDMState
    Message = SSDMMessage
    PARTIALS: ClassVar[Mapping[str, Partial]] = {**Rule.PARTIALS, "norm": Partial("sum", "shards", "norm2")}

    @property
    def draws_noise(self) -> bool:
        return True

    def measure_leaf(self, p: Any, g: Any, s: SSDMState, h: Hyper) -> dict[str, Any]:
        return {"norm": _average(g, s, h)}

    def message_leaf(self, p: Any, g: Any, s: SSDMState, h: Hyper, noise: Any) -> tuple[SSDMMessage, SSDMState]:
        m = _average(g, s, h)
        drew = sign(drawn(m, h.norm, noise), self.sign_zero, noise)
        return SSDMMessage(drew), s._replace(m=m, started=s.started * 0 + 1)

    def apply_leaf(self, p: Any, aggregate: SSDMMessage, s: SSDMState, h: Hyper) -> tuple[Any, SSDMState]:
        return descent(h.lr, aggregate.sign, h.weight_decay, p), s


def _average(g: Any, s: SSDMState, h: Hyper) -> Any:
    g = flush(g)
    return where(s.started > 0, ema(h.beta, s.m, g), g)
