"""Learning-rate schedules whose values are the same bits eagerly, under a compiler and on every backend.

A schedule is called with the number of steps done (a Python int, or the 0-d int32 of a state, traced or
not). Products, quotients and roots are correctly rounded; cosines and powers are host tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from . import checks, frameworks, ops
from .checks import Range

_POSITIVE = Range(0.0)
_LAST = 2**31 - 1  # where a state's step counter stays
_COUNT = Range(1, maximum=_LAST)


class Schedule:
    """Base of all schedules: ``schedule(step, dtype="float32")``.

    A Python int gives a Python float; an int32 array gives a 0-d array of its library.
    """

    def __call__(self, step: Any, dtype: str = "float32") -> Any:
        """Value after `step` steps, rounded to `dtype`."""
        if isinstance(step, (int, np.integer)):
            return float(self.at(np.asarray(min(int(step), _LAST), dtype=np.int32), dtype))
        return self.at(step, dtype)

    def at(self, step: Any, dtype: str) -> Any:
        """Value at an int32 0-d array, as a 0-d array of its library."""
        raise NotImplementedError(f"{type(self).__name__} defines no value")


def _full(step: Any, value: Any, dtype: str) -> Any:
    xp = frameworks.namespace(step)
    return frameworks.constant(xp, value, frameworks.dtype(xp, dtype), step)


def _float(step: Any, dtype: str) -> Any:
    xp = frameworks.namespace(step)
    return xp.astype(step, frameworks.dtype(xp, dtype))


def _next(step: Any) -> Any:
    """``step + 1``, staying at the largest int32."""
    return ops.where(step < _LAST, step, _LAST - 1) + 1


def _lookup(step: Any, table: np.ndarray, dtype: str) -> Any:
    """``table[min(step, len - 1)]``, the float64 table rounded once."""
    xp = frameworks.namespace(step)
    last = len(table) - 1
    index = xp.reshape(xp.where(step < last, step, last), (1,))
    return xp.reshape(xp.take(_full(step, table.astype(dtype), dtype), index), ())


@dataclass(frozen=True)
class constant(Schedule):
    """The same value at every step.

    Parameters
    ----------
    value : float
        At least 0.

    Examples
    --------
    >>> constant(0.5)(3)
    0.5
    """

    value: float

    def __post_init__(self) -> None:
        checks.number("value", self.value, _POSITIVE)

    def at(self, step: Any, dtype: str) -> Any:
        return _full(step, ops.rounded(self.value, dtype), dtype)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """``value / sqrt(k + 1)`` at step k: Safaryan and Richtarik 2019, theorem 1.

    Parameters
    ----------
    value : float
        Value at step 0, at least 0.

    Examples
    --------
    >>> inverse_sqrt(1.0)(3)
    0.5
    """

    value: float

    def __post_init__(self) -> None:
        checks.number("value", self.value, _POSITIVE)

    def at(self, step: Any, dtype: str) -> Any:
        return ops.quotient(ops.rounded(self.value, dtype), ops.sqrt(_float(_next(step), dtype)))


@dataclass(frozen=True)
class cosine(Schedule):
    """``value * (final + (1 - final) * (1 + cos(pi k/K)) / 2)`` for k <= K, then constant (SGDR, one period).

    Parameters
    ----------
    value : float
        Value at step 0, at least 0.
    total_steps : int
        K, at least 1; the table on the host has K + 1 entries.
    final : float, default 0.0
        Fraction of `value` at the end, in [0, 1].

    Examples
    --------
    >>> [cosine(2.0, total_steps=4)(k) for k in (0, 2, 4, 9)]
    [2.0, 1.0, 0.0, 0.0]
    """

    value: float
    total_steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        checks.number("value", self.value, _POSITIVE)
        checks.integer("total_steps", self.total_steps)
        checks.number("total_steps", self.total_steps, _COUNT)
        checks.number("final", self.final, Range(0.0, 1.0))

    def at(self, step: Any, dtype: str) -> Any:
        return _lookup(step, _cosine_table(self.value, int(self.total_steps), self.final), dtype)


@dataclass(frozen=True)
class linear_warmup(Schedule):
    """``value * (k + 1) / steps`` for k < steps, afterwards `then`, which counts from 0 again.

    The first step is not zero: a sign step of length zero would waste a gradient.

    Parameters
    ----------
    value : float
        Value reached at step ``steps - 1``, at least 0.
    steps : int
        At least 1.
    then : Schedule, optional
        Default: `value` for ever.

    Examples
    --------
    >>> [linear_warmup(1.0, 4, then=inverse_sqrt(1.0))(k) for k in (0, 3, 4, 7)]
    [0.25, 1.0, 1.0, 0.5]
    """

    value: float
    steps: int
    then: Schedule | None = None

    def __post_init__(self) -> None:
        checks.number("value", self.value, _POSITIVE)
        checks.integer("steps", self.steps)
        checks.number("steps", self.steps, _COUNT)
        if not (self.then is None or isinstance(self.then, Schedule)):
            raise TypeError(f"`then` is {self.then!r}; pass a schedule of signcore.schedules, or None")

    def at(self, step: Any, dtype: str) -> Any:
        after = self.then if self.then is not None else constant(self.value)
        rising = ops.product(ops.rounded(self.value, dtype), _float(_next(step), dtype))
        rising = ops.quotient(rising, ops.rounded(float(self.steps), dtype))
        early = step < self.steps
        return ops.where(early, rising, after.at(ops.where(early, 0, step - self.steps), dtype))


@dataclass(frozen=True)
class step(Schedule):
    """``value * factor**(k // size)``: staircase decay, as torch's StepLR.

    Parameters
    ----------
    value : float
        Value of the first stair, at least 0.
    size : int
        Steps per stair, at least 1.
    factor : float, default 0.1
        In [0, 1]; 0.1 is the usual choice for staircases (and StepLR's default).

    Examples
    --------
    >>> [step(8.0, size=10, factor=0.5)(k) for k in (0, 9, 10, 25)]
    [8.0, 8.0, 4.0, 2.0]
    """

    value: float
    size: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        checks.number("value", self.value, _POSITIVE)
        checks.integer("size", self.size)
        checks.number("size", self.size, _COUNT)
        checks.number("factor", self.factor, Range(0.0, 1.0))

    def at(self, step: Any, dtype: str) -> Any:
        table = _stair_table(self.value, self.factor)
        return _lookup(step // int(self.size), table, dtype)


@lru_cache(maxsize=64)
def _stair_table(value: float, factor: float) -> np.ndarray:
    """All stairs in float64 until they no longer change or reach what a step flushes to zero."""
    stairs = [float(value)]
    while stairs[-1] * factor < stairs[-1] and stairs[-1] >= 2.0**-100:
        stairs.append(stairs[-1] * factor)
    return np.asarray(stairs)


@lru_cache(maxsize=64)
def _cosine_table(value: float, total: int, final: float) -> np.ndarray:
    """The whole schedule in float64 by NumPy's + and * alone, which round alike on every machine."""
    half = _cos_half_pi(np.arange(total + 1, dtype=np.float64) / total)
    return np.asarray(value * (final + (1.0 - final) * (half * half)))  # (1 + cos x)/2 = cos(x/2)^2


def _cos_half_pi(x: np.ndarray) -> np.ndarray:
    """cos(pi/2 * x) for x in [0, 1] to a few float64 ulps, by Taylor series of sin and cos on [0, pi/4]."""
    swap = x > 0.5
    angle = np.where(swap, 1.0 - x, x) * (np.pi / 2)
    square = angle * angle
    cos = np.ones_like(angle)
    sin = np.ones_like(angle)
    for n in range(20, 0, -2):
        cos = 1.0 - square * cos / (n * (n - 1))
        sin = 1.0 - square * sin / (n * (n + 1))
    return np.where(swap, angle * sin, cos)
