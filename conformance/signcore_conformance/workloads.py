"""What is run: parameters and gradients, built once and given to every backend as NumPy arrays.

All but `mixed` use one tree of shapes, so that a compiler compiles each rule once: the digits network, leaves
of 0, 1 and 37 elements, a 0-d leaf, None, and a large leaf. Where compilations must be few (``--quick``), the
tree is one weight matrix and the small leaves, or two leaves, because each leaf is compiled by itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from functools import cache, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

import signcore as sc
from signcore.tree import flatten, unflatten

from . import golden, network, words
from .reference import Reference, compute_dtype, measured

NAMES = ("random", "near-ties", "hostile", "recorded", "digits")
QUICK_NAMES = NAMES[:-1]  # compiling the network takes as long as compiling the rules; the demo trains it too
LARGE, USUAL = 100_000, 4_000  # elements of the large leaf, with --full and without
SMALL, TWO = 0, -1  # instead of it: no large leaf and one of the network's; of the edges one, too
STEPS = {"random": 12, "near-ties": 12, "hostile": 12, "recorded": 20, "digits": 24, "mixed": 8}
_TREE = {"b1": 0, "b2": 0, "big": 0, "edge": [0, 0, 0, 0, None], "w1": 0, "w2": 0}
_EDGES = {"edge/0": (0,), "edge/1": (1,), "edge/2": (37,), "edge/3": ()}
_FINITE = {"float16": 6.5e4, "bfloat16": 1e38, "float32": 1e38, "float64": 1e38}
Arrays = dict[str, np.ndarray]


class Workload(NamedTuple):
    """Parameters by path, and per step gradients by path (or batches for the digits network)."""

    name: str
    params: Arrays
    inputs: list[dict[str, Any]]
    near: float | None = None  # share of element-steps whose sign an ulp of the gradient decides; None: no sign

    @property
    def is_network(self) -> bool:
        """Whether the inputs are batches, from which the backend computes gradients itself."""
        return self.name == "digits"

    @property
    def shapes(self) -> str:
        """Which tree of shapes and dtypes this is: each is compiled once."""
        kind = "mixed" if self.name == "mixed" else f"{len(self.params)} leaves"
        return f"{kind} {next(iter(self.params.values())).dtype.name}"

    def tree(self, values: Arrays) -> Any:
        """Values by path as the tree that rules are given."""
        if set(values) == set(self.params) and "edge/0" in values:
            tree = {name: leaf for name, leaf in _TREE.items() if name in values or name == "edge"}
            return unflatten(tree, [values.get(path) for path, _ in flatten(tree)])
        return dict(values)


def numpy_dtype(name: str) -> Any:
    """NumPy's dtype object, ml_dtypes' for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _shapes(large: int) -> dict[str, tuple[int, ...]]:
    if large == TWO:
        return {path: shape for path, shape in _shapes(SMALL).items() if path in ("edge/2", "w1")}
    return _EDGES | (network.SHAPES | {"big": (large,)} if large else {"w1": network.SHAPES["w1"]})


def _normal(seed: int, shapes: dict[str, tuple[int, ...]], scale: float, dtype: str) -> Arrays:
    return {
        path: np.asarray(_draw(seed, path, shape) * scale).astype(np.float32).astype(numpy_dtype(dtype))
        for path, shape in sorted(shapes.items())
    }


