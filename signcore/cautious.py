"""Cautious forms of any rule: of its step (Liang et al. 2024, arXiv 2411.16085), of its decay (arXiv 2510.12402)."""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_type_hints, overload

from . import checks
from .fields import Hyper, Number, number
from .frameworks import namespace
from .marks import Partial, Wire
from .ops import flush, product, quotient, sign, where
from .rule import Rule

__all__ = ["cautious", "cautious_decay"]

_GRADIENT_SIGN = Wire("mean", 2.0)  # signs with zeros, whatever the rule makes of zeros and ties

if TYPE_CHECKING:
    Base = Rule
else:
    Base = object  # mixins: the rule itself comes after them in the order of methods

R = TypeVar("R", bound=Rule)


class Cautious(Base):
    """What `cautious` adds to a rule: the gradient's sign in the message, and a round that counts agreement."""

    min_mean: Number
    _sent: int  # how many fields the rule's own message has

    def check(self) -> None:
        """Of a positive `min_mean`, and of a rule whose aggregate is known after one round."""
        super().check()
        if checks.is_number(self.min_mean) and self.min_mean == 0:
            raise ValueError(f"`min_mean` is {self.min_mean!r}; pass a number in (0, 1]: a mean may be 0")
        if super().settlements:
            raise ValueError(
                f"`rule` is a {type(self).__name__} that measures {', '.join(super().settlements)} of its aggregate, "
                f"and so must cautious, in the same round; use one without the other"
            )

    @property
    def settlements(self) -> dict[str, Partial]:
        """The size of a leaf, and how many of its coordinates agree."""
        return {
            "cautious_agreeing": Partial("sum", "shards", "sum"),
            "cautious_size": Partial("sum", "shards", "count"),
        }

    @property
    def settle_scope(self) -> str:
        """Each leaf has its own mean."""
        return "leaf"

    def message_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, Any]:
        """The rule's message and the sign of the gradient."""
        message, s = super().message_leaf(p, g, s, h, noise)
        return self.Message(*message[: self._sent], sign(g)), s

    def settle_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper, *noise: Any) -> dict[str, Any]:
        """Where the rule's step and the gradients agree."""
        agrees = _agrees(self._bare(p, aggregate, s, h, *noise), aggregate)
        return {"cautious_agreeing": namespace(p).astype(agrees, p.dtype), "cautious_size": p}

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper, *noise: Any) -> tuple[Any, Any]:
        """The rule's step, masked and scaled, and its decay as it was."""
        whole, new = super().apply_leaf(p, aggregate, s, h, *noise)
        bare = self._bare(p, aggregate, s, h, *noise)
        mean = quotient(h.cautious_agreeing, where(h.cautious_size == 0.0, 1.0, h.cautious_size))
        mean = where(mean < h.min_mean, h.min_mean, mean)
        kept = where(_agrees(bare, aggregate), quotient(bare, mean), 0.0)
        return flush(kept + where(whole == bare, 0.0, whole - bare)), new

    def _bare(self, p: Any, aggregate: Any, s: Any, h: Hyper, *noise: Any) -> Any:
        """The rule's delta without its decay."""
        return super().apply_leaf(p, aggregate, s, _with(h, weight_decay=0.0), *noise)[0]


class CautiousDecay(Base):
    """What `cautious_decay` adds to a rule: a weight decay of 0 where it would oppose the step."""

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper, *noise: Any) -> tuple[Any, Any]:
        """The rule's step with the decay of each coordinate."""
        bare, _ = super().apply_leaf(p, aggregate, s, _with(h, weight_decay=0.0), *noise)
        along = ((bare <= 0.0) & (p >= 0.0)) | ((bare >= 0.0) & (p <= 0.0))
        decay = product(h.weight_decay, namespace(p).astype(along, p.dtype))
        return super().apply_leaf(p, aggregate, s, _with(h, weight_decay=decay), *noise)


def _agrees(delta: Any, aggregate: Any) -> Any:
    """Where a step goes against most gradients, that is downhill."""
    up = aggregate.gradient_sign
    return ((delta < 0.0) & (up > 0.0)) | ((delta > 0.0) & (up < 0.0))


def _with(h: Hyper, **changes: Any) -> Hyper:
    h = copy.copy(h)
    h.__dict__.update(changes)
    return h


# -- classes and rules from them -----------------------------------------------------------------------------


@overload
def cautious(rule: type[R], min_mean: float = 1e-3) -> type[R]: ...
@overload
def cautious(rule: R, min_mean: Number = 1e-3) -> R: ...
def cautious(rule: Any, min_mean: Any = 1e-3) -> Any:
    """A rule whose step is kept only where it goes downhill, and is enlarged by as much as there is lost.

    ::

        phi   = 1 where delta*g < 0, else 0              delta is the rule's, without its decay
        delta = delta*phi/max(mean(phi), min_mean)       the mean is of each leaf
        delta = delta + the rule's decay, which is not masked

    Parameters
    ----------
    rule : Rule or subclass of Rule
        Any that is not cautious already.
    min_mean : float, array or schedule, default 1e-3
        Floor of the mean, in (0, 1], of the authors' code: a coordinate moves at most ``1/min_mean`` times as far as it
        would. A hyperparameter of the new rule; for a class a number, its default there.

    Returns
    -------
    Rule or subclass of Rule
        As `rule` was; called ``CautiousLion``, its name ``"cautious_lion"``. The state is the rule's.

    Raises
    ------
    TypeError, ValueError
        `rule` is none, or cautious already; a number out of range; a rule that measures its aggregate.

    Notes
    -----
    A coordinate without gradient does not move. With several workers g is the sign of the sum of their gradients'
    signs, a further field of the message: a mask of a worker's own gradients would let the replicas part. A step takes
    a second round, which counts. Deviations: the paper adds a small number to the mean; the decay is the difference of
    the rule's steps with and without it.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = cautious(sc.Signum(lr=0.25, beta=0.75))
    >>> p, state = np.zeros(2, np.float32), rule.init(np.zeros(2, np.float32))
    >>> for g in ([4.0, 4.0], [4.0, -1.0]):
    ...     p, state = rule.step(p, np.asarray(g, np.float32), state)
    >>> p
    array([-0.75, -0.25], dtype=float32)
    """
    if isinstance(rule, type):
        if not checks.is_number(min_mean):
            raise TypeError(f"`min_mean` is {min_mean!r}; for a class pass a number, which becomes its default")
        return _made(Cautious, _checked(Cautious, rule), float(min_mean))
    made = _made(Cautious, _checked(Cautious, type(rule), rule), 1e-3)
    return made(min_mean=min_mean, **_values(rule))


