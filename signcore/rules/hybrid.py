"""Hybrid: Signum, then SGD at a rate calibrated by projection (Chen and Wang 2026, arXiv 2604.25550, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..calibration import Calibrated
from ..dtypes import name_of
from ..fields import Hyper, Number, flag, number
from ..frameworks import is_traced, to_numpy
from ..marks import Mean, Own, Scalar, Shared, Stream, Vote
from ..normal import normal
from ..ops import cast, descent, ema, flush, product, sign, sqrt, where
from ..powers import power


class HybridMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}; what counts before the switch
    gradient: Mean  # compute dtype, shape of the leaf: the average m; what counts after it


class HybridState(NamedTuple):
    step: Shared  # int32, steps done
    switched: Shared  # int32, 1 once the steps are SGD's
    m: Own  # state dtype, average of the gradients, 0 at first
    lbar: Scalar  # average of lambda per unit of lr, 0 at first, frozen by the switch
    share: Scalar  # the same average of ones, 1 - eta^k; for bias_correction and the automatic switch
    stream: Stream  # two int32 words per leaf, only with noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Hybrid(Calibrated):
    """Signum finds the way and the scale, SGD finishes.

    ::

        m      = beta*m + (1 - beta)*g;  after the switch momentum*m + (1 - momentum)*g
        lambda = |<sign(m), g>| / (|g|_2^2 + eps)        over all parameters, until the switch
        lbar   = eta*lbar + (1 - eta)*lambda             until the switch
        rate   = lbar, or with bias_correction lbar/(1 - eta^k); at most lr_max/lr
        u      = sign(m);  dithered: sign(m + sqrt(alpha*(1 + k)^-gamma)*z), z normal;  after the switch rate*m
        delta  = -(lr * (u + weight_decay*p))
        switch when k steps are done, k = switch_step or switch_epoch*steps_per_epoch; without these, as SWATS does,
               when lr*|lbar/(1 - eta^k) - lambda| < tolerance, k > 1

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0; the paper gives none, it is Signum's here. SGD's rate is ``lr*lbar``,
        the paper's for a constant lr; a schedule, or an `lr` passed with a call, scales both phases alike.
    beta, eta : float, default 0.9 and 0.99
        Weights of the past in m and lbar, in [0, 1); the paper gives neither.
    eps : float, default 1e-8
        At least 0. Where ``|g|^2`` is below it, lambda collapses.
    switch_step, switch_epoch, steps_per_epoch : int, optional
        Length of the first phase, at least 1, in steps or in epochs of `steps_per_epoch` steps. The paper requires the
        user to choose: 25 epochs for CIFAR-10, 60 for CIFAR-100. None of them, the default, is the trigger of SWATS
        (Keskar and Socher 2017, arXiv 1712.07628), because no number would do for every run's length, and that trigger
        has none to choose. It waits while lr is 0.
    tolerance : float, default 1e-9
        Of that trigger, in the unit of a rate, at least 0; SWATS's. Not beside a length.
    bias_correction : bool, default False
        Undo that lbar starts at 0; the paper does not. Small after 1/(1 - eta) steps.
    lr_max : float, optional
        Ceiling of SGD's rate, above 0; None is the paper. lambda is about ``sqrt(d)/|g|_2``: outliers may dominate it.
    momentum : float, default 0.0
        Of SGD, in [0, 1); 0 is the paper's. m goes on instead of starting anew, so m is all there is to store.
    dithered : bool, default False
        Noise before the sign, in the first phase; lambda does not see it.
    alpha, gamma : float, default 0.1 and 0.55
        Its variance at first and how fast it falls, at least 0; the paper's. Of no effect where not `dithered`.
    weight_decay : float, default 0.0
        Decoupled, at least 0, by ``lr*weight_decay`` in both phases: the switch does not change it.
    sign_zero, ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`; in lambda sign(0) is 0.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    With eta = 0 the first step of SGD is the projection on g of the last of Signum. Several workers vote, then average:
    lambda is of the means over workers of ``<sign(m), g>`` and ``|g|^2``; this is ours, the paper has one worker.
    Deviations: lbar is per unit of lr; a switch waits until lbar is positive, with 0 nothing would ever move.

    Raises
    ------
    TypeError, ValueError
        A number out of range, an unknown option, a switch step of 0, two kinds of switch, epochs without their length.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.Hybrid(lr=0.5, switch_step=1, eta=0.0, eps=0.0)
    >>> p, g = np.zeros(4, dtype=np.float32), np.asarray([3.0, -1.0, 1.0, 1.0], dtype=np.float32)
    >>> p, state = rule.step(p, g, rule.init(p))
    >>> p, state.lbar
    (array([-0.5,  0.5, -0.5, -0.5], dtype=float32), array(0.5, dtype=float32))
    >>> rule.step(p, g, state)[0]
    array([-1.25,  0.75, -0.75, -0.75], dtype=float32)
    """

    lr: Number = number(1e-3)
    beta: Number = number(0.9, below=1.0)
    momentum: Number = number(0.0, below=1.0)
    dithered: bool = flag(False)
    alpha: Number = number(0.1)
    gamma: Number = number(0.55)

    State = HybridState
    Message = HybridMessage

    @property
    def draws_noise(self) -> bool:
        return self.dithered or self.sign_zero == "random"

    def sends(self, state: HybridState) -> tuple[str, ...]:
        if is_traced(state.switched):
            return ("sign", "gradient")
        return ("gradient",) if int(to_numpy(state.switched)) else ("sign",)

    def measure_leaf(self, p: Any, g: Any, s: HybridState, h: Hyper) -> dict[str, Any]:
        g = flush(g)
        return {"inner": sign(ema(h.beta, s.m, g)) * g, "square": (g, g)}  # products with signs are exact

    def advance(self, found: dict[str, Any], s: HybridState, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        seen, new = super().advance(found, s, h)
        if self.dithered:
            k = where(s.step < 2**31 - 1, s.step, 2**31 - 2)
            seen["sigma"] = sqrt(flush(product(h.alpha, cast(power(k + 1, h.gamma), s.lbar.dtype))))
        return seen, new

    def message_leaf(self, p: Any, g: Any, s: HybridState, h: Hyper, noise: Any) -> tuple[Any, HybridState]:
        g = flush(g)
        u = m = where(s.switched > 0, ema(h.momentum, s.m, g), ema(h.beta, s.m, g))
        if self.dithered:
            u = flush(m + product(h.sigma, normal(noise, name_of(m.dtype))))
        return HybridMessage(sign(u, self.sign_zero, noise), m), s._replace(m=m)

    def apply_leaf(self, p: Any, aggregate: HybridMessage, s: HybridState, h: Hyper) -> tuple[Any, HybridState]:
        u = where(s.switched > 0, flush(product(h.rate, aggregate.gradient)), aggregate.sign)
        return descent(h.lr, u, h.weight_decay, p), s
