"""One call of a rule: its checked inputs, and the loop over the leaves of a tree.

Here a leaf is widened on entry and rounded when stored, noise is drawn, blocks are cut and a step that must
be skipped is undone. The rule itself sees one array in its compute dtype and knows of none of this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import blocks, checks, frameworks, ops, random, totals
from .dtypes import FORMATS, Format, format_of, name_of
from .fields import Hyper, resolve
from .marks import WHOLE, Wire
from .tree import Leaf, flatten, unflatten

if TYPE_CHECKING:
    from .rule import Rule

EMPTY = np.zeros(0, dtype=np.float32)  # what a tree without leaves counts its steps beside


def state_format(rule: Rule, xp: Any, p: Any) -> tuple[Format, Any]:
    """Format and dtype object of the per-element state of a leaf."""
    fmt = format_of(p)
    assert fmt is not None
    name = rule.state_dtype or fmt.compute
    return FORMATS[name], frameworks.dtype(xp, name)


def column_of(tree: Any, params: Any) -> list[Any]:
    """Values of a per-leaf tree in the order of the params' leaves; Nones where the tree is absent."""
    return [None] * len(flatten(params)) if tree is None else [leaf.value for leaf in flatten(tree)]


def words_of(p: Any, key: Any, step: Any, start: int) -> Any:
    """A leaf's random words for one step, from the global index `start` on, as a vector."""
    size = 1
    for extent in p.shape:
        size *= extent
    return random.words(key, step, size, start)


class _Leaf(NamedTuple):
    """Everything one leaf needs in a call."""

    p: Any
    g: Any
    state: dict[str, Any]  # its fields
    h: Hyper  # its numbers
    extras: tuple[Any, ...]
    words: Any