@cache
def _draw(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    # RandomState's stream is frozen: golden files depend on it. One generator per leaf, so that no leaf depends
    # on which others there are.
    return np.asarray(np.random.RandomState(zlib.crc32(f"{seed}/{path}".encode())).standard_normal(shape))


def random(dtype: str, large: int) -> Workload:
    """Normal gradients of several scales; at one step a leaf has exact zeros."""
    shapes = _shapes(large)
    params = _normal(1, shapes, 1.0, dtype)
    inputs = [_normal(10 + k, shapes, 10.0 ** (k % 4 - 2), dtype) for k in range(STEPS["random"])]
    for grads in inputs[3::4]:
        grads["w1"] = grads["w1"] * (grads["w1"] > 0).astype(grads["w1"].dtype)
    return Workload("random", params, inputs)


def relayed(dtype: str, steps: int) -> Workload:
    """As `random` on the small tree, for any number of steps."""
    shapes = _shapes(SMALL)
    inputs = [_normal(1000 + k, shapes, 10.0 ** (k % 4 - 2), dtype) for k in range(steps)]
    return Workload("relay", _normal(6, shapes, 1.0, dtype), inputs)


def near_ties(dtype: str, large: int, reference: Reference) -> Workload:
    """Every other step, gradients within an ulp of where the rule's own sign turns positive."""
    shapes = _shapes(large)
    params = p = _normal(2, shapes, 1.0, dtype)
    state = reference.init(params)
    inputs, near, total, signs = [], 0, 0, False
    for k in range(STEPS["near-ties"]):
        grads = _normal(30 + k, shapes, 0.01, dtype)
        for path, g in grads.items():
            total += g.size
            if k % 2 == 0 or g.size == 0:
                continue
            old = path, state
            found = _boundary(reference, p[path], g, old)
            if found is None:
                continue
            signs = True
            boundary, valid = found
            rng = np.random.RandomState(k)
            chosen = valid & (rng.random_sample(g.shape) < 0.8)
            shifted = words.from_ordered(boundary - rng.randint(0, 2, g.shape).reshape(-1), g.dtype)
            grads[path] = np.where(chosen, shifted.reshape(g.shape), g)
            near += int(_is_near(reference, p[path], grads[path], old).sum())
        inputs.append(grads)
        p, state = reference.step(p, grads, state, **losses(p, reference.needs))
    return Workload("near-ties", params, inputs, near / total if signs else None)


def losses(params: Arrays, needs: Collection[str]) -> dict[str, Any]:
    """What a rule needs beside gradients, computed by the reference; a backend's own are `extras` of the backends."""
    every = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: gradient_elsewhere}
    return {name: every[name]() for name in needs}


def loss(params: Arrays) -> float:
    """The suite's loss: the l1 norm of all parameters."""
    wide = [p.astype(compute_dtype(p.dtype.name)).reshape(-1) for p in params.values()]
    return measured("norm1", [[p] for p in wide], max((p.dtype.name for p in wide), default="float32"))


def gradient_elsewhere(params: Arrays) -> Arrays:
    """The suite's gradients at other parameters: half of them, which is exact."""
    return {path: (p.astype(np.float64) * 0.5).astype(p.dtype) for path, p in params.items()}


def _positive(reference: Reference, p: np.ndarray, order: np.ndarray, like: np.ndarray, old: Any) -> Any:
    g = words.from_ordered(order, like.dtype).reshape(like.shape)
    argument = reference.argument(p, g, *old)
    return None if argument is None else (argument > 0).reshape(-1)


