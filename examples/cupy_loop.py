"""The loop that never waits for the device, with CuPy where it is installed and NumPy elsewhere, on handwritten digits.

It writes a checkpoint every 100 steps and on Ctrl-C, and goes on from it when it is started again.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import signcore as sc
import signcore_cupy

try:
    import cupy as xp

    xp.zeros(1)  # is there a device?
except Exception:
    xp = np


def main(folder):
    images, labels = load_digits(return_X_y=True)
    x = xp.asarray((images / 16).astype(np.float32))
    y = xp.asarray(np.eye(10, dtype=np.float32)[labels])

    def softmax(params, rows):
        scores = x[rows] @ params["w"] + params["b"]
        odds = xp.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def gradient(params, step):
        rows = slice(128 * (step % 14), 128 * (step % 14) + 128)
        error = (softmax(params, rows) - y[rows]) / np.float32(128)
        return {"w": x[rows].T @ error, "b": error.sum(axis=0)}

    def loss(params):
        return float(-xp.log((softmax(params, slice(None)) * y).sum(axis=1)).mean())

    rule = sc.AASS(lr=sc.schedules.inverse_sqrt(0.1))
    params = {"w": xp.zeros((64, 10), dtype=xp.float32), "b": xp.zeros(10, dtype=xp.float32)}
    print(f"{xp.__name__}: loss before {loss(params):.4f}", end="  ")
    path = Path(folder) / "run.safetensors"
    params, state = signcore_cupy.run(rule, params, gradient, 600, checkpoint=path, save_every=100)
    print(f"after {loss(params):.4f} and {int(state.step)} steps")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(folder)
