"""Leaves of one dtype as one long vector: a step of a thousand leaves in as many operations as one of a single leaf.

A rule's arithmetic is elementwise, which is why blocks.py may cut a leaf; what is measured over a whole tree is exact,
whatever the order; and a random word follows from its leaf's key and its index there (tapes.py). So no step sees where
one leaf ends and the next begins. What a leaf has to itself as a whole keeps a rule from being joined: a scalar of each
leaf or group, packed bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from . import frameworks, tapes
from .dtypes import name_of
from .rule import Rule
from .tree import first_difference, flatten, unflatten
from .walk import check_fit, column_of

_LONG = ("element", "copy")  # kinds of fields that are vectors as the params are
_SHORT = ("leaf", "stream")  # kinds of which a leaf has one small array; a vector has that of its first leaf
_WHOLE = ("shared", "scalar")


def fits(rule: Rule) -> bool:
    """Whether a rule's steps are the same for joined leaves, which its marks tell.

    Examples
    --------
    >>> import signcore as sc
    >>> fits(sc.Lion(lr=1.0)), fits(sc.Tiger(lr=1.0)), fits(sc.Tiger(lr=1.0, scale_by_rms=False))
    (True, False, True)
    """
    scopes = {rule.scope} if any(partial.kind is not None for partial in rule.partials.values()) else set()
    scopes |= {rule.settle_scope} if rule.settlements else set()
    # a scalar of each leaf is laid out as a flag is
    scopes |= {rule.scope for name in rule.kinds if rule._marks[name].kind == "scalar"}
    return scopes <= {"global"} and set(rule.kinds.values()) <= {*_LONG, *_SHORT, *_WHOLE}


class _Place(NamedTuple):
    """What a leaf looks like."""

    shape: tuple[int, ...]
    size: int
    dtype: Any
    device: Any

    def takes(self, g: Any, xp: Any) -> bool:
        """Whether an array is a gradient of it."""
        try:
            at_home = frameworks.namespace(g) is xp and frameworks.device(g) == self.device
        except TypeError:  # no array
            return False
        return at_home and g.dtype == self.dtype and tuple(g.shape) == self.shape


class Layout:
    """Which leaves of a tree lie one behind the other in which vector.

    Parameters
    ----------
    skeleton : tree
        Of the params' structure; its leaves are of no account, so that it keeps no array alive.
    places : list of _Place or None
        By leaf; None for none.
    vectors : list of lists of int
        The leaves of each vector, by index: of one dtype.
    """

    def __init__(self, skeleton: Any, places: list[_Place | None], vectors: list[list[int]]) -> None:
        self.skeleton, self.places, self.vectors = skeleton, places, vectors
        self.paths = [leaf.path for leaf in flatten(skeleton)]
        self.cuts: list[list[tuple[int, int, tuple[int, ...]]]] = []  # leaf, end and shape, by vector
        for vector in vectors:
            end, cuts = 0, []
            for i in vector:
                place = places[i]
                assert place is not None
                end += place.size
                cuts.append((i, end, place.shape))
            self.cuts.append(cuts)

    @classmethod
    def of(cls, params: Any, histories: list[Any]) -> Layout:
        """One vector for all leaves of one dtype and one history."""
        places: list[_Place | None] = []
        vectors: dict[Any, list[int]] = {}
        for i, (_, p) in enumerate(flatten(params)):
            if p is None:
                places.append(None)
                continue
            shape, size = tuple(p.shape), 1
            for extent in shape:
                size *= extent
            places.append(_Place(shape, size, p.dtype, frameworks.device(p)))
            vectors.setdefault((name_of(p.dtype), histories[i]), []).append(i)
        return cls(unflatten(params, list(range(len(places)))), places, list(vectors.values()))

    def refined(self, column: list[Any]) -> Layout:
        """The same, but no vector holds leaves with a value in `column` and leaves without one."""
        parts = [
            [i for i in vector if (column[i] is None) is none] for vector in self.vectors for none in (False, True)
        ]
        return Layout(self.skeleton, self.places, [part for part in parts if part])

    def suits(self, column: list[Any]) -> bool:
        """Whether none does."""
        return all(len({column[i] is None for i in vector}) == 1 for vector in self.vectors)

    def column(self, grads: Any, xp: Any) -> list[Any] | None:
        """The gradients by leaf; None where they are not what a step takes, or may not be."""
        found = flatten(grads)
        if [leaf.path for leaf in found] != self.paths or first_difference(self.skeleton, grads) is not None:
            return None
        for (_, g), place in zip(found, self.places, strict=True):
            if g is not None and (place is None or not place.takes(g, xp)):
                return None
        return [leaf.value for leaf in found]

    def long(self, column: list[Any]) -> list[Any]:
        """The vectors of what stands at the leaves; None where there is nothing."""
        return [None if column[vector[0]] is None else _concat([column[i] for i in vector]) for vector in self.vectors]

    def short(self, vectors: list[Any]) -> list[Any]:
        """What stands at the leaves, by views of vectors."""
        column: list[Any] = [None] * len(self.places)
        for vector, cuts in zip(vectors, self.cuts, strict=True):
            start = 0
            for i, end, shape in cuts if vector is not None else ():
                column[i] = frameworks.namespace(vector).reshape(vector[start:end], shape)
                start = end
        return column

    def firsts(self, column: list[Any]) -> list[Any]:
        """Of what stands at the leaves, what does at the first of each vector."""
        return [column[vector[0]] for vector in self.vectors]

    def each(self, values: list[Any]) -> list[Any]:
        """At each leaf the value of its vector."""
        column: list[Any] = [None] * len(self.places)
        for value, vector in zip(values, self.vectors, strict=True):
            for i in vector:
                column[i] = value
        return column

    def tree(self, column: list[Any]) -> Any:
        """A tree of the params' structure."""
        return unflatten(self.skeleton, column)


