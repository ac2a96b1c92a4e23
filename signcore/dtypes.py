"""The one table of facts about floating-point dtypes.

NumPy knows bfloat16 only through ``ml_dtypes`` (``np.finfo`` and ``isdtype`` fail on it), torch and JAX
each have their own dtype objects; so facts are looked up here, by the dtype's plain name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Format(NamedTuple):
    """What the arithmetic contract needs to know of a dtype."""

    name: str
    compute: str  # dtype of all arithmetic on such leaves
    flush: float  # magnitudes below this are stored as +0.0
    digits: int  # significand bits, the implicit one included
    largest: float  # largest finite value
    normal: float  # smallest normal value of the dtype, 0 where subnormals are normal when computed with


# Flush thresholds. float32: 2**-100 leaves 26 bits above the smallest normal, so a product of a stored
# value with a multiplier >= 2**-24 cannot be subnormal, which XLA and CuPy would turn into zero.
# bfloat16 has float32's exponents and is computed in float32. float64: likewise, with more room.
# float16: arithmetic runs in float32, where float16's subnormals are normal numbers, and the casts keep
# them on every backend; so only what would round to a signed zero or below the last subnormal goes.
FORMATS = {
    "float16": Format("float16", "float32", 2.0**-24, 11, 65504.0, 0.0),
    "bfloat16": Format("bfloat16", "float32", 2.0**-100, 8, (2.0 - 2.0**-7) * 2.0**127, 2.0**-126),
    "float32": Format("float32", "float32", 2.0**-100, 24, (2.0 - 2.0**-23) * 2.0**127, 2.0**-126),
    "float64": Format("float64", "float64", 2.0**-900, 53, (2.0 - 2.0**-52) * 2.0**1023, 2.0**-1022),
}


def name_of(dtype: Any) -> str:
    """Plain name of a dtype of any library: ``torch.float32`` and ``np.dtype('float32')`` alike."""
    return str(dtype).rpartition(".")[2]


# By NumPy dtype (CuPy and JAX use the same), because making its name takes a microsecond. Other libraries'
# dtypes are looked up by name: torch.compile would guard on this dict, and recompile when it grows.
_SEEN: dict[np.dtype[Any], Format | None] = {}


def format_of(array: Any) -> Format | None:
    """Format of an array's dtype, None when signcore does not compute with it."""
    dtype = array.dtype
    if not isinstance(dtype, np.dtype):
        return FORMATS.get(name_of(dtype))
    if dtype not in _SEEN:
        _SEEN[dtype] = FORMATS.get(name_of(dtype))
    return _SEEN[dtype]