@overload
def cautious_decay(rule: type[R]) -> type[R]: ...
@overload
def cautious_decay(rule: R) -> R: ...
def cautious_decay(rule: Any) -> Any:
    """A rule whose weight decay acts only where its step shrinks the parameter, or does not move it.

    ::

        weight_decay = weight_decay where delta*p <= 0, else 0           delta is the rule's, without its decay

    Parameters
    ----------
    rule : Rule or subclass of Rule
        Any whose decay is not cautious already.

    Returns
    -------
    Rule or subclass of Rule
        As `rule` was; called ``CautiousDecayLion``, its name ``"cautious_decay_lion"``. The state is the rule's.

    Raises
    ------
    TypeError, ValueError
        `rule` is none, or its decay is cautious already.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = cautious_decay(sc.SignSGD(lr=0.5, weight_decay=0.5))
    >>> p = np.asarray([2.0, -2.0], np.float32)
    >>> rule.step(p, np.asarray([1.0, 1.0], np.float32), rule.init(p))[0]
    array([ 1. , -2.5], dtype=float32)
    """
    if isinstance(rule, type):
        return _made(CautiousDecay, _checked(CautiousDecay, rule), None)
    return _made(CautiousDecay, _checked(CautiousDecay, type(rule), rule), None)(**_values(rule))


def _checked(mixin: type, cls: type, shown: Any = None) -> Any:
    shown = cls if shown is None else shown
    if not issubclass(cls, Rule) or cls is Rule:
        raise TypeError(f"`rule` is {shown!r}; pass a rule or its class, for example signcore.rule(name, lr=...)")
    if issubclass(cls, mixin):
        raise ValueError(f"`rule` is a {cls.__name__}, which is made like that already; pass it as it is")
    return cls


def _values(rule: Rule) -> dict[str, Any]:
    return {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}


@cache
def _made(mixin: Any, inner: Any, min_mean: Any) -> Any:
    """The class, made once, so that rules of it can be equal."""
    title = mixin.__name__ + inner.__name__
    fields: list[Any] = []
    held: dict[str, Any] = {"State": inner.State, "Message": inner.Message, "__module__": __name__}
    held |= {"_recipe": (mixin, inner, min_mean), "__reduce__": _reduced, "__doc__": _doc(mixin, inner, min_mean)}
    if mixin is Cautious:
        fields = [("min_mean", "Number", number(min_mean, maximum=1.0))]
        held |= {"Message": _extended(inner.Message, f"{title}Message"), "_sent": len(inner.Message._fields)}
    made: Any = dataclasses.make_dataclass(
        title, fields, bases=(mixin, inner), namespace=held, frozen=True, kw_only=True, eq=False
    )
    prefix = "cautious_" if mixin is Cautious else "cautious_decay_"
    made.name = prefix + inner.name
    return made


def _extended(message: Any, title: str) -> Any:
    """A message type with a field for the gradient's sign; a rule that makes its own message leaves it out."""
    hints = get_type_hints(message, include_extras=True)
    hints["gradient_sign"] = Annotated[Any, _GRADIENT_SIGN]
    made = cast(Any, namedtuple)(title, list(hints), defaults=(None,), module=__name__)
    made.__annotations__ = hints
    return made


def _doc(mixin: Any, inner: Any, min_mean: Any) -> str:
    function = "cautious" if mixin is Cautious else "cautious_decay"
    own = f"min_mean : float, default {min_mean!r}\n    Floor of the mean.\n" if mixin is Cautious else ""
    return (
        f"`{inner.__name__}` made cautious, see `signcore.{function}`.\n\n"
        f"Parameters\n----------\n{own}**hyperparameters\n    Those of `{inner.__name__}`.\n"
    )


def _reduced(self: Any) -> tuple[Any, ...]:
    """What a pickle holds: the rule's own class and how it was made cautious, for the made class has no address."""
    cls: Any = type(self)
    steps: list[tuple[type, Any]] = []
    while "_recipe" in vars(cls):
        mixin, inner, min_mean = cls._recipe
        steps.append((mixin, min_mean))
        cls = inner
    return _rebuilt, (cls, tuple(reversed(steps)), _values(self))


def _rebuilt(cls: Any, steps: tuple[tuple[type, Any], ...], values: Mapping[str, Any]) -> Any:
    for mixin, min_mean in steps:
        cls = _made(mixin, cls, min_mean)
    return cls(**values)
