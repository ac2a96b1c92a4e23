"""One call of a rule: its checked inputs, and the loop over the leaves of a tree.

Here a leaf is widened on entry and rounded when stored, noise is drawn, blocks are cut and a step that must
be skipped is undone. The rule itself sees one array in its compute dtype and knows of none of this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import blocks, checks, frameworks, ops, random
from .dtypes import FORMATS, Format, format_of, name_of
from .fields import Hyper, resolve
from .marks import Mark
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
    state: dict[str, Any]  # per-element and per-leaf fields
    extras: tuple[Any, ...]
    words: Any
    decayed: bool


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
        self.rule, self.params, self.state, self.scalars = rule, params, state, scalars or {}
        self.overrides = hyper or {}
        self.hypers: dict[tuple[str, bool], Hyper] = {}
        _check_hyper(rule, self.overrides)
        _check_state(rule, state)
        self.leaves = flatten(params)
        self.grads = flatten(grads)
        paths = self.paths = [leaf.path for leaf in self.leaves]
        checks.same_structure("grads", [leaf.path for leaf in self.grads], "params", paths)
        checks.same_containers("grads", grads, "params", params)
        present = [leaf for leaf in self.leaves if leaf.value is not None]
        for p, g in zip(self.leaves, self.grads, strict=True):
            if p.value is None and g.value is not None:
                checks.same_structure("grads", [p.path or "(root)"], "params", [])
            if p.value is None:
                continue
            checks.array("params", p)
            checks.same_home("params", p, "params", present[0])
            if g.value is not None:
                checks.array("grads", g)
                checks.same_home("grads", g, "params", p)
                checks.same_shape("grads", g, "params", p)
                checks.same_dtype("grads", g, "params", p)
        self.columns: dict[str, list[Any]] = {}
        for name, mark in rule._marks.items():
            if mark.kind == "shared":
                value = Leaf("", getattr(state, name))
                _check_words(f"state.{name}", value, (), present[0] if present else value)
            else:
                self.columns[name] = _check_column(rule, name, mark, getattr(state, name), self.leaves)
        self.words = [None] * len(paths) if noise is None else self._extra("noise", noise)
        self.decayed = [True] * len(paths) if decay_mask is None else self._mask(decay_mask)

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
                setattr(h, name, value)
            if not decayed:
                h.weight_decay = 0.0
            self.hypers[compute, decayed] = h
        return self.hypers[compute, decayed]

    def run(self, kernel: Any, outputs: int, *trees: Any, finish: str | None = None) -> tuple[list[list[Any]], Any]:
        """The kernel over all leaves: (a list of values per output, the new state)."""
        extras = [self._extra("aggregate", tree) for tree in trees]
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
                    tuple(extra[i] for extra in extras),
                    self.words[i],
                    bool(self.decayed[i]),
                )
                outs, new = self._leaf(kernel, outputs, leaf, finish)
            for result, out in zip(results, outs, strict=True):
                result.append(out)
            for name, value in new.items():
                columns[name].append(value)
        trees_new = {
            name: None if getattr(self.state, name) is None else unflatten(self.params, column)
            for name, column in columns.items()
        }
        return results, self.state._replace(**trees_new)

    def _leaf(self, kernel: Any, outputs: int, leaf: _Leaf, finish: str | None) -> tuple[list[Any], dict[str, Any]]:
        rule, scalars, state = self.rule, self.scalars, self.state
        xp = frameworks.namespace(leaf.p)
        fmt = format_of(leaf.p)
        assert fmt is not None
        compute = frameworks.dtype(xp, fmt.compute)
        state_fmt, state_dtype = state_format(rule, xp, leaf.p)
        h = self.hyper(fmt.compute, leaf.decayed)
        elements = [name for name in leaf.state if rule._marks[name].kind == "element"]
        per_leaf = {name: value for name, value in leaf.state.items() if name not in elements}
        draw = rule.draws_noise and not leaf.extras  # whoever applies an aggregate draws nothing
        last: dict[str, Any] = {}  # new per-leaf values: the same from every block

        def body(arrays: list[Any], start: int) -> tuple[Any, ...]:
            p, g, words = arrays[:3]
            sent, old = arrays[3 : 3 + len(leaf.extras)], arrays[3 + len(leaf.extras) :]
            if words is None and draw:
                words = xp.reshape(words_of(p, per_leaf["stream"], state.step, start), p.shape)
            wide = {name: ops.cast(value, compute) for name, value in zip(elements, old, strict=True)}
            s = state._replace(**wide, **per_leaf)
            g = ops.widen(g)
            outs, s = kernel(ops.widen(p), -g if rule.maximize else g, s, h, words, *sent)
            stored = [ops.narrow(getattr(s, name), state_dtype, state_fmt) for name in elements]
            last.update(
                {name: None if value is None else xp.asarray(getattr(s, name)) for name, value in per_leaf.items()}
            )
            if finish is not None:
                outs = (ops.narrow(outs[0], leaf.p.dtype, fmt),)
            if "finite" in scalars:
                stored = [xp.where(scalars["finite"], new, value) for new, value in zip(stored, old, strict=True)]
            if finish == "params":
                outs = (ops.narrow(ops.widen(p) + ops.widen(outs[0]), leaf.p.dtype, fmt, stored=False),)
            if finish is not None and "finite" in scalars:
                unchanged = p if finish == "params" else frameworks.constant(xp, -0.0, leaf.p.dtype, p)
                outs = (xp.where(scalars["finite"], outs[0], unchanged),)
            return (*outs, *stored)

        arrays = [leaf.p, leaf.g, leaf.words, *leaf.extras, *(leaf.state[name] for name in elements)]
        done = blocks.run(body, arrays)
        new = dict(leaf.state)
        new.update(zip(elements, done[outputs:], strict=True))
        for name, value in last.items():
            if "finite" in scalars and value is not None:
                value = xp.where(scalars["finite"], value, leaf.state[name])
            new[name] = value
        return list(done[:outputs]), new

    def counted(self, state: Any) -> Any:
        """The state with its step counter one further, saturating at the largest int32."""
        step = self.state.step
        xp = frameworks.namespace(step)
        one = xp.astype(step < 2**31 - 1, xp.int32)
        if "finite" in self.scalars:
            one = one * xp.astype(self.scalars["finite"], xp.int32)
        return state._replace(step=xp.asarray(step + one))


def _check_hyper(rule: Rule, overrides: Mapping[str, Any]) -> None:
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


def _check_state(rule: Rule, state: Any) -> None:
    if not isinstance(state, rule.State):
        raise TypeError(
            f"`state` is a {type(state).__name__}, {type(rule).__name__} needs a {rule.State.__name__}; "
            f"make one with rule.init(params)"
        )


def _check_words(where: str, value: Leaf, shape: tuple[int, ...], p: Leaf) -> None:
    """Counters, flags and keys are int32 arrays of one shape, beside the params."""
    checks.same_home(where, value, "params", p)
    if name_of(value.value.dtype) != "int32" or tuple(value.value.shape) != shape:
        raise ValueError(
            f"{checks.place(where, value.path)} is an array of {name_of(value.value.dtype)} of shape "
            f"{tuple(value.value.shape)}, it must be int32 of {shape}; make the state with rule.init(params)"
        )


def _check_column(rule: Rule, name: str, mark: Mark, tree: Any, leaves: list[Leaf]) -> list[Any]:
    """Per-leaf values of one state field, checked against the params."""
    if mark.kind == "stream" and tree is None and not rule.draws_noise:
        return [None] * len(leaves)
    column = flatten(tree)
    where = f"state.{name}"
    checks.same_structure(where, [leaf.path for leaf in column], "params", [leaf.path for leaf in leaves])
    for value, p in zip(column, leaves, strict=True):
        if p.value is None:
            continue
        if value.value is None:
            raise ValueError(f"{checks.place(where, p.path)} is None; make the state with rule.init(params)")
        if mark.kind != "element":
            _check_words(where, value, () if mark.kind == "leaf" else (2,), p)
            continue
        checks.same_home(where, value, "params", p)
        checks.same_shape(where, value, "params", p)
        fmt, dtype = state_format(rule, frameworks.namespace(p.value), p.value)
        if value.value.dtype != dtype:
            raise ValueError(
                f"{checks.place(where, value.path)} has dtype {name_of(value.value.dtype)}, this rule keeps it in "
                f"{fmt.name} for `params` of {name_of(p.value.dtype)}; make the state with rule.init(params)"
            )
    return [leaf.value for leaf in column]
