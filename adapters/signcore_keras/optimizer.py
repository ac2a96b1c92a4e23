"""The base of the generated optimizers: Keras' Optimizer around a rule's functional step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from signcore import Rule, frameworks

from . import weights
from .hyperparameters import plain, rate
from .state import Variables, stepped, value_of


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
        values = {name: plain(name, value, self.rule_class) for name, value in hyperparameters.items()}
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

    @property
    def learning_rate(self) -> Any:
        """The rate as it is now. A number is checked when it is set: a jitted step does not look at it."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, rate(value, self.rule_class))

    @property
    def weight_decay(self) -> Any:
        """The rule's, for good: a compiled step holds it."""
        return self.rule.weight_decay if hasattr(self, "rule") else None

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if hasattr(self, "rule"):  # Keras' constructor sets it before
            raise AttributeError(
                f"`weight_decay` is set to {value!r}, and it is fixed when the optimizer is made; make another, "
                f"{type(self).__name__}(..., weight_decay={value!r}), and compile the model with it"
            )

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables of the rule's state, and those of Keras' own options."""
        if self.built:
            return
        super().build(variables)
        self._state = Variables(self, self.rule, stepped(variables))

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
        own = stepped(model)
        params = [value_of(v) for v in own]
        aligned = [
            None if v is None or i not in given else value_of(keras.ops.cast(given[i], v.dtype))
            for i, v in enumerate(own)
        ]
        state, lr = self.state, value_of(learning_rate)
        decayed = [self._use_weight_decay(v) for v in model]
        new, after = self.rule.step(
            params,
            aligned,
            state,
            hyper={"lr": float(lr) if frameworks.is_on_host(lr) else lr},
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

    def save_own_variables(self, store: Any) -> None:
        """Write the variables and what they are of."""
        super().save_own_variables(store)
        weights.label(store, self.rule)

    def load_own_variables(self, store: Any) -> None:
        """Read what `save_own_variables` wrote; nothing is assigned before all of it is known to fit.

        Raises
        ------
        ValueError
            The variables are another rule's, or of other shapes.
        """
        if self.built and store.keys():
            weights.load(store, self.rule, self.variables)
        else:
            super().load_own_variables(store)  # Keras' warning that nothing is loaded

    def get_config(self) -> dict[str, Any]:
        """Keras' own options and the rule's hyperparameters, with which `from_config` makes the optimizer again."""
        fields = {field.name: getattr(self.rule, field.name) for field in dataclasses.fields(self.rule)}
        del fields["lr"]  # Keras' `learning_rate`, as it is now
        return {**super().get_config(), **fields}
