"""A run that writes checkpoints and goes on from the last one."""

from __future__ import annotations

import os
from typing import Any

from signcore import Rule, checkpoint

from .forms import Form

Path = str | os.PathLike[str]


def check(path: Path | None, save_every: Any) -> None:
    """Raise when one of the two is given without the other, or is no such thing."""
    if (path is None) != (save_every is None):
        given, lacking = ("save_every", "checkpoint") if path is None else ("checkpoint", "save_every")
        raise ValueError(
            f"`{given}` is given and `{lacking}` is None; pass a file and after how many steps to write it"
        )
    if save_every is not None and (not isinstance(save_every, int) or isinstance(save_every, bool) or save_every < 1):
        raise ValueError(f"`save_every` is {save_every!r}; pass an int of at least 1")


def resumed(path: Path | None, rule: Rule, params: Any, state: Any) -> tuple[int | None, Any, Any]:
    """Steps done in the run that wrote a checkpoint, its params and state; None and the given ones without one."""
    if path is None or not os.path.exists(path):
        return None, params, state
    if state is not None:
        raise ValueError(
            f"`state` is given and `checkpoint` {path} exists, from which the run would go on; pass one of the two: "
            f"remove the file to begin anew"
        )
    with checkpoint.Saved(path) as saved:
        found = saved.load(params, rule=rule)
        return int(saved.extra.get("steps", found.state.step)), found.params, found.state


def write(path: Path | None, rule: Rule, step: int, form: Form) -> int:
    """Write a checkpoint, if one is wanted, with the steps done: the state's counter leaves skipped steps out."""
    if path is not None:
        checkpoint.save(path, rule, form.params, form.state, extra={"steps": step})
    return step
