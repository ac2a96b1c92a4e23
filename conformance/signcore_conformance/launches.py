"""How many array operations a step of the CuPy loop takes: each is at least a kernel that is launched.

Counted by arrays that wrap those of a library and count what is done to them, on the way that the core takes for CuPy.
So the numbers are the same with and without a GPU; views, which launch nothing, are not counted. The caller's
gradients and losses are not, either.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np

import signcore as sc
import signcore_cupy
from signcore import frameworks

from . import golden

COUNTS = (1, 10, 100)  # leaves
SIZE = 24
_VIEWS = ("reshape", "expand_dims", "squeeze", "broadcast_to", "permute_dims", "flip")
_NONE = ("result_type", "isdtype", "finfo", "iinfo", "can_cast", "broadcast_shapes")


class Counter:
    """Counts operations on the arrays that it holds.

    Parameters
    ----------
    name : str
        What the core is to take the library for.
    xp : namespace
        Of the arrays.
    """

    def __init__(self, name: str, xp: Any) -> None:
        self.count, self.xp = 0, _Namespace(self, name, xp)
        self._kind = type("Counted", (_Counted,), {})  # a class of its own, for the core keeps a class's namespace

    def hold(self, array: Any) -> Any:
        """The array, counted from now on."""
        return self._kind(self, array)

    def do(self, function: Callable[..., Any], *args: Any, kernels: int = 1, **kwargs: Any) -> Any:
        """The function of arrays, counted."""
        given = [_inner(value) for value in args]
        found = function(*given, **{key: _inner(value) for key, value in kwargs.items()})
        self.count += 0 if any(found is value for value in given) else kernels  # a cast to its own dtype, say
        return self._held(found)

    def _held(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._held(each) for each in value]
        return self._kind(self, value) if hasattr(value, "shape") and hasattr(value, "dtype") else value


class _Counted:
    """An array that tells its counter of every operation."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, counter: Counter, array: Any) -> None:
        self._counter, self._array = counter, array

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self._counter.xp

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "shape", "ndim", "size", "device"):
            return getattr(self._array, name)
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        basic = all(
            key is None or key is ... or isinstance(key, (int, slice))
            for key in (key if isinstance(key, tuple) else (key,))
        )
        return self._counter.do(operator.getitem, self, key, kernels=0 if basic else 1)

    def view(self, dtype: Any) -> Any:
        """The same words as another dtype."""
        return self._counter.hold(self._array.view(dtype))

    def get(self) -> Any:
        """The words on the host."""
        return self._array.get() if hasattr(self._array, "get") else self._array


class _Namespace(ModuleType):
    """The functions of a namespace, counted."""

    def __init__(self, counter: Counter, name: str, xp: Any) -> None:
        super().__init__(name)
        self._counter, self._xp = counter, xp

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._xp, name)
        if isinstance(found, type) or not callable(found):  # dtypes and constants
            return found
        kernels = 0 if name in (*_VIEWS, *_NONE) else 1
        return lambda *args, **kwargs: self._counter.do(found, *args, kernels=kernels, **kwargs)


def _operator(name: str, kernels: int) -> Callable[..., Any]:
    def call(x: Any, *others: Any) -> Any:
        return getattr(x, name)(*others)

    return lambda self, *others: self._counter.do(call, self, *others, kernels=kernels)


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"]
_COMPARED = ["lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert"]
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *_COMPARED):
    setattr(_Counted, f"__{_name}__", _operator(f"__{_name}__", 1))
for _name in ("bool", "float", "int", "index"):  # these wait for the device; what they wait for is counted
    setattr(_Counted, f"__{_name}__", _operator(f"__{_name}__", 0))


def _inner(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value._array if isinstance(value, _Counted) else value


def per_step(to: Callable[[np.ndarray], Any], rule: sc.Rule, leaves: int, foreach: bool | None = None) -> int:
    """Operations of the third step, when nothing is new any more, on a tree of so many float32 leaves.

    Parameters
    ----------
    to : function
        NumPy's array as one of the library in question.
    """
    arrays = [np.linspace(-1.0, 1.0, SIZE, dtype=np.float32) * np.float32(i + 1) for i in range(leaves)]
    first = to(arrays[0])
    counter = Counter("array_api_compat.cupy", frameworks.namespace(first))
    params = [counter.hold(to(array)) for array in arrays]
    loss = counter.hold(to(np.asarray(1.0, np.float32)))
    before: list[int] = []

    def grad_fn(now: Any, step: int) -> Any:
        if len(before) == step:  # not where a rule asks for gradients elsewhere
            before.append(counter.count)
        return params

    signcore_cupy.run(rule, params, grad_fn, 3, value_fn=lambda now, step: loss, foreach=foreach, progress=False)
    return counter.count - before[2]


def report(to: Callable[[np.ndarray], Any], rules: Iterable[str]) -> dict[str, dict[str, int]]:
    """Operations per step of each rule, by the number of leaves, which are strings as JSON has them."""
    return {name: {str(count): per_step(to, golden.variants(name)[0], count) for count in COUNTS} for name in rules}


def described(found: dict[str, dict[str, int]]) -> str:
    """A line for each rule."""
    head = f"array operations per step of the CuPy loop, for {', '.join(map(str, COUNTS))} leaves:"
    return "\n".join([head, *(f"  {name}: {', '.join(map(str, row.values()))}" for name, row in found.items())])
