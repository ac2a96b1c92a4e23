"""The "Adam version" of ALIAS as its authors' code runs it (AdamLike of Medyakov et al., arXiv 2506.03725)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from .. import checks, frameworks
from ..fields import Hyper, Number, flag, number
from ..marks import Mean, OwnCopy, Partial, PerElement, Scalar, Shared
from ..ops import descent, ema, flush, product, quotient, sign, sqrt, where
from ..rule import Rule


class ALIASAdamMessage(NamedTuple):
    gradient: Mean  # compute dtype, shape of the leaf


class ALIASAdamState(NamedTuple):
    step: Shared  # int32, steps done
    m: PerElement  # state dtype, average of d*g, 0 at first
    v: PerElement  # state dtype, average of (d*g)**2, 0 at first
    g_prev: OwnCopy  # params' dtype, the last gradient
    r: Scalar  # per leaf, average of d*<|g|, |g_prev|>, 1 from the first step on
    d: Scalar  # per leaf, the largest of these and d0


@dataclass(frozen=True, kw_only=True, eq=False)
class ALIASAdam(Rule):
    """Signs of an average times Adam's size of a step, with a factor d for each leaf that can only grow.

    ::

        q     = sum |g|*|g_prev| of the leaf, from its second gradient on
        r     = sqrt(beta2)*r + (1 - sqrt(beta2))*(d*q), from 1 on
        d     = max(d, r), from d0 on
        m     = beta1*m + (1 - beta1)*(d*g)
        v     = beta2*v + (1 - beta2)*(d*g)**2
        u     = d * sqrt((m**2 + eps)/(v + eps)) * sign(m), with d = 1 in the warm-up
        delta = -(lr * (u + weight_decay*(p - lr*u)))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Factor of the step, at least 0; a cosine from 1e-3 in the authors' runs.
    beta1 : float, default 0.9
        Weight of the past in m, in [0, 1); the scripts'.
    beta2 : float, default 0.999
        Weight of the past in v, and its root in r, in [0, 1); the scripts'.
    eps : float, default 1e-8
        Beside squared gradients, above 0; the scripts'. For gradients below 1e-4 it makes the rule nearly Signum.
    d0 : float, default 1.0
        The first d, above 0: 1 in the main branch, 1e-3 in the branch "dev".
    warmup_steps : int, default 0
        In the first so many steps u has no d; 10000 in the scripts, where the schedule's warm-up is as long.
    warmup_growth : bool, default True
        Whether d and r change in the warm-up, if there is one: in the main branch they do, in "dev" they do not.
    weight_decay : float, default 0.0
        Decoupled, at least 0, and applied after the step as in the code, so that it sees ``p - lr*u``; a script: 1e-3.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`; `state_dtype` is m's and v's.

    Notes
    -----
    The update is as in the authors' class AdamLike; the paper's own formula could not be read. Kept only so that the
    authors' results can be compared. With the global norm of gradients clipped to 1, as in their script, q is at most 1
    and d stays 1 for ever; there is no bias correction; no step is scale invariant. Workers send gradients, as in the
    code; each has its own q, whose mean is used, where the code has the mean gradient's. A square beyond float32, of
    ``|d*g|`` above 1.8e19, makes its coordinate NaN, which `nonfinite` does not look for: it looks at gradients, q, r
    and d.
    Deviations: u is formed as one root of a quotient, which equals the code's sqrt(d**2/(1 + (v - m**2)/(m**2 + eps)))
    and does not cancel; the code's g_prev of ones in the first step, which nothing reads, is left out.

    Raises
    ------
    ValueError
        A number out of range.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.ALIASAdam(lr=0.5, beta1=0.5, beta2=0.75)
    >>> p = np.asarray([1.0, 1.0], dtype=np.float32)
    >>> p, state = rule.step(p, np.asarray([4.0, -1.0], dtype=np.float32), rule.init(p))
    >>> p, state.d  # beta1**2 = 1 - beta2: Adam's first step
    (array([0.5, 1.5], dtype=float32), array(1., dtype=float32))
    """

    lr: Number = number(1e-3)
    beta1: Number = number(0.9, below=1.0)
    beta2: Number = number(0.999, below=1.0)
    eps: Number = number(1e-8, minimum=2.0**-100)
    d0: Number = number(1.0, minimum=2.0**-100)
    warmup_steps: int = 0
    warmup_growth: bool = flag(True)

    State = ALIASAdamState
    Message = ALIASAdamMessage
    PARTIALS: ClassVar[Mapping[str, Partial]] = {**Rule.PARTIALS, "overlap": Partial("sum", "workers", "dot")}

    def check(self) -> None:
        checks.count("warmup_steps", self.warmup_steps, 0)

    @property
    def scope(self) -> str:
        """One d per leaf, as in the code."""
        return "leaf"

    def due(self, state: ALIASAdamState) -> Any:
        """Where d can change."""
        return None if self.warmup_growth else frameworks.known(state.step >= self.warmup_steps)

    def measure_leaf(self, p: Any, g: Any, s: ALIASAdamState, h: Hyper) -> dict[str, Any]:
        size = frameworks.namespace(g).abs
        return {"overlap": (size(flush(g)), size(s.g_prev))}

    def advance(self, found: dict[str, Any], s: ALIASAdamState, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        first, warm = s.d == 0.0, s.step < self.warmup_steps
        r, d = where(first, 1.0, s.r), where(first, h.d0, s.d)
        root = sqrt(frameworks.namespace(r).zeros_like(r) + h.beta2)
        later = ema(root, r, flush(product(d, found["overlap"])))
        still = first if self.warmup_growth else first | warm
        r = where(still, r, later)
        d = where(~still & (r > d), r, d)
        return {"d": d, "factor": where(warm, 1.0, d)}, {"r": r, "d": d}

    def message_leaf(self, p: Any, g: Any, s: ALIASAdamState, h: Hyper, noise: Any) -> tuple[Any, ALIASAdamState]:
        return ALIASAdamMessage(flush(g)), s._replace(g_prev=flush(g))

    def apply_leaf(self, p: Any, aggregate: ALIASAdamMessage, s: ALIASAdamState, h: Hyper) -> tuple[Any, Any]:
        g = flush(product(h.d, aggregate.gradient))
        m = ema(h.beta1, s.m, g)
        v = ema(h.beta2, s.v, flush(product(g, g)))
        size = sqrt(quotient(product(m, m) + h.eps, v + h.eps))
        u = flush(product(h.factor, size)) * sign(m)
        return descent(h.lr, u, h.weight_decay, p - product(h.lr, u)), s._replace(m=m, v=v)
