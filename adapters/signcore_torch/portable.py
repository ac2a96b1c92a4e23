"""An optimizer with its parameters as the core's checkpoint, which every backend reads, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from signcore import checks
from signcore.checkpoint import Checkpoint
from signcore.marks import WHOLE
from signcore.tree import Leaf, flatten

from . import groups, sharded
from .optimizer import SignOptimizer


def export(optimizer: SignOptimizer) -> Checkpoint:
    """Rule, parameters and state of an optimizer, as the core takes them.

    Parameters
    ----------
    optimizer : SignOptimizer
        Its parameters are not copied.

    Returns
    -------
    signcore.checkpoint.Checkpoint
        Parameters and fields of the state are dicts by name, see `torch.optim.Optimizer.state_dict` for named
        parameters; without names, by the index over all groups. A parameter that never had a gradient has its first
        state. Lists, with an entry per group, where there are several groups.

    Raises
    ------
    ValueError
        The parameters are DTensors.

    Examples
    --------
    >>> import torch, signcore as sc, signcore_torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> export(signcore_torch.from_rule([("w", w)], sc.rule(sc.rules()[0], lr=0.1))).params
    {'w': tensor([1., 1., 1.])}
    """
    found = [_exported(optimizer, i) for i in range(len(optimizer.param_groups))]
    return found[0] if len(found) == 1 else Checkpoint(*map(list, zip(*found, strict=True)))


def _exported(optimizer: SignOptimizer, i: int) -> Checkpoint:
    group, names = optimizer.param_groups[i], groups.names_of(optimizer.param_groups, i)
    checks.distinct("names", names, len(names))
    sharded.refuse(group["params"], "a file of whole arrays", "save and load by torch.distributed.checkpoint")
    rule = groups.rule_of(optimizer.rule_class, group)
    params = {name: p.detach() for name, p in zip(names, group["params"], strict=True)}
    fresh = rule.init(params)
    owned = [optimizer.state.get(p) or {} for p in group["params"]]
    fields: dict[str, Any] = {}
    for field, kind in rule.kinds.items():
        first = getattr(fresh, field)
        if kind in WHOLE:
            fields[field] = next((own[field] for own in owned if field in own), first)
        else:
            fields[field] = {name: own.get(field, first[name]) for name, own in zip(names, owned, strict=True)}
    return Checkpoint(rule, params, fresh._replace(**fields))


def restore(optimizer: SignOptimizer, saved: Checkpoint) -> None:
    """Write a checkpoint into an optimizer and its parameters, also the hyperparameters.

    Parameters
    ----------
    optimizer : SignOptimizer
    saved : signcore.checkpoint.Checkpoint
        Trees of tensors whose paths are the names that `export` gives.

    Raises
    ------
    TypeError, ValueError
        Another rule, number of groups, name, shape or dtype. Nothing is changed.

    Examples
    --------
    >>> import torch, signcore as sc, signcore_torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = signcore_torch.from_rule([("w", w)], sc.rule(sc.rules()[0], lr=0.1))
    >>> restore(optimizer, export(optimizer)._replace(params={"w": torch.zeros(3)}))
    >>> w.tolist()
    [0.0, 0.0, 0.0]
    """
    columns = [each if isinstance(saved.rule, list) else [each] for each in saved]
    if len(columns[0]) != len(optimizer.param_groups):
        raise ValueError(
            f"`saved` has {len(columns[0])} groups and the optimizer {len(optimizer.param_groups)}; nothing was "
            f"loaded: build the optimizer with the groups that were saved"
        )
    state_dict = optimizer.state_dict()
    state_dict["state"] = {}
    values: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, one in enumerate(zip(*columns, strict=True)):
        values += _entered(optimizer, i, Checkpoint(*one), state_dict)
    optimizer.load_state_dict(state_dict)
    with torch.no_grad():
        for p, value in values:
            p.copy_(value)


def _entered(
    optimizer: SignOptimizer, i: int, saved: Checkpoint, state_dict: dict[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Enter a group's state and hyperparameters into a state_dict; returns its parameters with their values."""
    group, names = optimizer.param_groups[i], groups.names_of(optimizer.param_groups, i)
    leaves = {leaf.path: leaf for leaf in flatten(saved.params) if leaf.value is not None}
    checks.same_structure("saved", sorted(leaves), "params", sorted(names))
    for name, p in zip(names, group["params"], strict=True):
        own = Leaf(name, p)
        checks.array("saved", leaves[name])
        checks.same_home("saved", leaves[name], "params", own)
        checks.same_shape("saved", leaves[name], "params", own)
        checks.same_dtype("saved", leaves[name], "params", own)
    listed = state_dict["param_groups"][i]
    listed["rule"] = saved.rule.name
    listed |= {f.name: _as(getattr(saved.rule, f.name), group.get(f.name)) for f in dataclasses.fields(saved.rule)}
    for field, kind in saved.rule.kinds.items():
        tree = getattr(saved.state, field)
        column = dict.fromkeys(names, tree) if kind in WHOLE else {leaf.path: leaf.value for leaf in flatten(tree)}
        for key, name in zip(listed["params"], names, strict=True):
            state_dict["state"].setdefault(key, {})[field] = column[name]
    return [(p, leaves[name].value) for name, p in zip(names, group["params"], strict=True)]


def _as(value: Any, own: Any) -> Any:
    """A number as a tensor where the optimizer keeps it in one, so that what was compiled stays so."""
    return torch.full_like(own, value) if isinstance(own, torch.Tensor) and checks.is_number(value) else value
