"""Rprop: a step size per coordinate, grown and shrunk by signs alone (Riedmiller and Braun 1993; torch.optim.Rprop)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import checks
from ..fields import Hyper, Number, number
from ..marks import Late, Mean, PerElement, PerLeaf, Shared
from ..ops import descent, flush, product, sign, where
from ..rule import Rule


class RpropMessage(NamedTuple):
    gradient: Mean  # compute dtype, shape of the leaf


class RpropState(NamedTuple):
    step: Shared  # int32, steps done
    prev: Late  # state dtype, sign of the gradient before; 0 at first and after a turn
    size: PerElement  # state dtype, the step sizes; 0 until first used
    started: PerLeaf  # int32, 1 once the leaf has step sizes


@dataclass(frozen=True, kw_only=True, eq=False)
class Rprop(Rule):
    """Steps of their own size for every coordinate: longer while its gradient keeps its sign, shorter after a turn.

    ::

        s     = sign(g)
        size  = lr at first
        size  = size * (eta_plus if s*prev > 0, eta_minus if s*prev < 0, else 1), within [size_min, size_max]
        prev  = 0 if s*prev < 0, else s
        delta = -(size * (prev + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-2
        The first size of every step, at least 0; read at a leaf's first gradient and never again, as in torch, whose
        default it is. A size outside of the bounds is moved into them, so 0 does not freeze a leaf: a gradient of
        None does.
    eta_minus : float, default 0.5
        What a step shrinks by when its gradient turns, in (0, 1); the paper's.
    eta_plus : float, default 1.2
        What it grows by otherwise, above 1; the paper's.
    size_min : float, default 1e-6
        Least size; the paper's.
    size_max : float, default 50.0
        Largest size; the paper's.
    weight_decay : float, default 0.0
        Decoupled, at least 0, and relative to each coordinate's size; neither the paper nor torch decays.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    The update as in torch.optim.Rprop, which after a turn does not go back. For gradients of the whole data: noise
    turns signs and shrinks all steps. With several workers the gradients are averaged, since it is their sign that
    decides. A coordinate does not see the others, nor a positive factor of its gradients; after a turn it rests for one
    step. A gradient that is NaN has the sign 0.
    Deviations from torch.optim.Rprop: the signs of two gradients are compared, where torch takes the sign of their
    product, which is 0 when that underflows; the state holds the sign of the last gradient, which is all that is used
    of it; sizes are products rounded once each, as torch's are.

    Raises
    ------
    ValueError
        A number out of range, or ``size_min > size_max``.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.Rprop(lr=0.5, eta_plus=1.5)
    >>> p = np.asarray([1.0, 1.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([3.0, 3.0], dtype=np.float32), rule.init(p))
    >>> p, state = rule.step(p, np.asarray([1.0, -1.0], dtype=np.float32), state)
    >>> p, state.size
    (array([-0.25,  0.5 ], dtype=float32), array([0.75, 0.25], dtype=float32))
    """

    lr: Number = number(1e-2)
    eta_minus: Number = number(0.5, below=1.0)
    eta_plus: Number = number(1.2, minimum=1.0)
    size_min: Number = number(1e-6)
    size_max: Number = number(50.0)

    State = RpropState
    Message = RpropMessage

    def check(self) -> None:
        for name, edge in (("eta_minus", 0.0), ("eta_plus", 1.0)):
            if checks.is_number(value := getattr(self, name)) and value == edge:
                raise ValueError(f"`{name}` is {value!r}; pass 0 < eta_minus < 1 < eta_plus")
        least, most = self.size_min, self.size_max
        if checks.is_number(least) and checks.is_number(most) and least > most:
            raise ValueError(f"`size_min` is {least!r}, above `size_max`, {most!r}; exchange them")

    def message_leaf(self, p: Any, g: Any, s: RpropState, h: Hyper, noise: Any) -> tuple[RpropMessage, RpropState]:
        return RpropMessage(flush(g)), s

    def apply_leaf(self, p: Any, aggregate: RpropMessage, s: RpropState, h: Hyper) -> tuple[Any, RpropState]:
        signs = sign(aggregate.gradient)
        turn = signs * s.prev  # exact
        size = where(s.started > 0, s.size, h.lr)
        size = where(turn > 0.0, product(h.eta_plus, size), where(turn < 0.0, product(h.eta_minus, size), size))
        size = flush(where(size < h.size_min, h.size_min, where(size > h.size_max, h.size_max, size)))
        prev = where(turn < 0.0, 0.0, signs)
        delta = descent(size, prev, h.weight_decay, p)
        return delta, s._replace(prev=prev, size=size, started=s.started * 0 + 1)
