"""What optax.inject_hyperparams does with a factory's arguments, and what it would lose.

It turns each Python number, and each weakly typed array that a schedule returns, into an array of the params' dtype,
so bfloat16 params would round a learning rate to eight bits; it makes an array of each int, so a seed could not be
read under jit; and it takes each callable for a schedule, a mask too. It asks the factory's signature to bind the
arguments: this one answers with arrays of full precision, or schedules of them, which optax leaves alone, and with
holders that optax passes through.

What is put into ``state.hyperparams`` later never comes here: optax itself rounds a Python number to the params' dtype
there, so beside bfloat16 params put ``jnp.float32(0.05)``. A schedule of `signcore.schedules` gives its float32 value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from optax.schedules import StatefulSchedule

from signcore import checks


class Static(NamedTuple):
    """A value that optax.inject_hyperparams shall neither trace nor call."""

    value: Any


class InjectableSignature(inspect.Signature):
    """A signature whose `bind` prepares arguments for optax.inject_hyperparams; otherwise as any other."""

    __slots__ = ("_numbers",)
    _numbers: frozenset[str]

    @classmethod
    def of(cls, signature: inspect.Signature, numbers: set[str]) -> Self:
        """The same signature; `numbers` names the arguments that may be scheduled."""
        made = cls(list(signature.parameters.values()), return_annotation=signature.return_annotation)
        made._numbers = frozenset(numbers)
        return made

    def replace(self, **changes: Any) -> Self:
        """The same kind of signature, also for the functools.partial of a factory."""
        made = super().replace(**changes)
        made._numbers = self._numbers
        return made

    def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Arguments with their defaults, in forms that optax.inject_hyperparams does not change."""
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.update({name: self._kept(name, value) for name, value in bound.arguments.items()})
        return bound

    def _kept(self, name: str, value: Any) -> Any:
        if name not in self._numbers:
            passes = isinstance(value, (bool, str, type(None), jax.Array, np.ndarray))
            return value if passes else Static(value)
        if isinstance(value, StatefulSchedule):
            return value
        return _strong_schedule(value) if callable(value) else _strong(value)


def _strong(value: Any) -> Any:
    """A number as an array that is not weakly typed: float64 where it is and JAX has it, else float32."""
    if checks.is_number(value):
        return jnp.asarray(np.float64(value))
    if not isinstance(value, (jax.Array, np.ndarray)):
        return value  # for the core to judge
    array = jnp.asarray(value)
    return array.astype(array.dtype)


def _strong_schedule(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda count: _strong(schedule(count))