class Joined:
    """Params and a rule's state in few vectors; nothing of it changes, a step gives another.

    Attributes
    ----------
    params, state
        As the rule has them leaf by leaf; the arrays are views of the vectors.
    """

    def __init__(self, rule: Rule, layout: Layout, vectors: list[Any], state: Any, keys: Mapping[str, Any]) -> None:
        self.rule, self.layout, self.vectors, self.joined, self.keys = rule, layout, vectors, state, keys

    @classmethod
    def of(cls, rule: Rule, layout: Layout, params: Any, state: Any) -> Joined:
        """Join what a rule has leaf by leaf."""
        fields, keys = {}, {}
        for name, kind in rule.kinds.items():
            if kind in _WHOLE:
                continue
            column = column_of(getattr(state, name), params)
            fields[name] = layout.long(column) if kind in _LONG else layout.firsts(column)
            if kind == "stream":  # the keys of the leaves' noise; no step changes them
                keys[name] = getattr(state, name)
        made = cls(rule, layout, layout.long(column_of(params, params)), state._replace(**fields), keys)
        made.params, made.state = params, state
        return made

    @cached_property
    def params(self) -> Any:
        """The params as a tree."""
        return self.layout.tree(self.layout.short(self.vectors))

    @cached_property
    def state(self) -> Any:
        """The state as the rule has it."""
        fields = dict(self.keys)
        for name, kind in self.rule.kinds.items():
            value = getattr(self.joined, name)
            if kind in _LONG:
                fields[name] = self.layout.tree(self.layout.short(value))
            elif kind == "leaf":
                fields[name] = self.layout.tree(self.layout.each(value))
        return self.joined._replace(**fields)

    def step(self, grads: Any, *, value_fn: Any = None, grad_fn: Any = None, **given: Any) -> Joined:
        """What ``rule.step`` makes of it; takes and raises what that does."""
        layout = self.layout
        column = layout.column(grads, frameworks.namespace(self.vectors[0]))
        if column is None:
            return self._apart(grads, value_fn=value_fn, grad_fn=grad_fn, **given)
        if not layout.suits(column):
            # from now on these leaves differ in what their flags say
            return Joined.of(self.rule, layout.refined(column), self.params, self.state).step(
                grads, value_fn=value_fn, grad_fn=grad_fn, **given
            )
        try:
            vectors, state = self.rule.step(
                self.vectors,
                layout.long(column),
                self.joined,
                noise=self._tape.words(self.joined.step) if self._tape else None,
                value_fn=value_fn and self._split(value_fn),
                grad_fn=grad_fn and self._split(grad_fn, join=True),
                **given,
            )
        except (TypeError, ValueError, FloatingPointError):
            return self._apart(grads, value_fn=value_fn, grad_fn=grad_fn, **given)
        made = Joined(self.rule, layout, vectors, state, self.keys)
        if self._tape:
            made._tape = self._tape
        return made

    def _apart(self, grads: Any, **given: Any) -> Joined:
        """A step leaf by leaf, whose errors name the leaf."""
        params, state = self.rule.step(self.params, grads, self.state, **given)
        return Joined.of(self.rule, self.layout.refined(column_of(grads, params)), params, state)

    def _split(self, function: Callable[[Any], Any], join: bool = False) -> Callable[[list[Any]], Any]:
        """A user's function of params as one of vectors."""

        def evaluate(vectors: list[Any]) -> Any:
            found = function(self.layout.tree(self.layout.short(vectors)))
            if not join:
                return found
            column = self.layout.column(found, frameworks.namespace(self.vectors[0]))
            if column is None or not self.layout.suits(column):
                raise ValueError("these gradients cannot be joined")  # the step leaf by leaf says why, or takes them
            return self.layout.long(column)

        return evaluate

    @cached_property
    def _tape(self) -> tapes.Tape | None:
        if not self.rule.draws_noise:
            return None
        (keys,) = (column_of(tree, self.layout.skeleton) for tree in self.keys.values())
        sizes = [place.size if place is not None else 0 for place in self.layout.places]
        return tapes.Tape([[(keys[i], sizes[i]) for i in vector] for vector in self.layout.vectors])


