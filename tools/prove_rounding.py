"""Proof by enumeration that float32 becomes the nearest float16 and bfloat16, or at random one of the two around it.

``python tools/prove_rounding.py [--output docs/results/rounding.json]``, a minute. The points: all 2**16 numbers of the
narrow dtype, the middle of every two neighbours, and the float32 below and above each middle; between them
rounding is monotone. Reference: Python's integers. Eager NumPy and torch round by their casts; jitted JAX and
compiled torch by arithmetic on words, because compilers delete casts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import torch
from rich.progress import track

from signcore import frameworks, ops, random
from signcore.dtypes import FORMATS

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def finite(dtype):
    """All finite magnitudes of a dtype, ascending, as float64."""
    infinity = int(np.asarray(np.inf, DTYPES[dtype]).view(np.uint16))
    return np.arange(infinity, dtype=np.uint16).view(DTYPES[dtype]).astype(np.float64)


def points(dtype):
    """(float32 inputs, index of the value below each, whether it is above the middle, or at it)."""
    values = finite(dtype)
    ulp = values[-1] - values[-2]
    above = np.append(values[1:], values[-1] + ulp)  # the first that overflows
    middle = ((values + above) / 2).astype(np.float32)
    lowest, highest = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))
    index = np.arange(len(values))
    x = np.concatenate([values.astype(np.float32), lowest, middle, highest])
    place = np.concatenate([np.full(len(values), -2), *(np.full(len(values), side) for side in (-1, 0, 1))])
    return x, np.tile(index, 4), place


def expected(dtype):
    """The words of the nearest: index of the magnitude, ties to the even one, flushed as the contract says."""
    x, below, place = points(dtype)
    up = (place == 1) | ((place == 0) & (below % 2 == 1))
    index = below + np.where(place == -2, 0, up)
    index = np.where(x < FORMATS[dtype].flush, 0, index)
    return x, index.astype(np.uint16)


def narrow(x, dtype):
    return ops.narrow(ops.flush(x), frameworks.dtype(frameworks.namespace(x), dtype), FORMATS[dtype])


def stored(x, dtype):
    """As a parameter is stored: not flushed."""
    return ops.narrow(x, frameworks.dtype(frameworks.namespace(x), dtype), FORMATS[dtype], stored=False)


def to_words(x):
    if isinstance(x, torch.Tensor):
        return x.view(torch.int16).numpy().view(np.uint16)
    return np.asarray(x).view(np.uint16)


def backends():
    yield "numpy", lambda f: f, lambda x: x
    yield "torch", lambda f: f, torch.tensor
    yield "torch.compile", lambda f: torch.compile(f, fullgraph=True), torch.tensor
    yield "jax.jit", jax.jit, jax.numpy.asarray


def stochastic(dtype):
    """Both neighbours at every fraction that 2**8 words tell apart: how many results are wrong."""
    values = finite(dtype)
    wrong = 0
    least = 1 if dtype == "float16" else int(np.searchsorted(values, 2.0**-126))
    for k in range(1, 256, 2):  # the fraction k/256 of the way up
        fraction = values[least:-1] + (values[least + 1 :] - values[least:-1]) * (k / 256)
        x = fraction.astype(np.float32)
        exact = x.astype(np.float64) == fraction  # a value of the grid, not one that float32 rounded
        for word in (k - 1, k):  # a uniform just below the fraction, and the fraction itself
            w = np.full(len(x), word << 24, np.int64).astype(np.uint32).view(np.int32)
            found = to_words(random.stochastic_round(x, dtype, w)).astype(np.int64)
            wanted = np.arange(least, len(values) - 1) + (word < k)
            wrong += int(((found != wanted) & exact).sum())
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/rounding.json"))
    options = parser.parse_args()
    began = time.time()
    result = {}
    with np.errstate(over="ignore"):
        for dtype in track(DTYPES, disable=not sys.stderr.isatty()):
            x, index = expected(dtype)
            raw = np.where(x < 2.0**-126, 0, x).astype(np.float32)  # float32's subnormals are outside of the contract
            plain = points(dtype)
            up = (plain[2] == 1) | ((plain[2] == 0) & (plain[1] % 2 == 1))
            unflushed = (plain[1] + np.where(plain[2] == -2, 0, up)).astype(np.uint16)
            unflushed = np.where(raw == 0, 0, unflushed)
            wrong = {}
            for name, compiled, array in backends():
                for what, function, inputs, wanted in (
                    ("stored", narrow, x, index),
                    ("params", stored, raw, unflushed),
                ):
                    for sign in (1, -1):
                        body = compiled(lambda a, function=function, dtype=dtype: function(a, dtype))
                        found = to_words(body(array((sign * inputs).astype(np.float32)))).astype(np.uint16)
                        # what is stored has no -0.0; a parameter keeps its sign
                        signed = (sign < 0) & ((wanted > 0) | (what == "params"))
                        words = np.where(signed, wanted | 0x8000, wanted).astype(np.uint16)
                        key = f"{name}, {what}"
                        wrong[key] = wrong.get(key, 0) + int((found != words).sum())
            result[dtype] = {"points": 2 * len(x), "wrong": wrong, "stochastic_wrong": stochastic(dtype)}
    result["seconds"] = round(time.time() - began, 1)
    result["versions"] = {"numpy": np.__version__, "torch": torch.__version__, "jax": jax.__version__}
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    bad = [n for dtype in DTYPES for n in (*result[dtype]["wrong"].values(), result[dtype]["stochastic_wrong"])]
    return 1 if any(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
