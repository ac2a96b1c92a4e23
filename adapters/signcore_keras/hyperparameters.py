"""Hyperparameters as Keras keeps and saves them: plain numbers, and a learning rate that may change."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from signcore import Rule, checks
from signcore.fields import ranges
from signcore.schedules import Schedule

from .schedules import FromSchedule

RATE = "learning_rate"  # what Keras calls the rule's lr


def rate(value: Any, rule_class: type[Rule]) -> Any:
    """A learning rate for an optimizer that exists, checked as far as it can be read.

    Raises
    ------
    TypeError, ValueError
        It is no rate, or out of range.
    """
    if isinstance(value, Schedule):
        return FromSchedule(value)
    if callable(value):
        return value
    value = value.value if isinstance(value, keras.Variable) else value
    checks.made_number(RATE, value, ranges(rule_class)["lr"])
    return value


def plain(name: str, value: Any, rule_class: type[Rule]) -> Any:
    """A hyperparameter as Keras can save it.

    Raises
    ------
    TypeError
        It is an array, or a schedule of another number than the learning rate.
    """
    if isinstance(value, Schedule) and name == "lr":
        return FromSchedule(value)
    if callable(value) and name == "lr":
        return value
    value = value.item() if isinstance(value, np.generic) else value
    if name not in ranges(rule_class):
        return value
    if not checks.is_number(value):
        shown = RATE if name == "lr" else name
        also = ", a schedule or a function of nothing" if name == "lr" else ""
        raise TypeError(f"`{shown}` is {value!r}; pass a number{also}: Keras saves it with the model")
    return float(value)
