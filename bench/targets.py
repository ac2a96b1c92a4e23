"""What the figures are held against: (framework, mode, rule or "*", peer) to the largest allowed ratio."""

from __future__ import annotations

_TARGETS = {
    ("numpy", "numpy", "*", "functional NumPy"): 2.0,
    ("torch", "compiled", "*", "hand-written, compiled"): 1.15,
    ("jax", "jit", "sgd", "optax.sgd"): 1.10,
    ("jax", "jit", "signsgd", "optax.sign_sgd"): 1.10,
    ("jax", "jit", "signum", "optax.signum"): 1.10,
    ("jax", "jit", "lion", "optax.lion"): 0.6,
    ("jax", "jit", "aass", "optax chain, jnp.arcsin"): 0.5,
}


def target(framework: str, mode: str, rule: str, peer: str) -> float | None:
    return _TARGETS.get((framework, mode, rule, peer), _TARGETS.get((framework, mode, "*", peer)))
