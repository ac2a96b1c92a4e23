"""The digits network on any backend: forward and backward from the bit-stable primitives, no matmul.

A framework's matrix product sums in an order of its own; here every sum is a fixed halving tree and every
product is rounded before it is added, so the gradients are the same bits everywhere.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from signcore import frameworks, ops
from signcore.dtypes import FORMATS, name_of

SHAPES = {"b1": (32,), "b2": (10,), "w1": (64, 32), "w2": (32, 10)}
BATCH = 128  # a power of two: the mean is exact


def ordered_sum(x: Any, axis: int) -> Any:
    """Sum along an axis by halving; an odd last row is added to the first."""
    xp = frameworks.namespace(x)
    x = xp.moveaxis(x, axis, 0)
    n = x.shape[0]
    while n > 1:
        half = n // 2
        y = x[:half, ...] + x[half : 2 * half, ...]
        if n % 2:
            y = xp.concat([y[:1, ...] + x[2 * half :, ...], y[1:, ...]], axis=0)
        x, n = y, half
    return x[0, ...]


def gradient(params: dict[str, Any], batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Gradients in the parameters' dtypes, and the loss: half the squared error, mean over the batch.

    Parameters
    ----------
    params : dict of arrays
        ``w1`` (64, 32), ``b1`` (32,), ``w2`` (32, 10), ``b2`` (10,).
    batch : dict of arrays
        ``x`` (B, 64) and one-hot ``t`` (B, 10) in the compute dtype; B a power of two.
    """
    w1, b1, w2, b2 = (ops.widen(params[name]) for name in ("w1", "b1", "w2", "b2"))
    x, target = batch["x"], batch["t"]
    scale = 1.0 / x.shape[0]
    before = ordered_sum(ops.product(x[:, :, None], w1[None, :, :]), 1) + b1
    hidden = ops.where(before > 0.0, before, 0.0)
    error = (ordered_sum(ops.product(hidden[:, :, None], w2[None, :, :]), 1) + b2) - target
    xp = frameworks.namespace(error)
    loss = ordered_sum(xp.reshape(ops.product(error, error), (-1,)), 0) * (scale * 0.5)
    d2 = error * scale  # exact
    d1 = ops.where(before > 0.0, ordered_sum(ops.product(d2[:, None, :], w2[None, :, :]), 2), 0.0)
    wide = {
        "w1": ordered_sum(ops.product(x[:, :, None], d1[:, None, :]), 0),
        "b1": ordered_sum(d1, 0),
        "w2": ordered_sum(ops.product(hidden[:, :, None], d2[:, None, :]), 0),
        "b2": ordered_sum(d2, 0),
    }
    grads = {}
    for name, p in params.items():
        grads[name] = ops.narrow(ops.flush(wide[name]), p.dtype, FORMATS[name_of(p.dtype)])
    return grads, loss


def gradients(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Gradients of a tree that holds the network: its own, and those that came with the batch for the `rest`."""
    own, _ = gradient({name: params[name] for name in SHAPES}, inputs)
    every = {**inputs["rest"], **own}
    return {name: every[name] for name in params}  # torch.compile tells dicts of another order apart


@cache
def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """scikit-learn's handwritten digits, 1,797 images, split once: (1,536 for training, 261 for testing).

    Pixels are sixteenths, exactly; targets are one-hot.
    """
    # The file that sklearn.datasets.load_digits reads; importing scikit-learn would take seconds per process.
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install 'signcore[conformance]'")
    table = np.loadtxt(Path(found.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", delimiter=",")
    table = table[np.random.RandomState(0).permutation(len(table))]
    x = (table[:, :-1] / 16.0).astype(np.float32)
    t = np.eye(10, dtype=np.float32)[table[:, -1].astype(int)]
    cut = 12 * BATCH
    return {"x": x[:cut], "t": t[:cut]}, {"x": x[cut:], "t": t[cut:]}


def batches(steps: int, dtype: str = "float32") -> list[dict[str, np.ndarray]]:
    """The first `steps` mini-batches, reshuffled each epoch by a fixed generator."""
    train, _ = digits()
    wide = np.float64 if dtype == "float64" else np.float32
    shuffle, out = np.random.RandomState(1), []
    while len(out) < steps:
        order = shuffle.permutation(len(train["x"]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            out.append({name: value[chosen].astype(wide) for name, value in train.items()})
    return out[:steps]


def initial() -> dict[str, np.ndarray]:
    """Initial float32 parameters: uniform, scaled by the fan-in, on a grid of 2**-20."""
    draw = np.random.RandomState(2)
    params = {}
    for name, shape in sorted(SHAPES.items()):
        bound = 1.0 / np.sqrt(shape[0]) if len(shape) == 2 else 0.0
        grid = np.round(draw.uniform(-1.0, 1.0, shape) * bound * 2**20) / 2**20
        params[name] = grid.astype(np.float32)
    return params


def evaluate(params: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> float:
    """Share of images whose largest output is the right one, in float64."""
    w = {name: value.astype(np.float64) for name, value in params.items()}
    hidden = np.maximum(data["x"] @ w["w1"] + w["b1"], 0.0)
    return float(np.mean((hidden @ w["w2"] + w["b2"]).argmax(1) == data["t"].argmax(1)))