class Work:
    """One call of a rule: its checked inputs, and the loop over leaves."""

    def __init__(
        self,
        rule: Rule,
        params: Any,
        grads: Any,
        state: Any,
        scalars: dict[str, Any] | None,
        hyper: Mapping[str, Any] | None,
        noise: Any,
        decay_mask: Any = None,
    ) -> None:
        self.rule, self.params, self.state, self.found = rule, params, state, scalars or {}
        self.grad_tree, self.word_tree, self.mask_tree = grads, noise, decay_mask
        self.overrides = hyper or {}
        self.hypers: dict[tuple[str, bool], Hyper] = {}
        check_hyper(rule, self.overrides)
        _check_state(rule, state)
        self.leaves = flatten(params)
        paths = self.paths = [leaf.path for leaf in self.leaves]
        present = self.present = [leaf for leaf in self.leaves if leaf.value is not None]
        self.grads = self._gradients("grads", grads)
        self.like = present[0].value if present else state.step
        self.wide = totals.wide(present)
        self.scope = totals.scope_of(rule.scope, self.leaves)
        self.columns = _check_fields(rule, state, self.leaves, self.like, self.wide)
        self.seen: dict[str, Any] = {}  # scalars as the leaves see them
        self.settlements: dict[str, Any] = {}  # those of the aggregate
        self.advanced: dict[str, Any] = {}  # scalar fields of the next state
        self.words = [None] * len(paths) if noise is None else self._extra("noise", noise)
        self.decayed = [True] * len(paths) if decay_mask is None else self._mask(decay_mask)

    def _gradients(self, argument: str, tree: Any) -> list[Leaf]:
        """Leaves of a tree of gradients that fit the params, which are checked themselves."""
        grads = flatten(tree)
        checks.same_structure(argument, [leaf.path for leaf in grads], "params", self.paths)
        checks.same_containers(argument, tree, "params", self.params)
        for p, g in zip(self.leaves, grads, strict=True):
            if p.value is None and g.value is not None:
                checks.same_structure(argument, [p.path or "(root)"], "params", [])
            if p.value is None:
                continue
            checks.array("params", p)
            checks.same_home("params", p, "params", self.present[0])
            if g.value is not None:
                checks.array(argument, g)
                checks.same_home(argument, g, "params", p)
                checks.same_shape(argument, g, "params", p)
                checks.same_dtype(argument, g, "params", p)
        return grads

    def elsewhere(self, grad_fn: Any) -> Any:
        """A function of params whose gradients are checked as those of the step are."""

        def evaluate(params: Any) -> Any:
            tree, what = grad_fn(params), "grad_fn(params)"
            if self.params is not None:
                checks.returned(what, tree, "gradients, a tree like the params")
            for g, here in zip(self._gradients(what, tree), self.grads, strict=True):
                if g.value is None and here.value is not None:
                    raise ValueError(
                        f"{checks.place(what, g.path)} is None, and {checks.place('grads', g.path)} is an array; "
                        f"return a gradient of the same sample for every leaf that has one in this step"
                    )
            return tree

        return evaluate

    def loss(self, value: Any) -> Any:
        """A loss as a 0-d array of the scalars' dtype, beside the params."""
        xp = frameworks.namespace(self.like)
        dtype = frameworks.dtype(xp, self.wide)
        if not hasattr(value, "dtype") or frameworks.namespace(value) is not xp:
            value = frameworks.constant(xp, value, dtype, self.like)
        return xp.reshape(xp.astype(xp.asarray(value), dtype), ())

    def _extra(self, argument: str, tree: Any) -> list[Any]:
        """Values of a tree beside the params, an array of the leaf's shape wherever the leaf takes part."""
        column = flatten(tree)
        checks.same_structure(argument, [leaf.path for leaf in column], "params", self.paths)
        for value, p, g in zip(column, self.leaves, self.grads, strict=True):
            if p.value is not None and g.value is not None:
                checks.same_home(argument, value, "params", p)
                checks.same_shape(argument, value, "params", p)
        return [leaf.value for leaf in column]

    def _mask(self, tree: Any) -> list[bool]:
        column = flatten(tree)
        checks.same_structure("decay_mask", [leaf.path for leaf in column], "params", self.paths)
        for value, p in zip(column, self.leaves, strict=True):
            if p.value is not None and not isinstance(value.value, (bool, np.bool_)):
                where = checks.place("decay_mask", value.path)
                raise TypeError(f"{where} is {value.value!r}; pass True, or False to keep weight decay off the leaf")
        return [bool(leaf.value) for leaf in column]

    def hyper(self, compute: str, decayed: bool) -> Hyper:
        """All numbers of the rule in one compute dtype, made once per call."""
        if (compute, decayed) not in self.hypers:
            h = Hyper()
            constants = self.rule._constants[compute]
            for name in self.rule._ranges:
                if name in self.overrides:
                    value = resolve(self.overrides[name], compute, self.state.step)
                elif name in constants:
                    value = constants[name]
                else:
                    value = resolve(getattr(self.rule, name), compute, self.state.step)
                if name in self.overrides or name not in constants:
                    checks.made_number(name, value, self.rule._ranges[name])
                setattr(h, name, value)
            h.__dict__.update(self.rule.derived(h, self.state.step, compute))
            if not decayed:
                h.weight_decay = 0.0
            self.hypers[compute, decayed] = h
        return self.hypers[compute, decayed]

    def make_numbers(self) -> None:
        """Make the numbers of every leaf: what is traced inside of a conditional cannot be used outside of it."""
        for p, g, decayed in zip(self.leaves, self.grads, self.decayed, strict=True):
            if p.value is not None and g.value is not None:
                self.hyper(_compute_of(p.value), bool(decayed))

    def advance(self) -> None:
        """From the scalars that were measured: those that the leaves see, and those of the next state."""
        rule, xp = self.rule, frameworks.namespace(self.like)
        self.settlements = {name: value for name, value in self.found.items() if name in rule.settlements}
        measured = {n: value for n, value in self.found.items() if n != "finite" and n not in self.settlements}
        if not measured:
            return
        vectors = {name: self._vector(xp, name, mark.kind) for name, mark in rule._marks.items() if name in rule.kinds}
        old = self.state._replace(**{name: value for name, value in vectors.items() if value is not None})
        self.seen, self.advanced = rule.advance(measured, old, self.hyper(self.wide, True))
        if rule.nonfinite != "propagate":
            # what was made of finite numbers need not be: a quotient may overflow
            finite = rule._admitted({**self.seen, **self.advanced}, self.found.get("finite"))
            self.found = self.found if finite is None else {**self.found, "finite": finite}

    def _vector(self, xp: Any, name: str, kind: str) -> Any:
        """A scalar of the state with an entry per scope; None for other fields."""
        if kind != "scalar":
            return None
        value = getattr(self.state, name)
        if self.rule.kinds[name] == "scalar":
            return xp.reshape(value, (-1,))
        zero = frameworks.constant(xp, 0.0, frameworks.dtype(xp, self.wide), self.like)
        return xp.stack([zero if each is None else each for each in self.columns[name] or [zero]])

    def each(self, function: Any, extra: Mapping[str, Any]) -> Iterator[Any]:
        """``function(p, g, s, h)`` of every leaf, as vectors of the compute dtype; None where there is no gradient."""
        given = {name: [leaf.value for leaf in flatten(tree)] for name, tree in extra.items()}
        for i, (p, g) in enumerate(zip(self.leaves, self.grads, strict=True)):
            if p.value is None or g.value is None:
                yield None
                continue
            xp = frameworks.namespace(p.value)
            # in the leaf's compute dtype, which may be wider than that of a narrower state
            name_of_compute = _compute_of(p.value)
            compute = frameworks.dtype(xp, name_of_compute)
            fields = {name: given.get(name, column)[i] for name, column in {**self.columns, **given}.items()}
            for name, value in fields.items():
                if self.rule._marks[name].kind in ("element", "copy"):
                    fields[name] = frameworks.flat(ops.cast(value, compute))
            wide_g = frameworks.flat(ops.widen(g.value))
            h = self.leaf_hyper(name_of_compute, i)
            s = self.state._replace(**fields)
            yield function(frameworks.flat(ops.widen(p.value)), -wide_g if self.rule.maximize else wide_g, s, h, i)

    def leaf_hyper(self, compute: str, i: int) -> Hyper:
        """The numbers of a leaf, with the scalars of its scope."""
        base = self.hyper(compute, bool(self.decayed[i]))
        if not self.seen and not self.settlements:
            return base
        h, xp = Hyper(), frameworks.namespace(self.like)
        h.__dict__.update(base.__dict__)
        dtype = frameworks.dtype(xp, compute)
        settled = totals.scope_of(self.rule.settle_scope, self.leaves) if self.settlements else []
        for scope, scalars in ((self.scope, self.seen), (settled, self.settlements)):
            for name, value in scalars.items():
                if hasattr(value, "dtype") and value.shape:
                    k = scope[i] if value.shape[0] > 1 else 0
                    value = xp.reshape(value[k : k + 1], ())
                    if compute != self.wide and name_of(value.dtype) == self.wide:
                        value = ops.cast(value, dtype)
                setattr(h, name, value)
        return h

    def run(self, kernel: Any, outputs: int, *trees: Any, finish: str | None = None) -> tuple[list[list[Any]], Any]:
        """The kernel over all leaves: (a list of values per output, the new state)."""
        extras = [self._extra("aggregate", tree) if tree is not None else [None] * len(self.leaves) for tree in trees]
        results: list[list[Any]] = [[] for _ in range(outputs)]
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        for i, p in enumerate(self.leaves):
            old = {name: column[i] for name, column in self.columns.items()}
            if p.value is None or self.grads[i].value is None:
                outs: list[Any] = [p.value if finish == "params" else None] * outputs
                new = old
            else:
                leaf = _Leaf(
                    p.value,
                    self.grads[i].value,
                    old,
                    self.leaf_hyper(_compute_of(p.value), i),
                    tuple(extra[i] for extra in extras),
                    self.words[i],
                )
                outs, new = self._leaf(kernel, outputs, leaf, finish)
            for result, out in zip(results, outs, strict=True):
                result.append(out)
            for name, value in new.items():
                columns[name].append(value)
        return results, self.state._replace(
            **{name: unflatten(self.params, column) for name, column in columns.items()}
        )

    def _leaf(self, kernel: Any, outputs: int, leaf: _Leaf, finish: str | None) -> tuple[list[Any], dict[str, Any]]:
        rule, found, state, h = self.rule, self.found, self.state, leaf.h
        xp = frameworks.namespace(leaf.p)
        fmt = format_of(leaf.p)
        assert fmt is not None
        compute = frameworks.dtype(xp, fmt.compute)
        formats = {
            name: (fmt, leaf.p.dtype) if rule.kinds[name] == "copy" else state_format(rule, xp, leaf.p)
            for name in leaf.state
            if rule.kinds[name] in ("element", "copy")
        }
        whole = {name: value for name, value in leaf.state.items() if name not in formats}
        draw = rule._draws and (not leaf.extras or rule.applies_noise)
        last: dict[str, Any] = {}  # new per-leaf values: the same from every block

        def body(arrays: list[Any], start: int) -> tuple[Any, ...]:
            p, g, words = arrays[:3]
            sent, old = arrays[3 : 3 + len(leaf.extras)], arrays[3 + len(leaf.extras) :]
            if words is None and draw:
                words = xp.reshape(words_of(p, whole["stream"], state.step, start), p.shape)
            wide = {name: ops.cast(value, compute) for name, value in zip(formats, old, strict=True)}
            s = state._replace(**wide, **whole)
            g = ops.widen(g)
            outs, s = kernel(ops.widen(p), -g if rule.maximize else g, s, h, words, *sent)
            stored = [
                frameworks.without_history(ops.narrow(getattr(s, name), dtype, kept, stored=rule.kinds[name] != "copy"))
                for name, (kept, dtype) in formats.items()
            ]
            last.update({name: xp.asarray(getattr(s, name)) for name in whole})
            if finish is not None:
                outs = (ops.narrow(outs[0], leaf.p.dtype, fmt),)
            if "finite" in found:
                stored = [xp.where(found["finite"], new, value) for new, value in zip(stored, old, strict=True)]
            if finish == "params":
                outs = (ops.narrow(ops.widen(p) + ops.widen(outs[0]), leaf.p.dtype, fmt, stored=False),)
            if finish is not None and "finite" in found:
                unchanged = p if finish == "params" else frameworks.constant(xp, -0.0, leaf.p.dtype, p)
                outs = (xp.where(found["finite"], outs[0], unchanged),)
            # what is written over what others read comes last
            new = dict(zip(formats, stored, strict=True))
            if finish == "params":
                kept = [value for name, value in new.items() if rule.kinds[name] == "copy"]
                outs = tuple(frameworks.after(kept, list(outs)))
            late = {name: value for name, value in new.items() if rule._marks[name].late}
            new.update(zip(late, frameworks.after(list(outs), list(late.values())), strict=True))
            return (*outs, *new.values())

        arrays = [leaf.p, leaf.g, leaf.words, *leaf.extras, *(leaf.state[name] for name in formats)]
        arrays = frameworks.after(list(found.values()), arrays)  # what was measured has read the old values by then
        done = blocks.run(body, arrays)
        new, stored = dict(leaf.state), list(done[outputs:])
        if finish == "params":
            stored = [frameworks.own(value, (leaf.p, leaf.g)) for value in stored]
        new.update(zip(formats, stored, strict=True))
        if finish is not None:
            last.update(rule.packed_leaf(ops.widen(leaf.p), self._gradient(leaf), state._replace(**whole), h))
        for name, value in last.items():
            if "finite" in found and rule.kinds[name] != "stream":
                value = xp.where(found["finite"], value, leaf.state[name])
            new[name] = value
        return list(done[:outputs]), new

    def _gradient(self, leaf: _Leaf) -> Any:
        g = ops.widen(leaf.g)
        return -g if self.rule.maximize else g

    def settled(self, state: Any) -> Any:
        """The state with its scalars advanced and its step counter one further."""
        fields: dict[str, Any] = {}
        for name, value in self.advanced.items():
            xp, old = frameworks.namespace(self.like), getattr(self.state, name)
            kind = self.rule.kinds[name]
            if kind == "leaf":
                values = []
                for i, (before, g) in enumerate(zip(self.columns[name], self.grads, strict=True)):
                    new = None if before is None else xp.reshape(value[i : i + 1], ())
                    values.append(before if g.value is None else self._kept(new, before))
                fields[name] = unflatten(self.params, values)
            else:
                fields[name] = self._kept(xp.reshape(xp.asarray(value), old.shape), old)
        return self.counted(state._replace(**fields))

    def moved(self, delta: Any) -> Any:
        """The params after a delta, as a step leaves them."""
        values = []
        for p, d in zip(self.leaves, flatten(delta), strict=True):
            if p.value is None or d.value is None:
                values.append(p.value)
                continue
            fmt = format_of(p.value)
            assert fmt is not None
            values.append(ops.narrow(ops.widen(p.value) + ops.widen(d.value), p.value.dtype, fmt, stored=False))
        return unflatten(self.params, values)

    def chosen(self, accepted: Any, result: Any, finish: str) -> Any:
        """The new params, or the delta, if the step is accepted; else the old ones, or a delta that changes nothing."""
        values = []
        for p, new in zip(self.leaves, flatten(result), strict=True):
            if p.value is None or new.value is None:
                values.append(new.value)
                continue
            xp = frameworks.namespace(p.value)
            old = p.value if finish == "params" else frameworks.constant(xp, -0.0, p.value.dtype, p.value)
            values.append(xp.where(accepted, new.value, old))
        return unflatten(self.params, values)

    def aggregate(self, name: str, tree: Any, wire: Wire) -> list[Any]:
        """A field of the aggregate, by leaf; None for one that was used up in aggregating."""
        return [None] * len(self.leaves) if wire.aggregate == "gathered" else self._extra("aggregate", tree)

    def scalar_column(self, name: str) -> list[Any]:
        """A scalar as the leaves see it, by leaf."""
        return [
            None if p.value is None or g.value is None else getattr(self.leaf_hyper(_compute_of(p.value), i), name)
            for i, (p, g) in enumerate(zip(self.leaves, self.grads, strict=True))
        ]

    def _kept(self, new: Any, old: Any) -> Any:
        return frameworks.namespace(old).where(self.found["finite"], new, old) if "finite" in self.found else new

    def counted(self, state: Any) -> Any:
        """The state with its step counter one further, saturating at the largest int32."""
        step = self.state.step
        xp = frameworks.namespace(step)
        one = xp.astype(step < 2**31 - 1, xp.int32)
        if "finite" in self.found:
            one = one * xp.astype(self.found["finite"], xp.int32)
        return state._replace(step=xp.asarray(step + one))


