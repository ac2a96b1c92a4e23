"""A rule's functional state as Keras keeps state: variables of the optimizer, in the order of the state's fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from signcore import Rule, frameworks
from signcore.dtypes import name_of
from signcore.marks import WHOLE

_NUMPY = frameworks.namespace(np.empty(0))


class Variables:
    """The variables that hold a rule's state beside some of a model.

    Every field is made in the dtype and shape that the rule gives it, whatever the model's dtype is. A variable that
    takes no part has none.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        The variables are added to it, so that Keras saves, places and passes them on.
    rule : signcore.Rule
    model : sequence of keras.Variable or None
        Their places key the noise, as those of a list in `Rule.init`; None takes no part.
    """

    def __init__(self, optimizer: Any, rule: Rule, model: Sequence[Any]) -> None:
        # By NumPy, because Keras may build while its own arrays have no values yet; a first state depends on none.
        zeros = [None if v is None else np.zeros(v.shape, frameworks.dtype(_NUMPY, v.dtype)) for v in model]
        fresh = rule.init(zeros)
        self._type = rule.State
        self._columns: dict[str, Any] = {}
        for name, kind in rule.kinds.items():
            first = getattr(fresh, name)
            if kind in WHOLE:
                self._columns[name] = _added(optimizer, first, name)
                continue
            column = []
            for v, value in zip(model, first, strict=True):
                like = v if kind in ("element", "copy") else None
                column.append(
                    None if v is None else _added(optimizer, value, f"{v.path.replace('/', '_')}_{name}", like)
                )
            self._columns[name] = column

    def read(self) -> Any:
        """The state as the rule takes it, of the backend's arrays."""
        fields: dict[str, Any] = dict.fromkeys(self._type._fields)
        for name, column in self._columns.items():
            fields[name] = [value_of(each) for each in column] if isinstance(column, list) else value_of(column)
        return self._type(**fields)

    def write(self, before: Any, after: Any) -> None:
        """Assign what a step made of the state that was read; what it left alone is not copied."""
        for name, column in self._columns.items():
            old, new = getattr(before, name), getattr(after, name)
            if not isinstance(column, list):
                column, old, new = [column], [old], [new]
            for variable, was, value in zip(column, old, new, strict=True):
                if value is not was:
                    variable.assign(value)


def value_of(variable: Any) -> Any:
    """The array in a variable, or of a gradient, which autograd does not follow; None of None."""
    return None if variable is None else frameworks.without_history(keras.ops.convert_to_tensor(variable))


def _added(optimizer: Any, value: np.ndarray[Any, Any], name: str, like: Any = None) -> Any:
    """A new variable of an optimizer with this value, laid out over devices as `like` is."""
    layout = getattr(like, "_layout", None)  # keras.distribution's; releases without it have no such argument
    placed = {} if layout is None else {"layout": layout}
    return optimizer.add_variable(
        shape=value.shape,
        initializer=lambda shape, dtype=None: keras.ops.convert_to_tensor(value, dtype),
        dtype=name_of(value.dtype),
        name=name,
        **placed,
    )


def stepped(variables: Sequence[Any]) -> list[Any]:
    """The variables, None for those into which Keras writes their gradients (scales of float8)."""
    return [None if getattr(v, "overwrite_with_gradient", False) else v for v in variables]
