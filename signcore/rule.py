"""What a rule is: init, measure, message and apply, from which delta and step follow; and the registry.

A subclass writes two elementwise functions, `message_leaf` and `apply_leaf`, which see one leaf in its
compute dtype. This class maps them over trees, widens and rounds, keeps the step counter and carries out
the policies that all rules share.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Self

from . import checks, frameworks, ops, random
from .fields import Hyper, Number, check_field, flag, number, option, ranges
from .marks import Mark, Partial, Wire, marks
from .tree import flatten, unflatten
from .walk import EMPTY, Work, column_of, state_format, words_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """Base of all rules: frozen hyperparameters and pure functions.

    Parameters
    ----------
    lr : float, array or schedule
        Learning rate, at least 0.
    weight_decay : float or array, default 0.0
        Decoupled decay, at least 0: ``delta = -(lr * (u + weight_decay*p))``. 0 is every paper's default.
    maximize : bool, default False
        Negate the gradients on entry.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        Gradients with inf or NaN: computed with; the whole step skipped, parameters, state and step
        counter unchanged; or FloatingPointError (not while a function is traced).
    state_dtype : {None, "float16", "bfloat16", "float32"}, default None
        Dtype of per-element state; None keeps it in the compute dtype (float32, float64 for float64).
    """

    lr: Number = number()
    weight_decay: Number = number(0.0)
    maximize: bool = flag(False)
    nonfinite: str = option("propagate", ("propagate", "skip", "raise"))
    state_dtype: str | None = option(None, (None, "float16", "bfloat16", "float32"))

    name: ClassVar[str]
    State: ClassVar[Any]  # NamedTuple with `Mark`s, its first field `step`
    Message: ClassVar[Any]  # NamedTuple with `Wire`s
    PARTIALS: ClassVar[Mapping[str, Partial]] = {"nonfinite": Partial("max", "workers")}
    _marks: ClassVar[dict[str, Mark]]
    _wires: ClassVar[dict[str, Wire]]
    # Set when a rule is built, so that a traced step looks up and computes nothing of a rule's own:
    _ranges: ClassVar[dict[str, checks.Range]]
    _constants: ClassVar[dict[str, dict[str, float]]]  # compute dtype to name to rounded value

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2] if cls.__module__.startswith("signcore.") else cls.__name__
        if "State" in cls.__dict__:
            cls._marks, cls._wires = marks(cls.State), marks(cls.Message)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        self.check()
        object.__setattr__(self, "_ranges", ranges(type(self)))
        constants = {
            compute: {
                name: ops.rounded(float(value), compute)
                for name, value in self.numbers().items()
                if checks.is_number(value)
            }
            for compute in ("float32", "float64")
        }
        object.__setattr__(self, "_constants", constants)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        for name, value in self.numbers().items():
            if hasattr(value, "dtype") and not checks.is_number(value):
                raise TypeError(
                    f"`{name}` of this {type(self).__name__} is an array, so the rule cannot be hashed (as a "
                    f"static argument, say); build it with a number and pass the array as hyper={{{name!r}: ...}}"
                )
        return hash((type(self), self._key()))

    def _key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    # -- what a subclass may define ---------------------------------------------------------------------

    def check(self) -> None:
        """Raise when options contradict each other; called when the rule is built."""

    def message_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, Any]:
        """Node side, one leaf: (what is sent, new state). Arrays are in the compute dtype."""
        raise TypeError(f"{type(self).__name__} defines no message_leaf")

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper) -> tuple[Any, Any]:
        """Every node, one leaf: (delta, new state), from the aggregate of all messages."""
        raise TypeError(f"{type(self).__name__} defines no apply_leaf")

    @property
    def draws_noise(self) -> bool:
        """Whether `message_leaf` wants a random word per element, and the state keeps streams."""
        return False

    # -- hyperparameters --------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """The numeric hyperparameters, which a call may override by `hyper=`, and their values."""
        return {name: getattr(self, name) for name in self._ranges}

    def replace(self, **changes: Any) -> Self:
        """The same rule with some hyperparameters changed, checked anew."""
        for name in changes:
            checks.known("hyperparameter", name, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    @property
    def needs_params(self) -> bool:
        """Whether a delta depends on the parameters' values."""
        return not (checks.is_number(self.weight_decay) and float(self.weight_decay) == 0.0)

    def wire_bits(self) -> dict[str, float]:
        """Bits per parameter that each message field costs on the wire.

        A vote is one bit when no sign can be zero, else two; anything else is a float32.
        """
        vote = 2.0 if getattr(self, "sign_zero", "zero") == "zero" else 1.0
        return {name: vote if wire.aggregate == "vote" else 32.0 for name, wire in self._wires.items()}

    # -- the boxes of the papers ------------------------------------------------------------------------

    def init(self, params: Any, *, names: list[str] | None = None) -> Any:
        """State before the first step.

        Parameters
        ----------
        params : array or tree of arrays
            float16, bfloat16, float32 or float64 leaves of one library on one device; None is no leaf.
        names : list of str, optional
            Names of the leaves in order, which key their noise; default: their paths.

        Returns
        -------
        NamedTuple of the rule's state type

        Raises
        ------
        TypeError, ValueError
            A leaf is no array, or integer or complex, arrays of two libraries or devices are mixed, or two
            leaves have one name.
        """
        leaves = flatten(params)
        present = [leaf for leaf in leaves if leaf.value is not None]
        for leaf in present:
            checks.array("params", leaf)
            checks.same_home("params", leaf, "params", present[0])
            checks.normal("params", leaf)
        names = [leaf.path for leaf in leaves] if names is None else list(names)
        checks.distinct("names", names, len(leaves))
        like = present[0].value if present else EMPTY
        xp = frameworks.namespace(like)
        state: dict[str, Any] = {}
        for name, mark in self._marks.items():
            if mark.kind == "shared":
                state[name] = frameworks.constant(xp, 0, xp.int32, like)
            elif mark.kind == "stream" and not self.draws_noise:
                state[name] = None
            else:
                columns = [
                    None if leaf.value is None else self._initial(mark, leaf.value, called)
                    for leaf, called in zip(leaves, names, strict=True)
                ]
                state[name] = unflatten(params, columns)
        return self.State(**state)

    def _initial(self, mark: Mark, p: Any, name: str) -> Any:
        xp = frameworks.namespace(p)
        if mark.kind == "element":
            return xp.zeros_like(p, dtype=state_format(self, xp, p)[1])
        if mark.kind == "leaf":
            return frameworks.constant(xp, 0, xp.int32, p)
        return frameworks.constant(xp, random.stream_key(getattr(self, "seed", 0), name), xp.int32, p)

    def measure(self, params: Any, grads: Any, state: Any) -> dict[str, Any]:
        """Order-free partials of what must be known of the whole tree; merged as `PARTIALS` says.

        Returns
        -------
        dict of 0-d int32 arrays
            Empty unless ``nonfinite`` is ``"skip"``: then ``{"nonfinite": 0 or 1}``.

        Raises
        ------
        FloatingPointError
            ``nonfinite="raise"`` and a gradient holds inf or NaN.
        """
        if self.nonfinite == "propagate":
            return {}
        found = state.step * 0
        for path, g in flatten(grads):
            if g is None:
                continue
            xp = frameworks.namespace(g)
            bad = xp.any(~xp.isfinite(ops.widen(g)))
            if self.nonfinite == "raise":
                if frameworks.is_traced(bad):  # also where a gradient with values is closed over
                    raise ValueError(
                        "`nonfinite`='raise' cannot stop a step while a function is traced (jit, torch.compile); "
                        "use nonfinite='skip', which leaves parameters and state unchanged"
                    )
                if bool(bad):
                    raise FloatingPointError(
                        f"{checks.place('grads', path)} holds inf or NaN; nothing was changed: fix the "
                        f"gradient, or build the rule with nonfinite='skip'"
                    )
            found = found | xp.astype(bad, xp.int32)
        return {"nonfinite": found} if self.nonfinite == "skip" else {}

    def finish(self, partials: dict[str, Any]) -> dict[str, Any]:
        """Scalars from merged partials; every node that merged the same partials gets the same scalars."""
        return {"finite": partials["nonfinite"] == 0} if "nonfinite" in partials else {}

    def noise(self, params: Any, state: Any) -> Any:
        """The random words that the next step would draw, as a tree (None for a rule without noise)."""
        if not self.draws_noise:
            return None
        keys = column_of(state.stream, params)
        return unflatten(
            params,
            [
                None if p is None else frameworks.namespace(p).reshape(words_of(p, key, state.step, 0), p.shape)
                for (_, p), key in zip(flatten(params), keys, strict=True)
            ],
        )

    def message(
        self,
        params: Any,
        grads: Any,
        state: Any,
        scalars: dict[str, Any] | None = None,
        *,
        hyper: Mapping[str, Any] | None = None,
        noise: Any = None,
    ) -> tuple[Any, Any]:
        """What a node sends, and its state after computing it (the step counter grows in `apply`)."""
        checks.scalars(scalars, self.nonfinite)
        work = Work(self, params, grads, state, scalars, hyper, noise)

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any) -> tuple[tuple[Any, ...], Any]:
            message, s = self.message_leaf(p, g, s, h, words)
            return tuple(message), s

        columns, new = work.run(kernel, len(self.Message._fields))
        return self.Message(*(unflatten(params, column) for column in columns)), new

    def apply(
        self,
        params: Any,
        grads: Any,
        aggregate: Any,
        state: Any,
        scalars: dict[str, Any] | None = None,
        *,
        hyper: Mapping[str, Any] | None = None,
        decay_mask: Any = None,
    ) -> tuple[Any, Any]:
        """What every node does with the aggregate: (delta, state), the step counter one further."""
        checks.scalars(scalars, self.nonfinite)
        work = Work(self, params, grads, state, scalars, hyper, None, decay_mask)
        if not isinstance(aggregate, self.Message):
            raise TypeError(
                f"`aggregate` is a {type(aggregate).__name__}; pass a {self.Message.__name__}, whose fields are "
                f"trees like the params"
            )

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any, *sent: Any) -> tuple[tuple[Any, ...], Any]:
            delta, s = self.apply_leaf(p, self.Message(*sent), s, h)
            return (delta,), s

        columns, new = work.run(kernel, 1, *aggregate, finish="delta")
        return unflatten(params, columns[0]), work.counted(new)

    def delta(
        self,
        params: Any,
        grads: Any,
        state: Any,
        *,
        hyper: Mapping[str, Any] | None = None,
        noise: Any = None,
        decay_mask: Any = None,
        value: Any = None,
        value_fn: Any = None,
    ) -> tuple[Any, Any]:
        """The change of the parameters, in their dtypes, and the next state: the step before ``p + delta``.

        Takes and raises what `step` does. Where a gradient is None, so is the delta.
        """
        return self._update(params, grads, state, hyper, noise, decay_mask, "delta")

    def step(
        self,
        params: Any,
        grads: Any,
        state: Any,
        *,
        hyper: Mapping[str, Any] | None = None,
        noise: Any = None,
        decay_mask: Any = None,
        value: Any = None,
        value_fn: Any = None,
    ) -> tuple[Any, Any]:
        """One step: ``(params + delta, state)``; nothing that is passed in is written to.

        Parameters
        ----------
        params, grads : array or tree of arrays
            Same structure, shapes and dtypes; a gradient of None leaves its leaf and state alone.
        state : NamedTuple
            From `init` or the step before.
        hyper : dict, optional
            Numeric hyperparameters for this call: numbers, 0-d arrays or traced values.
        noise : tree of int32 arrays, optional
            Random words instead of drawing them; see `noise`.
        decay_mask : tree of bool, optional
            False keeps weight decay off a leaf.
        value, value_fn : optional
            Loss at `params` and a function of params, for rules that evaluate it; others ignore them.

        Raises
        ------
        TypeError, ValueError
            Trees, shapes, dtypes, libraries or devices differ, the state belongs to another rule or to
            other params, or a concrete number in `hyper` is out of range. Nothing is changed.
        FloatingPointError
            See `nonfinite`.
        """
        return self._update(params, grads, state, hyper, noise, decay_mask, "params")

    def _update(
        self, params: Any, grads: Any, state: Any, hyper: Any, noise: Any, decay_mask: Any, finish: str
    ) -> tuple[Any, Any]:
        """measure, message and apply in one pass over each leaf: one process is the case of one worker."""
        work = Work(self, params, grads, state, None, hyper, noise, decay_mask)
        work.scalars = self.finish(self.measure(params, grads, state))

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any) -> tuple[tuple[Any, ...], Any]:
            message, s = self.message_leaf(p, g, s, h, words)
            delta, s = self.apply_leaf(p, message, s, h)
            return (delta,), s

        columns, new = work.run(kernel, 1, finish=finish)
        return unflatten(params, columns[0]), work.counted(new)


# -- the registry: every module in signcore.rules is a rule ------------------------------------------------


@cache
def classes() -> dict[str, type[Rule]]:
    """Name to class of every rule, found by looking into signcore/rules."""
    package = importlib.import_module(f"{__package__}.rules")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return {name: _class_in(importlib.import_module(f"{package.__name__}.{name}")) for name in names}


def _class_in(module: ModuleType) -> type[Rule]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ImportError(f"{module.__name__} must define exactly one rule, it defines {len(found)}")
    return found[0]


def rules() -> list[str]:
    """Sorted names of all rules.

    Examples
    --------
    >>> "signum" in rules()
    True
    """
    return sorted(classes())


def rule(name: str, **hyperparameters: Any) -> Rule:
    """A rule by name: ``rule("aass", lr=1e-3)``.

    Raises
    ------
    ValueError
        Unknown name; the message suggests the nearest.
    TypeError
        A hyperparameter that the rule does not have; likewise.
    """
    checks.known("name", name, classes())
    cls = classes()[name]
    known = [field.name for field in dataclasses.fields(cls)]
    for keyword in hyperparameters:
        checks.keyword(cls.__name__, "hyperparameters", keyword, known)
    return cls(**hyperparameters)
