"""What the ALIAS rules share: a rate from an estimate of the smoothness and one of the distance to the minimum.

ALIAS is Sign-SGD via Parameter-Free Optimization (Medyakov et al., arXiv 2506.03725). Scalars are vectors here, with an
entry per scope, as in `signcore.Rule.advance`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import checks, frameworks, totals
from .fields import Hyper, Number, number, option
from .ieee import compute_format
from .marks import Partial
from .ops import descent, flush, product, quotient, rounded, sqrt, where
from .rule import Rule
from .tree import flatten, unflatten
from .voting import SignRule


@dataclass(frozen=True, kw_only=True, eq=False)
class ParameterFree(SignRule):
    """Base of the rules whose rate is ``gamma = lr * min(gamma_max, sqrt(gap/eta))``.

    ``eta`` is `l_inf0` plus the sum of all ratios of `ratio`. ``gap`` is ``f(x_0) - lower_bound`` (option II), or with
    `d0` the largest of `d0` and the sums of `descended` (option I). The state has ``eta`` and ``gap``, or ``d`` and
    ``total``. f is what is minimised: with `maximize` the value with its sign turned, as the gradients are. A scope
    that begins later than others has their gap, since f and x_0 are the same.

    Parameters
    ----------
    lr : float, array or schedule, default 1.0
        Factor of the rate, dimensionless; 1 is the paper, which has no learning rate.
    l_inf0 : float, default 100.0
        The estimate of the smoothness before there is a ratio, above 0; it stays in the sum. Of the authors' scripts.
    lower_bound : float, default 0.0
        A number below f, for option II; 0 in all scripts. With `maximize`, minus a number above the value.
    d0 : float, optional
        Takes option I: a guess of f(x_0) - min f from below, above 0. None, the scripts' choice, is option II.
    gamma_max : float, optional
        Ceiling of the rate before `lr`, above 0; None is the paper, which has none.
    """

    lr: Number = number(1.0)
    l_inf0: Number = number(100.0, minimum=2.0**-100)
    lower_bound: Number = number(0.0, minimum=-math.inf)
    d0: float | None = None
    gamma_max: float | None = None

    def check(self) -> None:
        """The numbers that may be None."""
        for name in ("d0", "gamma_max"):
            value = getattr(self, name)
            if value is not None and not checks.is_number(value):
                raise TypeError(f"`{name}` is {value!r}; pass a number above 0, or None")
            if value is not None:
                checks.number(name, value, checks.Range(2.0**-100))
        if self.d0 is not None and checks.is_number(self.lower_bound) and self.lower_bound != 0:
            raise ValueError(
                f"`lower_bound` is {self.lower_bound!r} and `d0` is {self.d0!r}, which needs none; pass one of the two"
            )

    def unused(self) -> set[str]:
        """The scalars of the other option."""
        return super().unused() | ({"gap"} if self.d0 is not None else {"d", "total"})

    @property
    def partials(self) -> dict[str, Partial]:
        """Without those of the other option."""
        other = "value" if self.d0 is not None else "inner"
        return {name: partial for name, partial in super().partials.items() if name != other}

    @property
    def needs(self) -> frozenset[str]:
        """Option II needs the loss."""
        return frozenset() if self.d0 is not None else frozenset({"value"})

    def asks(self, name: str, state: Any) -> bool:
        """The loss until there is a gap: in the first step."""
        if name != "value" or frameworks.known(state.step == 0) is not False:
            return True
        gaps = (leaf.value for leaf in flatten(state.gap) if leaf.value is not None)
        return not any(frameworks.known(frameworks.namespace(gap).any(gap != 0.0)) is True for gap in gaps)

    def ratio(self, found: dict[str, Any], s: Any) -> Any:
        """What this step adds to ``eta``."""
        raise TypeError(f"{type(self).__name__} defines no ratio")

    def descended(self, found: dict[str, Any], s: Any) -> Any:
        """What this step adds to ``total``: a lower bound, for convex f, of what the last one descended."""
        raise TypeError(f"{type(self).__name__} defines no descended")

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rate, and the estimates."""
        new = {"eta": where(s.eta == 0.0, h.l_inf0, s.eta) + self.ratio(found, s)}
        if self.d0 is not None:
            total = flush(s.total + self.descended(found, s))
            d = where(s.d == 0.0, rounded(self.d0, compute_format(s.d).name), s.d)
            gap = where(total > d, total, d)
            new |= {"total": total, "d": gap}
        else:
            xp, value = frameworks.namespace(s.gap), -found["value"] if self.maximize else found["value"]
            first = ~xp.any(s.gap != 0.0)
            known = where(s.gap == 0.0, xp.max(s.gap), s.gap)
            gap = new["gap"] = where(first, flush(value - h.lower_bound), known)
            _refuse("minus `value`" if self.maximize else "`value`", first, gap, value, h.lower_bound)
        gamma = where(gap > 0.0, sqrt(flush(quotient(gap, new["eta"]))), math.nan)
        if self.gamma_max is not None:
            most = rounded(self.gamma_max, compute_format(gamma).name)
            gamma = where(gamma > most, most, gamma)
        return {"gamma": flush(product(h.lr, gamma))}, new

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper) -> tuple[Any, Any]:
        """Against the vote, at the rate that was found."""
        return descent(h.gamma, aggregate.sign, h.weight_decay, p), s


