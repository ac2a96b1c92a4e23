"""Tiger: Signum with a rate relative to each tensor's size (Su 2023, github.com/bojone/tiger)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..fields import Hyper, Number, flag, number
from ..marks import Own, Partial, Shared, Stream, Vote
from ..ops import descent, ema, flush, product, quotient, sqrt, where
from ..voting import SignRule


class TigerMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class TigerState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, 0 at first
    stream: Stream  # two int32 words per leaf, only for sign_zero="random"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiger(SignRule):
    """Sign of an average of the gradients, in steps that are a share of the root mean square of the leaf.

    ::

        m     = beta*m + (1 - beta)*g
        lr    = lr * |p|_2 / sqrt(number of elements of the leaf)     with scale_by_rms
        delta = -(lr * (sign(m) + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of every coordinate, at least 0: as a share of its leaf's rms, or without `scale_by_rms` itself. The
        author's default.
    beta : float, default 0.965
        Weight of the past, in [0, 1); the author's.
    scale_by_rms : bool, default True
        As the author. A leaf of nothing but zeros never moves with it.
    weight_decay : float, default 0.01
        Decoupled, at least 0; the author's.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    The update as in the author's code; there is no paper. The rms is of the whole leaf before the step, each leaf its
    own: how parameters are cut into leaves matters. Without `scale_by_rms` this is Signum with other defaults. Under a
    vote each worker averages its own gradients.
    Deviations: the author tells leaves by their names, a rule does not see them. Embeddings have an rms per row there,
    here one for the leaf; what is called bias, beta or gamma has the rate ``0.5*lr`` and no decay: step such leaves by
    ``Tiger(lr=0.5*lr, scale_by_rms=False, weight_decay=0.0)``. A gradient with NaN there shrinks its tensor by 1 % and
    leaves m alone; here it is treated as `nonfinite` says. Gradients of micro-batches are averaged by the caller before
    the step, which is what the author's accumulation amounts to, but for its rounding.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.Tiger(lr=0.5, beta=0.5, weight_decay=0.125)
    >>> p = np.asarray([2.0, -2.0, 2.0, -2.0], dtype=np.float32)  # an rms of 2, so a rate of 1
    >>> p, state = rule.step(p, np.asarray([1.0, 1.0, -8.0, 0.0], dtype=np.float32), rule.init(p))
    >>> p, state.m
    (array([ 0.75, -2.75,  2.75, -1.75], dtype=float32), array([ 0.5,  0.5, -4. ,  0. ], dtype=float32))
    """

    lr: Number = number(1e-3)
    beta: Number = number(0.965, below=1.0)
    scale_by_rms: bool = flag(True)
    weight_decay: Number = number(0.01)

    State = TigerState
    Message = TigerMessage
    PARTIALS: ClassVar[Mapping[str, Partial]] = {
        **SignRule.PARTIALS,
        "norm": Partial("sum", "shards", "norm2"),
        "count": Partial("sum", "shards", "count"),
    }

    @property
    def scope(self) -> str:
        """Each leaf has its own rms."""
        return "leaf"

    @property
    def partials(self) -> dict[str, Partial]:
        """None without the rms."""
        return {name: p for name, p in super().partials.items() if self.scale_by_rms or name == "nonfinite"}

    @property
    def reads_params(self) -> bool:
        """Also for the rms."""
        return self.scale_by_rms or super().reads_params

    def measure_leaf(self, p: Any, g: Any, s: TigerState, h: Hyper) -> dict[str, Any]:
        return {"norm": p, "count": p}

    def advance(self, found: dict[str, Any], s: TigerState, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        count = where(found["count"] < 1.0, 1.0, found["count"])  # an empty leaf has no rms
        return {"rms": quotient(found["norm"], sqrt(count))}, {}

    def argument_leaf(self, p: Any, g: Any, s: TigerState, h: Hyper, noise: Any) -> tuple[Any, TigerState]:
        m = ema(h.beta, s.m, flush(g))
        return m, s._replace(m=m)

    def apply_leaf(self, p: Any, aggregate: TigerMessage, s: TigerState, h: Hyper) -> tuple[Any, TigerState]:
        lr = product(h.lr, h.rms) if self.scale_by_rms else h.lr
        return descent(lr, aggregate.sign, h.weight_decay, p), s
