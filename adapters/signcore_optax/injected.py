"""What optax.inject_hyperparams does with a factory's arguments, and what it would lose.

It turns each Python number into an array of the params' dtype, so bfloat16 params would round a learning rate to
eight bits; it makes an array of each int, so a seed could not be read under jit; and it takes each callable for
a schedule, a mask too. It asks the factory's signature to bind the arguments: this one answers with
arrays of full precision, which optax leaves alone, and with holders that optax passes through.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

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
        # From np.float64, an array that is not weakly typed: float64 where JAX has it, else float32.
        return jnp.asarray(np.float64(value)) if checks.is_number(value) else value
