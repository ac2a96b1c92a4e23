"""All error messages about arguments: the argument in backticks, the value received, the way out."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from . import frameworks, ops
from .dtypes import FORMATS, format_of, name_of
from .tree import Leaf, first_difference


class Range(NamedTuple):
    """Allowed values of a number: at least `minimum`, below `below` or at most `maximum`; `why` says the way out."""

    minimum: float = 0.0
    maximum: float | None = None
    below: float | None = None
    why: str = ""

    def __str__(self) -> str:
        upper = f"{self.maximum:g}]" if self.maximum is not None else f"{self.below or math.inf:g})"
        return f"[{self.minimum:g}, {upper}"


def is_number(value: Any) -> bool:
    """A concrete Python or NumPy number (not a bool, not an array)."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def number(name: str, value: Any, allowed: Range) -> None:
    """A concrete number must lie in its range; of arrays and traced values only the kind is checked."""
    if not is_number(value):
        if callable(value) or _is_real_scalar(value):
            return
        raise TypeError(f"`{name}` is {value!r}; pass a number in {allowed}, a 0-d array or a schedule")
    above = (allowed.below is not None and value >= allowed.below) or (
        allowed.maximum is not None and value > allowed.maximum
    )
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond every float
        raise ValueError(f"`{name}` is an int of {value.bit_length()} bits; it must be in {allowed}") from None
    if not finite or value < allowed.minimum or above:
        why = f": {allowed.why}" if allowed.why else ""
        raise ValueError(f"`{name}` is {value!r}; it must be finite and in {allowed}{why}")
    if allowed.below is not None and ops.rounded(float(value), "float32") >= allowed.below:
        # otherwise a decay of 1 - 1e-9 would be 1 in float32, and nothing would ever move
        raise ValueError(
            f"`{name}` is {value!r}, which is {allowed.below:g} in float32; it must be in {allowed} there, too"
        )


def made_number(name: str, value: Any, allowed: Range) -> None:
    """The same of what a schedule returned or an array holds, where it can be read without waiting for a device."""
    if hasattr(value, "dtype") and not is_number(value):
        if not frameworks.is_on_host(value):
            return
        value = float(frameworks.on_host(value))
    number(name, value, allowed)


def _is_real_scalar(value: Any) -> bool:
    """Whether a value is an array of one real number, traced or not."""
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return False
    kind = name_of(value.dtype).lstrip("u").rstrip("0123456789")
    return kind in {"int", "float", "bfloat"} and math.prod(value.shape) == 1


def integer(name: str, value: Any) -> None:
    """A whole number, which is part of what is compiled."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; pass an int")


def choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """A static option must be one of its choices."""
    choices = list(choices)
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(repr, choices))}")


def known(argument: str, value: Any, names: Iterable[str]) -> None:
    """A name must be known; the error suggests the nearest."""
    names = sorted(names)
    if value in names:
        return
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(str(value).casefold(), folded, n=1, cutoff=0.4)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise ValueError(f"`{argument}` is {value!r}; {hint}known: {', '.join(names)}")


def keyword(owner: str, argument: str, name: str, names: Iterable[str]) -> None:
    """A keyword must be known to what is being built; as Python's own, the error is a TypeError."""
    try:
        known(argument, name, names)
    except ValueError as error:
        raise TypeError(f"{owner}: {error}") from None


def distinct(argument: str, names: list[str], count: int) -> None:
    """One name per leaf, and no two alike: leaves of one name would draw the same noise."""
    if len(names) != count:
        raise ValueError(f"`{argument}` has {len(names)} entries for {count} leaves; pass one per leaf, in order")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two leaves are called {name!r}; rename one, or pass other `{argument}`")
        seen.add(name)


def scalars(rule: Any, given: dict[str, Any] | None) -> None:
    """A step that depends on scalars of the whole tree must be given them."""
    missing = [name for name in rule._partials if (name if name != "nonfinite" else "finite") not in (given or {})]
    if missing:
        why = "nonfinite='skip' needs to know whether all gradients are finite"
        if missing != ["nonfinite"]:
            why = f"{type(rule).__name__} needs {', '.join(missing)} of the whole tree"
        raise ValueError(
            f"`scalars` is {given!r}, and {why}; pass "
            f"rule.finish(partials) with the merged partials of rule.measure(params, grads, state)"
        )


