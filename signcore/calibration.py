"""When signs hand over to gradient descent, and at what rate: the projection of their step on the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from . import checks, frameworks
from .fields import Hyper, Number, flag, number
from .ieee import compute_format
from .marks import Partial
from .ops import ema, flush, product, quotient, rounded, where
from .rule import Rule
from .voting import SignRule

_LAST = 2**31 - 1  # where a state's step counter stays


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated(SignRule):
    """Base of rules that switch; their state has ``switched``, ``lbar`` and ``share``.

    They measure ``inner = <s, g>`` and ``square = |g|^2``, and see ``rate``, SGD's rate per unit of `lr`.

    Parameters
    ----------
    eta : float, default 0.99
        Weight of the past in lbar, in [0, 1).
    eps : float, default 1e-8
        Added to the square of the norm, at least 0.
    switch_step, switch_epoch, steps_per_epoch : int, optional
        Length of the first phase; None of them is the automatic trigger.
    tolerance : float, default 1e-9
        Of that trigger, at least 0.
    bias_correction : bool, default False
        Undo that lbar starts at 0.
    lr_max : float, optional
        Ceiling of SGD's rate, above 0.
    """

    eta: Number = number(0.99, below=1.0)
    eps: Number = number(1e-8)
    switch_step: int | None = None
    switch_epoch: int | None = None
    steps_per_epoch: int | None = None
    tolerance: Number = number(1e-9)
    bias_correction: bool = flag(False)
    lr_max: float | None = None

    PARTIALS: ClassVar[dict[str, Partial]] = {
        **Rule.PARTIALS,
        "inner": Partial("sum", "workers", "sum"),
        "square": Partial("sum", "workers", "dot"),
    }

    def check(self) -> None:
        """One kind of switch, of at least one step: the rate is 0 before."""
        step, epoch, length = self.switch_step, self.switch_epoch, self.steps_per_epoch
        for name in ("switch_step", "switch_epoch", "steps_per_epoch"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name), 1)
        if step is not None and epoch is not None:
            raise ValueError(f"`switch_step` is {step!r} and `switch_epoch` is {epoch!r}; pass one of them")
        if (epoch is None) != (length is None):
            raise ValueError(
                f"`switch_epoch` is {epoch!r} and `steps_per_epoch` is {length!r}; pass both, or `switch_step` alone"
            )
        if (self.first_phase or 1) > _LAST:
            raise ValueError(
                f"the first phase has {self.first_phase} steps; a step counter goes to {_LAST}: pass fewer"
            )
        default = type(self).tolerance
        if self.first_phase is not None and checks.is_number(self.tolerance) and self.tolerance != default:
            given = "switch_step" if step is not None else "switch_epoch"
            raise ValueError(
                f"`tolerance` is {self.tolerance!r} and `{given}` is {getattr(self, given)!r}, which leaves it idle; "
                f"pass one of them"
            )
        if self.lr_max is not None and not checks.is_number(self.lr_max):
            raise TypeError(f"`lr_max` is {self.lr_max!r}; pass a number above 0, or None")
        if self.lr_max is not None:
            checks.number("lr_max", self.lr_max, checks.Range(2.0**-100))

    @property
    def first_phase(self) -> int | None:
        """Its length in steps; None where the trigger ends it."""
        if self.switch_epoch is not None and self.steps_per_epoch is not None:
            return int(self.switch_epoch) * int(self.steps_per_epoch)
        return self.switch_step

    def unused(self) -> set[str]:
        """The share, where nothing is divided by it."""
        needed = self.bias_correction or self.first_phase is None
        return super().unused() | (set() if needed else {"share"})

    def due(self, state: Any) -> Any:
        """Until the switch."""
        return frameworks.known(state.switched == 0)

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """The averages, whether this was the first phase's last step, and the rate of the second."""
        xp = frameworks.namespace(s.lbar)
        first = s.switched == 0
        square = found["square"] + h.eps
        none = square == 0.0
        ratio = flush(where(none, 0.0, quotient(xp.abs(found["inner"]), where(none, 1.0, square))))
        rate = lbar = where(first, ema(h.eta, s.lbar, ratio), s.lbar)
        new = {"lbar": lbar}
        if s.share is not None:
            new["share"] = where(first, ema(h.eta, s.share, xp.ones_like(ratio)), s.share)
            corrected = flush(quotient(lbar, new["share"]))
            rate = corrected if self.bias_correction else lbar
        if self.first_phase is None:
            near = product(h.lr, xp.abs(corrected - ratio)) < h.tolerance
            met = (s.step > 0) & (h.lr > 0.0) & near  # beside an lr of 0 any two rates are near
        else:
            met = s.step >= self.first_phase - 1
        new["switched"] = s.switched | xp.astype(first & met & (lbar > 0.0), xp.int32)
        if self.lr_max is not None:
            most = quotient(rounded(float(self.lr_max), compute_format(rate).name), product(h.lr, xp.ones_like(rate)))
            rate = where(rate > most, most, rate)
        return {"rate": rate}, new
