"""Dithered SignSGD-M: annealed normal noise before or after the sign (Chen and Wang 2026, arXiv 2604.25550, alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from .. import checks
from ..dtypes import name_of
from ..fields import Hyper, Number, flag, number, option
from ..marks import Own, Partial, Shared, Stream, Vote
from ..normal import normal
from ..ops import descent, ema, flush, product, quotient, sqrt, where
from ..powers import annealed
from ..voting import SignRule


class DitheredSignumMessage(NamedTuple):
    sign: Vote  # compute dtype, shape of the leaf, in {-1, 0, 1}


class DitheredSignumState(NamedTuple):
    step: Shared  # int32, steps done
    m: Own  # state dtype, average of the gradients, 0 at first
    stream: Stream  # two int32 words per leaf; none with alpha=0


@dataclass(frozen=True, kw_only=True, eq=False)
class DitheredSignum(SignRule):
    """Signum with normal noise of a variance that is annealed, equations 9 and 10.

    ::

        m     = beta*m + (1 - beta)*g
        sigma = sqrt(alpha*(1 + step)**-gamma);  with relative: sigma*norm(m)/sqrt(size)
        u     = sign(m + sigma*z), z normal;  dither="after": sign(m) + sigma*z
        delta = -(lr * (u + weight_decay*p))

    Parameters
    ----------
    lr : float, array or schedule, default 1e-3
        Step of a coordinate at |u| = 1, at least 0; that of Signum, as the paper names none.
    beta : float, default 0.9
        Weight of the past, in [0, 1); Signum's.
    alpha : float, default 0.1
        Variance of the noise at first, at least 0, the best of the paper's. 0 is Signum, and nothing is drawn.
    gamma : float, default 0.55
        How fast the variance falls, at least 0; the paper's. 0 keeps it.
    dither : {"before", "after"}, default "before"
        Where the noise is added. "after" it is the step's, in units of lr: not bounded, the same on all workers.
    relative : bool, default False
        Ours: noise in units of the root mean square of m, not of the gradient. Only before the sign.
    scope : {"global", "leaf"}, default "global"
        Of what that mean is taken: the whole model, or each leaf.
    weight_decay : float, default 0.0
        Decoupled, at least 0; the paper has none.
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; with noise before the sign next to nothing is 0.
    ties, aggregation, seed
        As in every rule that votes, see `signcore.voting.SignRule`; noise before the sign is each worker's own.
    maximize, nonfinite, state_dtype
        As in every rule, see `signcore.Rule`.

    Notes
    -----
    The probability of +1 is Phi(m/sigma). alpha must fit |m|: of a momentum of 1e-3 the default leaves little but
    noise, with 0.0025 as the sign's mean at first and 0.056 after 78,200 steps. relative=True adapts it. The power is
    rounded to float32. Deviations: weight decay; a mean over workers' own noise is noisy signSGD with momentum.

    Raises
    ------
    ValueError
        A number or option that is not allowed, relative=True with dither="after", a scope without relative; alpha=0
        when the rule was built and another in `hyper`.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.DitheredSignum(lr=0.25, beta=0.5)
    >>> p = np.zeros(3, np.float32)
    >>> p, state = rule.step(p, np.asarray([8.0, -0.1, 0.1], dtype=np.float32), rule.init(p))
    >>> p, state.m
    (array([-0.25,  0.25, -0.25], dtype=float32), array([ 4.  , -0.05,  0.05], dtype=float32))
    """

    lr: Number = number(1e-3)
    beta: Number = number(0.9, below=1.0)
    alpha: Number = number(0.1)
    gamma: Number = number(0.55)
    dither: str = option("before", ("before", "after"))
    relative: bool = flag(False)
    scope: str = option("global", ("global", "leaf"))

    State = DitheredSignumState
    Message = DitheredSignumMessage
    PARTIALS: ClassVar[Mapping[str, Partial]] = {
        **SignRule.PARTIALS,
        "norm": Partial("sum", "shards", "norm2"),
        "size": Partial("sum", "shards", "count"),
    }

    def check(self) -> None:
        if self.relative and self.dither == "after":
            raise ValueError("`relative` is True and `dither` is 'after', where the noise is in units of lr; drop one")
        if self.scope != "global" and not self.relative:
            raise ValueError(f"`scope` is {self.scope!r} and `relative` is False, which measures nothing; drop one")

    @property
    def _dithered(self) -> bool:
        return not (checks.is_number(self.alpha) and self.alpha == 0)

    @property
    def draws_noise(self) -> bool:
        return self._dithered or super().draws_noise

    @property
    def applies_noise(self) -> bool:
        return self._dithered and self.dither == "after"

    @property
    def partials(self) -> dict[str, Partial]:
        measured = {"norm", "size"} if not (self._dithered and self.relative) else set()
        return {name: partial for name, partial in super().partials.items() if name not in measured}

    def derived(self, h: Hyper, step: Any, compute: str) -> dict[str, Any]:
        if self._dithered:
            return {"sigma": annealed(h.alpha, h.gamma, step, compute)}
        checks.kept("alpha", h.alpha, 0.0)
        return {}

    def measure_leaf(self, p: Any, g: Any, s: DitheredSignumState, h: Hyper) -> dict[str, Any]:
        return {"norm": ema(h.beta, s.m, flush(g)), "size": g}

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        size = where(found["size"] > 0.0, found["size"], 1.0)
        return {"rms": quotient(found["norm"], sqrt(size))}, {}

    def argument_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, DitheredSignumState]:
        m = ema(h.beta, s.m, flush(g))
        if not self._dithered or self.dither == "after":
            return m, s._replace(m=m)
        sigma = flush(product(h.sigma, h.rms)) if self.relative else h.sigma
        return m + product(sigma, normal(noise, str(name_of(m.dtype)))), s._replace(m=m)

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper, noise: Any = None) -> tuple[Any, Any]:
        u = aggregate.sign
        if self.applies_noise:
            u = u + product(h.sigma, normal(noise, str(name_of(u.dtype))))
        return descent(h.lr, u, h.weight_decay, p), s
