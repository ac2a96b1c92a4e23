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

from . import opaque
from .dtypes import name_of

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
        import torch  # the caller's arrays are torch's: this imports nothing new

        opaque.register(torch)
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
    """Whether the values of `array` are unknown now, because a function is being traced, or mapped by torch."""
    xp = namespace(array)
    if library(xp) == "torch":
        import torch  # the caller's arrays are torch's: this imports nothing new

        return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(array)
    return library(xp) == "jax" and "Tracer" in type(array).__name__


def is_eager_numpy(array: Any) -> bool:
    """Whether `array` is NumPy's own, whose values may steer what is computed."""
    return type(array) is np.ndarray


def is_host(array: Any) -> bool:
    """Whether an array may be worked on by looking at its values and writing into scratch: NumPy's, torch's on the CPU.

    Not under torch.compile, vmap or autograd, which must see pure operations, nor for subclasses of tensors, which
    may have no values.
    """
    if type(array) is np.ndarray:
        return True
    if not hasattr(array, "requires_grad_"):
        return False
    import torch  # the caller's arrays are torch's: this imports nothing new

    return (
        type(array) in (torch.Tensor, torch.nn.Parameter)
        and array.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (array.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(array)
    )


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
        return _bfloat16()
    found = getattr(xp, name, None)
    if found is None:
        raise ValueError(f"{library(xp)} has no dtype {name}")
    return np.dtype(found) if library(xp) == "jax" else found  # jnp.float32 is a function, arrays have np.dtype


def _bfloat16() -> Any:
    try:
        import ml_dtypes  # NumPy's bfloat16; optional, because most users never need it
    except ImportError:
        raise ValueError("NumPy has no dtype bfloat16 of its own; `pip install ml_dtypes` adds it") from None
    return np.dtype(ml_dtypes.bfloat16)


def constant(xp: Any, value: Any, dtype: Any, like: Any) -> Any:
    """`value` as an array beside `like`: on its device, or placed by JAX, whose arrays may span several."""
    where = device(like)
    return xp.asarray(value, dtype=dtype) if where is None else xp.asarray(value, dtype=dtype, device=where)


def float64_scope(xp: Any) -> AbstractContextManager[Any]:
    """A scope in which float64 exists: JAX has it only with x64 on, so it is switched on inside one primitive.

    And in which NumPy does not warn of an overflow that is the right result.
    """
    if library(xp) != "jax":
        return np.errstate(all="ignore") if library(xp) in {"numpy", "array_api_strict"} else nullcontext()
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


def descended(xp: Any, function: Any, values: Any, ulps: list[float]) -> Any:
    """``values, out = function(values, ulp)`` for one ulp after the other, largest first: all the outs, stacked.

    `function` takes the multiples of an ulp out of the values, and gives zeros when all are below half of it. JAX
    has a loop, which begins at the first ulp that matters and ends when nothing is left; written out, the body would
    take seconds to compile, and XLA would know the ulps: it takes ``(x + c) - c`` for x where c is a literal.
    """
    if library(xp) != "jax":
        outs = []
        for ulp in ulps:
            values, out = function(values, ulp)
            outs.append(out)
        return xp.stack(outs)
    import jax  # the caller's arrays are JAX's: this imports nothing new

    every = xp.asarray(ulps, dtype=values.dtype)
    reach = xp.sum(xp.abs(values))
    nothing = xp.sum(values, axis=-1)[None] * 0.0

    def more(at: Any) -> Any:
        return (at[0] < len(ulps)) & (at[3] > 0.0)

    def body(at: Any) -> Any:
        k, values, outs, _ = at
        values, out = function(values, every[k])
        return k + 1, values, outs.at[k].set(out), xp.sum(xp.abs(values))

    start = xp.sum(reach < 0.5 * every, dtype=xp.int32)
    outs = nothing + xp.zeros((len(ulps), 1), dtype=values.dtype)
    return jax.lax.while_loop(more, body, (start, values, outs, reach))[2]


def added(function: Any, row: int, x: Any, y: Any) -> Any:
    """The sum of ``function(x, y)`` over pieces of two vectors (`y` may be None), which come in rows of `row`.

    XLA keeps every intermediate result that is used twice in main memory, which costs ten times as much as
    the arithmetic: it loops over one row at a time. Others take many rows at once.
    """
    xp = namespace(x)
    size = x.shape[0]
    if library(xp) == "jax":
        import jax  # the caller's arrays are JAX's: this imports nothing new

        global _JITTED
        if _JITTED is None:
            _JITTED = jax.jit(_scanned, static_argnums=(0, 1))  # compiled once, also for eager calls
        return _JITTED(function, row, x, y)
    total, at_once = None, size if is_traced(x) else 256 * row
    for start in range(0, size, at_once):
        pieces = [None if v is None else _in_rows(xp, v[start : start + at_once], row) for v in (x, y)]
        found = function(*pieces)
        total = found if total is None else total + found
    return total


_JITTED: Any = None


def _in_rows(xp: Any, vector: Any, row: int) -> Any:
    size = vector.shape[0]
    if size <= row:
        return xp.reshape(vector, (1, size))
    if size % row:
        padding = xp.zeros((row - size % row,), dtype=vector.dtype, device=device(vector))
        vector = xp.concat([vector, padding])
    return xp.reshape(vector, (-1, row))


def _scanned(function: Any, row: int, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    size = x.shape[0]
    # The first piece, by itself, takes what is no whole row, and gives a sum that varies over the same mesh axes as
    # the others' (shard_map asks for that).
    first = min(size, size % row or row)

    def body(total: Any, start: Any) -> tuple[Any, None]:
        pieces = [None if v is None else jax.lax.dynamic_slice(v, (start,), (row,))[None] for v in (x, y)]
        return total + function(*pieces), None

    total = function(x[None, :first], None if y is None else y[None, :first])
    return total if first == size else jax.lax.scan(body, total, jnp.arange(first, size, row))[0]


def as_numpy(array: Any) -> np.ndarray | None:
    """The values of an array as NumPy's, without a copy where there need not be one; None when they are not at hand."""
    name = library(namespace(array))
    if is_host(array):
        values: np.ndarray = array if name == "numpy" else array.detach().resolve_neg().numpy()
        return values
    if name == "array_api_strict" or (name == "jax" and is_on_host(array) and array.is_fully_addressable):
        return np.asarray(array)
    return None


def to_numpy(array: Any) -> np.ndarray:
    """The words of an array from wherever it is, as NumPy's, C-contiguous; bfloat16 needs ml_dtypes."""
    xp = namespace(array)
    name = library(xp)
    if name == "torch":
        tensor = array.detach().cpu().resolve_neg().contiguous()
        if tensor.dtype == xp.bfloat16:  # torch knows no NumPy dtype for it
            return np.asarray(tensor.view(xp.int16).numpy().view(_bfloat16()))
        return np.asarray(tensor.numpy())
    return np.asarray(array.get() if name == "cupy" else array, order="C")


def from_numpy(values: np.ndarray, like: Any) -> Any:
    """The words of a NumPy array in the library of `like` and on its device, or JAX's devices if the shapes agree."""
    xp = namespace(like)
    name = library(xp)
    if name == "torch":
        words = values.view(np.int16) if name_of(values.dtype) == "bfloat16" else values
        tensor = xp.asarray(words)
        if not words.size:  # NumPy's strides of empty arrays are no torch result's: compiled steps would compile anew
            tensor = xp.empty_like(tensor, memory_format=xp.contiguous_format)
        return (tensor if words is values else tensor.view(xp.bfloat16)).to(like.device)
    if name == "jax":
        same = tuple(like.shape) == values.shape and getattr(like, "committed", False)
        made = xp.asarray(values, device=like.sharding) if same else xp.asarray(values)
    else:
        made = xp.asarray(values, device=like.device)
    if name_of(made.dtype) != name_of(values.dtype):
        raise TypeError(f"{name} has no {name_of(values.dtype)} here; switch jax_enable_x64 on")
    return made


def bits(x: Any) -> Any:
    """The words of a float32 or float64 array as int32 or int64."""
    xp = namespace(x)
    kind = xp.int64 if x.dtype == xp.float64 else xp.int32
    return xp.asarray(np.asarray(x).view(str(name_of(kind)))) if _has_no_view(xp) else x.view(kind)


def from_bits(words: Any) -> Any:
    """The inverse of `bits`."""
    xp = namespace(words)
    kind = xp.float64 if words.dtype == xp.int64 else xp.float32
    return xp.asarray(np.asarray(words).view(str(name_of(kind)))) if _has_no_view(xp) else words.view(kind)


def _has_no_view(xp: Any) -> bool:
    """The standard knows no reinterpretation of words, and this library knows nothing but the standard."""
    return library(xp) == "array_api_strict"


def only_if(wanted: Any, function: Any, otherwise: Any) -> Any:
    """``function()`` where `wanted`, a 0-d bool, else `otherwise`, a dict of arrays of the same shapes and dtypes.

    The function is not run in vain where the value of `wanted` is at hand, and under JAX, which has a conditional.
    torch on a GPU would have to wait for the value, and torch.compile's graphs have no branches.
    """
    if isinstance(wanted, bool):
        return function() if wanted else otherwise
    xp = namespace(wanted)
    if library(xp) == "jax":
        import jax  # the caller's arrays are JAX's: this imports nothing new

        if jax.sharding.get_abstract_mesh().manual_axes:  # inside of shard_map, where types say which devices differ
            made = jax.eval_shape(function)
            otherwise = {name: _as_varying(jax, value, made[name]) for name, value in otherwise.items()}
        return jax.lax.cond(wanted, lambda: function(), lambda: otherwise)
    found = function()
    return {name: xp.where(wanted, value, otherwise[name]) for name, value in found.items()}


def _as_varying(jax: Any, value: Any, like: Any) -> Any:
    """A value with the type of one that may differ along a mesh's axes."""
    axes = tuple(like.manual_axis_type.varying - jax.typeof(value).manual_axis_type.varying)
    return jax.lax.pcast(value, axes, to="varying") if axes else value


WORTH_ORDERING = 2**16  # elements; a copy of fewer costs no more than the conditional, which has to be compiled


def after(earlier: list[Any], later: list[Any]) -> list[Any]:
    """The arrays `later`, no word of which XLA's CPU compiler writes before it has the arrays `earlier`.

    A step overwrites donated arrays. XLA copies one, in one thread, when it cannot see that everything that reads the
    old words comes before what writes the new ones; such a copy takes as long as a step of Signum. It takes order from
    the flow of data alone: so the later arrays depend on something of the earlier ones that never holds (a word with
    more ones than bits), behind a conditional, which no loop takes in. No word changes.
    """
    if not earlier or not later or library(namespace(earlier[0])) != "jax" or not any(map(is_traced, earlier)):
        return later
    import jax  # the caller's arrays are JAX's: this imports nothing new

    read = [array for array in earlier if array.size]
    written = [array for array in later if array is not None]
    sharded = any(any(jax.typeof(array).sharding.spec) for array in (*read, *written))  # over an explicit mesh
    # Inside of a shard_map what depends on one device's own may not leave as replicated, whatever its value.
    sharded = sharded or bool(jax.sharding.get_abstract_mesh().manual_axes)
    small = all(array.size < WORTH_ORDERING for array in written)
    if jax.default_backend() != "cpu" or sharded or small or not read:
        return later

    def impossible(arrays: list[Any]) -> Any:
        found: Any = False
        for array in arrays:
            kind = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}[array.dtype.itemsize]
            word = jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim).reshape(())
            word = word.astype(kind) if word.dtype == bool else jax.lax.bitcast_convert_type(word, kind)
            found = found | (jax.lax.population_count(word) > 8 * array.dtype.itemsize)
        return found

    never = jax.lax.cond(impossible(read[:1]), lambda arrays: ~impossible(arrays), impossible, read)
    return [None if x is None else jax.numpy.where(never, jax.numpy.zeros((), x.dtype), x) for x in later]


