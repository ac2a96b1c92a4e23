"""An Array API array that refuses to be read: any hidden synchronisation with the device is an error.

It stands in for a GPU library: an array class and its namespace over NumPy, with the functions of the standard
that the core uses and no others. `read` is the door for the test itself.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


class SynchronisationError(RuntimeError):
    """A value was to be read from the device."""


def _refuse(name):
    def method(self, *args, **kwargs):
        raise SynchronisationError(f"{name} waits for the device")

    return method


def _peer(value):
    """The NumPy operand behind a guarded array, or a Python scalar, which takes the array's dtype."""
    if isinstance(value, GuardedArray):
        return value._data
    if type(value) in (bool, int, float):
        return value
    raise TypeError(f"{type(value).__name__} beside a guarded array")


def _binary(name):
    def method(self, other):
        if not isinstance(other, GuardedArray) and type(other) not in (bool, int, float):
            return NotImplemented
        return GuardedArray(getattr(self._data, name)(_peer(other)))

    return method


def _unary(name):
    return lambda self: GuardedArray(getattr(self._data, name)())


class GuardedArray:
    """A NumPy array that does everything on its device and shows nothing of it to the host."""

    def __init__(self, data):
        self._data = np.asarray(data)
        self._data.flags.writeable = False  # nothing may write into an array either

    def __array_namespace__(self, api_version=None):
        return xp

    dtype = property(lambda self: self._data.dtype)
    shape = property(lambda self: self._data.shape)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)
    device = property(lambda self: "guarded:0")

    def __getitem__(self, key):
        return GuardedArray(self._data[key])

    def view(self, dtype):
        return GuardedArray(self._data.view(dtype))

    def __repr__(self):
        return f"GuardedArray(shape={self.shape}, dtype={self.dtype})"

    __hash__ = None


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    for _method in (f"__{_name}__", f"__r{_name}__"):
        setattr(GuardedArray, _method, _binary(_method))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(GuardedArray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(GuardedArray, f"__{_name}__", _unary(f"__{_name}__"))
for _name in ("bool", "float", "int", "index", "complex", "array", "iter", "len", "contains"):
    setattr(GuardedArray, f"__{_name}__", _refuse(f"__{_name}__"))
for _name in ("item", "tolist", "any", "all", "get"):
    setattr(GuardedArray, _name, _refuse(f".{_name}"))


def _where(condition, x, y):
    peers = [_peer(x), _peer(y)]
    dtypes = [value.dtype for value in (x, y) if isinstance(value, GuardedArray)]
    if not dtypes:
        raise TypeError("where: x or y must be an array")  # the standard since 2025; before, both
    return GuardedArray(np.where(condition._data, *(np.asarray(peer, dtype=dtypes[0]) for peer in peers)))


def _asarray(value, /, *, dtype=None, device=None, copy=None):
    return GuardedArray(np.array(value._data if isinstance(value, GuardedArray) else value, dtype=dtype))


def _like(function):
    return lambda x, /, *args, **kwargs: GuardedArray(function(x._data, *args, **_without_device(kwargs)))


def _new(function):
    return lambda *args, **kwargs: GuardedArray(function(*args, **_without_device(kwargs)))


def _without_device(kwargs):
    return {name: value for name, value in kwargs.items() if name != "device"}


def _elementwise(function):
    return lambda *args: GuardedArray(function(*map(_peer, args)))


_WHOLE = ("reshape", "any", "all", "sum", "max", "zeros_like", "ones_like", "expand_dims", "flip", "broadcast_to")
_ELEMENTWISE = ("abs", "sqrt", "log", "ceil", "floor", "isfinite", "minimum", "maximum", "clip")
xp = SimpleNamespace(
    __name__="guarded",
    asarray=_asarray,
    astype=lambda x, dtype, /, *, copy=True: GuardedArray(x._data.astype(dtype)),
    where=_where,
    take=lambda x, indices, /, *, axis=None: GuardedArray(np.take(x._data, indices._data, axis=axis)),
    concat=lambda arrays, /, *, axis=0: GuardedArray(np.concat([x._data for x in arrays], axis=axis)),
    result_type=np.result_type,
    stack=lambda arrays, /, *, axis=0: GuardedArray(np.stack([x._data for x in arrays], axis=axis)),
    **{name: _like(getattr(np, name)) for name in _WHOLE},
    **{name: _new(getattr(np, name)) for name in ("zeros", "arange")},
    **{name: _elementwise(getattr(np, name)) for name in _ELEMENTWISE},
    **{
        name: np.dtype(name)
        for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    },
)


def read(array):
    """The values of a guarded array as NumPy's."""
    return array._data.copy()