_INPUTS = {
    "value": "the loss at params: step(..., value=loss); in torch a closure that returns it, in optax "
    "update(..., value=loss)",
    "value_fn": "a function of params that returns the loss: step(..., value_fn=f); in torch a closure, in optax "
    "update(..., value_fn=f)",
    "grad_fn": "a function of params that returns gradients of the same sample: step(..., grad_fn=f); in torch a "
    "closure, in optax update(..., grad_fn=f)",
}


def given(rule: Any, name: str, value: Any) -> None:
    """An input that a rule needs beside the gradients must be there."""
    if value is None:
        raise TypeError(f"`{name}` is missing: {type(rule).__name__} needs it; pass {_INPUTS[name]}")
    if name != "value" and not callable(value):
        raise TypeError(f"`{name}` is {value!r}; pass {_INPUTS[name]}")


def loss(what: str, value: Any, way_out: str = "pass the loss") -> None:
    """A loss is one real number, traced or not: NaN and infinity are none of our business here, None is."""
    if is_number(value):
        try:
            math.isfinite(value)
        except OverflowError:  # an int beyond every float
            raise ValueError(f"`{what}` is an int of {value.bit_length()} bits; {way_out} as a float") from None
    elif not _is_real_scalar(value):
        raise TypeError(f"`{what}` is {_described(value)}; {way_out}: one real number, Python's or a 0-d array")


def returned(what: str, value: Any, expected: str) -> None:
    """A function of the user's must not return None."""
    if value is None:
        raise TypeError(f"`{what}` is None; return {expected} (a `return` is missing)")


def loss_of(value: Any) -> None:
    """What a `value_fn` returned must be a loss."""
    returned("value_fn(params)", value, "the loss: one real number, Python's or a 0-d array")
    loss("value_fn(params)", value, "return the loss")


def function(name: str, value: Any, returns: str) -> None:
    """An argument must be a function of params."""
    if not callable(value):
        raise TypeError(f"`{name}` is {_described(value)}; pass a function of params that returns {returns}")


def is_rule(argument: str, value: Any, base: type) -> None:
    """An argument must be a rule."""
    if not isinstance(value, base):
        raise TypeError(f"`{argument}` is {value!r}; pass a rule, made by signcore.rule(name, lr=...)")


def _described(value: Any) -> str:
    """A value for a message: arrays by their kind, for their numbers would fill the screen."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {name_of(value.dtype)} of shape {tuple(value.shape)}"
    return repr(value)


def count(name: str, value: Any, least: int) -> None:
    """A whole number of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; pass an int of at least {least}")
    if value < least:
        raise ValueError(f"`{name}` is {value!r}; pass an int of at least {least}")


def kept(name: str, value: Any, held: float) -> None:
    """A number that decides what a rule draws cannot be changed by a call; what is traced cannot be told."""
    if (is_number(value) or frameworks.is_on_host(value)) and float(value) != held:
        raise ValueError(
            f"`{name}` is {float(value)!r} in `hyper`, and the rule was built with {name}={held:g}, which leaves out "
            f"what another value needs; build another rule: rule.replace({name}=...)"
        )


def place(argument: str, path: str) -> str:
    """The argument in backticks with the leaf's path, or the argument alone for a bare array."""
    return f"`{argument}` at {path!r}" if path else f"`{argument}`"


def array(argument: str, leaf: Leaf) -> None:
    """A leaf must be an array of an Array API library with a floating-point dtype we compute with."""
    path, value = leaf
    try:
        frameworks.namespace(value)
    except TypeError:
        raise TypeError(
            f"{place(argument, path)} is a {type(value).__name__}, not an array of an Array API library; "
            f"wrap numbers in arrays and nest only dict, list, tuple, NamedTuple and None"
        ) from None
    if getattr(value, "is_sparse", False):
        raise TypeError(f"{place(argument, path)} is sparse, which signcore does not compute with; pass .to_dense()")
    if format_of(value) is None:
        raise TypeError(
            f"{place(argument, path)} has dtype {name_of(value.dtype)}; signcore computes with "
            f"{', '.join(FORMATS)}: convert the leaf, or replace it by None to leave it out"
        )


