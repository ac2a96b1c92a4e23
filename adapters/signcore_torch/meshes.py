"""What the ranks that share parameters tell each other in a step: who has gradients, what they measured, the loss."""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from signcore import limbs
from signcore.frameworks import namespace
from signcore.marks import Partial

from .sharded import is_sharded

Layout = tuple[Any, tuple[Any, ...]] | None  # mesh and placements; None of a plain tensor


def layout_of(p: Any) -> Layout:
    """Where a parameter lies."""
    return (p.device_mesh, tuple(p.placements)) if is_sharded(p) else None


def agreed(layouts: list[Any], words: list[int], device: torch.device) -> list[bool]:
    """Which of some int64 words are the same on all ranks of the layouts; the answer is the same on each."""
    found = torch.tensor([*words, *(~word for word in words)], dtype=torch.int64, device=device)
    for mesh in dict.fromkeys(layout[0] for layout in layouts if layout):
        for dim in range(mesh.ndim):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(dim))
    most, least = found.tolist()[: len(words)], [~word for word in found.tolist()[len(words) :]]
    return [a == b for a, b in zip(most, least, strict=True)]


def all_say(layouts: list[Any], so: bool, params: list[Any]) -> bool:
    """Whether every rank of the layouts says so."""
    if not any(layouts):
        return so
    found = torch.tensor([int(not so)], device=params[0].device)
    for mesh in dict.fromkeys(layout[0] for layout in layouts if layout):
        for dim in range(mesh.ndim):
            dist.all_reduce(found, dist.ReduceOp.MAX, group=mesh.get_group(dim))
    return not int(found)


def check_presence(params: list[Any], names: list[str]) -> None:
    """Raise on every rank when a parameter has a gradient on some of them only."""
    layouts = [layout_of(p) for p in params]
    same = agreed(layouts, [int(p.grad is not None) for p in params], params[0].device)
    split = [name for name, alike in zip(names, same, strict=True) if not alike]
    if split:
        raise RuntimeError(
            f"`grads` of {', '.join(map(repr, split))} is None on some ranks and a tensor on others; nothing was "
            f"changed: give a parameter a gradient on every rank (zeros where it took no part), or on none"
        )


def check_loss(layouts: list[Any], name: str, loss: Any, device: torch.device) -> None:
    """Raise on every rank when they do not have the same loss, by which all of them decide."""
    value = float(loss)
    word = -1 if value != value else struct.unpack("<q", struct.pack("<d", value))[0]
    if not agreed(layouts, [word], device)[0]:
        raise ValueError(
            f"`{name}` is {value!r} here and another number on another rank; nothing was changed: return the loss of "
            f"all ranks together from the closure, for example after dist.all_reduce(loss, dist.ReduceOp.AVG)"
        )


def merged(names: Mapping[str, Partial], found: list[tuple[Layout, dict[str, Any]]]) -> dict[str, Any]:
    """Partials of all shards, from those of this rank's: of each layout by itself, whose replicas count once."""
    if not names:
        return {}
    whole = [_over_shards(names, layout, partials) for layout, partials in found]
    return {name: _joined(how, [partials[name] for partials in whole]) for name, how in names.items()}


def _over_shards(names: Mapping[str, Partial], layout: Layout, partials: dict[str, Any]) -> dict[str, Any]:
    if layout is None:
        return partials
    mesh, placements = layout
    groups = [mesh.get_group(dim) for dim, each in enumerate(placements) if not each.is_replicate()]
    result: dict[str, Any] = {}
    for merge, operation in (("sum", dist.ReduceOp.SUM), ("max", dist.ReduceOp.MAX)):
        mine = [name for name, how in names.items() if how.merge == merge]
        if not mine:
            continue
        vector = torch.cat([partials[name].reshape(-1).to(torch.int64) for name in mine])
        for group in groups:
            dist.all_reduce(vector, operation, group=group)
        start = 0
        for name in mine:
            piece = vector[start : start + partials[name].numel()]
            start += piece.numel()
            result[name] = piece.to(partials[name].dtype).reshape(partials[name].shape)
    return result


def _joined(how: Partial, values: list[Any]) -> Any:
    if how.merge == "max":
        return functools.reduce(namespace(values[0]).maximum, values)
    total = functools.reduce(operator.add, values)
    return total if how.kind in ("count", None) else limbs.carried(total)
