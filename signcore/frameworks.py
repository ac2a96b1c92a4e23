"""Where array libraries differ, each difference with its reason.

No other file of the core asks which library it runs on. Nothing is imported here but NumPy and
array-api-compat: a framework is reached only through arrays that the caller already made with it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

# Looked up once per array type. Not for torch: torch.compile guards on every dict that it reads, so a table
# that grows when another library is first used would recompile each compiled step.
_NAMESPACES: dict[type, ModuleType] = {}
# Imported when their first array comes: array_api_compat.numpy takes all of NumPy in, f2py and its tests too,
# which costs as much time as NumPy itself.
_NUMPY: Any = None
_TORCH: Any = None

# These run one operation at a time, so no compiler can merge two of them into an FMA or drop a cast.
_EAGER = {"array_api_compat.numpy", "array_api_compat.cupy", "array_api_strict"}


def namespace(array: Any) -> Any:
    """Array API namespace of an array; TypeError when it is not an array of an Array API library."""
    cls = type(array)
    if cls is np.ndarray:
        return _NUMPY or _numpy_namespace()
    if hasattr(array, "requires_grad_"):  # torch's; torch.compile cannot tell the module of a Parameter's class
        return _torch_namespace()
    xp = _NAMESPACES.get(cls)
    if xp is None:
        # These give NumPy's operators another meaning (products of matrices, holes in every result).
        if {"matrix", "MaskedArray"} & {base.__name__ for base in cls.__mro__}:
            raise TypeError(f"arithmetic on {cls.__name__}")
        xp = array_api_compat.array_namespace(array)
        _NAMESPACES[cls] = xp
    return xp


def _numpy_namespace() -> Any:
    global _NUMPY
    import array_api_compat.numpy

    _NUMPY = array_api_compat.numpy
    return _NUMPY


def _torch_namespace() -> Any:
    global _TORCH
    if _TORCH is None:
        import array_api_compat.torch

        _TORCH = array_api_compat.torch
    return _TORCH


def _name(xp: Any) -> str:
    return str(getattr(xp, "__name__", type(xp).__name__))  # a namespace need not be a module


def library(xp: Any) -> str:
    """Name of the library behind a namespace, for messages and for the choices in this file."""
    if xp is _TORCH:  # the two that are asked for most, because they run step by step
        return "torch"
    if xp is _NUMPY:
        return "numpy"
    return _name(xp).removeprefix("array_api_compat.").partition(".")[0]


def contracts(array: Any) -> bool:
    """Whether a compiler may fuse a product of `array`'s library into a following sum.

    XLA does on every device, Triton on GPUs. inductor compiles its C++ for the CPU without contraction, and
    there the guard would only make it slow: each guarded product is used twice, so a chain of n of them is
    expanded 2**n times while it compiles.
    """
    xp = namespace(array)
    if library(xp) == "torch" and array.device.type == "cpu":
        return False
    return is_compiled(array)


def is_compiled(array: Any) -> bool:
    """Whether a compiler may see the operations on `array` together.

    It may then delete a cast to a narrower dtype that is followed by its inverse. Unknown libraries count
    as compiled: what is done about it is harmless.
    """
    xp = namespace(array)
    if library(xp) == "torch":
        return bool(xp.compiler.is_compiling())
    return _name(xp) not in _EAGER


def is_traced(array: Any) -> bool:
    """Whether the values of `array` are unknown now, because a function is being traced."""
    xp = namespace(array)
    if library(xp) == "torch":
        return bool(xp.compiler.is_compiling())
    return library(xp) == "jax" and "Tracer" in type(array).__name__


def is_eager_numpy(array: Any) -> bool:
    """Whether `array` is NumPy's own, whose values may steer what is computed."""
    return type(array) is np.ndarray


def is_on_host(array: Any) -> bool:
    """Whether the values of `array` can be read without waiting for another device."""
    where, name = str(getattr(array, "device", "")).lower(), library(namespace(array))
    known = name == "numpy" or (name in {"torch", "jax", "array_api_strict"} and "cpu" in where)
    return known and not is_traced(array)  # "cpu" in an unknown library may mean anything


def on_host(array: Any) -> Any:
    """An array whose values can be read: a JAX array as NumPy's.

    Under a trace JAX's functions give traced results even for arrays with values, and XLA's comparisons
    take subnormals for zero.
    """
    return np.asarray(array) if library(namespace(array)) == "jax" else array


def device(array: Any) -> Any:
    """Device of an array, None where an array may live on several (JAX checks placement itself)."""
    return None if library(namespace(array)) == "jax" else getattr(array, "device", None)


def placement(array: Any) -> Any:
    """Where an array is; None for one of JAX that is traced or not committed to any device."""
    if library(namespace(array)) != "jax":
        return device(array)
    if is_traced(array) or not getattr(array, "committed", False):
        return None
    return array.sharding.device_set


def dtype(xp: Any, name: str) -> Any:
    """The dtype object called `name` in a library; ValueError when it has none."""
    if library(xp) == "numpy" and name == "bfloat16":
        try:
            import ml_dtypes  # NumPy's bfloat16; optional, because most users never need it
        except ImportError:
            raise ValueError("NumPy has no dtype bfloat16 of its own; `pip install ml_dtypes` adds it") from None
        return np.dtype(ml_dtypes.bfloat16)
    found = getattr(xp, name, None)
    if found is None:
        raise ValueError(f"{library(xp)} has no dtype {name}")
    return np.dtype(found) if library(xp) == "jax" else found  # jnp.float32 is a function, arrays have np.dtype


def constant(xp: Any, value: Any, dtype: Any, like: Any) -> Any:
    """`value` as an array beside `like`: on its device, or placed by JAX, whose arrays may span several."""
    where = device(like)
    return xp.asarray(value, dtype=dtype) if where is None else xp.asarray(value, dtype=dtype, device=where)


def float64_scope(xp: Any) -> AbstractContextManager[Any]:
    """A scope in which float64 exists: JAX has it only with x64 on, so it is switched on inside one primitive."""
    if library(xp) != "jax":
        return nullcontext()
    import jax  # the caller's arrays are JAX's: this imports nothing new

    scope: AbstractContextManager[Any] = jax.enable_x64(True)
    return scope


def has_exact_division(xp: Any) -> bool:
    """Whether ``/`` on float64 is one rounding.

    JAX rewrites ``x / scalar`` into a product with the reciprocal and ``x / sqrt(y)`` into one with ``rsqrt``.
    """
    return library(xp) in {"numpy", "torch", "cupy", "array_api_strict"}


def has_exact_sqrt(array: Any) -> bool:
    """Whether ``sqrt`` on float64 is one rounding.

    torch's eager one on the CPU was off by an ulp for 1.4 % of two million inputs.
    """
    xp = namespace(array)
    if library(xp) == "torch":
        return array.device.type != "cpu" or is_compiled(array)
    return library(xp) in {"numpy", "cupy", "array_api_strict", "jax"}


def has_exact_float32(xp: Any) -> bool:
    """Whether ``/`` and ``sqrt`` on float32 are one rounding each.

    torch's vectorised float32 sqrt is wrong by one ulp for 17 % of inputs, CuPy may be compiled with
    flags that relax division: both go through float64 and one rounding, which is exact.
    """
    return library(xp) in {"numpy", "array_api_strict"}
