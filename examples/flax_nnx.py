"""Flax NNX: a small network on handwritten digits, with an optimizer that takes its rate from the loss itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import signcore_optax

images, labels = load_digits(return_X_y=True)
X, Y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)


class Network(nnx.Module):
    """Two layers; whatever is no `nnx.Param` (a generator, say) the optimizer does not touch."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def loss_of(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def train_step(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(loss_of)(model, x, y)
    optimizer.update(model, grads, value=loss)  # rules that need no loss ignore it
    return loss


def main():
    random = np.random.default_rng(0)
    for name, factory in (
        ("Lion", lambda: signcore_optax.lion(optax.cosine_decay_schedule(3e-3, 200), weight_decay=0.01)),
        ("ALIAS", lambda: signcore_optax.alias(1.0)),
    ):
        model = Network(nnx.Rngs(0))
        transform = optax.chain(optax.clip_by_global_norm(1.0), factory())
        optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
        print(f"{name:5s} loss before {float(loss_of(model, X, Y)):.4f}", end="  ")
        for _ in range(200):
            rows = random.choice(len(X), 128, replace=False)
            train_step(model, optimizer, X[rows], Y[rows])
        print(f"after {float(loss_of(model, X, Y)):.4f}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # leave this out where there is a GPU
    main()
