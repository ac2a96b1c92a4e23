"""What a rule is: init, measure, message and apply, from which delta and step follow; and the registry.

A subclass writes two elementwise functions, `message_leaf` and `apply_leaf`, which see one leaf in its
compute dtype. This class maps them over trees, widens and rounds, keeps the step counter and carries out
the policies that all rules share.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Collection, Mapping
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Self

from . import checks, frameworks, ops, random, totals, vote
from .diagnostics import observe
from .dtypes import name_of
from .fields import Hyper, Number, check_field, flag, number, option, ranges
from .marks import WHOLE, Mark, Partial, Wire, marks
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
        Gradients with inf or NaN, or scalars that become so: computed with; the whole step skipped, parameters, state
        and step counter unchanged; or FloatingPointError (not while a function is traced).
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
    _partials: ClassVar[dict[str, Partial]]
    _draws: ClassVar[bool]
    kinds: ClassVar[dict[str, str]]  # field of the state in use to how it is laid out, see `Mark`

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
        # A scalar of a leaf is laid out as any 0-d value of a leaf.
        kinds = {
            name: "leaf" if mark.kind == "scalar" and self.scope == "leaf" else mark.kind
            for name, mark in self._marks.items()
            if name not in self.unused()
        }
        object.__setattr__(self, "kinds", kinds)
        # properties that may ask their class's base, which torch.compile cannot follow
        object.__setattr__(self, "_partials", self.partials)
        object.__setattr__(self, "_draws", self.draws_noise)

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

    def unused(self) -> set[str]:
        """Fields of the state that the options leave out; they are None."""
        return set() if self.draws_noise else {"stream"}

    @property
    def scope(self) -> str:
        """Whose scalars `measure_leaf` contributes to: of the tree ("global"), of each "group", or of each "leaf"."""
        return "global"

    @property
    def partials(self) -> dict[str, Partial]:
        """Name to how it is merged of what `measure` returns under these options."""
        return {name: p for name, p in self.PARTIALS.items() if name != "nonfinite" or self.nonfinite == "skip"}

    @property
    def settle_scope(self) -> str:
        """The scope of what `settle_leaf` contributes to."""
        return self.scope

    @property
    def settlements(self) -> dict[str, Partial]:
        """The same of `settle`."""
        return {}

    @property
    def needs(self) -> frozenset[str]:
        """Which of `value`, `value_fn` and `grad_fn` a step needs."""
        return frozenset()

    def asks(self, name: str, state: Any) -> bool:
        """Whether a step from this state needs an input out of `needs`; where that is unknown, yes."""
        return True

    def sends(self, state: Any) -> Collection[str]:
        """The fields of the message that count in a step from this state; where that is unknown, all."""
        return self._wires.keys()

    def due(self, state: Any) -> Any:
        """Whether the scalars are measured in a step from this state, a 0-d bool; None for always."""
        return None

    def derived(self, h: Hyper, step: Any, compute: str) -> dict[str, Any]:
        """Numbers that follow from the hyperparameters and the step, once per call; attributes of `h` as those are."""
        return {}

    def measure_leaf(self, p: Any, g: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """What a leaf, as a vector, contributes to each partial: a vector, or for "dot" a pair of them."""
        raise TypeError(f"{type(self).__name__} defines no measure_leaf")

    def evaluated(self, params: Any, state: Any, grad_fn: Any) -> dict[str, Any]:
        """Fields of the state that are evaluated for `measure_leaf` and not stored."""
        return {}

    def advance(self, found: dict[str, Any], s: Any, h: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """From what was measured: (scalars that leaves see as attributes of `h`, the state's scalars after the step).

        All are vectors with an entry per scope, those of `s` as well.
        """
        return found, {}

    def settle_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """Likewise, of the aggregate: what `apply_leaf` must know of the whole, as attributes of `h`.

        Of a rule with `applies_noise` it takes the words as a fifth argument.
        """
        raise TypeError(f"{type(self).__name__} defines no settle_leaf")

    def accepts(self, value: Any, trial: Any) -> Any:
        """Whether the step is made, from the loss before and after it; asked of rules that need `value_fn`."""
        return trial < value

    def packed_leaf(self, p: Any, g: Any, s: Any, h: Hyper) -> dict[str, Any]:
        """New values of a leaf's packed fields."""
        return {}

    def message_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, Any]:
        """Node side, one leaf: (what is sent, new state). Arrays are in the compute dtype."""
        raise TypeError(f"{type(self).__name__} defines no message_leaf")

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper) -> tuple[Any, Any]:
        """Every node, one leaf: (delta, new state), from the aggregate of all messages.

        Of a rule with `applies_noise` it takes the words as a fifth argument.
        """
        raise TypeError(f"{type(self).__name__} defines no apply_leaf")

    @property
    def draws_noise(self) -> bool:
        """Whether a step wants a random word per element, and the state keeps streams."""
        return False

    @property
    def applies_noise(self) -> bool:
        """Whether it is `apply_leaf` that wants the words, so that all workers draw the same."""
        return False

    def shared_fields(self) -> list[str]:
        """Fields of the state of which all workers hold the same words."""
        return [
            name
            for name, kind in self.kinds.items()
            if not self._marks[name].own or (kind == "stream" and self.applies_noise)
        ]

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
        return self.reads_params or not (checks.is_number(self.weight_decay) and float(self.weight_decay) == 0.0)

    @property
    def reads_params(self) -> bool:
        """Whether it does so also without weight decay."""
        return "copy" in self.kinds.values() or bool(self.needs & {"value_fn", "grad_fn"})

    def wire_bits(self) -> dict[str, float]:
        """Bits per parameter that each message field costs on the wire.

        A sign is one bit when it cannot be zero, else two; anything else is a float32. A number per leaf, or per worker
        (the weight of a vote), is none per parameter.
        """
        sign = 2.0 if getattr(self, "sign_zero", "zero") == "zero" else 1.0
        return {name: sign if wire.bits is None else wire.bits for name, wire in self._wires.items()}

    # -- the boxes of the papers ------------------------------------------------------------------------

    def init(self, params: Any, *, names: list[str] | None = None, worker: int = 0) -> Any:
        """State before the first step.

        Parameters
        ----------
        params : array or tree of arrays
            float16, bfloat16, float32 or float64 leaves of one library on one device; None is no leaf.
        names : list of str, optional
            Names of the leaves in order, which key their noise; default: their paths.
        worker : int, default 0
            Whose state it is, from 0 on: each worker draws noise of its own.

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
        checks.count("worker", worker, 0)
        floats = frameworks.dtype(xp, totals.wide(present))
        state: dict[str, Any] = dict.fromkeys(self._marks)
        for name, kind in self.kinds.items():
            if kind in WHOLE:
                shape = () if kind == "shared" else totals.shape_of(self.scope, leaves)
                zero = frameworks.constant(xp, 0, xp.int32 if kind == "shared" else floats, like)
                state[name] = zero if shape == () else xp.broadcast_to(zero, shape) + zero
            else:
                columns = [
                    None if leaf.value is None else self._initial(name, kind, leaf.value, called, worker, floats)
                    for leaf, called in zip(leaves, names, strict=True)
                ]
                state[name] = unflatten(params, columns)
        return self.State(**state)

    def _initial(self, name: str, kind: str, p: Any, called: str, worker: int, floats: Any) -> Any:
        xp = frameworks.namespace(p)
        if kind == "element":
            return xp.zeros_like(p, dtype=state_format(self, xp, p)[1])
        if kind == "copy":
            return xp.zeros_like(p)
        if kind == "packed":
            size = -(-math.prod(p.shape) // 8)
            return xp.zeros((size,), dtype=xp.uint8, device=frameworks.device(p))
        if kind == "leaf":
            return frameworks.constant(xp, 0, floats if self._marks[name].kind == "scalar" else xp.int32, p)
        own = 0 if self.applies_noise else worker
        return frameworks.constant(xp, random.stream_key(getattr(self, "seed", 0), called, own), xp.int32, p)

    def measure(
        self,
        params: Any,
        grads: Any,
        state: Any,
        *,
        hyper: Mapping[str, Any] | None = None,
        value: Any = None,
        grad_fn: Any = None,
    ) -> dict[str, Any]:
        """Order-free partials of what must be known of the whole tree; merged as `partials` says.

        Parameters
        ----------
        params, grads, state, hyper, value, grad_fn
            As `step` takes them.

        Returns
        -------
        dict of int32 arrays
            Empty for a rule whose step is elementwise, unless ``nonfinite`` is ``"skip"``: then it has
            ``"nonfinite"``, 0 or 1.

        Raises
        ------
        FloatingPointError
            ``nonfinite="raise"`` and a gradient holds inf or NaN.
        """
        if not self._partials.keys() - {"nonfinite"}:
            return self._nonfinite(grads, state)
        return self._measured(Work(self, params, grads, state, None, hyper, None), value, grad_fn)

    def _measured(self, work: Work, value: Any, grad_fn: Any) -> dict[str, Any]:
        found = self._nonfinite(work.grad_tree, work.state)
        names = {name: p for name, p in self._partials.items() if p.kind is not None and name != "value"}
        if names:
            if "grad_fn" in self.needs:
                checks.given(self, "grad_fn", grad_fn)

            def leaf(p: Any, g: Any, s: Any, h: Hyper, i: int) -> dict[str, Any]:
                return self.measure_leaf(p, g, s, h)

            at = work.elsewhere(grad_fn)
            found |= totals.measured(self, work, names, leaf, lambda: self.evaluated(work.params, work.state, at))
        if "value" in self._partials:
            if self.asks("value", work.state):
                checks.given(self, "value", value)
            if value is not None:
                checks.loss("value", value)
            xp = frameworks.namespace(work.like)
            found["value"] = totals.of_value(0.0 if value is None else value, work.wide, xp, work.like)
        return found

    def _nonfinite(self, grads: Any, state: Any) -> dict[str, Any]:
        if self.nonfinite == "propagate":
            return {}
        found = state.step * 0
        for path, g in flatten(grads):
            if g is None:
                continue
            xp = frameworks.namespace(g)
            bad = xp.any(~xp.isfinite(ops.widen(g)))
            if self.nonfinite == "raise":
                self._refuse(bad, checks.place("grads", path))
            found = found | xp.astype(bad, xp.int32)
        return {"nonfinite": found} if self.nonfinite == "skip" else {}

    def _refuse(self, bad: Any, what: str) -> None:
        if frameworks.is_traced(bad):  # also where a gradient with values is closed over
            raise ValueError(
                "`nonfinite`='raise' cannot stop a step while a function is traced (jit, torch.compile); "
                "use nonfinite='skip', which leaves parameters and state unchanged"
            )
        if bool(bad):
            raise FloatingPointError(
                f"{what} holds inf or NaN; nothing was changed: fix it, or build the rule with nonfinite='skip'"
            )

    def finish(self, partials: dict[str, Any], *, workers: int = 1) -> dict[str, Any]:
        """Scalars from merged partials; every node that merged the same partials gets the same scalars.

        Parameters
        ----------
        partials : dict
            Of `measure` or `settle`, merged over the shards and workers that `partials` names.
        workers : int, default 1
            How many workers: what is summed over them becomes their mean.

        Returns
        -------
        dict
            For `message` and `apply`.

        Raises
        ------
        FloatingPointError
            ``nonfinite="raise"`` and a scalar is inf or NaN.
        """
        checks.count("workers", workers, 1)
        names = {**self._partials, **self.settlements}
        found = totals.finished(names, partials, workers)
        if self.nonfinite == "propagate":
            return found
        tops = {name for name, partial in names.items() if partial.kind == "top"}
        finite = self._admitted(found, partials["nonfinite"] == 0 if "nonfinite" in partials else None, tops)
        return found if finite is None else {**found, "finite": finite}

    def _admitted(self, scalars: Mapping[str, Any], finite: Any, tops: Collection[str] = ()) -> Any:
        """The policy for scalars that are not finite: with "skip" whether all are, beside what was so far."""
        for name, value in scalars.items():
            if not hasattr(value, "dtype") or not str(name_of(value.dtype)).startswith("float"):
                continue
            xp, good = frameworks.namespace(value), frameworks.namespace(value).isfinite(value)
            if name in tops:
                good = good | (value == -math.inf)  # of no numbers; gradients have been looked at themselves
            if self.nonfinite == "raise":
                self._refuse(xp.any(~good), f"`{name}`")
            else:
                finite = xp.all(good) if finite is None else finite & xp.all(good)
        return finite

    def noise(self, params: Any, state: Any) -> Any:
        """The random words that the next step would draw, as a tree (None for a rule without noise)."""
        if not self._draws:
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
        checks.scalars(self, scalars)
        work = Work(self, params, grads, state, scalars, hyper, noise)
        work.advance()
        flat = [name for name, wire in self._wires.items() if wire.aggregate != "gathered"]

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any) -> tuple[tuple[Any, ...], Any]:
            message, s = self.message_leaf(p, g, s, h, words)
            return tuple(getattr(message, name) for name in flat), s

        columns, new = work.run(kernel, len(flat))
        fields = dict(zip(flat, columns, strict=True))
        fields |= {name: work.scalar_column(name) for name in self.Message._fields if name not in fields}
        return self.Message(**{name: unflatten(params, fields[name]) for name in self.Message._fields}), new

    def settle(
        self,
        params: Any,
        grads: Any,
        aggregate: Any,
        state: Any,
        scalars: dict[str, Any] | None = None,
        *,
        hyper: Mapping[str, Any] | None = None,
        noise: Any = None,
    ) -> dict[str, Any]:
        """Partials of the aggregate, for rules that must know something of the whole of it; else empty.

        They are merged over the shards of a worker and finished like those of `measure`; `apply` takes the scalars of
        both in one dict.
        """
        if not self.settlements:
            return {}
        work = Work(self, params, grads, state, scalars, hyper, noise)
        work.advance()
        sent = [work.aggregate(name, getattr(aggregate, name), wire) for name, wire in self._wires.items()]

        def leaf(p: Any, g: Any, s: Any, h: Hyper, i: int) -> dict[str, Any]:
            flat = [None if column[i] is None else frameworks.flat(column[i]) for column in sent]
            if not self.applies_noise:
                return self.settle_leaf(p, self.Message(*flat), s, h)
            words = words_of(p, s.stream, s.step, 0) if work.words[i] is None else frameworks.flat(work.words[i])
            return self.settle_leaf(p, self.Message(*flat), s, h, words)  # type: ignore[call-arg]

        work.scope = totals.scope_of(self.settle_scope, work.leaves)
        return totals.measured(self, work, self.settlements, leaf, dict, scope=self.settle_scope)

    def apply(
        self,
        params: Any,
        grads: Any,
        aggregate: Any,
        state: Any,
        scalars: dict[str, Any] | None = None,
        *,
        hyper: Mapping[str, Any] | None = None,
        noise: Any = None,
        decay_mask: Any = None,
        value_fn: Any = None,
        agree: Any = None,
    ) -> tuple[Any, Any]:
        """What every node does with the aggregate: (delta, state), the step counter one further.

        Before a rule decides by the losses before and after, their words go to ``agree(words)``, a vector of two int32
        (int64 for float64): several nodes compare theirs there, because replicas that decide differently part.
        """
        checks.scalars(self, scalars)
        work = Work(self, params, grads, state, scalars, hyper, noise, decay_mask)
        work.advance()
        if not isinstance(aggregate, self.Message):
            raise TypeError(
                f"`aggregate` is a {type(aggregate).__name__}; pass a {self.Message.__name__}, whose fields are "
                f"trees like the params"
            )

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any, *sent: Any) -> tuple[tuple[Any, ...], Any]:
            delta, s = self._applied(p, self.Message(*sent), s, h, words)
            return (delta,), s

        trees = [None if w.aggregate == "gathered" else getattr(aggregate, n) for n, w in self._wires.items()]
        columns, new = work.run(kernel, 1, *trees, finish="delta")
        return self._tried(work, unflatten(params, columns[0]), value_fn, "delta", agree), work.settled(new)

    def _applied(self, p: Any, aggregate: Any, s: Any, h: Hyper, words: Any) -> tuple[Any, Any]:
        if self.applies_noise:
            return self.apply_leaf(p, aggregate, s, h, words)  # type: ignore[call-arg]
        return self.apply_leaf(p, aggregate, s, h)

    def _tried(self, work: Work, result: Any, value_fn: Any, finish: str, agree: Any = None) -> Any:
        """The result of a step, or of no step, by what `accepts` says of the loss after it."""
        if "value_fn" not in self.needs:
            return result
        checks.given(self, "value_fn", value_fn)
        after = value_fn(work.moved(result) if finish == "delta" else result)
        checks.loss_of(after)
        before, after = work.loss(work.found["value"]), work.loss(after)
        if agree is not None:
            both = frameworks.namespace(after).stack([before, after])
            agree(frameworks.bits(ops.where(both == both, both, math.nan)))  # one NaN is as good as another
        return work.chosen(self.accepts(before, after), result, finish)

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
        grad_fn: Any = None,
    ) -> tuple[Any, Any]:
        """The change of the parameters, in their dtypes, and the next state: the step before ``p + delta``.

        Takes and raises what `step` does. Where a gradient is None, so is the delta.
        """
        inputs = {"value": value, "value_fn": value_fn, "grad_fn": grad_fn}
        return self._update(params, grads, state, hyper, noise, decay_mask, inputs, "delta")

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
        grad_fn: Any = None,
        diagnostics: Any = False,
    ) -> Any:
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
        value : number or 0-d array, optional
            Loss at `params`, or with `maximize` what is to rise, for the rules that use it; others ignore it, as they
            do the next two.
        value_fn, grad_fn : functions of params, optional
            Loss and gradients at other params, of this step's sample.
        diagnostics : bool or dict, default False
            True returns a third value, a dict with the ``signs`` that were sent, their ``zero_share`` and the
            ``bits_at_risk`` (`signcore.measures`); the dict of the step before adds the ``flip_rate``. Off, it costs
            nothing.

        Raises
        ------
        TypeError, ValueError
            Trees, shapes, dtypes, libraries or devices differ, the state belongs to another rule or to
            other params, or a concrete number in `hyper` is out of range or contradicts another, as when the rule
            is built. Nothing is changed.
        FloatingPointError
            See `nonfinite`.
        """
        inputs = {"value": value, "value_fn": value_fn, "grad_fn": grad_fn}
        if diagnostics is False:
            return self._update(params, grads, state, hyper, noise, decay_mask, inputs, "params")
        work = Work(self, params, grads, state, None, hyper, noise, decay_mask)
        work.found = self.finish(self._measured(work, value, grad_fn))
        work.advance()
        seen = observe(self, work, diagnostics)
        return *self._update(params, grads, state, hyper, noise, decay_mask, inputs, "params"), seen

    def _update(
        self,
        params: Any,
        grads: Any,
        state: Any,
        hyper: Any,
        noise: Any,
        decay_mask: Any,
        inputs: dict[str, Any],
        finish: str,
    ) -> tuple[Any, Any]:
        """measure, message and apply in one pass over each leaf: one process is the case of one worker."""
        work = Work(self, params, grads, state, None, hyper, noise, decay_mask)
        work.found = self.finish(self._measured(work, inputs["value"], inputs["grad_fn"]))
        if self.settlements:
            return self._update_in_two_rounds(work, inputs["value_fn"], finish)
        work.advance()

        def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any) -> tuple[tuple[Any, ...], Any]:
            message, s = self.message_leaf(p, g, s, h, words)
            delta, s = self._applied(p, vote.alone(self._wires, message), s, h, words)
            return (delta,), s

        columns, new = work.run(kernel, 1, finish=finish)
        return self._tried(work, unflatten(params, columns[0]), inputs["value_fn"], finish), work.settled(new)

    def _update_in_two_rounds(self, work: Work, value_fn: Any, finish: str) -> tuple[Any, Any]:
        """The same for a rule that must see the whole aggregate before it applies any of it."""
        given, found = (work.params, work.grad_tree), work.found
        message, state = self.message(*given, work.state, found, hyper=work.overrides, noise=work.word_tree)
        aggregate = vote.alone_in_trees(self._wires, message, work.params)
        again: dict[str, Any] = {"hyper": work.overrides, "noise": work.word_tree if self.applies_noise else None}
        found = {**found, **self.finish(self.settle(*given, aggregate, state, found, **again))}
        delta, state = self.apply(
            *given, aggregate, state, found, decay_mask=work.mask_tree, value_fn=value_fn, **again
        )
        return (delta if finish == "delta" else work.moved(delta)), state


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
