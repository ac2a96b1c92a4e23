"""Noisy signSGD: the sign of the gradient plus noise (Chen et al. 2020, arXiv 1906.01736, algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..dtypes import name_of
from ..fields import Hyper, Number, number, option
from ..marks import Shared, Stream, Vote
from ..normal import normal
from ..ops import flush, product
from ..sampling import drawn
from ..voting import SignRule


class NoisySignSGDMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class NoisySignSGDState(NamedTuple):
    step: Shared  # int32, steps done
    stream: Stream  # two int32 words per leaf, each worker's own


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisySignSGD(SignRule):
    """signSGD with noise of a constant scale before the sign, which brings the workers' median close to their mean.

    ::

        s     = sign(g + b*z), z normal, or uniform on [-1, 1)
        delta = -(lr * (s + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0; that of signSGD.
    b : float, default 0.01
        Scale of the noise in the gradient's unit, at least 0. The theory wants ``(K*d)**0.25`` for K steps and d
        coordinates, far above any gradient, and steps to match; the paper requires the user to choose. The default is
        ours, so that there is one: the size of a coordinate of a small network's mini-batch gradient, where the sign
        begins to tell magnitudes apart. Match it to yours.
    distribution : {"normal", "uniform"}, default "normal"
        "uniform" is the stochastic sign of Jin et al. 2020 (arXiv 2002.10940): for ``b >= |g|`` its mean is g/b.
    weight_decay : float, default 0.0
        Decoupled, at least 0; the papers have none.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; with noise next to nothing is 0.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`; each worker's noise is its own.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; there is no per-element state.

    Notes
    -----
    Normal noise is a float32 number of the quantile of 24 bits, uniform noise one of 2**24 multiples of 2**-23, and
    then the sign is +1 where ``b*z < g``: the mean is g/b, exactly where that is such a multiple. ``b = 0`` is signSGD.
    Deviations: weight decay; the paper lets z be of any symmetric unimodal density.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.NoisySignSGD(lr=0.25, b=1.0)
    >>> p, g = np.zeros(4, np.float32), np.asarray([3.0, 0.1, 0.1, -0.1], dtype=np.float32)
    >>> p, state = rule.step(p, g, rule.init(p))
    >>> p
    array([-0.25, -0.25, -0.25, -0.25], dtype=float32)
    """

    lr: Number = number(1e-3)
    b: Number = number(0.01)
    distribution: str = option("normal", ("normal", "uniform"))

    State = NoisySignSGDState
    Message = NoisySignSGDMessage

    @property
    def draws_noise(self) -> bool:
        return True

    def argument_leaf(
        self, p: Any, g: Any, s: NoisySignSGDState, h: Hyper, noise: Any
    ) -> tuple[Any, NoisySignSGDState]:
        if self.distribution == "uniform":
            return drawn(flush(g), h.b, noise), s
        return g + product(h.b, normal(noise, str(name_of(g.dtype)))), s
