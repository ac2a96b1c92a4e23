"""Loading a state_dict: checked against the rule and the parameters, every dtype kept.

torch's own `load_state_dict` casts state to the parameter's dtype: next to bfloat16 parameters it would round
float32 averages, and a counter of 16777217 would become 16777216. So tensors pass it in a wrapper that it
does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import groups
from .state import kept

if TYPE_CHECKING:
    from .optimizer import SignOptimizer


class Packed:
    """A tensor that torch's `load_state_dict` hands through."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def unpack(states: dict[Any, Any]) -> None:
    """Put the tensors themselves back into an optimizer's state."""
    for own in states.values():
        if isinstance(own, dict):
            own.update({name: value.value for name, value in own.items() if isinstance(value, Packed)})


def pack(optimizer: SignOptimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with its tensors checked, copied to where they belong, and packed."""
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"`state_dict` has the keys {sorted(map(str, state_dict))}; pass an optimizer's state_dict()")
    packed = dict(state_dict["state"])
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):  # torch compares them
        rule_name, own_name = saved.get("rule"), optimizer.rule_class.name
        if rule_name != own_name:
            raise ValueError(
                f"`state_dict` holds the state of {rule_name or 'another optimizer'!r}, this optimizer is "
                f"{own_name!r}; nothing was loaded: load it into an optimizer of the same rule"
            )
        rule = groups.rule_of(optimizer.rule_class, {**optimizer.defaults, **saved})
        shared = {}
        for p, key in zip(group["params"], saved["params"], strict=False):
            own = state_dict["state"].get(key)
            if not own:
                continue
            place = f"`state_dict` at parameter {key}"
            unknown = sorted(own.keys() - optimizer.kinds.keys())
            missing = [name for name in kept(rule, optimizer.kinds) if name not in own]
            if unknown or missing:
                raise ValueError(
                    f"{place} lacks {missing} and has {unknown}, unknown to {own_name!r}; nothing was loaded"
                )
            fresh = rule.init([p.detach().to("meta")])
            packed[key] = {}
            for name in kept(rule, optimizer.kinds):
                alone = optimizer.kinds[name] == "shared"
                like = getattr(fresh, name) if alone else getattr(fresh, name)[0]
                value = fitted(own[name], like, f"{place}, {name!r},")
                packed[key][name] = Packed(value.to(p.device))
                if alone and not torch.equal(shared.setdefault(name, value), value):
                    raise ValueError(
                        f"{place} has {name} {value.item()}, another of its group {shared[name].item()}; "
                        f"nothing was loaded: the parameters of a group share it"
                    )
    return {**state_dict, "state": packed}


def fitted(value: Any, like: torch.Tensor, place: str) -> torch.Tensor:
    """A copy of a saved value in the shape and dtype of a fresh one, refused where that would change it."""
    tensor = torch.as_tensor(value)
    if tensor.shape != like.shape:
        raise ValueError(
            f"{place} has shape {tuple(tensor.shape)}, this optimizer's has {tuple(like.shape)}; nothing was "
            f"loaded: pass the state of the same parameters in the same order"
        )
    copy = tensor.detach().to(like.dtype, copy=True)
    if copy.dtype != tensor.dtype and not torch.equal(copy.to(tensor.dtype), tensor):
        raise ValueError(
            f"{place} is {tensor.dtype} and does not fit into {like.dtype} without rounding; nothing was loaded"
        )
    return copy
