"""Point O9 of the contract of optax's users: what trains with optax trains with every rule, in the bits of NumPy."""

import dataclasses

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

import signcore_optax
from signcore import checkpoint
from signcore.rule import classes

each_rule = pytest.mark.parametrize("name", RULES, scope="module")
WEIGHTS = {"b": tree(START)["b"][0], "w": tree(START)["w"]}
SLOPES = [{"b": grads["b"][0], "w": grads["w"]} for grads in GRADS]


def expected(name):
    """Bytes of params and state after every step on NumPy."""
    rule, params, found = rule_of(name), WEIGHTS, []
    state = rule.init(params)
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
    assert found == expected(name)


class Twice(nnx.Module):
    """Two layers, so that leaves, groups of them and the whole are three things."""

    def __init__(self):
        self.first, self.second = Layer(), Layer()


def twice(values):
    return {"first": values, "second": jax.tree.map(lambda x: x * 0.5, values)}


SCOPED = [
    (name, scope)
    for name in RULES
    for field in dataclasses.fields(classes()[name])
    if field.name == "scope"
    for scope in field.metadata["choices"]
]


@pytest.mark.parametrize(("name", "scope"), SCOPED)
def test_o9_flax_nnx_has_the_groups_of_a_dict(name, scope):
    """By tracing: every scope of every rule finds the scalars that its first state has."""
    relative = {"relative": True} if name == "dithered_signum" else {}
    rule, variables, params = rule_of(name, scope=scope, **relative), nnx.state(Twice(), nnx.Param), twice(WEIGHTS)
    tx = signcore_optax.from_rule(rule)

    def ran(first, then):
        state = nnx.as_pure(tx.init(first))
        return jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extras(rule, p)), then, state, then)

    flax, plain = ran(variables, nnx.as_pure(variables)), ran(params, on_jax(params))
    assert str(jax.tree.leaves(flax)) == str(jax.tree.leaves(plain))


# One rule with each scope, and one that draws noise; compiling exact norms takes long.
MEASURING = [case for case in SCOPED if case[0] in ("ef_signsgd", "ssdm")]


@pytest.mark.parametrize(("name", "scope"), MEASURING)
def test_o9_flax_nnx_scopes_and_files(name, scope, tmp_path):
    rule, model, path = rule_of(name, scope=scope, weight_decay=0.0), Twice(), tmp_path / "run"
    optimizer = nnx.Optimizer(model, optax.chain(signcore_optax.from_rule(rule)), wrt=nnx.Param)
    params, grads = twice(WEIGHTS) | {"second": WEIGHTS}, twice(SLOPES[0])
    variables = nnx.state(model, nnx.Param)
    given = jax.tree.unflatten(jax.tree.structure(variables), jax.tree.leaves(on_jax(grads)))
    state = rule.init(params)
    optimizer.update(model, given, **extras(rule, nnx.as_pure(variables)))
    params, state = rule.step(params, grads, state, **extras(rule, params))
    assert bits(nnx.as_pure(nnx.state(model, nnx.Param))) == bits(params)
    assert bits(nnx.as_pure(optimizer.opt_state)) == bits(state)

    variables = nnx.state(model, nnx.Param)
    signcore_optax.save(path, rule, variables, optimizer.opt_state)
    _, flat, in_file = checkpoint.load(path)
    assert sorted(flat) == ["first/b", "first/w", "second/b", "second/w"]
    assert bits((flat, in_file)) == bits((params, state))
    other = Twice()
    fresh = nnx.Optimizer(other, optax.chain(signcore_optax.from_rule(rule)), wrt=nnx.Param)
    before = bits((nnx.state(other, nnx.Param), fresh.opt_state))
    loaded, opt_state = signcore_optax.load(path, rule, nnx.state(other, nnx.Param), fresh.opt_state)
    assert jax.tree.structure((loaded, opt_state)) == jax.tree.structure((variables, optimizer.opt_state))
    assert bits((nnx.state(other, nnx.Param), fresh.opt_state)) == before
    nnx.update(other, loaded)
    nnx.update(fresh.opt_state, nnx.state(opt_state))
    assert bits((nnx.state(other, nnx.Param), fresh.opt_state)) == bits((params, state))


class Value(eqx.Module):
    """A user's own node with a field of that name."""

    value: jax.Array


def test_o9_only_variables_of_nnx_lose_their_key():
    params = {"a": Value(jnp.ones(2)), "b": {"value": jnp.ones(3)}, "c": nnx.Param({"value": jnp.ones(1)})}
    params |= {"d": nnx.Param(jnp.ones(4)), "e": nnx.Variable(None)}
    rule = rule_of("stosignsgd")
    tree = signcore_optax.export(rule, params, signcore_optax.from_rule(rule).init(params)).params
    assert {key: None if leaf is None else leaf.shape for key, leaf in tree.items()} == {
        "a/value": (2,),
        "b/value": (3,),
        "c/value": (1,),
        "d": (4,),
        "e": None,
    }


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
def test_o9_equinox_whole_model_as_params(name):
    """The function, the number and what has no gradient stand in params beside arrays, as in optax's own."""
    model, tx, rule, found = Module(**on_jax(WEIGHTS)), transform_of(name), rule_of(name), []
    state = tx.init(eqx.filter(model, eqx.is_array))

    def whole(function):
        def called(given):
            assert (given.activation, given.width) == (jnp.tanh, 8)
            return function(eqx.filter(given, eqx.is_array))

        return called

    for slope in SLOPES[:2]:
        extra = extras(rule, eqx.filter(model, eqx.is_array))
        extra = {key: whole(each) if callable(each) else each for key, each in extra.items()}
        updates, state = tx.update(eqx.filter_grad(linear(slope))(model), state, model, **extra)
        model = eqx.apply_updates(model, updates)
        found.append(bits({"w": model.w, "b": model.b}) + bits(state))
    assert found == expected(name)[:2]


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
