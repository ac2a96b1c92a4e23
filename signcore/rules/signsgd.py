"""signSGD: step against the sign of the gradient (Bernstein et al. 2018, arXiv 1802.04434, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Hyper, Number, number
from ..marks import Shared, Stream, Vote
from ..voting import SignRule


class SignSGDMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class SignSGDState(NamedTuple):
    step: Shared  # int32, steps done
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class SignSGD(SignRule):
    """signSGD, option 1 of Safaryan and Richtarik 2019 (arXiv 1905.12938, algorithm 1, equation 2).

    ::

        s     = sign(g)
        delta = -(lr * (s + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, in the parameters' unit, at least 0. 1e-3 is the value of the
        notebooks that accompany Bernstein et al.; it is on Adam's scale, not on SGD's.
    weight_decay : float, default 0.0
        Decoupled, at least 0; no paper decays by default.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is. 0 is the papers' definition; "plus" is what one-bit packing does.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; there is no per-element state.

    Notes
    -----
    Deviations: weight decay, which the papers do not have. A step does not change when all gradients
    are scaled by a positive factor.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.SignSGD(lr=0.25)
    >>> p = np.asarray([1.0, 1.0, 1.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([3.0, -1e-3, 0.0], dtype=np.float32), rule.init(p))
    >>> p
    array([0.75, 1.25, 1.  ], dtype=float32)
    """

    lr: Number = number(1e-3)

    State = SignSGDState
    Message = SignSGDMessage

    def argument_leaf(self, p: Any, g: Any, s: SignSGDState, h: Hyper, noise: Any) -> tuple[Any, SignSGDState]:
        return g, s
