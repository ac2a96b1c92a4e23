"""Pickling an optimizer and loading a state_dict: checked against rule and parameters, every dtype kept.

torch's own `load_state_dict` casts state to the parameter's dtype: next to bfloat16 parameters it would round
float32 averages, and a counter of 16777217 would become 16777216. So tensors pass it in a wrapper that it
does not know.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from signcore import Rule

from . import groups
from .state import kept


class Restorable(torch.optim.Optimizer):
    """The part of an optimizer that is made anew from what was saved."""

    rule_class: ClassVar[type[Rule]]
    kinds: ClassVar[dict[str, str]]  # field of the rule's state to the kind of its mark
    numbers: ClassVar[tuple[str, ...]]  # hyperparameters that may change at any step
    options: ClassVar[tuple[str, ...]]  # static ones

    def _reset(self) -> None:
        self._rules: list[Rule] = []  # one per parameter group, made when first needed
        self._joining: list[torch.Tensor] = []  # parameters whose first step is under way

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()
        # An option that is newer than what was saved has its default, which is what was done without it.
        for name, default in groups.defaults_of(self.rule_class).items():
            self.defaults.setdefault(name, default)
        for group in self.param_groups:
            for name in (*self.numbers, *self.options):
                group.setdefault(name, self.defaults[name])
        for own in self.state.values():
            if isinstance(own, dict):
                own.update({name: value.tensor for name, value in own.items() if isinstance(value, Packed)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, keeping every dtype.

        Raises
        ------
        ValueError
            The state belongs to another rule or to parameters of other shapes, or a value cannot be
            represented in this state's dtype. Nothing is changed.
        """
        handle = self.register_load_state_dict_pre_hook(pack)  # the last, so it sees what the others made
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()


class Packed:
    """A tensor that torch's `load_state_dict` hands through."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def pack(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with its tensors checked, copied to where they belong, and packed."""
    assert isinstance(optimizer, Restorable)
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
        shared: dict[str, Any] = {}
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
                value = fitted(own[name], like, p.device, f"{place}, {name!r},")
                packed[key][name] = Packed(value)
                if alone and shared.setdefault(name, value.item()) != value.item():
                    raise ValueError(
                        f"{place} has {name} {value.item()}, another of its group {shared[name]}; nothing was "
                        f"loaded: the parameters of a group share it"
                    )
    return {**state_dict, "state": packed}


def fitted(value: Any, like: torch.Tensor, device: torch.device, place: str) -> torch.Tensor:
    """A copy of a saved value in the shape and dtype of a fresh one, refused where that would change it."""
    tensor = torch.as_tensor(value)
    if tensor.shape != like.shape:
        raise ValueError(
            f"{place} has shape {tuple(tensor.shape)}, this optimizer's has {tuple(like.shape)}; nothing was "
            f"loaded: pass the state of the same parameters in the same order"
        )
    copy = tensor.detach().to(device=device, dtype=like.dtype, copy=True)
    if copy.dtype != tensor.dtype and not torch.equal(copy.to(tensor.device, tensor.dtype), tensor):
        raise ValueError(
            f"{place} is {tensor.dtype} and does not fit into {like.dtype} without rounding; nothing was loaded"
        )
    return copy
