"""The primitives beside what the libraries have for the nearest purpose: 4 M float32, a race for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from timing import Contestant, race, ratio, start

from signcore import bits, ops, random, sums

SIZE, QUICK = 4_000_000, 40_000


@dataclass
class Race:
    """One of ours and its peers. A ratio is of times; a rate is in millions of words a second."""

    name: str
    mode: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    limit: float | None = None  # largest allowed ratio to the fastest peer
    words: int = 0  # words that one call makes, for those that are held to a rate
    rate: float | None = None


def _data(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


_KEY, _STEP = random.stream_key(0, "w"), np.asarray(3, np.int32)


def numpy(size: int) -> Iterator[Race]:
    """On NumPy."""
    x, generator = _data(size), np.random.default_rng(1)
    wide, normals, drawn = (
        x.astype(np.float64),
        generator.standard_normal(size, np.float32),
        random.words(_KEY, _STEP, size),
    )
    packed = bits.pack(x)
    yield Race("arcsin4pi", "numpy", lambda: ops.arcsin4pi(x), {"np.arcsin, float64": lambda: np.arcsin(wide)}, 3.0)
    yield Race("exact_sum", "numpy", lambda: sums.exact_sum(normals), {"np.sum": lambda: np.sum(normals)}, 20.0)
    yield Race("norm2", "numpy", lambda: sums.norm2(normals), {"np.linalg.norm": lambda: np.linalg.norm(normals)})
    integers = {"Generator.integers, uint32": lambda: generator.integers(0, 2**32, size, np.uint32)}
    yield Race("words", "numpy", lambda: random.words(_KEY, _STEP, size), integers, words=2 * size, rate=100.0)
    gaussians = {"Generator.standard_normal": lambda: generator.standard_normal(size, np.float32)}
    yield Race("normal, of words", "numpy", lambda: random.normal(drawn), gaussians)
    yield Race("pack", "numpy", lambda: bits.pack(x), {"np.packbits(x > 0)": lambda: np.packbits(x > 0)}, 2.0)
    yield Race(
        "unpack",
        "numpy",
        lambda: bits.unpack(packed, size, "float32"),
        {"np.unpackbits": lambda: 2.0 * np.unpackbits(packed, count=size).astype(np.float32) - 1.0},
    )


def torch(size: int) -> Iterator[Race]:
    """On torch, eager and compiled."""
    import torch

    x = torch.tensor(_data(size))
    wide, normals = x.double(), torch.randn(size)
    key, step = torch.tensor(_KEY), torch.tensor(_STEP)
    drawn = random.words(key, step, size)
    yield Race("arcsin4pi", "eager", lambda: ops.arcsin4pi(x), {"torch.asin, float64": lambda: torch.asin(wide)}, 3.0)
    ours, theirs = torch.compile(ops.arcsin4pi), torch.compile(torch.asin)
    peers = {"torch.asin, compiled": lambda: theirs(x), "torch.asin": lambda: torch.asin(x)}
    yield Race("arcsin4pi", "compiled", lambda: ours(x), peers, 1.5)
    yield Race("exact_sum", "eager", lambda: sums.exact_sum(normals), {"torch.sum": lambda: torch.sum(normals)}, 60.0)
    yield Race("norm2", "eager", lambda: sums.norm2(normals), {"torch.linalg.norm": lambda: torch.linalg.norm(normals)})
    summed = torch.compile(sums.exact_sum)
    yield Race("exact_sum", "compiled", lambda: summed(normals), {"torch.sum": lambda: torch.sum(normals)})
    integers = {"torch.randint": lambda: torch.randint(-(2**31), 2**31 - 1, (size,), dtype=torch.int32)}
    yield Race("words", "eager", lambda: random.words(key, step, size), integers, words=2 * size, rate=150.0)
    yield Race("normal, of words", "eager", lambda: random.normal(drawn), {"torch.randn": lambda: torch.randn(size)})
    yield Race("pack", "eager", lambda: bits.pack(x), {})


def jax(size: int) -> Iterator[Race]:
    """On JAX, jitted."""
    import jax
    import jax.numpy as jnp

    def jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    x = jnp.asarray(_data(size))
    normals = jnp.asarray(np.random.default_rng(1).standard_normal(size, np.float32))
    key, step, own = jnp.asarray(_KEY), jnp.asarray(_STEP), jax.random.key(0)
    drawn = random.words(key, step, size)
    yield Race("arcsin4pi", "jit", jitted(ops.arcsin4pi, x), {"jnp.arcsin": jitted(jnp.arcsin, x)}, 0.25)
    yield Race("exact_sum", "jit", jitted(sums.exact_sum, normals), {"jnp.sum": jitted(jnp.sum, normals)}, 30.0)
    yield Race("norm2", "jit", jitted(sums.norm2, normals), {"jnp.linalg.norm": jitted(jnp.linalg.norm, normals)})
    own_bits = {"jax.random.bits": jitted(lambda k: jax.random.bits(k, (size,)), own)}
    yield Race("words", "jit", jitted(lambda k, s: random.words(k, s, size), key, step), own_bits, 2.0, words=2 * size)
    own_normals = {"jax.random.normal": jitted(lambda k: jax.random.normal(k, (size,)), own)}
    ours = jitted(lambda k, s: random.normal(random.words(k, s, size)), key, step)
    yield Race("normal, with its words", "jit", ours, own_normals)
    yield Race("normal, of words", "jit", jitted(random.normal, drawn), own_normals)
    yield Race("pack", "jit", jitted(bits.pack, x), {"jnp.packbits(x > 0)": jitted(lambda x: jnp.packbits(x > 0), x)})


def run(framework: str, seconds: float, patience: float, quick: bool) -> Iterator[dict[str, Any]]:
    """A message per race: medians, and the quartiles of the ratios to each peer."""
    for each in {"numpy": numpy, "torch": torch, "jax": jax}[framework](QUICK if quick else SIZE):
        entered = [Contestant("signcore", each.mode, True, lambda _, each=each: each.ours())]
        entered += [Contestant(label, each.mode, False, lambda _, f=f: f()) for label, f in each.peers.items()]
        ready = start(entered, None, patience)
        race(ready, [None], seconds)
        medians = {one.label: statistics.median(one.times) for one in ready}
        fastest = min((label for label in medians if label != "signcore"), key=medians.get, default=None)
        yield {
            "framework": framework,
            "primitive": each.name,
            "mode": each.mode,
            "medians": medians,
            "ratios": {one.label: ratio(ready[0], one) for one in ready[1:]},
            "fastest": fastest,
            "limit": each.limit,
            "rate": each.words / medians["signcore"] / 1e6 if each.words else None,
            "least_rate": each.rate,
        }
