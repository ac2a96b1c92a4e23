"""NumPy only: softmax regression on handwritten digits, with a checkpoint that any other backend could go on from."""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import signcore as sc

images, labels = load_digits(return_X_y=True)
X, Y = (images / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]


def loss_and_gradients(params, rows):
    """Cross entropy of some rows, and its gradients by hand."""
    scores = X[rows] @ params["w"] + params["b"]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    error = (odds - Y[rows]) / np.float32(len(rows))
    loss = -np.log((odds * Y[rows]).sum(axis=1)).mean()
    return loss, {"w": X[rows].T @ error, "b": error.sum(axis=0)}


def main():
    rule = sc.Signum(lr=sc.schedules.cosine(0.03, total_steps=300), beta=0.9, weight_decay=1e-3)
    params = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    state, rows = rule.init(params), np.arange(len(X))
    random = np.random.default_rng(0)
    print(f"loss before {loss_and_gradients(params, rows)[0]:.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        for k in range(300):
            _, grads = loss_and_gradients(params, random.choice(rows, 128, replace=False))
            params, state = rule.step(params, grads, state)
            if k == 150:  # the machine could be another one from here on
                sc.checkpoint.save(path, rule, params, state)
                rule, params, state = sc.checkpoint.load(path)
    print(f"after {loss_and_gradients(params, rows)[0]:.4f}")


if __name__ == "__main__":
    main()