def _boundary(reference: Reference, p: np.ndarray, g: np.ndarray, old: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Smallest gradient, as an ordered integer, whose sign argument is positive; and where there is one.

    The argument of a sign method grows with the gradient, so bisection over the floats finds it.
    """
    one = np.ones(g.size, dtype=g.dtype)
    low, high = words.ordered(-one), words.ordered(one)
    at_high, at_low = (_positive(reference, p, order, g, old) for order in (high, low))
    if at_high is None:
        return None
    valid = at_high & ~at_low
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        above = _positive(reference, p, middle, g, old)
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    return high, valid.reshape(g.shape)


def _is_near(reference: Reference, p: np.ndarray, g: np.ndarray, old: Any) -> np.ndarray:
    order = words.ordered(g)
    return np.asarray(_positive(reference, p, order - 1, g, old) != _positive(reference, p, order + 1, g, old))


def hostile(dtype: str, large: int) -> Workload:
    """Zeros of both signs, subnormals, the contract's thresholds, huge values; one inf and one NaN."""
    shapes = _shapes(large)
    kind = numpy_dtype(dtype)
    flush = {"float16": 2.0**-24, "float64": 2.0**-900}.get(dtype, 2.0**-100)
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}[dtype]
    size = [0.0, tiny, 3 * tiny, 1e-38, flush, flush * (1 - 2.0**-7), flush * (1 + 2.0**-7), 1e-20, 1e-3, 1.0]
    values = np.asarray([s * v for v in [*size, _FINITE[dtype]] for s in (1.0, -1.0)]).astype(kind)
    inputs = []
    for k in range(STEPS["hostile"]):
        draw = np.random.RandomState(50 + k)
        inputs.append({path: values[draw.randint(0, len(values), shape)] for path, shape in sorted(shapes.items())})
    inputs[4]["w1"][3, 5] = np.inf
    inputs[7]["edge/2"][2] = np.nan
    params = _normal(3, shapes, 1.0, dtype)
    params["w1"][:4] = -0.0
    return Workload("hostile", params, inputs)


def recorded(dtype: str, large: int) -> Workload:
    """Gradients of the digits network in training, recorded once; noise of their scale in the other leaves."""
    shapes = _shapes(large)
    data = np.load(str(resources.files(__package__) / "recorded.npz"))
    inputs = []
    for k in range(STEPS["recorded"]):
        grads = _normal(70 + k, shapes, 1e-3, dtype)
        grads |= {path: data[path][k].astype(numpy_dtype(dtype)) for path in network.SHAPES if path in shapes}
        inputs.append(grads)
    params = _normal(4, shapes, 0.1, dtype)
    params |= {path: p.astype(numpy_dtype(dtype)) for path, p in network.initial().items() if path in shapes}
    return Workload("recorded", params, inputs)


def digits(dtype: str, steps: int = STEPS["digits"], large: int | None = None) -> Workload:
    """The digits network trained end to end: the backend computes the gradients itself.

    With `large`, the other leaves of the common tree stand beside it, so that nothing is compiled again; their
    gradients are the `rest` of the inputs.
    """
    params = {path: p.astype(numpy_dtype(dtype)) for path, p in network.initial().items()}
    inputs: list[dict[str, Any]] = [{**batch, "rest": {}} for batch in network.batches(steps, dtype)]
    if large is not None:
        shapes = {path: shape for path, shape in _shapes(large).items() if path not in network.SHAPES}
        params |= _normal(5, shapes, 1.0, dtype)
        for k, batch in enumerate(inputs):
            grads = _normal(200 + k, shapes, 0.1, dtype)
            edge = [grads[path] for path in sorted(_EDGES)]
            batch["rest"] = {"edge": [*edge, None]} | ({"big": grads["big"]} if large else {})
    return Workload("digits", params, inputs)


def mixed(dtypes: tuple[str, ...]) -> Workload:
    """A tree with leaves of every dtype that a backend has."""
    params: Arrays = {}
    inputs: list[Arrays] = [{} for _ in range(STEPS["mixed"])]
    for i, dtype in enumerate(sorted(dtypes)):
        shapes = {dtype: (32, 37)}
        params |= _normal(90 + i, shapes, 1.0, dtype)
        for k, grads in enumerate(inputs):
            grads |= _normal(100 + 10 * i + k, shapes, 0.1, dtype)
    return Workload("mixed", params, inputs)


@lru_cache(maxsize=64)
def make(name: str, rule: sc.Rule, dtype: str, large: int) -> Workload:
    """A workload by name; near ties depend on the rule."""
    if name == "near-ties":
        return near_ties(dtype, large, golden.reference(rule))
    if name == "digits":
        return digits(dtype, large=large)
    return {"random": random, "hostile": hostile, "recorded": recorded}[name](dtype, large)
