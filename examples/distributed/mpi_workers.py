"""Digits on several MPI processes with NumPy arrays: mpiexec -n 2 python mpi_workers.py"""

import numpy as np
from sklearn.datasets import load_digits

import signcore as sc
import signcore_mpi

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
    group = signcore_mpi.group(check_every=50)  # a timeout of 60 seconds, after which MPI ends all ranks
    rank, size = group.transport.rank, group.transport.size
    rule = sc.SSDM(lr=sc.schedules.cosine(0.02, total_steps=400))  # signs drawn at random, and their mean
    params = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    state = rule.init(params, worker=rank)  # every rank draws noise of its own
    mine, random = np.arange(rank, len(X), size), np.random.default_rng(rank)
    before = loss_and_gradients(params, np.arange(len(X)))[0]
    for _ in range(400):
        _, grads = loss_and_gradients(params, random.choice(mine, 128, replace=False))
        params, state = group.step(rule, params, grads, state)
    if rank == 0:
        after = loss_and_gradients(params, np.arange(len(X)))[0]
        print(f"{size} processes: loss before {before:.4f}  after {after:.4f}")


if __name__ == "__main__":
    main()