def join(rule: Rule, params: Any, state: Any, *, alike: bool | None) -> Joined | None:
    """Join what a rule has leaf by leaf; None where its steps would not be the same, or nothing is to be joined.

    Parameters
    ----------
    rule : Rule
    params, state
        As ``rule.step`` takes them.
    alike : bool or None
        Whether the flags that leaves have in `state` are the same for all; None looks at them, which waits for the
        device. Leaves with other flags are not joined.
    """
    if not fits(rule) or sum(leaf.value is not None for leaf in flatten(params)) < 2:
        return None
    try:
        check_fit(rule, params, state)
    except (TypeError, ValueError):  # the first step says what is wrong
        return None
    return Joined.of(rule, Layout.of(params, _histories(rule, params, state, alike)), params, state)


def _histories(rule: Rule, params: Any, state: Any, alike: bool | None) -> list[Any]:
    """For each leaf what tells it from leaves with other flags."""
    names = [name for name, kind in rule.kinds.items() if kind == "leaf"]
    leaves = flatten(params)
    if alike or not names:
        return [()] * len(leaves)
    if alike is False:
        return list(range(len(leaves)))
    found: list[Any] = [()] * len(leaves)
    present = [i for i, leaf in enumerate(leaves) if leaf.value is not None]
    for name in names:
        column = column_of(getattr(state, name), params)
        flags = frameworks.namespace(column[present[0]]).stack([column[i] for i in present])
        for i, flag in zip(present, frameworks.to_numpy(flags).tolist(), strict=True):
            found[i] = (*found[i], flag)
    return found


def _concat(arrays: list[Any]) -> Any:
    xp = frameworks.namespace(arrays[0])
    flat = [xp.reshape(array, (-1,)) for array in arrays]
    return flat[0] if len(flat) == 1 else xp.concat(flat)
