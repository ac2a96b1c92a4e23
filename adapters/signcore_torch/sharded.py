"""Parameters that are DTensors, as FSDP2 makes them: what a rank holds of one, and of its state.

A rule sees the tensors of a rank, and noise is keyed by the index in the whole parameter. Fields with a value per
element are DTensors that are laid out as the parameter is. Packed bits are those of a rank's own elements, in as many
bytes as the largest shard takes: a DTensor of all these bytes, of use with the same number of ranks alone. Everything
else is the same plain tensor on every rank.
"""

from __future__ import annotations

from typing import Any

import torch

from signcore import random

LAID_OUT = ("element", "copy", "packed")  # kinds of fields that are cut as the parameter is


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor; by its attribute, because importing their module takes a second."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Any:
    """What this rank holds of a DTensor, its very memory; any other tensor as it is."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def held(value: Any, p: torch.Tensor, kind: str) -> Any:
    """What this rank holds of a field of a parameter's state, without the bytes that fill up packed bits."""
    own = local(value)
    return own[: -(-local(p).numel() // 8)] if kind == "packed" and is_sharded(value) else own


def laid_out(value: torch.Tensor, p: Any, kind: str) -> torch.Tensor:
    """A rank's part of a field as the tensor that is kept: a DTensor beside one, with the same placements."""
    if not is_sharded(p) or kind not in LAID_OUT:
        return value
    shape, mesh, placements = _layout(p, kind)
    if kind == "packed":
        value = torch.nn.functional.pad(value, (0, bytes_of_a_shard(p)[0] - value.numel()))
    stride = (1,) if kind == "packed" else p.stride()
    # the class of the parameter's `data`, which is no Parameter
    made: torch.Tensor = type(p.data).from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)
    return made


def saved_part(value: Any, p: Any, kind: str, where: str) -> Any:
    """A rank's part of a saved field.

    Raises
    ------
    ValueError
        The field is laid out otherwise than the parameter.
    """
    cut = is_sharded(p) and kind in LAID_OUT
    if cut == is_sharded(value):
        wanted = _layout(p, kind) if cut else None
        mine = (value.shape, value.device_mesh, tuple(value.placements)) if cut else None
        if mine == wanted:
            return held(value, p, kind)
    raise ValueError(
        f"{where} is laid out as {_shown(value)}, the parameter as {_shown(p)}; nothing was loaded: load it by "
        f"torch.distributed.checkpoint, which cuts anew what has a value per element, onto "
        f"as many ranks as it was saved from where a field holds packed bits"
    )


def _layout(p: Any, kind: str) -> tuple[Any, ...]:
    """Shape, mesh and placements of a field that is cut as the parameter is."""
    shape, placements = p.shape, tuple(p.placements)
    if kind == "packed":
        each, ranks = bytes_of_a_shard(p)
        shape, placements = torch.Size([each * ranks]), packed_placements(p)
    return shape, p.device_mesh, placements


def _shown(value: Any) -> str:
    return f"{tuple(value.placements)} of {tuple(value.shape)}" if is_sharded(value) else "a plain tensor"


def packed_placements(p: Any) -> tuple[Any, ...]:
    """How the packed bits of a parameter lie: one vector that is cut wherever the parameter is."""
    from torch.distributed.tensor import Shard

    return tuple(each if each.is_replicate() else Shard(0) for each in p.placements)


def bytes_of_a_shard(p: Any) -> tuple[int, int]:
    """Bytes of the packed bits of the largest shard, and the number of shards."""
    extents, ranks = list(p.shape), 1
    for size, each in zip(p.device_mesh.shape, p.placements, strict=True):
        if not each.is_replicate():
            extents[each.dim] = -(-extents[each.dim] // size)
            ranks *= size
    return -(-torch.Size(extents).numel() // 8), ranks


def words(p: Any, key: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The random words of a rank's elements: those that the whole parameter would draw for them.

    Raises
    ------
    ValueError
        The placements do not say which elements these are.
    """
    own = local(p)
    if not is_sharded(p):
        drawn: torch.Tensor = random.words(key, step, own.numel()).reshape(own.shape)
        return drawn
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(each) not in (Shard, Replicate) for each in p.placements):
        raise ValueError(
            f"`params` holds a parameter with the placements {tuple(p.placements)}, and a rule that draws noise must "
            f"know its elements' places; shard it by Shard and Replicate alone, or take a rule without noise"
        )
    _, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    index = torch.zeros((), dtype=torch.int64, device=own.device)
    for dim, (start, extent, whole) in enumerate(zip(offset, own.shape, p.shape, strict=True)):
        along = torch.arange(start, start + extent, device=own.device)
        index = index * whole + along.reshape([-1] + [1] * (own.dim() - 1 - dim))
    drawn = random.words_at(key, step, index.to(torch.int32), (index >> 32).to(torch.int32))
    return drawn


def check_grads(params: list[Any], names: list[str]) -> None:
    """Raise when a gradient is not laid out as its parameter is."""
    for p, name in zip(params, names, strict=True):
        if p.grad is not None and (is_sharded(p) or is_sharded(p.grad)):
            mine, theirs = (getattr(t, "placements", None) for t in (p, p.grad))
            if mine != theirs:
                raise ValueError(
                    f"`grads[{name!r}]` has the placements {theirs}, its parameter {mine}; give it the parameter's: "
                    f"p.grad = p.grad.redistribute(placements=p.placements)"
                )


def refuse(params: list[Any], what: str, way_out: str = "leave it out") -> None:
    """Raise when a parameter is a DTensor."""
    if any(is_sharded(p) for p in params):
        raise ValueError(f"`params` holds DTensors, which {what} does not take; {way_out}")
