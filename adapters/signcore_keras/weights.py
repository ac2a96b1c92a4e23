"""What Keras' weight files say of an optimizer's variables, which by themselves are numbered arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from signcore import Rule

_LABEL = "rule"


def label(store: Any, rule: Rule) -> None:
    """Add the rule's name and fields to the numbered arrays; as bytes, because a store holds arrays alone."""
    store[_LABEL] = np.frombuffer(_described(rule).encode(), np.uint8)


def load(store: Any, rule: Rule, variables: Sequence[Any]) -> None:
    """Assign the arrays of a store, after all of them have been found to fit.

    Raises
    ------
    ValueError
        They are those of another rule, of other options, or of other shapes.
    """
    keys = set(store.keys())
    found = bytes(np.asarray(store[_LABEL], np.uint8)).decode() if _LABEL in keys else "no rule of signcore"
    if found != _described(rule):
        raise ValueError(
            f"the optimizer's variables are those of {found}, and this one's rule is {_described(rule)}; compile the "
            f"model with the optimizer that was saved, or load the weights before it is compiled"
        )
    if len(keys) - 1 != len(variables):
        raise ValueError(
            f"the file has {len(keys) - 1} variables of {found}, and this optimizer has {len(variables)}; make it for "
            f"the same model, with the options of the one that was saved"
        )
    values = [store[str(i)] for i in range(len(variables))]
    for variable, value in zip(variables, values, strict=True):
        if tuple(value.shape) != tuple(variable.shape):
            raise ValueError(
                f"`{variable.path}` of {found} has the shape {tuple(value.shape)} in the file and "
                f"{tuple(variable.shape)} here; build the optimizer on the variables of the model that was saved"
            )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _described(rule: Rule) -> str:
    return f"{rule.name} {json.dumps(list(rule.kinds))}"
