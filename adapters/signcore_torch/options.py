"""How a step is run, as torch's own optimizers name it: the bits are the same whatever is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

DEFAULTS: dict[str, Any] = {"foreach": None, "capturable": False, "compile": False}
REFUSED = ("differentiable", "fused")  # of torch's own; None and False, which ask for nothing, are taken and dropped

DOC = """foreach : bool, optional
    True joins the parameters of a group that have one dtype and device to one long vector while an elementwise
    rule steps; fewer calls for many small parameters, and a copy of parameters, gradients and state meanwhile.
    Rules that look at whole parameters, and None, take one after the other.
capturable : bool, default False
    Keep all numbers of a step on the parameters' device, so that it may be captured in a CUDA graph; a number
    that shall change between replays must be a tensor there.
compile : bool, default False
    Compile the step, once: a number that changes compiles nothing anew. For rules without a closure.
process_group : torch.distributed.ProcessGroup, optional
    Step together with the ranks of the group, each of which has its own gradients: signs travel, one or two bits a
    coordinate, and no gradient has to be averaged before (a plain module, or DDP under ``no_sync``). All
    parameters must be the same words on every rank at first. None steps alone.
check_every : int, default 0
    Compare what all ranks share every so many steps, by a digest, and raise where it differs; 0 is never."""


def parameters() -> list[inspect.Parameter]:
    """The options at the end of a constructor's signature."""
    annotations = {"foreach": "bool | None"}
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotations.get(name, "bool")
        )
        for name, default in DEFAULTS.items()
    ] + [
        inspect.Parameter(
            "process_group", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="ProcessGroup | None"
        ),
        inspect.Parameter("check_every", inspect.Parameter.KEYWORD_ONLY, default=0, annotation="int"),
    ]


def check(owner: str, given: Mapping[str, Any]) -> None:
    """Raise when an option is none of True, False and None, or when one of `REFUSED` is asked for."""
    for name in REFUSED:
        if given.get(name):
            raise TypeError(
                f"`{name}` is {given[name]!r}; {owner} has no such form: leave `{name}` out, and pass compile=True for "
                f"speed"
            )
    for name, default in DEFAULTS.items():
        value = given.get(name, default)
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"`{name}` is {value!r}; pass True or False")


def check_capture(group: Mapping[str, Any]) -> None:
    """Raise inside of a CUDA graph's capture without `capturable`: numbers of the host would be frozen into it."""
    if not group["capturable"] and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "`capturable` is False, and a CUDA graph is being captured, which would keep this step's numbers for ever; "
            "build the optimizer with capturable=True"
        )
