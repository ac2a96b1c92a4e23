"""All ranks build an optimizer, step with it, or make its first states; or none does and each raises an error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from signcore.exchange import agreement

from . import groups
from .workers import Workers

BUILT = ("rule", "groups", "params", "options")  # what ranks compare of optimizers that they build


def built(rule_name: str, param_groups: list[dict[str, Any]], options: list[str]) -> dict[str, str]:
    """What all ranks must have built alike."""
    shapes: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for i, group in enumerate(param_groups):
        shapes |= {f"group {i}, {j}": f"{p.dtype}{tuple(p.shape)}" for j, p in enumerate(group["params"])}
        chosen |= {f"{name} of group {i}": repr(group[name]) for name in options}
    return {
        "rule": rule_name,
        "groups": str(len(param_groups)),
        "params": json.dumps(shapes),
        "options": json.dumps(chosen),
    }


def asked_for(hyperparameters: dict[str, Any]) -> Workers | None:
    """The workers that a constructor's keywords ask for, which are taken out."""
    group = hyperparameters.pop("process_group", None)
    every = hyperparameters.pop("check_every", 0)
    if group is None:
        if every:
            raise TypeError(f"`check_every` is {every!r} and `process_group` is None; pass the group to compare in")
        return None
    return Workers(group, check_every=every)


@contextlib.contextmanager
def together(optimizer: Any, workers: Workers | None) -> Iterator[None]:
    """Build an optimizer on all ranks or on none: an error of one rank is raised on every one."""
    if workers is None:
        yield
        return
    try:
        yield
        found = built(optimizer.rule_class.name, optimizer.param_groups, [*optimizer.numbers, *optimizer.options])
        problem = None
    except Exception as error:
        found, problem = dict.fromkeys(BUILT, ""), error
    workers.agree(found, problem)


def check(optimizer: Any) -> None:
    """Raise when the workers cannot step as the parameter groups ask for."""
    if optimizer._workers is None:
        return
    for group in optimizer.param_groups:
        optimizer._workers.group.check_rule(groups.rule_of(optimizer.rule_class, group))
        for name in ("compile", "capturable"):
            if group[name]:
                raise ValueError(
                    f"`{name}` is True and `process_group` is given; steps that wait for other processes cannot be "
                    f"compiled or captured: leave `{name}` out"
                )


@contextlib.contextmanager
def heard(workers: Workers | None) -> Iterator[None]:
    """What one rank raises before it sends anything is raised on the others, who would wait for it."""
    if workers is None:
        yield
        return
    try:
        yield
    except Exception as error:
        if not workers.talking:
            workers.agree(dict.fromkeys(agreement.FACTS, ""), error, 0)
        raise
    finally:
        workers.talking = False


def all_do(workers: Workers | None, so: bool) -> bool:
    """Whether every rank says so."""
    return so if workers is None else all(row[0] for row in workers.agree({}, None, int(so)))


def refuse_copies(parted: bool) -> None:
    """Raise when an optimizer is the copy of one that had workers, to whom it cannot speak."""
    if parted:
        raise RuntimeError(
            "`process_group` is missing: this optimizer is a copy of one that steps with other processes; build it "
            "anew with process_group=... and load its state_dict"
        )
