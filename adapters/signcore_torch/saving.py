"""Pickling an optimizer and loading a state_dict: checked against rule and parameters, every dtype kept.

torch's own `load_state_dict` casts state to the parameter's dtype: next to bfloat16 parameters it would round
float32 averages, and a counter of 16777217 would become 16777216. So tensors pass it in a wrapper that it
does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from signcore import Rule
from signcore.marks import WHOLE

from . import form, groups, options, sharded
from .compiled import Compiled
from .form import place


class Restorable(torch.optim.Optimizer):
    """The part of an optimizer that is made anew from what was saved."""

    rule_class: ClassVar[type[Rule]]
    kinds: ClassVar[dict[str, str]]  # field of the rule's state to the kind of its mark
    numbers: ClassVar[tuple[str, ...]]  # hyperparameters that may change at any step
    options: ClassVar[tuple[str, ...]]  # static ones

    def _reset(self) -> None:
        self._rules: list[Rule] = []  # one per parameter group, made when first needed
        self._joining: list[torch.Tensor] = []  # parameters whose first step is under way
        self._recast: list[Any] = []  # what this step has rounded otherwise, as it was
        self._compiled = Compiled()
        self._workers: Any = None  # who steps together
        self._parted = False  # a copy of an optimizer that had workers

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parted": self._parted or self._workers is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        workers, parted = getattr(self, "_workers", None), state.get("_parted", getattr(self, "_parted", False))
        super().__setstate__(state)
        self._reset()
        self._workers, self._parted = workers, parted  # load_state_dict comes here as well as pickle
        # An option that is newer than what was saved has its default, which is what was done without it.
        for name, default in groups.defaults_of(self.rule_class).items():
            self.defaults.setdefault(name, default)
        for group in self.param_groups:
            for name in (*self.numbers, *self.options, *options.DEFAULTS):
                group.setdefault(name, self.defaults[name])
        for own in self.state.values():
            if isinstance(own, dict):
                own.update({name: value.tensor for name, value in own.items() if isinstance(value, Packed)})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, keeping every dtype.

        Raises
        ------
        TypeError, ValueError
            The state belongs to another rule or to other parameters, a part of it is missing or of another
            type, or a value cannot be represented in this state's dtype. Nothing is changed.
        """
        form.check_type(state_dict)  # all else after the hooks, which may adapt another form
        handle = self.register_load_state_dict_pre_hook(pack)  # the last, so it sees what the others made
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            handle.remove()


class Packed:
    """A tensor that torch's `load_state_dict` hands through."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def pack(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with its tensors checked, copied to where they belong, and packed."""
    assert isinstance(optimizer, Restorable)
    form.check(state_dict, optimizer.param_groups)
    packed = dict(state_dict["state"])
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        rule_name, own_name = saved.get("rule"), optimizer.rule_class.name
        if rule_name != own_name:
            raise ValueError(
                f"`state_dict` holds the state of {rule_name or 'another optimizer'!r}, this optimizer is "
                f"{own_name!r}; nothing was loaded: load it into an optimizer of the same rule"
            )
        rule = groups.rule_of(optimizer.rule_class, {**optimizer.defaults, **saved})
        shared: dict[str, Any] = {}
        joined = [(p, key) for p, key in zip(group["params"], saved["params"], strict=True) if packed.get(key)]
        fresh = rule.init([sharded.local(p.detach()).to("meta") for p, _ in joined])
        for j, (p, key) in enumerate(joined):
            own = state_dict["state"][key]
            check_fields(own, list(rule.kinds), optimizer.kinds, key)
            packed[key] = {}
            for name, kind in rule.kinds.items():
                like = getattr(fresh, name) if kind in WHOLE else getattr(fresh, name)[j]
                where = place("state", key, name)
                own_part = sharded.saved_part(own[name], p, kind, where)
                packed[key][name] = Packed(sharded.laid_out(fitted(own_part, like, p.device, where), p, kind))
                if kind not in WHOLE:
                    continue
                words = repr(packed[key][name].tensor.tolist())  # NaN is the same as NaN
                if shared.setdefault(name, words) != words:
                    raise ValueError(
                        f"{where} is {words}, that of another parameter of the group {shared[name]}; nothing was "
                        f"loaded: the parameters of a group share one value"
                    )
    return {**state_dict, "state": packed}


def check_fields(own: Mapping[str, Any], wanted: list[str], known: Mapping[str, str], key: Any) -> None:
    """Raise when a parameter's state lacks a field or has one that the rule does not know."""
    missing = [name for name in wanted if name not in own]
    unknown = [name for name in own if name not in known]
    if missing or unknown:
        found = [f"lacks {missing}"] * bool(missing) + [f"has {unknown}, unknown to this rule"] * bool(unknown)
        raise ValueError(
            f"{place('state', key)} {' and '.join(found)}; nothing was loaded: it must have the fields {wanted}"
        )


def fitted(value: Any, like: torch.Tensor, device: torch.device, where: str) -> torch.Tensor:
    """A copy of a saved value in the shape and dtype of a fresh one, refused where that would change it."""
    needed = f"a tensor of {like.dtype} and shape {tuple(like.shape)}"
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{where} is {form.shown(value)}, it must be {needed}; {form.WAY_OUT}") from None
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex() or tensor.dtype == torch.bool:
        what = "a tensor without values" if tensor.is_meta else f"a {tensor.layout} tensor of {tensor.dtype}"
        raise TypeError(f"{where} is {what}, it must be {needed}; {form.WAY_OUT}")
    if tensor.shape != like.shape:
        raise ValueError(
            f"{where} has shape {tuple(tensor.shape)}, this optimizer's has {tuple(like.shape)}; nothing was "
            f"loaded: pass the state of the same parameters in the same order"
        )
    copy = tensor.detach().to(device=device, dtype=like.dtype, copy=True)
    if copy.dtype != tensor.dtype and not torch.equal(copy.to(tensor.device, tensor.dtype), tensor):
        raise ValueError(
            f"{where} is {tensor.dtype} and does not fit into {like.dtype} without rounding; nothing was loaded: "
            f"load it into parameters of the dtype that it was saved from"
        )
    return copy
