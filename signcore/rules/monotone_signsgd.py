"""signSGD that keeps the better of two points (Safaryan and Richtarik, arXiv 1905.12938, algorithm 1, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..fields import Hyper, Number, number
from ..marks import Partial, Shared, Stream, Vote
from ..voting import SignRule


class MonotoneSignSGDMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class MonotoneSignSGDState(NamedTuple):
    step: Shared  # int32, steps done, rejected ones as well
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class MonotoneSignSGD(SignRule):
    """signSGD, option 2: a step is made only if the loss falls.

    ::

        s     = sign(g)
        delta = -(lr * (s + weight_decay*p))     with weight_decay = 0
        p     = p + delta if value_fn(p + delta) < value, else p

    A step needs ``value=``, the loss at the parameters, and ``value_fn=``, which evaluates it elsewhere.

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, in the parameters' unit, at least 0. The theorem's is
        ``sc.schedules.inverse_sqrt(lr)``; the paper requires the user to choose, the default is `SignSGD`'s.
    weight_decay : float, default 0.0
        Only 0: a decay that pulls against the loss would be accepted or refused together with the sign step, so
        neither is the method of the paper any more. Add ``0.5*weight_decay*|p|^2`` to the loss.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the paper's definition.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`. With `maximize` the loss must rise: the gain is what is passed.

    Notes
    -----
    The decision is one for the whole tree. A tie and a loss that is NaN keep the parameters, whose very words stay;
    the step counts all the same, so that a schedule goes on falling. The two losses must be of one function: the same
    mini-batch, with dropout and batch statistics frozen; then the loss never rises on that batch, whatever the
    gradients. With several workers `value` is the mean of theirs, and `value_fn` must return the loss of all of
    them, the same number on each, or the replicas part.
    Deviations: none but the policies for zeros, which the paper does not have.

    Raises
    ------
    TypeError
        At a step: `value` or `value_fn` is missing.
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule, f = sc.MonotoneSignSGD(lr=1.0), lambda p: float(p @ p)
    >>> p = np.asarray([1.5, -0.25], dtype=np.float32)
    >>> state = rule.init(p)
    >>> for _ in range(3):  # the third would lead back to (0.5, 0.75)
    ...     p, state = rule.step(p, 2 * p, state, value=f(p), value_fn=f)
    >>> p, int(state.step)
    (array([-0.5 , -0.25], dtype=float32), 3)
    """

    lr: Number = number(1e-3)
    weight_decay: Number = number(0.0, maximum=0.0, why="add the decay to the loss, which decides on each step")

    State = MonotoneSignSGDState
    Message = MonotoneSignSGDMessage
    PARTIALS: ClassVar[Mapping[str, Partial]] = {**SignRule.PARTIALS, "value": Partial("sum", "workers")}

    @property
    def needs(self) -> frozenset[str]:
        """Both losses."""
        return frozenset({"value", "value_fn"})

    def accepts(self, value: Any, trial: Any) -> Any:
        """Strictly better; False beside a NaN."""
        return value < trial if self.maximize else trial < value

    def argument_leaf(
        self, p: Any, g: Any, s: MonotoneSignSGDState, h: Hyper, noise: Any
    ) -> tuple[Any, MonotoneSignSGDState]:
        return g, s
