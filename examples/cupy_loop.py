"""The loop that never waits for the device, with CuPy where it is installed and NumPy elsewhere.

It writes a checkpoint every 100 steps and on Ctrl-C, and goes on from it when it is started again.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import signcore as sc
import signcore_cupy

try:
    import cupy as xp

    xp.zeros(1)  # is there a device?
except Exception:
    xp = np


def main(folder):
    random = np.random.default_rng(0)
    a, target = (xp.asarray(random.standard_normal(shape, np.float32)) for shape in ((200, 50), (50,)))
    b = a @ target

    def gradient(params, step):
        return {"x": a.T @ (a @ params["x"] - b) / len(b)}

    def loss(params):
        return float(((a @ params["x"] - b) ** 2).mean())

    rule = sc.AASS(lr=sc.schedules.inverse_sqrt(0.1))
    params = {"x": xp.zeros(50, dtype=xp.float32)}
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