def _refuse(name: str, first: Any, gap: Any, value: Any, lower_bound: Any) -> None:
    """A loss that starts at the lower bound leaves no rate; where values are unknown, the rate is NaN instead."""
    if frameworks.known(first) is not True or frameworks.known(frameworks.namespace(gap).any(gap <= 0.0)) is not True:
        return
    bound = float(frameworks.on_host(lower_bound)) if hasattr(lower_bound, "dtype") else lower_bound
    raise ValueError(
        f"{name}, the loss in the first step, is {float(frameworks.on_host(value)[0])!r} and `lower_bound` is "
        f"{bound!r}; pass a `lower_bound` below every loss, or a `d0`, which needs none"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoPoints(ParameterFree):
    """Base of those that keep the last gradient and parameters: ``ratio = |g - g_prev|_1 / |x_prev - p|_inf``.

    Of sums and norms over the scope, with the displacement as it was, after rounding and decay: one rounded and flushed
    subtraction per coordinate. A step that moved nothing has no ratio. Several workers use the mean of numerators.

    Parameters
    ----------
    update_gap : int, default 1
        The estimates change in every so many-th step, with differences over as many steps; the scripts use 10 and 20.
    warmup_steps : int, default 0
        So many steps at `warmup_lr` before the estimates begin; a multiple of `update_gap`.
    warmup_lr : float or schedule, default 1e-3
        Rate of the warm-up; the scripts' lr.
    scope : {"global", "group", "leaf"}, default "global"
        What has an ``eta``, a ``gap`` and a rate of its own: everything (the paper), each group (the published code),
        or each array.
    sample : {"consecutive", "same"}, default "consecutive"
        Whether ``g_prev`` is the last gradient, of another sample (the published runs), or this step's sample at
        ``x_prev``, from `grad_fn` (the theory), so that noise that does not depend on the point cancels.
    """

    update_gap: int = 1
    warmup_steps: int = 0
    warmup_lr: Number = number(1e-3)
    scope: str = option("global", totals.SCOPES)
    sample: str = option("consecutive", ("consecutive", "same"))

    PARTIALS: ClassVar[Mapping[str, Partial]] = {
        **Rule.PARTIALS,
        "change": Partial("sum", "workers", "norm1"),
        "moved": Partial("max", "shards", "norm_inf"),
        "inner": Partial("sum", "workers", "dot"),
        "value": Partial("sum", "workers"),
    }

    def check(self) -> None:
        """The counts must fit together."""
        super().check()
        checks.count("update_gap", self.update_gap, 1)
        checks.count("warmup_steps", self.warmup_steps, 0)
        if self.warmup_steps % self.update_gap:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps} and `update_gap` is {self.update_gap}, which does not divide "
                f"it; pass {-(-self.warmup_steps // self.update_gap) * self.update_gap} steps"
            )

    def unused(self) -> set[str]:
        """A gradient that is evaluated is not stored."""
        return super().unused() | ({"g_prev"} if self.sample == "same" else set())

    @property
    def needs(self) -> frozenset[str]:
        """The theory's form evaluates gradients."""
        loss = frozenset() if self.d0 is not None else frozenset({"value"})
        return loss | frozenset({"grad_fn"}) if self.sample == "same" else loss

    def due(self, state: Any) -> Any:
        """Every `update_gap` steps, after the warm-up."""
        if self.update_gap == 1 and self.warmup_steps == 0:
            return None
        return frameworks.known((state.step >= self.warmup_steps) & (state.step % self.update_gap == 0))

    def evaluated(self, params: Any, state: Any, grad_fn: Any) -> dict[str, Any]:
        """Gradients of this sample at the last point; a leaf that never had a gradient stays where it is."""
        if self.sample != "same":
            return {}
        leaves = flatten(params)
        columns = [[leaf.value for leaf in flatten(tree)] for tree in (state.x_prev, state.started)]
        points = [
            None if leaf.value is None else _chosen(started > 0, x, leaf.value)
            for leaf, x, started in zip(leaves, *columns, strict=True)
        ]
        return {"g_prev": grad_fn(unflatten(params, points))}

    def measure_leaf(self, p: Any, g: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """The differences; none of a leaf that has no past."""
        before = -s.g_prev if self.sample == "same" and self.maximize else s.g_prev
        g, past, nothing = flush(g), s.started > 0, frameworks.namespace(p).zeros_like(p)
        moved = _chosen(past, flush(s.x_prev - p), nothing)
        change = _chosen(past, flush(g - flush(before)), nothing)
        return {"change": change, "moved": moved, "inner": (g, moved)}

    def ratio(self, found: dict[str, Any], s: Any) -> Any:
        """The difference of gradients over the displacement."""
        still = found["moved"] == 0.0
        return where(still, 0.0, quotient(found["change"], where(still, 1.0, found["moved"])))

    def descended(self, found: dict[str, Any], s: Any) -> Any:
        """``<g, x_prev - p>``."""
        return found["inner"]

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """Likewise, with the warm-up and the gaps."""
        # In a step that is not due all numbers are 0, which changes no estimate.
        seen, new = super().advance(found, s, h)
        gamma = where(s.step < self.warmup_steps, h.warmup_lr, seen["gamma"])
        due = self.due(s)
        return {"gamma": gamma, "due": True if due is None else due}, new

    def remembered(self, p: Any, g: Any, s: Any, h: Hyper) -> Any:
        """The state with this step's point and gradient, if they are due."""
        s = s._replace(x_prev=_chosen(h.due, p, s.x_prev), started=_chosen(h.due, s.started * 0 + 1, s.started))
        return s if s.g_prev is None else s._replace(g_prev=_chosen(h.due, g, s.g_prev))


def _chosen(flag: Any, x: Any, y: Any) -> Any:
    """``where`` on whole arrays: no work where the flag is known."""
    flag = flag if isinstance(flag, bool) else frameworks.known(flag)
    if isinstance(flag, bool):
        return x if flag else y
    return where(flag, x, y)
