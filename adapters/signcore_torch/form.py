"""The form of a state_dict, checked before anything is read from it: what it holds, and for which parameters.

torch's own `load_state_dict` looks entries up as it goes. What is no dict fails there somewhere, and a state
under a key that no group lists (JSON makes strings of integers) is kept and never found again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Groups = Sequence[Mapping[str, Any]]

WAY_OUT = "nothing was loaded: pass what state_dict() of an optimizer of the same rule and parameters returned"


def place(*keys: Any) -> str:
    """A place in a state_dict as one writes it in code, in backticks."""
    return "`state_dict" + "".join(f'["{key}"]' if isinstance(key, str) else f"[{key!r}]" for key in keys) + "`"


def check_type(state_dict: Any) -> None:
    """Raise when a state_dict is no dict."""
    _is_one(state_dict, (Mapping,), "a dict")


def check(state_dict: Any, param_groups: Groups) -> None:
    """Raise when a state_dict is not made like one of an optimizer with these parameter groups.

    Raises
    ------
    TypeError, ValueError
        A part is of another type or missing, there are more or fewer groups or parameters, or the states are
        not those of the parameters. A parameter without a state is none of these: it has not joined yet.
    """
    check_type(state_dict)
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"{place()} has the keys {shown(list(state_dict))}, not 'state', 'param_groups'; {WAY_OUT}")
    _is_one(state_dict["state"], (Mapping,), "a dict", "state")
    _is_one(state_dict["param_groups"], (list, tuple), "a list", "param_groups")
    _check_states(state_dict["state"], _check_groups(state_dict["param_groups"], param_groups))


def _check_groups(saved_groups: Groups, param_groups: Groups) -> dict[Any, torch.Tensor]:
    """The parameters by the keys under which the saved groups list them."""
    _is_long(saved_groups, len(param_groups), "groups", "param_groups")
    owners: dict[Any, torch.Tensor] = {}
    for i, (saved, group) in enumerate(zip(saved_groups, param_groups, strict=True)):
        where = ("param_groups", i)
        _is_one(saved, (dict,), "a dict", *where)
        if "params" not in saved:
            raise ValueError(f"{place(*where)} has no 'params', only {shown(list(saved))}; {WAY_OUT}")
        for name in ("params", "param_names"):
            if name in saved:
                _is_one(saved[name], (list, tuple), "a list", *where, name)
                _is_long(saved[name], len(group["params"]), "parameters", *where, name)
        for j, (key, p) in enumerate(zip(saved["params"], group["params"], strict=True)):
            _is_one(key, (int, str), "a parameter's key, an int or a str", *where, "params", j)
            if owners.setdefault(key, p) is not p:  # the same for a parameter that torch was given twice
                raise ValueError(
                    f"{place(*where, 'params', j)} is {key!r}, which another parameter has already; {WAY_OUT}"
                )
    return owners


def _check_states(states: Mapping[Any, Any], owners: Mapping[Any, torch.Tensor]) -> None:
    unlisted = [key for key in states if key not in owners]
    if unlisted:
        raise ValueError(
            f"{place('state')} has the keys {shown(unlisted)}, which 'params' of no group lists (they list "
            f"{shown(list(owners))}); nothing was loaded: remove them, or list them (JSON makes "
            f"strings of integers: make them integers again)"
        )
    for key, own in states.items():
        _is_one(own, (Mapping,), "a dict (leave out a parameter that has no state)", "state", key)


def _is_one(value: Any, types: tuple[type, ...], wanted: str, *keys: Any) -> None:
    if not isinstance(value, types):
        raise TypeError(f"{place(*keys)} is {shown(value)}, it must be {wanted}; {WAY_OUT}")


def _is_long(value: Sequence[Any], count: int, things: str, *keys: Any) -> None:
    if len(value) != count:
        raise ValueError(f"{place(*keys)} has {len(value)} entries for {count} {things}; {WAY_OUT}")


def shown(value: Any) -> str:
    """A value for a message: a state_dict in full would fill the screen."""
    return reprlib.repr(value)
