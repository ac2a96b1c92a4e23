"""One step of a parameter group whose parameters are DTensors: each rank computes its shards, to the bit as the whole.

The boxes of `signcore.Rule` are those of one worker: what is measured is merged over all shards before anything
is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from signcore import Rule, vote
from signcore.marks import Partial

from . import meshes
from .meshes import Layout
from .sharded import words


def step(
    rule: Rule, whole: list[Any], params: list[Any], grads: list[Any], state: Any, hyper: Any, inputs: Any
) -> tuple[list[Any], Any]:
    """The changes of a rank's shards, and their new state.

    Parameters
    ----------
    rule : Rule
    whole : list
        The parameters of the group.
    params, grads : list
        What this rank holds of those with a gradient, and of the gradients; else None.
    state : NamedTuple
        Of the shards.
    hyper, inputs
        As `Rule.delta` takes them; functions of parameters are those of the closure.

    Returns
    -------
    (list, NamedTuple)

    Raises
    ------
    ValueError, FloatingPointError
        The ranks' losses differ, or ``nonfinite="raise"``. On every rank, and nothing is changed on any.
    """
    layouts = [meshes.layout_of(p) for p in whole]
    device = whole[0].device
    if inputs.get("value") is not None:
        meshes.check_loss(layouts, "value", inputs["value"], device)

    def on_shards(partials: Mapping[str, Partial], measure: Callable[[list[Any]], dict[str, Any]]) -> dict[str, Any]:
        """What is measured of the shards of each layout, merged; the loss is no shard's."""
        found: list[tuple[Layout, dict[str, Any]]] = []
        for each in dict.fromkeys(layouts):
            found.append((each, measure([g if lay == each else None for lay, g in zip(layouts, grads, strict=True)])))
        own = {name: value for name, value in found[0][1].items() if name == "value"}
        return meshes.merged({n: how for n, how in partials.items() if n != "value"}, found) | own

    # A rank that stopped by itself would leave the others waiting: all look, and all stop.
    looking = rule.replace(nonfinite="skip") if rule.nonfinite == "raise" else rule
    beside = {name: inputs.get(name) for name in ("value", "grad_fn")}
    found = on_shards(looking.partials, lambda g: looking.measure(params, g, state, hyper=hyper, **beside))
    if rule.nonfinite == "raise" and bool(found.pop("nonfinite")):
        raise FloatingPointError(
            "`grads` hold inf or NaN on some rank; nothing was changed: fix it, or build the rule with nonfinite='skip'"
        )
    scalars = rule.finish(found)
    noise = None
    if rule.draws_noise:
        drawn = zip(whole, grads, state.stream, strict=True)
        noise = [None if g is None else words(p, key, state.step) for p, g, key in drawn]
    message, state = rule.message(params, grads, state, scalars, hyper=hyper, noise=noise)
    aggregate = vote.alone_in_trees(rule._wires, message, params)
    again: dict[str, Any] = {"hyper": hyper, "noise": noise if rule.applies_noise else None}
    if rule.settlements:
        settled = on_shards(rule.settlements, lambda g: rule.settle(params, g, aggregate, state, scalars, **again))
        scalars = {**scalars, **rule.finish(settled)}

    def loss(values: Any) -> Any:
        found = inputs["value_fn"](values)
        meshes.check_loss(layouts, "value_fn(params)", found, device)
        return found

    value_fn = loss if inputs.get("value_fn") else None
    return rule.apply(params, grads, aggregate, state, scalars, value_fn=value_fn, **again)
