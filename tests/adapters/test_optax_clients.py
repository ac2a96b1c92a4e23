"""Point O9 of the contract of optax's users: what trains with optax trains with every rule, in the bits of NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax_runs as runs
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from optax_runs import GRADS, RULES, START, STEPS, bits, extras, on_jax, rule_of, transform_of, tree

each_rule = pytest.mark.parametrize("name", RULES, scope="module")
WEIGHTS = {"b": tree(START)["b"][0], "w": tree(START)["w"]}
SLOPES = [{"b": grads["b"][0], "w": grads["w"]} for grads in GRADS]


def expected(name, names=None):
    """Bytes of params and state after every step on NumPy; `names` are what the noise of the leaves is keyed by."""
    rule, params, found = rule_of(name), WEIGHTS, []
    state = rule.init(params, names=names)
    for grads in SLOPES:
        params, state = rule.step(params, grads, state, **extras(rule, params))
        found.append(bits((params, state)))
    return found


def linear(slope):
    """A loss of a module whose gradients are known exactly: `slope`."""
    return lambda model: jnp.vdot(model.w, slope["w"]) + model.b * slope["b"]


class Layer(nnx.Module):
    """Params beside a variable that is none of them."""

    def __init__(self):
        self.w, self.b = nnx.Param(jnp.asarray(WEIGHTS["w"])), nnx.Param(jnp.asarray(WEIGHTS["b"]))
        self.seen = nnx.BatchStat(jnp.ones(3))


@each_rule
def test_o9_flax_nnx_optimizer(name):
    model, rule, found = Layer(), rule_of(name), []
    optimizer = nnx.Optimizer(model, transform_of(name), wrt=nnx.Param)
    for slope in SLOPES:
        grads = nnx.grad(linear(slope))(model)
        optimizer.update(model, grads, **extras(rule, nnx.as_pure(nnx.state(model, nnx.Param))))
        params = {"b": model.b[...], "w": model.w[...]}
        found.append(bits(params) + bits(nnx.as_pure(optimizer.opt_state)))
    assert int(optimizer.step[...]) == STEPS
    assert bits(model.seen[...]) == bits(jnp.ones(3))
    assert found == expected(name, ["b/value", "w/value"])  # Flax inits with variables, whose arrays are their values


class Module(eqx.Module):
    """Arrays beside a function, a number and nothing, which eqx.filter turns into None."""

    b: jax.Array
    w: jax.Array
    activation: object = jnp.tanh
    width: int = 8
    absent: object = None


@each_rule
def test_o9_equinox_apply_updates(name):
    model, tx, rule, found = Module(**on_jax(WEIGHTS)), transform_of(name), rule_of(name), []
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for slope in SLOPES:
        params, grads = eqx.filter(model, eqx.is_inexact_array), eqx.filter_grad(linear(slope))(model)
        assert grads.activation is None
        updates, state = tx.update(grads, state, params, **extras(rule, params))
        assert (updates.activation, updates.width, updates.absent) == (None, None, None)
        model = eqx.apply_updates(model, updates)
        found.append(bits({"w": model.w, "b": model.b}) + bits(state))
    assert (model.activation, model.width) == (jnp.tanh, 8)
    assert found == expected(name)


@each_rule
def test_o9_orbax_goes_on_from_what_was_saved(name, tmp_path):
    tx, rule = transform_of(name), rule_of(name)

    def ran(params, state, steps):
        for grads in steps:
            updates, state = tx.update(on_jax(grads), state, params, **extras(rule, params))
            params = optax.apply_updates(params, updates)
        return {"params": params, "state": state}

    params = on_jax(tree(START))
    saved, half = ran(params, tx.init(params), GRADS[: STEPS // 2]), tmp_path / "run"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(half, saved)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": params, "state": tx.init(params)})
        restored = checkpointer.restore(half, shapes)
    assert type(restored["state"]) is rule.State
    assert runs.types(restored) == runs.types(saved)
    assert bits(restored) == bits(saved)
    assert bits(ran(**restored, steps=GRADS[STEPS // 2 :])) == runs.on_numpy(name)[-1]
    as_numpy = jax.tree.map(np.asarray, restored)  # as it comes without shapes
    assert bits(ran(**as_numpy, steps=GRADS[STEPS // 2 :])) == runs.on_numpy(name)[-1]