def same_structure(argument: str, paths: list[str], other: str, other_paths: list[str]) -> None:
    """Two trees must have the same paths; the error names the first that one of them lacks."""
    if paths == other_paths:
        return
    missing = [p for p in other_paths if p not in paths]
    extra = [p for p in paths if p not in other_paths]
    first = (missing or extra or ["(another order)"])[0]
    holder, lacking = (other, argument) if missing else (argument, other)
    raise ValueError(
        f"`{argument}` and `{other}` are different trees: {first!r} is in `{holder}` and not in `{lacking}`; "
        f"pass trees of one structure (None for a leaf without a gradient)"
    )


def same_containers(argument: str, tree: Any, other: str, like: Any) -> None:
    """Two trees of the same paths must nest them alike: the key "a/b" is not "b" inside of "a"."""
    path = first_difference(tree, like)
    if path is not None:
        raise ValueError(
            f"`{argument}` and `{other}` are different trees at {path or '(root)'!r}, where they hold other "
            f"containers or keys; pass trees of one structure"
        )


def same_home(argument: str, leaf: Leaf, other: str, like: Leaf) -> None:
    """Two leaves must be arrays of one library on one device."""
    where, there = place(argument, leaf.path), place(other, like.path)
    try:
        mine, theirs = frameworks.namespace(leaf.value), frameworks.namespace(like.value)
    except TypeError:
        raise TypeError(f"{where} is {leaf.value!r}, {there} an array; pass an array of the same library") from None
    if mine is not theirs:
        raise TypeError(
            f"{where} is an array of {frameworks.library(mine)}, {there} of {frameworks.library(theirs)}; "
            f"convert one of them: nothing is converted silently"
        )
    here, elsewhere = frameworks.placement(leaf.value), frameworks.placement(like.value)
    if here == elsewhere:
        return
    if frameworks.library(mine) == "jax" and (leaf.path != like.path or None in (here, elsewhere)):
        return  # leaves of one tree may be placed apart, and what is not committed to a device goes where it is used
    raise ValueError(f"{where} is on device {_devices(here)}, {there} on {_devices(elsewhere)}; move one of them")


def _devices(place: Any) -> str:
    return ", ".join(sorted(map(str, place))) if isinstance(place, (set, frozenset)) else str(place)


def same_shape(argument: str, leaf: Leaf, other: str, like: Leaf) -> None:
    """Two leaves at one path must have one shape."""
    mine, theirs = tuple(leaf.value.shape), tuple(like.value.shape)
    if mine != theirs:
        raise ValueError(
            f"{place(argument, leaf.path)} has shape {mine}, {place(other, like.path)} has {theirs}; "
            f"pass arrays of one shape"
        )


def same_dtype(argument: str, leaf: Leaf, other: str, like: Leaf) -> None:
    """Two leaves at one path must have one dtype."""
    mine, theirs = leaf.value.dtype, like.value.dtype
    if mine != theirs:
        raise ValueError(
            f"{place(argument, leaf.path)} has dtype {name_of(mine)}, {place(other, like.path)} has "
            f"{name_of(theirs)}; cast one of them"
        )


def normal(argument: str, leaf: Leaf) -> None:
    """Warn of subnormal initial parameters: backends disagree on them, so they are outside the contract."""
    fmt = format_of(leaf.value)
    if fmt is None or fmt.normal == 0.0 or not frameworks.is_on_host(leaf.value):
        return
    value = frameworks.on_host(leaf.value)
    xp = frameworks.namespace(value)
    size = xp.abs(xp.astype(value, frameworks.dtype(xp, fmt.compute)))
    if bool(xp.any((size < fmt.normal) & (size > 0.0))):
        warnings.warn(
            f"{place(argument, leaf.path)} holds subnormal numbers, on which backends disagree: set "
            f"magnitudes below {fmt.normal:g} to zero for bit-identical trajectories",
            stacklevel=3,
        )


def is_array(argument: str, value: Any) -> None:
    """An argument must be an array of an Array API library, whatever its dtype."""
    try:
        frameworks.namespace(value)
    except TypeError:
        raise TypeError(f"`{argument}` is {value!r}, not an array of an Array API library; wrap it in one") from None


def packed(argument: str, value: Any) -> None:
    """Packed bits must be an array of uint8."""
    try:
        frameworks.namespace(value)
    except TypeError:
        raise TypeError(
            f"`{argument}` is a {type(value).__name__}, not an array of an Array API library; pass packed bytes"
        ) from None
    if name_of(value.dtype) != "uint8":
        raise TypeError(f"`{argument}` has dtype {name_of(value.dtype)}; pass packed bytes, uint8, as pack makes them")
