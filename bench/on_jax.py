"""What is timed on JAX: our transformations and optax's, in one jitted step with donated buffers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sets import Shape
from timing import Contestant

import signcore as sc
import signcore_optax

Update = Callable[[Any, Any, Any], tuple[Any, Any]]


def versions() -> dict[str, str]:
    return {"jax": jax.__version__, "optax": optax.__version__}


def arrays(shapes: list[Shape], seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def _aass(learning_rate: float, beta: float = 0.9, eps: float = 1e-6) -> optax.GradientTransformation:
    """AASS as an optax user would chain it."""

    def arcsine() -> optax.GradientTransformation:
        def respond(u: jax.Array) -> jax.Array:
            return 4 / math.pi * jnp.arcsin(jnp.clip(u, -1 + eps, 1 - eps))

        return optax.stateless(lambda updates, params: jax.tree.map(respond, updates))

    return optax.chain(
        optax.scale_by_sign(), optax.ema(beta, debias=False), arcsine(), optax.scale_by_learning_rate(learning_rate)
    )


PEERS: dict[str, tuple[str, Callable[[float], Any]]] = {
    "sgd": ("optax.sgd", optax.sgd),
    "signsgd": ("optax.sign_sgd", optax.sign_sgd),
    "signum": ("optax.signum", optax.signum),
    "lion": ("optax.lion", lambda lr: optax.lion(lr, weight_decay=0.0)),
    "aass": ("optax chain, jnp.arcsin", _aass),
}


def _contestant(label: str, ours: bool, init: Any, update: Update, shapes: list[Shape]) -> Contestant:
    """A jitted step that may reuse the memory of the parameters and the state it was given."""
    params = arrays(shapes, 0)
    state = jax.jit(init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def advance(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(grads: Any) -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(advance(params, state, grads))

    def traffic(grads: Any) -> float:
        """As XLA counts it: the operands and results of the kernels that are left after fusion."""
        return float(advance.lower(params, state, grads).compile().cost_analysis()["bytes accessed"])

    return Contestant(label, "jit", ours, step, traffic)


def contestants(name: str, lr: float, shapes: list[Shape]) -> Iterator[Contestant]:
    rule = sc.rule(name, lr=lr)

    def delta(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return rule.delta(params, grads, state)

    yield _contestant("core", True, rule.init, delta, shapes)
    ours = signcore_optax.from_rule(rule)
    yield _contestant("adapter", True, ours.init, ours.update, shapes)
    if name in PEERS:
        label, build = PEERS[name]
        peer = build(lr)
        yield _contestant(label, False, peer.init, peer.update, shapes)


def unavailable(name: str) -> list[str]:
    return []
