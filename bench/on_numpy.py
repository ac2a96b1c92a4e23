"""What is timed on NumPy: `rule.step`, and the step a user would write, functional and in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sets import Shape
from timing import Contestant

import signcore as sc

Array = np.ndarray[Any, np.dtype[np.float32]]


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def arrays(shapes: list[Shape], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


# -- functional: one line per formula, new arrays, as in most scripts --------------------------------------


def _sgd(p: Array, g: Array, m: Array, lr: float) -> tuple[Array, Array]:
    return p - lr * g, m


def _signsgd(p: Array, g: Array, m: Array, lr: float) -> tuple[Array, Array]:
    return p - lr * np.sign(g), m


def _signum(p: Array, g: Array, m: Array, lr: float) -> tuple[Array, Array]:
    m = 0.9 * m + (1 - 0.9) * g
    return p - lr * np.sign(m), m


def _lion(p: Array, g: Array, m: Array, lr: float) -> tuple[Array, Array]:
    c = 0.9 * m + (1 - 0.9) * g
    return p - lr * np.sign(c), 0.99 * m + (1 - 0.99) * g


def _aass(p: Array, g: Array, m: Array, lr: float) -> tuple[Array, Array]:
    m = 0.9 * m + (1 - 0.9) * np.sign(g)
    u = 4 / math.pi * np.arcsin(np.clip(m, -1 + 1e-6, 1 - 1e-6))
    return p - lr * u, m


# -- in place: every operation into an existing array, `t` and `w` are scratch ------------------------------


def _sgd_(p: Array, g: Array, m: Array, lr: float, t: Array, w: Array) -> None:
    np.multiply(g, lr, out=t)
    np.subtract(p, t, out=p)


def _signsgd_(p: Array, g: Array, m: Array, lr: float, t: Array, w: Array) -> None:
    np.sign(g, out=t)
    np.multiply(t, lr, out=t)
    np.subtract(p, t, out=p)


def _average_(m: Array, g: Array, beta: float, t: Array) -> None:
    np.multiply(m, beta, out=m)
    np.multiply(g, 1 - beta, out=t)
    np.add(m, t, out=m)


def _signum_(p: Array, g: Array, m: Array, lr: float, t: Array, w: Array) -> None:
    _average_(m, g, 0.9, t)
    _signsgd_(p, m, m, lr, t, w)


def _lion_(p: Array, g: Array, m: Array, lr: float, t: Array, w: Array) -> None:
    np.multiply(m, 0.9, out=t)
    np.multiply(g, 1 - 0.9, out=w)
    np.add(t, w, out=t)
    _signsgd_(p, t, m, lr, w, t)
    _average_(m, g, 0.99, t)


def _aass_(p: Array, g: Array, m: Array, lr: float, t: Array, w: Array) -> None:
    np.sign(g, out=w)
    _average_(m, w, 0.9, t)
    np.clip(m, -1 + 1e-6, 1 - 1e-6, out=t)
    np.arcsin(t, out=w)
    np.multiply(w, lr * 4 / math.pi, out=w)
    np.subtract(p, w, out=p)


Step = Callable[[list[Array]], None]
Functional = Callable[[Array, Array, Array, float], tuple[Array, Array]]
InPlace = Callable[[Array, Array, Array, float, Array, Array], None]
PEERS: dict[str, tuple[Functional, InPlace]] = {
    "sgd": (_sgd, _sgd_),
    "signsgd": (_signsgd, _signsgd_),
    "signum": (_signum, _signum_),
    "lion": (_lion, _lion_),
    "aass": (_aass, _aass_),
}


def _ours(rule: sc.Rule, params: list[Array]) -> Step:
    state = rule.init(params)

    def step(grads: list[Array]) -> None:
        nonlocal params, state
        params, state = rule.step(params, grads, state)

    return step


def _functional(leaf: Functional, lr: float, params: list[Array]) -> Step:
    averages = [np.zeros_like(p) for p in params]

    def step(grads: list[Array]) -> None:
        for i, g in enumerate(grads):
            params[i], averages[i] = leaf(params[i], g, averages[i], lr)

    return step


def _in_place(leaf: InPlace, lr: float, params: list[Array]) -> Step:
    averages = [np.zeros_like(p) for p in params]
    size = max(p.size for p in params)
    scratch = np.empty(size, np.float32), np.empty(size, np.float32)
    views = [[t[: p.size].reshape(p.shape) for t in scratch] for p in params]

    def step(grads: list[Array]) -> None:
        for p, g, m, (t, w) in zip(params, grads, averages, views, strict=True):
            leaf(p, g, m, lr, t, w)

    return step


def contestants(name: str, lr: float, shapes: list[Shape]) -> Iterator[Contestant]:
    yield Contestant("signcore", "numpy", True, _ours(sc.rule(name, lr=lr), arrays(shapes, 0)))
    if name in PEERS:
        functional, in_place = PEERS[name]
        yield Contestant("functional NumPy", "numpy", False, _functional(functional, lr, arrays(shapes, 0)))
        yield Contestant("in-place NumPy", "numpy", False, _in_place(in_place, lr, arrays(shapes, 0)))


def unavailable(name: str) -> list[str]:
    return []