def _is_cut(array: Any) -> bool:
    """Whether a JAX array is cut over an explicit mesh, along which no reshape is taken without saying how."""
    if library(namespace(array)) != "jax":
        return False
    import jax  # the caller's arrays are JAX's: this imports nothing new

    return any(jax.typeof(array).sharding.spec)


def flat(array: Any) -> Any:
    """An array as a vector, or as it is where that cannot be said; what is made of it must not depend on its shape."""
    return array if _is_cut(array) else namespace(array).reshape(array, (-1,))


def automatic(function: Any, *arrays: Any) -> Any:
    """A function of arrays; where one is cut over an explicit mesh, as if that were automatic, its result replicated.

    Only what is passed may be used: values from outside are of another mesh.
    """
    cut = [array for array in arrays if not isinstance(array, tuple) and _is_cut(array)]
    if not cut:
        return function(*arrays)
    import jax  # the caller's arrays are JAX's: this imports nothing new

    mesh = jax.typeof(cut[0]).sharding.mesh
    whole: Any = jax.sharding.PartitionSpec
    whole, known = whole(), not isinstance(cut[0], jax.core.Tracer)
    with jax.set_mesh(cut[0].sharding.mesh) if known else jax.sharding.use_abstract_mesh(mesh):
        free = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=whole)
        return free(*arrays)


def known(flag: Any) -> Any:
    """A 0-d bool as Python's where its value can be read without waiting; else the array."""
    return bool(on_host(flag)) if is_on_host(flag) else flag


def own(array: Any, given: tuple[Any, ...]) -> Any:
    """An array in memory of its own, where its library can write into it and it is one of those that were given.

    NumPy's results are by then (blocks.py), and a compiled graph's are.
    """
    place = _place(array)
    return array if place is None or place not in map(_place, given) else namespace(array).asarray(array, copy=True)


def _place(array: Any) -> int | None:
    name = library(namespace(array))
    if name == "torch":
        plain = type(array).__name__ in ("Tensor", "Parameter")  # others may have no memory of their own
        return int(array.data_ptr()) if plain and not is_traced(array) and not array.is_meta and array.numel() else None
    memory = getattr(array, "data", None) if name == "cupy" and array.size else None
    return getattr(memory, "ptr", None)


def without_history(array: Any) -> Any:
    """An array that autograd does not follow: a state may hold parameters, and no step is differentiated."""
    return array.detach() if hasattr(array, "requires_grad_") else array
