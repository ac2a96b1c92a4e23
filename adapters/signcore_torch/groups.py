"""A parameter group's entries as hyperparameters of a rule: checked, and as a call takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from signcore import Rule, checks
from signcore.dtypes import FORMATS, format_of, name_of
from signcore.fields import ranges

from . import options


def split(rule_class: type[Rule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a rule's numbers, which may change at any step, and of its static options."""
    numbers = ranges(rule_class)
    names = [field.name for field in dataclasses.fields(rule_class)]
    return tuple(numbers), tuple(name for name in names if name not in numbers)


def defaults_of(rule_class: type[Rule]) -> dict[str, Any]:
    """Hyperparameters and options that have a default, and their defaults."""
    fields = dataclasses.fields(rule_class)
    return {
        field.name: field.default for field in fields if field.default is not dataclasses.MISSING
    } | options.DEFAULTS


def known_keywords(owner: str, known: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a constructor without those that ask for nothing; TypeError for any it does not know."""
    options.check(owner, given)
    left = {name: value for name, value in given.items() if name not in options.REFUSED}
    for name in left:
        checks.keyword(owner, "keyword", name, [name for name in known if name != "self"])
    return left


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which every checkpoint can hold."""
    return value.item() if isinstance(value, np.generic) else value


def number(name: str, value: Any) -> Any:
    """A group's number as a call takes it: a Python number where it can be read without waiting for a device."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(
            f"`{name}` is a tensor of shape {tuple(value.shape)}; pass a number or a tensor of one element"
        )
    return value.item() if value.device.type == "cpu" else value.detach().reshape(())


def traced(value: Any, device: torch.device) -> Any:
    """A group's number while torch.compile traces: a 0-d tensor, so that a new value needs no new graph."""
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(device)
    if callable(value):
        return value
    # By a sum, because that is what torch.compile keeps open: torch.full would build the number into the graph.
    return torch.zeros((), dtype=torch.float64, device=device) + value


def rule_of(rule_class: type[Rule], group: Mapping[str, Any]) -> Rule:
    """The rule that a group's entries describe.

    Raises
    ------
    TypeError, ValueError
        An entry is out of range, unknown among the choices, or contradicts another; or an option of torch's
        own optimizers is asked for.
    """
    options.check(rule_class.__name__, group)
    values = {field.name: group[field.name] for field in dataclasses.fields(rule_class)}
    return rule_class(**{name: number(name, value) for name, value in values.items()})


def describes(rule: Rule, group: Mapping[str, Any], static: Iterable[str]) -> bool:
    """Whether a rule has a group's static options (the numbers are passed with each call)."""
    return all(getattr(rule, name) == group[name] for name in static)


def names_of(param_groups: list[dict[str, Any]], i: int) -> list[str]:
    """Names of a group's parameters, in messages and as keys of their noise: their own, or index over all groups."""
    group, before = param_groups[i], sum(len(other["params"]) for other in param_groups[:i])
    return group.get("param_names") or [str(before + j) for j in range(len(group["params"]))]


def check_params(params: Iterable[Any], before: int) -> None:
    """Raise when a parameter's dtype is none that signcore computes with; torch refuses what is no tensor."""
    for j, entry in enumerate(params, before):
        name, p = entry if isinstance(entry, tuple) and len(entry) == 2 else (j, entry)
        if isinstance(p, torch.Tensor) and format_of(p) is None:
            raise TypeError(
                f"{checks.place('params', str(name))} has dtype {name_of(p.dtype)}; signcore computes with "
                f"{', '.join(FORMATS)}: convert the parameter, or leave it out; no group was added"
            )


def check_grads(params: Iterable[torch.Tensor], names: Iterable[str]) -> None:
    """Raise when a gradient is no dense tensor."""
    for p, name in zip(params, names, strict=True):
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise RuntimeError(
                f"{checks.place('grads', name)} is {p.grad.layout}; signcore does not support sparse gradients: ask "
                f"for dense ones (nn.Embedding(..., sparse=False)) or set p.grad = p.grad.to_dense()"
            )
