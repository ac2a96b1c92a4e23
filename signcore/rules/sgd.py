"""SGD with heavy-ball or Nesterov momentum, the baseline (Sutskever et al. 2013; the form of torch.optim.SGD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import checks
from ..fields import Hyper, Number, flag, number
from ..marks import Mean, PerElement, PerLeaf, Shared
from ..ops import complement, descent, flush, product, where
from ..rule import Rule


class SGDMessage(NamedTuple):
    gradient: Mean  # compute dtype, shape of the leaf


class SGDState(NamedTuple):
    step: Shared  # int32, steps done
    velocity: PerElement  # state dtype, 0 until first used
    started: PerLeaf  # int32, 1 once the leaf has a velocity


@dataclass(frozen=True, kw_only=True, eq=False)
class SGD(Rule):
    """Gradient descent; the velocity starts at the leaf's first gradient, as torch's does.

    ::

        v     = g at first, then momentum*v + (1 - dampening)*g
        u     = v, or with nesterov: g + momentum*v; without momentum: g
        delta = -(lr * (u + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule
        Factor of the gradient, at least 0; no default, because its scale is the problem's.
    momentum : float, default 0.0
        In [0, 1); torch's default. 0 leaves the velocity untouched, so momentum may begin later.
    dampening : float, default 0.0
        In [0, 1]; torch's default. It does not damp the first gradient.
    nesterov : bool, default False
        Needs momentum and no dampening, as in torch.
    weight_decay : float, default 0.0
        Decoupled, at least 0.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    The update as in the documentation of torch.optim.SGD. Deviations from it: weight decay is decoupled (SGDW) where
    torch adds it to the gradient; momentum is below 1; the velocity is allocated also when momentum is 0.

    Raises
    ------
    ValueError
        A number out of range, or nesterov without momentum or with dampening.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.SGD(lr=0.5, momentum=0.5)
    >>> p, g = np.asarray([1.0], dtype=np.float32), np.asarray([2.0], dtype=np.float32)
    >>> p, state = rule.step(p, g, rule.init(p))
    >>> rule.step(p, g, state)[0], state.velocity
    (array([-1.5], dtype=float32), array([2.], dtype=float32))
    """

    momentum: Number = number(0.0, below=1.0)
    dampening: Number = number(0.0, maximum=1.0)
    nesterov: bool = flag(False)

    State = SGDState
    Message = SGDMessage

    def check(self) -> None:
        if not self.nesterov:
            return
        if checks.is_number(self.momentum) and self.momentum == 0:
            raise ValueError(f"`nesterov` is True and `momentum` is {self.momentum!r}; pass a momentum above 0")
        if checks.is_number(self.dampening) and self.dampening != 0:
            raise ValueError(f"`nesterov` is True and `dampening` is {self.dampening!r}; pass dampening=0")

    def message_leaf(self, p: Any, g: Any, s: SGDState, h: Hyper, noise: Any) -> tuple[SGDMessage, SGDState]:
        return SGDMessage(flush(g)), s

    def apply_leaf(self, p: Any, aggregate: SGDMessage, s: SGDState, h: Hyper) -> tuple[Any, SGDState]:
        g, mu = aggregate.gradient, h.momentum
        if isinstance(mu, float) and mu == 0.0:
            return descent(h.lr, g, h.weight_decay, p), s
        later = flush(product(mu, s.velocity) + product(complement(h.dampening, g), g))
        v = where(s.started > 0, later, g)
        u = g + product(mu, v) if self.nesterov else v
        started = s.started * 0 + 1
        if not isinstance(mu, float):  # a momentum that is known only when the step runs may be zero
            u, v = where(mu == 0.0, g, u), where(mu == 0.0, s.velocity, v)
            started = where(mu == 0.0, s.started, started)
        return descent(h.lr, u, h.weight_decay, p), s._replace(velocity=v, started=started)
