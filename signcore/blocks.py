"""Large NumPy leaves are worked through in blocks that stay in the processor's cache.

A rule's arithmetic is elementwise, so cutting a leaf into blocks cannot change a bit; it only keeps the
dozen temporaries of a step out of main memory. Compilers fuse these passes themselves, and on a GPU each
block would be a kernel launch, so no other library is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import frameworks

# Elements per block: float32 temporaries of 512 KiB. Blocks of a quarter of that fit a second-level cache better, but
# then the calls of an operation cost as much as its work (lion on 4 M elements: 32 ms against 18).
SIZE = 131072


def run(body: Callable[..., tuple[Any, ...]], arrays: list[Any]) -> tuple[Any, ...]:
    """``body(arrays, start)`` over whole arrays of one shape, or block by block for NumPy.

    `body` returns arrays of the same shape as its inputs; `start` is the global index of its first element.
    """
    first = next(array for array in arrays if array is not None)
    if not isinstance(first, (np.ndarray, np.generic)):
        return body(arrays, 0)
    # NumPy turns operations on 0-d arrays into scalars: every leaf is worked on as a vector.
    shape, size = first.shape, first.size
    flat = [None if array is None else np.reshape(array, (-1,)) for array in arrays]
    if size <= SIZE:
        return tuple(None if out is None else _own(out, flat).reshape(shape) for out in body(flat, 0))
    outputs: tuple[Any, ...] = ()
    for start in range(0, size, SIZE):
        stop = min(start + SIZE, size)
        parts = body([None if array is None else array[start:stop] for array in flat], start)
        if not outputs:
            outputs = tuple(None if part is None else np.empty(size, part.dtype) for part in parts)
        for out, part in zip(outputs, parts, strict=True):
            if out is not None:
                out[start:stop] = part
    return tuple(None if out is None else out.reshape(shape) for out in outputs)


def _own(out: Any, given: list[Any]) -> Any:
    """A result in memory of its own: who wrote into an input afterwards would change what was kept of it."""
    return out.copy() if out.base is not None or any(out is array for array in given) else out


def mapped(function: Callable[[Any], Any], array: Any) -> Any:
    """An elementwise function, block by block, over an array whose values are at hand (`frameworks.is_host`)."""
    xp = frameworks.namespace(array)
    flat = xp.reshape(array, (-1,))
    out = function(flat[:SIZE])
    if flat.shape[0] > SIZE:
        first, out = out, xp.empty(flat.shape, dtype=out.dtype, device=frameworks.device(array))
        out[:SIZE] = first
        for start in range(SIZE, flat.shape[0], SIZE):
            out[start : start + SIZE] = function(flat[start : start + SIZE])
    return xp.reshape(out, array.shape)


def by_columns(body: Callable[[int, int], Any], like: Any, width: int, step: int) -> Any:
    """``body(start, stop)``, the columns from `start` to `stop`, for all `width`; on NumPy `step` at a time."""
    if width <= step or not frameworks.is_eager_numpy(like):
        return body(0, width)
    parts = [body(start, min(start + step, width)) for start in range(0, width, step)]
    return np.concatenate(parts, axis=-1)
