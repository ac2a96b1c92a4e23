"""The base of the generated optimizers: Keras' Optimizer around a rule's functional step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from signcore import Rule, checks, frameworks
from signcore.fields import ranges
from signcore.schedules import Schedule

from .schedules import FromSchedule
from .state import Variables, value_of

RATE = "learning_rate"  # what Keras calls the rule's lr


class SignOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras has no types
    """Base of the optimizers of this package; use its subclasses, or `from_rule`.

    All variables of the model are one list of leaves for the rule, so numbers "of the whole tree" and "of a group" are
    those of all variables with a gradient, and ``nonfinite="skip"`` skips the whole step. Noise is keyed by a
    variable's place among those that the optimizer was built with. The learning rate is a variable in
    ``keras.config.floatx()``, as Keras keeps it, so it is rounded to that once.

    Attributes
    ----------
    rule : signcore.Rule
        With the hyperparameters that the optimizer was made with. Only the learning rate changes later.
    """

    rule_class: ClassVar[type[Rule]]

    def __init__(self, hyperparameters: dict[str, Any], options: dict[str, Any]) -> None:
        values = {name: _plain(name, value, self.rule_class) for name, value in hyperparameters.items()}
        rule = self.rule_class(**values)
        if rule.needs:
            needed = ", ".join(f"`{name}`" for name in sorted(rule.needs))
            raise TypeError(
                f"{type(self).__name__} with these options needs {needed} in a step, and Keras gives its optimizers "
                f"nothing but gradients; choose options with which `rule.needs` is empty, or train with "
                f"signcore_torch or signcore_optax"
            )
        super().__init__(learning_rate=rule.lr, **options)
        self.rule = rule
        self.weight_decay = values["weight_decay"]  # what Keras would do with it, `_apply_weight_decay` leaves out

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables of the rule's state, and those of Keras' own options."""
        if self.built:
            return
        super().build(variables)
        self._state = Variables(self, self.rule, _stepped(variables))

    @property
    def state(self) -> Any:
        """The rule's state as the core takes it, fields per variable as lists; `build` makes it.

        ``signcore.checkpoint.save`` writes it beside a list of the variables' values.
        """
        return self._state.read()

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """The whole step at once, after Keras has accumulated and clipped: rules may measure all variables together."""
        model = self._trainable_variables
        given = {self._get_variable_index(v): g for g, v in zip(grads, trainable_variables, strict=True)}
        own = _stepped(model)
        params = [value_of(v) for v in own]
        aligned = [
            None if v is None or i not in given else value_of(keras.ops.cast(given[i], v.dtype))
            for i, v in enumerate(own)
        ]
        state, rate = self.state, value_of(learning_rate)
        decayed = [self._use_weight_decay(v) for v in model]
        new, after = self.rule.step(
            params,
            aligned,
            state,
            hyper={"lr": float(rate) if frameworks.is_on_host(rate) else rate},
            decay_mask=None if all(decayed) else decayed,
        )
        self._state.write(state, after)  # first: a field may be the very array of a parameter, as it was
        for v, was, value in zip(own, params, new, strict=True):
            if value is not was:
                v.assign(value)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Refused: a rule sees all variables in one step.

        Raises
        ------
        NotImplementedError
            Always; call `apply` with all gradients.
        """
        raise NotImplementedError(
            f"`update_step` would step one variable by itself, and {type(self).__name__} steps all of them together; "
            f"call apply(grads, variables)"
        )

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Nothing: the decay is a part of the rule's step, in the rule's own order."""

    def get_config(self) -> dict[str, Any]:
        """Keras' own options and the rule's hyperparameters, with which `from_config` makes the optimizer again."""
        fields = {field.name: getattr(self.rule, field.name) for field in dataclasses.fields(self.rule)}
        del fields["lr"]  # Keras' `learning_rate`, as it is now
        return {**super().get_config(), **fields}


def _stepped(variables: Sequence[Any]) -> list[Any]:
    """The variables, None for those into which Keras writes their gradients (scales of float8)."""
    return [None if getattr(v, "overwrite_with_gradient", False) else v for v in variables]


def _plain(name: str, value: Any, rule_class: type[Rule]) -> Any:
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