def check_hyper(rule: Rule, overrides: Mapping[str, Any]) -> None:
    """Raise what the constructor would of numbers that override a rule's; arrays are not looked at."""
    if not isinstance(overrides, Mapping):
        raise TypeError(f"`hyper` is {overrides!r}; pass a dict of hyperparameters and values")
    for name, value in overrides.items():
        if name not in rule._ranges:
            if name in {field.name for field in dataclasses.fields(rule)}:
                raise ValueError(
                    f"`hyper` holds {name!r}, a static option; build another rule: rule.replace({name}={value!r})"
                )
            checks.known("hyper", name, rule._ranges)
        checks.number(name, value, rule._ranges[name])
    known = {name: value for name, value in overrides.items() if checks.is_number(value)}
    if known:
        # What the constructor refuses of the numbers together; a twin costs less than a rule that is built.
        twin = object.__new__(type(rule))
        twin.__dict__.update(rule.__dict__, **known)
        twin.check()


def _check_state(rule: Rule, state: Any) -> None:
    if not isinstance(state, rule.State):
        raise TypeError(
            f"`state` is a {type(state).__name__}, {type(rule).__name__} needs a {rule.State.__name__}; "
            f"make one with rule.init(params)"
        )


def check_fit(rule: Rule, params: Any, state: Any) -> None:
    """Raise what a step would: params that are no arrays of one home, a state of another rule or of other params."""
    _check_state(rule, state)
    leaves = flatten(params)
    present = [leaf for leaf in leaves if leaf.value is not None]
    for leaf in present:
        checks.array("params", leaf)
        checks.same_home("params", leaf, "params", present[0])
    _check_fields(rule, state, leaves, present[0].value if present else state.step, totals.wide(present))


