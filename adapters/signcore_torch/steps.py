"""One step of one parameter group: its functional state put together, computed, and written back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from signcore import Rule
from signcore.marks import WHOLE
from signcore.walk import check_hyper

from . import groups, joined, meshes, sharded, shards
from .workers import Workers

Columns = Mapping[str, list[Any]]  # field of the state to its tensors, in the order of the parameters


def state_of(rule: Rule, columns: Columns) -> Any:
    """The functional state of a group, from the columns of its parameters' dicts."""
    fields: dict[str, Any] = dict.fromkeys(columns)  # what the options leave unused is None
    for name, kind in rule.kinds.items():
        fields[name] = columns[name][0] if kind in WHOLE else columns[name]
    return rule.State(**fields)


def compute(
    rule: Rule,
    param_groups: list[dict[str, Any]],
    i: int,
    numbers: Iterable[str],
    params: list[Any],
    grads: list[Any],
    columns: Columns,
    inputs: Mapping[str, Any],
    workers: Workers | None = None,
) -> tuple[list[Any], Any]:
    """What a step makes of group `i`: the parameters' changes and the new state. Nothing is written.

    `inputs` are the rule's beside the gradients, `workers` those that step together, if there are several.

    While torch.compile traces, the new parameters instead of the changes. Their sum is the same to the bit,
    but a compiler that joins two steps could keep a 16-bit parameter in 32 bits between them, which
    `Rule.step` prevents.
    """
    group = param_groups[i]
    apart = any(sharded.is_sharded(p) for p in group["params"])
    if apart:
        if torch.compiler.is_compiling():
            sharded.refuse(group["params"], "torch.compile")
        meshes.check_presence(group["params"], groups.names_of(param_groups, i))
    device = next((p.device for p in params if p is not None), None)
    if device is None:
        if workers is not None:
            workers.nothing(rule, group, numbers)
        return [], None
    old = state_of(rule, columns)
    if torch.compiler.is_compiling():
        hyper = {name: groups.traced(group[name], device) for name in numbers}
        new, after = rule.step(params, grads, old, hyper=hyper, **inputs)
    else:
        hyper = {name: groups.number(name, group[name]) for name in numbers}
        if group["capturable"]:
            check_hyper(rule, hyper)
            hyper = {name: groups.traced(value, device) for name, value in hyper.items()}
        try:
            if workers is not None:
                return workers.delta(rule, groups.names_of(param_groups, i), params, grads, old, hyper, inputs)
            if apart:
                return shards.step(rule, group["params"], params, grads, old, hyper, inputs)
            if group["foreach"] and joined.fits(rule, params, grads, columns):
                return joined.delta(rule, params, grads, old, hyper)
            new, after = rule.delta(params, grads, old, hyper=hyper, **inputs)
        except (TypeError, ValueError, FloatingPointError) as error:
            if inputs or workers is not None:  # which may be evaluated once only
                raise
            raise renamed(error, rule, groups.names_of(param_groups, i), params, grads, old, hyper) from None
    return new, after


def renamed(
    error: Exception, rule: Rule, names: list[str], params: list[Any], grads: list[Any], old: Any, hyper: Any
) -> Exception:
    """What `Rule.delta` raised, with the parameters' names where it has their places in the lists.

    By the same call on dicts, which only errors need: sorting all names would cost every step.
    """
    old = old._replace(
        **{key: dict(zip(names, tree, strict=True)) for key, tree in old._asdict().items() if isinstance(tree, list)}
    )
    try:
        rule.delta(dict(zip(names, params, strict=True)), dict(zip(names, grads, strict=True)), old, hyper=hyper)
    except type(error) as named:
        return named
    return error


def _computed(value: torch.Tensor) -> torch.Tensor:
    """The same words as the result of an operation, while torch.compile traces.

    A compiled graph writes into its inputs at its end, in an order of its own. A field that is the parameter itself
    would be copied from it after it has changed; clones are optimised away.
    """
    return torch.where(value == value, value, value) if torch.compiler.is_compiling() else value


def write(rule: Rule, params: list[Any], columns: Columns, new: list[Any], after: Any) -> None:
    """Write what `compute` made into a group's parameters and states, in place."""
    if not new:
        return
    # First the state: a field may be the very tensor of a parameter, as it was.
    for name, kind in rule.kinds.items():
        if kind in WHOLE:
            for old in columns[name]:
                old.copy_(getattr(after, name))
        elif kind != "stream":  # a stream's key never changes
            for old, value in zip(columns[name], getattr(after, name), strict=True):
                if value is not old:  # nor does a field that the rule left alone, or that of a parameter left out
                    old.copy_(_computed(value) if kind == "copy" else value)
    for p, value in zip(params, new, strict=True):
        if p is None:
            continue
        if torch.compiler.is_compiling():
            p.copy_(value)
        else:
            p.add_(value)
