"""Equinox: a small network on handwritten digits in one compiled loop, and weight decay for the matrices alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import signcore as sc
import signcore_optax

images, labels = load_digits(return_X_y=True)
X, Y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
STEPS = 200


def loss_of(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def matrices(params):
    """True where there is decay: biases are vectors."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@eqx.filter_jit
def train(model, transform, key):
    """All steps in one scan: what is no array (activations, sizes) stays outside of it."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def step(carry, key):
        arrays, state = carry
        rows = jax.random.choice(key, len(X), (128,), replace=False)
        model = eqx.combine(arrays, rest)
        grads = eqx.filter_grad(loss_of)(model, X[rows], Y[rows])
        updates, state = transform.update(grads, state, arrays)
        return (eqx.apply_updates(arrays, updates), state), None

    (arrays, _), _ = jax.lax.scan(step, (arrays, transform.init(arrays)), jax.random.split(key, STEPS))
    return eqx.combine(arrays, rest)


def main():
    first, second = jax.random.split(jax.random.key(0))
    model = eqx.nn.MLP(64, 10, width_size=32, depth=1, key=first)
    transform = signcore_optax.signum(
        sc.schedules.cosine(0.01, total_steps=STEPS), beta=0.9, weight_decay=0.01, mask=matrices
    )
    print(f"loss before {float(loss_of(model, X, Y)):.4f}", end="  ")
    model = train(model, transform, second)
    print(f"after {float(loss_of(model, X, Y)):.4f}")


if __name__ == "__main__":
    main()