def _check_fields(rule: Rule, state: Any, leaves: list[Leaf], like: Any, wide: str) -> dict[str, list[Any]]:
    """All fields of a state, checked against the params; those that have a value per leaf are returned, by leaf."""
    columns: dict[str, list[Any]] = {}
    for name, kind in rule.kinds.items():
        value = getattr(state, name)
        if kind in WHOLE:
            shape = () if kind == "shared" else totals.shape_of(rule.scope, leaves)
            _check_words(f"state.{name}", Leaf("", value), shape, Leaf("", like), "int32" if kind == "shared" else wide)
        else:
            columns[name] = _check_column(rule, name, kind, value, leaves, wide)
    return columns


def _compute_of(p: Any) -> str:
    fmt = format_of(p)
    assert fmt is not None
    return fmt.compute


def _check_words(where: str, value: Leaf, shape: tuple[int, ...], p: Leaf, dtype: str = "int32") -> None:
    """Counters, flags, keys and scalars are arrays of one shape and dtype, beside the params."""
    checks.same_home(where, value, "params", p)
    if name_of(value.value.dtype) != dtype or tuple(value.value.shape) != shape:
        raise ValueError(
            f"{checks.place(where, value.path)} is an array of {name_of(value.value.dtype)} of shape "
            f"{tuple(value.value.shape)}, it must be {dtype} of {shape}; make the state with rule.init(params)"
        )


