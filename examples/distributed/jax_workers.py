"""Digits on several devices, which send each other packed signs inside of shard_map; here devices of one CPU.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python jax_workers.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import signcore as sc
import signcore_optax

P = jax.sharding.PartitionSpec


def loss_of(params, images, labels):
    scores = jnp.maximum(images @ params["w"] + params["b"], 0) @ params["v"] + params["c"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def main():
    size = jax.device_count()
    mesh = jax.make_mesh((size,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    random = np.random.default_rng(0)
    params = {
        "w": random.normal(0, 0.1, (64, 32)).astype(np.float32),
        "b": np.zeros(32, np.float32),
        "v": random.normal(0, 0.1, (32, 10)).astype(np.float32),
        "c": np.zeros(10, np.float32),
    }
    rule = sc.Signum(lr=sc.schedules.cosine(3e-3, total_steps=200), sign_zero="plus", ties="plus")
    transform, spec = signcore_optax.from_rule(rule, axis_name="data"), signcore_optax.specs(rule, "data")

    def step(params, state, images, labels):  # each device sees its own rows, and its own gradients
        grads = jax.grad(loss_of)(jax.lax.pcast(params, "data", to="varying"), images, labels)
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    cut = P("data")
    init = jax.jit(jax.shard_map(transform.init, mesh=mesh, in_specs=P(), out_specs=spec))
    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), spec, cut, cut), out_specs=(P(), spec)))
    state, before = init(params), float(loss_of(params, images, labels))
    for _ in range(200):
        rows = random.choice(len(images), 64 * size, replace=False)
        params, state = step(params, state, images[rows], labels[rows])
        jax.block_until_ready(
            params
        )  # devices of one CPU share its threads: a second step would keep the first waiting
    print(f"{size} devices: loss before {before:.4f}  after {float(loss_of(params, images, labels)):.4f}")


if __name__ == "__main__":
    main()
