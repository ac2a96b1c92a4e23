"""What `alias_compact` does in the place of the differences of gradients: bounds from numbers of each alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from . import bits, checks, frameworks
from .dtypes import name_of
from .estimator import ParameterFree
from .fields import Hyper, option
from .marks import Partial
from .ops import flush, product, quotient, sign, where
from .rule import Rule

_MEASURED = {"agreement": {"size"}, "linf_d": {"most", "least"}, "l1inf": {"most", "least", "nonzero"}}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounded(ParameterFree):
    """Base whose ratio is a bound on ``|g - g_prev|`` over the norm of the displacement ``gamma*sign(g_prev)``.

    Parameters
    ----------
    norm : {"agreement", "linf_d", "l1inf"}, default "agreement"
        ``|g|_1 + |g_prev|_1`` over the largest displacement; n times the bound on the largest difference over it; or
        that bound over the sum of the displacements.
    """

    norm: str = option("agreement", tuple(_MEASURED))

    PARTIALS: ClassVar[Mapping[str, Partial]] = {
        **Rule.PARTIALS,
        "size": Partial("sum", "workers", "norm1"),
        "most": Partial("max", "workers", "top"),
        "least": Partial("max", "workers", "top"),  # of -g
        "count": Partial("sum", "shards", "count"),
        "nonzero": Partial("sum", "workers", "norm1"),
        "inner": Partial("sum", "workers", "sum"),
        "value": Partial("sum", "workers"),
    }

    def check(self) -> None:
        """What a bit per sign and a bound allow."""
        super().check()
        if self.norm == "l1inf" and self.gamma_max is None:
            raise ValueError("`gamma_max` is None and `norm` is 'l1inf', whose rate has no bound; pass a gamma_max")
        if self.d0 is not None and self.sign_zero not in ("plus", "minus"):
            raise ValueError(
                f"`sign_zero` is {self.sign_zero!r} and `d0` keeps a bit for a sign; pass 'plus' or 'minus'"
            )
        if self.d0 is not None and not (checks.is_number(self.weight_decay) and self.weight_decay == 0):
            raise ValueError(f"`weight_decay` is {self.weight_decay!r} and `d0` is {self.d0!r}; pass one of the two")

    def unused(self) -> set[str]:
        """What the other norms need, and what option I needs."""
        other = {"most", "least"} if self.norm == "agreement" else {"size"}
        return super().unused() | other | ({"rate", "signs", "last"} if self.d0 is None else set())

    @property
    def partials(self) -> dict[str, Partial]:
        """Without those of other norms."""
        other = set().union(*_MEASURED.values()) - _MEASURED[self.norm]
        return {name: partial for name, partial in super().partials.items() if name not in other}

    def measure_leaf(self, p: Any, g: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """The gradient's size or extremes."""
        g = flush(g)
        found = {"size": g, "most": g, "least": -g, "count": g}
        if self.norm == "l1inf":
            found["nonzero"] = sign(g, "zero" if self.sign_zero == "zero" else "plus")
        if self.d0 is not None:
            # A leaf that did not move in the last step has signs of none, or of an older one with another rate.
            moved = (s.last > 0) & (s.last == s.step)
            found["inner"] = where(moved, g, 0.0) * _signs(s.signs, g)
        return found

    def finish(self, partials: dict[str, Any], *, workers: int = 1) -> dict[str, Any]:
        """As every rule's, but option I is for one worker: whose signs are packed, and not the vote's."""
        if workers != 1 and self.d0 is not None:
            raise ValueError(f"`workers` is {workers} and `d0` is {self.d0!r}; pass d0=None, or take the rule 'alias'")
        return super().finish(partials, workers=workers)

    def ratio(self, found: dict[str, Any], s: Any) -> Any:
        """The bound over the last displacement."""
        still = (s.moved == 0.0) | (found["count"] == 0.0)
        if self.norm == "agreement":
            bound = found["size"] + s.size
        else:
            up, down = found["most"] - s.least, s.most + found["least"]
            bound = where(still, 0.0, where(up > down, up, down))  # of no gradient the extremes are infinite
        if self.norm == "linf_d":
            bound = product(found["count"], bound)
        return where(still, 0.0, quotient(bound, where(still, 1.0, s.moved)))

    def descended(self, found: dict[str, Any], s: Any) -> Any:
        """``gamma_prev*<g, sign(g_prev)>``."""
        return flush(product(s.rate, found["inner"]))

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """The estimates, and what the next step must know of this one; without a gradient, what it knew."""
        seen, new = super().advance(found, s, h)
        gamma, none = seen["gamma"], found["count"] == 0.0
        if self.norm == "agreement":
            last = {"size": found["size"]}
            some = found["size"] > 0.0
        else:
            last = {"most": found["most"], "least": -found["least"]}
            some = (found["most"] > 0.0) | (found["least"] > 0.0)
        if self.norm == "l1inf":
            last["moved"] = flush(product(gamma, found["nonzero"]))
        else:
            last["moved"] = where(some, gamma, 0.0) if self.sign_zero == "zero" else gamma
        new |= {name: where(none, getattr(s, name), value) for name, value in last.items()}
        return seen, new if self.d0 is None else {**new, "rate": gamma}

    def marked(self, s: Any) -> Any:
        """The leaf's state with the step in which it moves, counted from 1."""
        if s.last is None:
            return s
        xp = frameworks.namespace(s.step)
        return s._replace(last=s.step + xp.astype(s.step < 2**31 - 1, xp.int32))

    def packed_leaf(self, p: Any, g: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """Of option I, the signs of this gradient."""
        return {} if self.d0 is None else {"signs": frameworks.automatic(bits.pack, sign(flush(g), self.sign_zero))}


def _signs(packed: Any, g: Any) -> Any:
    """The signs that are held for a leaf, in its shape."""
    return frameworks.namespace(g).reshape(bits.unpack(packed, math.prod(g.shape), name_of(g.dtype)), g.shape)