def _check_column(rule: Rule, name: str, kind: str, tree: Any, leaves: list[Leaf], wide: str) -> list[Any]:
    """Per-leaf values of one state field, checked against the params."""
    column = flatten(tree)
    where = f"state.{name}"
    checks.same_structure(where, [leaf.path for leaf in column], "params", [leaf.path for leaf in leaves])
    for value, p in zip(column, leaves, strict=True):
        if p.value is None:
            continue
        if value.value is None:
            raise ValueError(f"{checks.place(where, p.path)} is None; make the state with rule.init(params)")
        if kind == "packed":
            _check_words(where, value, (-(-math.prod(p.value.shape) // 8),), p, "uint8")
        elif kind == "stream":
            _check_words(where, value, (2,), p)
        elif kind == "leaf":
            _check_words(where, value, (), p, wide if rule._marks[name].kind == "scalar" else "int32")
        else:
            checks.same_home(where, value, "params", p)
            checks.same_shape(where, value, "params", p)
            fmt, dtype = state_format(rule, frameworks.namespace(p.value), p.value)
            if kind == "copy":
                fmt, dtype = format_of(p.value) or fmt, p.value.dtype
            if value.value.dtype != dtype:
                raise ValueError(
                    f"{checks.place(where, value.path)} has dtype {name_of(value.value.dtype)}, this rule keeps it in "
                    f"{fmt.name} for `params` of {name_of(p.value.dtype)}; make the state with rule.init(params)"
                )
    return [leaf.value for leaf in column]
