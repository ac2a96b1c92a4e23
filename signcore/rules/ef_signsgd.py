"""EF-signSGD: signs with error feedback (Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..fields import Hyper, Number, flag, number, option
from ..frameworks import namespace
from ..marks import Own, Partial, PerElement, Scale, Scaled, Shared
from ..ops import descent, flush, product, quotient, sign, where
from ..rule import Rule


class EFSignSGDMessage(NamedTuple):
    sign: Scaled  # compute dtype, shape of the leaf, in {-1, 0, 1}
    scale: Scale  # compute dtype, 0-d: the mean magnitude of the block, at least 0


class EFSignSGDState(NamedTuple):
    step: Shared  # int32, steps done
    e: Own  # state dtype, what this worker has not sent yet, in the unit of a step, 0 at first
    v: Own  # state dtype, heavy-ball momentum, 0 at first
    # state dtype, what the server has not sent back yet, 0 at first; only for two_sided. Every node holds the same
    # words of it: they follow from the aggregate, so who aggregates a slice of the votes needs that slice alone.
    server_e: PerElement


@dataclass(frozen=True, kw_only=True, eq=False)
class EFSignSGD(Rule):
    """Signs times the mean magnitude; what that loses is kept and added to the next step.

    ::

        v     = momentum*v + g
        q     = lr*v + e
        D     = (|q|_1/n) * sign(q)                      n numbers in the block, see scope
        e     = q - D
        D     = the mean over the workers; with two_sided:
                q = D + server_e;  D = (|q|_1/n) * sign(q);  server_e = q - D
        delta = -(lr * (weight_decay*p) + D)

    Parameters
    ----------
    lr : float, array or schedule
        Factor of the gradient, at least 0; no default, its scale is SGD's. It comes before the sign, so e keeps the
        steps that were due at the rates of their time.
    momentum : float, default 0.0
        In [0, 1), a heavy ball before the sign; the default of the authors' code. v starts at the first gradient.
    scope : {"leaf", "group", "global"}, default "leaf"
        The block that shares one magnitude: each tensor, as in the authors' code and experiments; those in one
        container; or all, as the paper writes it.
    two_sided : bool, default False
        Compress the answer as well, with an error of its own (Tang et al. 2019, arXiv 1905.05957), so that it costs as
        little on its way down; one worker then compresses twice.
    weight_decay : float, default 0.0
        Decoupled, at least 0: seen by neither error. The experiments of the paper add it to the gradient.
    sign_zero : {"zero", "plus", "minus"}, default "zero"
        What sign(0) is. A coin would gain nothing: what zeros add the error takes back.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`. A narrow `state_dtype` loses a part of the error, for good.

    Notes
    -----
    ``p - e`` takes the steps of plain gradient descent (without decay, on one worker), and
    ``|D - q|^2 = (1 - |q|_1^2/(n*|q|_2^2))*|q|^2``. Scaling all gradients scales the step.
    Deviations: weight decay is decoupled. A block of several workers' signs has a scale for each of them.

    Raises
    ------
    ValueError
        A number out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.EFSignSGD(lr=1.0)
    >>> p = np.asarray([0.0, 0.0, 0.0, 0.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([4.0, -1.0, 0.0, 1.0], dtype=np.float32), rule.init(p))
    >>> p, state.e
    (array([-1.5,  1.5,  0. , -1.5], dtype=float32), array([ 2.5,  0.5,  0. , -0.5], dtype=float32))
    """

    momentum: Number = number(0.0, below=1.0)
    scope: str = option("leaf", ("leaf", "group", "global"))
    two_sided: bool = flag(False)
    sign_zero: str = option("zero", ("zero", "plus", "minus"))

    State = EFSignSGDState
    Message = EFSignSGDMessage
    PARTIALS: ClassVar[dict[str, Partial]] = {
        **Rule.PARTIALS,
        "norm": Partial("sum", "shards", "norm1"),
        "size": Partial("sum", "shards", "count"),
    }

    def unused(self) -> set[str]:
        return super().unused() | (set() if self.two_sided else {"server_e"})

    @property
    def settlements(self) -> dict[str, Partial]:
        own = {"server_norm": self.PARTIALS["norm"], "server_size": self.PARTIALS["size"]}
        return own if self.two_sided else {}

    def _due(self, g: Any, s: EFSignSGDState, h: Hyper) -> tuple[Any, Any]:
        v = flush(product(h.momentum, s.v) + flush(g))
        return flush(product(h.lr, v) + s.e), v

    def measure_leaf(self, p: Any, g: Any, s: EFSignSGDState, h: Hyper) -> dict[str, Any]:
        return {"norm": self._due(g, s, h)[0], "size": p}

    def advance(self, found: dict[str, Any], s: EFSignSGDState, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"scale": _mean(found["norm"], found["size"])}, {}

    def message_leaf(self, p: Any, g: Any, s: EFSignSGDState, h: Hyper, noise: Any) -> tuple[Any, EFSignSGDState]:
        q, v = self._due(g, s, h)
        signs = sign(q, self.sign_zero)
        e = flush(q - product(h.scale, signs))
        return EFSignSGDMessage(signs, h.scale), s._replace(e=e, v=v)

    def settle_leaf(self, p: Any, aggregate: EFSignSGDMessage, s: EFSignSGDState, h: Hyper) -> dict[str, Any]:
        return {"server_norm": flush(aggregate.sign + s.server_e), "server_size": p}

    def apply_leaf(self, p: Any, aggregate: EFSignSGDMessage, s: EFSignSGDState, h: Hyper) -> tuple[Any, Any]:
        d = aggregate.sign
        if self.two_sided:
            q = flush(d + s.server_e)
            d = product(_mean(h.server_norm, h.server_size), sign(q, self.sign_zero))
            s = s._replace(server_e=flush(q - d))
        decay = descent(h.lr, namespace(p).zeros_like(p), h.weight_decay, p)
        return flush(decay - d), s


def _mean(norm: Any, size: Any) -> Any:
    """Of a block's magnitudes; 0 where it has no numbers."""
    return flush(quotient(norm, where(size == 0.0, 1.0, size)))
