"""What optax's users expect of an optimizer, in every dtype, option and spelling; bits, never a tolerance.

That each point of the contract holds for every rule is shown by test_optax_points.py. What is here depends on no
rule's arithmetic, or is about options, and runs for rules that need gradients alone. Run as a program, this file prints
digests of trajectories on all devices it finds (see `test_o7_options_on_eight_devices`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pickle
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (NumPy's bfloat16)
import numpy as np
import optax
import pytest

import signcore as sc
import signcore_optax
from signcore.fields import ranges
from signcore.marks import marks
from signcore.rule import classes
from signcore_conformance import golden

STEPS = 4
RULES = golden.plain()
ALONE = ("ties", "aggregation")  # what changes nothing for one worker
DTYPES = ["float16", "bfloat16", "float32", "float64"]
# Trees with a leaf of each dtype: one compilation instead of one for each.
MIXED = {"mixed": DTYPES[:3], "mixed with float64": DTYPES}


def options_of(name, **changes):
    """Hyperparameters that all take part, whatever their names."""
    allowed = ranges(classes()[name])
    numbers = {key: 0.5 for key, limit in allowed.items() if limit.below == 1.0}
    numbers |= {"lr": 0.01, "weight_decay": 0.1}
    if "momentum" in allowed:  # elsewhere it needs an option
        numbers |= {"dampening": 0.5}
    if changes.get("nesterov"):
        numbers |= {key: 0.0 for key in numbers if key == "dampening"}
    return numbers | changes


def rule_of(name, **changes):
    return sc.rule(name, **options_of(name, **changes))


def transform_of(name, *, mask=None, **changes):
    options = options_of(name, **changes)
    return getattr(signcore_optax, name)(learning_rate=options.pop("lr"), mask=mask, **options)


def variants():
    """Every rule with every choice of each of its static options."""
    for name in RULES:
        cls = classes()[name]
        yield name, {}
        for field in dataclasses.fields(cls):
            for choice in () if field.name in ALONE else field.metadata.get("choices", ()):
                if choice not in (field.default, "raise"):
                    yield name, {field.name: choice}


VARIANTS = list(variants())
IDS = ["-".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in VARIANTS]
each_rule = pytest.mark.parametrize("name", RULES)
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
each_mixture = pytest.mark.parametrize("dtype", MIXED)


def x64(dtype):
    return jax.enable_x64("float64" in dtype)


def tree(seed, dtype="float32"):
    """Params (seed 0) or gradients with zeros of both signs and a subnormal, as NumPy arrays."""
    if dtype in MIXED:
        return {each: tree(seed, each)["w"] for each in MIXED[dtype]}
    if dtype == "one leaf":
        return {"w": tree(seed)["w"]}
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((4, 8)).astype(dtype)
    w.ravel()[::8] = np.asarray([0.0, -0.0, 1e-38 if seed else 0.5, 1.0]).astype(dtype)
    return {"w": w, "b": [draw.standard_normal(3).astype(dtype), None], "s": (draw.standard_normal(()).astype(dtype),)}


def on_jax(values):
    return jax.tree.map(jnp.asarray, values)


def bits(values):
    """Every leaf as dtype, shape and bytes."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def numpy_trajectory(rule, dtype="float32", **keywords):
    params = tree(0, dtype)
    state, found = rule.init(params), []
    for step in range(STEPS):
        params, state = rule.step(params, tree(step + 1, dtype), state, **keywords)
        found.append(bits((params, state)))
    return found


def optax_trajectory(tx, dtype="float32", wrap=lambda function: function):
    params = on_jax(tree(0, dtype))
    state, found = wrap(tx.init)(params), []
    update = wrap(lambda grads, state, params: tx.update(grads, state, params))
    for step in range(STEPS):
        updates, state = update(on_jax(tree(step + 1, dtype)), state, params)
        params = optax.apply_updates(params, updates)
        found.append(bits((params, state)))
    return found


def types(values):
    return jax.tree.map(lambda x: (jax.typeof(x), x.weak_type, getattr(x, "sharding", None)), values)


# -- the factories ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sc.rules())
def test_factory_shows_the_rules_hyperparameters(name):
    factory, cls = getattr(signcore_optax, name), classes()[name]
    parameters = inspect.signature(factory).parameters
    fields = {field.name: field for field in dataclasses.fields(cls)}
    fields["learning_rate"] = fields.pop("lr")
    assert set(parameters) == {*fields, "mask", "axis_name", "weights"}
    assert next(iter(parameters)) == "learning_rate"
    for key, field in fields.items():
        missing = field.default is dataclasses.MISSING
        assert parameters[key].default is (inspect.Parameter.empty if missing else field.default)
        assert f"{key}" in factory.__doc__
    assert (factory.__name__, factory.__module__) == (name, "signcore_optax")
    assert "mask" in factory.__doc__
    assert set(parameters) == set(factory.__annotations__) - {"return"}
    shown = pydoc.plain(pydoc.render_doc(factory))  # what help() prints
    assert f"{name}(learning_rate: 'ScalarOrSchedule'" in shown
    for key in parameters:
        assert re.search(rf"\b{key}: ", shown.splitlines()[2])
    assert not re.search(r"sc\.[A-Z]|>>>", factory.__doc__)  # examples show the class
    assert typing.get_type_hints(factory)["learning_rate"] == optax.ScalarOrSchedule
    assert pickle.loads(pickle.dumps(factory)) is factory


@pytest.mark.parametrize("name", sc.rules())
def test_factory_refuses_what_the_rule_refuses(name):
    given = {key: value for key, value in golden.load(name)["variants"][0].items() if key != "lr"}
    factory = functools.partial(getattr(signcore_optax, name), **given)
    with pytest.raises(ValueError, match=r"`learning_rate` is -1.0"):
        factory(-1.0)
    with pytest.raises(TypeError, match=rf"{name}\(\): .*'lr'.* learning_rate"):
        factory(0.1, lr=1.0)
    with pytest.raises(ValueError, match=r"`nonfinite` is 'no'; choose one of"):
        factory(0.1, nonfinite="no")
    with pytest.raises(TypeError, match=r"`maximize` .* static_args=\('maximize',\)"):
        jax.jit(lambda flag: factory(0.1, maximize=flag).init(jnp.zeros(2)))(True)


def test_from_rule_refuses_other_things():
    with pytest.raises(TypeError, match=r"`rule` is 'lion'"):
        signcore_optax.from_rule("lion")


# -- O1 -----------------------------------------------------------------------------------------------------


def test_o1_extra_arguments_change_nothing(representative):
    tx, params, grads = transform_of(representative), on_jax(tree(0)), on_jax(tree(1))
    state = tx.init(params)
    plain = tx.update(grads, state, params)
    extra = jax.jit(functools.partial(tx.update, value_fn=lambda p: p["w"].sum()))(
        grads, state, params, value=jnp.asarray(1.0), unexpected=3
    )
    assert bits(extra) == bits(plain)


@each_rule
def test_o1_value_fn_reaches_the_rule_with_the_callers_tree(name, monkeypatch):
    seen = {}

    def delta(self, params, grads, state, *, value=None, value_fn=None, **keywords):
        seen.update(value=value, loss=value_fn(params))
        return grads, state

    rule = rule_of(name)
    monkeypatch.setattr(type(rule), "delta", delta)
    tx, params = signcore_optax.from_rule(rule), on_jax(tree(0))
    tx.update(params, tx.init(params), params, value=3.0, value_fn=lambda p: p["s"][0] + p["w"][0, 0])
    assert seen == {"value": 3.0, "loss": params["s"][0] + params["w"][0, 0]}


@each_rule
def test_o1_functions_get_the_extra_arguments_that_they_have_parameters_for(name, monkeypatch):
    seen = {}

    def delta(self, params, grads, state, *, value_fn=None, grad_fn=None, **keywords):
        seen.update(value=value_fn(params), grads=grad_fn(params))
        return grads, state

    def loss(p, batch, *, shift=0.0):
        return p["s"][0] * batch + shift

    rule, params = rule_of(name), on_jax(tree(0))
    monkeypatch.setattr(type(rule), "delta", delta)
    tx, batch, s = signcore_optax.from_rule(rule), jnp.asarray(2.0), params["s"][0]
    slope = jax.grad(loss)
    functions = {"value_fn": loss, "grad_fn": jax.jit(lambda p, batch: slope(p, batch))}
    tx.update(params, tx.init(params), params, **functions, batch=batch, shift=0.5, unexpected=object())
    assert bits((seen["value"], seen["grads"]["s/0"])) == bits((s * 2.0 + 0.5, batch))
    with pytest.raises(TypeError, match="batch"):
        tx.update(params, tx.init(params), params, **functions)


COMPARING = [name for name in sc.rules() if "value_fn" in golden.variants(name)[0].needs]


@pytest.mark.parametrize("name", COMPARING)
def test_o1_extra_arguments_beside_optaxs_line_search(name):
    tx, params, grads = getattr(signcore_optax, name)(0.1), {"w": jnp.ones(3)}, {"w": jnp.asarray([1.0, -1.0, 2.0])}
    batch = jnp.asarray([1.0, 2.0, 3.0])

    def loss(p, batch):
        return jnp.max(p["w"] * batch)

    value = loss(params, batch)
    alone = tx.update(grads, tx.init(params), params, value=value, value_fn=lambda p: loss(p, batch))
    given = tx.update(grads, tx.init(params), params, value=value, value_fn=loss, batch=batch)
    assert bits(given) == bits(alone)
    chain = optax.chain(tx, optax.scale_by_zoom_linesearch(3))
    _, after = chain.update(grads, chain.init(params), params, value=value, grad=grads, value_fn=loss, batch=batch)
    assert bits(after[0]) == bits(alone[1])


@each_rule
def test_o1_params_are_needed_for_weight_decay_alone(name):
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    tx = transform_of(name)
    with pytest.raises(
        ValueError, match=r"`params` is None and `weight_decay` is 0.1.* update\(grads, state, params\)"
    ):
        tx.update(grads, tx.init(params))
    with pytest.raises(ValueError, match=r"static_args=\('weight_decay',\)"):
        jax.jit(lambda d: transform_of(name, weight_decay=d).update(grads, tx.init(params)))(0.0)
    for zero in (0.0, 0, jnp.asarray(0.0)):
        tx = transform_of(name, weight_decay=zero)
        state = tx.init(params)
        assert bits(tx.update(grads, state)) == bits(tx.update(grads, state, params))


@each_rule
def test_o1_bad_input_is_named_with_its_path(name):
    tx, params, grads = transform_of(name), on_jax(tree(0)), on_jax(tree(1))
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"`params`.* 'w' is in `grads` and not in `params`"):
        tx.update(grads, state, {k: v for k, v in params.items() if k != "w"})
    with pytest.raises(ValueError, match=r"`grads` at 'b/0' has shape \(5,\), `params` at 'b/0' has \(3,\)"):
        tx.update(grads | {"b": [jnp.zeros(5), None]}, state, params)
    with pytest.raises(ValueError, match=r"same leaves in different containers"):
        tx.update(grads, state, params | {"b": tuple(params["b"])})
    for bad in (jnp.arange(3), jnp.zeros(3, jnp.complex64), jnp.zeros(3, bool)):
        with pytest.raises(TypeError, match=rf"`params` at 'w' has dtype {bad.dtype}"):
            tx.init({"w": bad})
    with pytest.raises(TypeError, match=r"`state` is a ScaleByAdamState"):
        tx.update(grads, optax.scale_by_adam().init(params), params)
    if jax.tree.leaves(state)[1:]:
        with pytest.raises(ValueError, match=r"state\..*'w'|state\..* at 'w'"):
            tx.update(grads, tx.init(params | {"w": params["w"][:2]}), params)


# -- O2 -----------------------------------------------------------------------------------------------------


@each_mixture
@each_rule
def test_o2_state_keeps_its_types(name, dtype):
    with x64(dtype):
        tx = transform_of(name)
        params, grads = on_jax(tree(0, dtype)), on_jax(tree(1, dtype))
        state = tx.init(params)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
        abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        _, after = jax.eval_shape(tx.update, grads, state, params)
        shapes = [(s.shape, s.dtype) for s in jax.tree.leaves(state)]
        for shaped in (jax.eval_shape(tx.init, abstract), jax.eval_shape(lambda: tx.init(abstract)), after):
            assert [(s.shape, s.dtype) for s in jax.tree.leaves(shaped)] == shapes
            assert not any(leaf.weak_type for leaf in jax.tree.leaves(shaped))
            assert jax.tree.structure(shaped) == jax.tree.structure(state)
        assert bits(tx.init(abstract)) == bits(state)


@each_mixture
def test_o2_eagerly_compiled_and_in_a_branch(representative, dtype):
    with x64(dtype):
        tx = transform_of(representative)
        params, grads = on_jax(tree(0, dtype)), on_jax(tree(1, dtype))
        state = tx.init(params)
        updates, after = tx.update(grads, state, params)
        assert types(after) == types(state)
        assert types(jax.jit(tx.update)(grads, state, params)[1]) == types(state)
        assert bits(state) == bits(jax.jit(tx.init)(params))
        chosen = jax.jit(
            lambda yes: jax.lax.cond(yes, lambda: tx.update(grads, state, params), lambda: (params, state))
        )
        assert bits(chosen(True)) == bits((updates, after))
        assert bits(chosen(False)) == bits((params, state))


def test_o2_weakly_typed_params(representative):
    tx = transform_of(representative)
    params = {"a": jnp.asarray(1.0), "b": 2.0}
    assert params["a"].weak_type
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state, params)
    assert types(after) == types(state)
    (_, carried), _ = jax.lax.scan(
        lambda carry, _: ((optax.apply_updates(carry[0], updates), tx.update(updates, carry[1], carry[0])[1]), None),
        (on_jax(params), state),
        length=2,
    )
    assert jax.tree.structure(carried) == jax.tree.structure(state)


# -- O3 -----------------------------------------------------------------------------------------------------


def test_o3_updates_keep_the_gradients_dtype(representative):
    tx = transform_of(representative)
    for ours in DTYPES[:3]:
        for theirs in DTYPES[:3]:
            params, grads = on_jax(tree(0, ours)), on_jax(tree(1, theirs))
            state = tx.init(params)
            updates, after = tx.update(grads, state, params)
            assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {theirs}
            assert types(after) == types(state)
            if ours != theirs:  # the step in float32, rounded once
                wide = jax.tree.map(lambda x: x.astype(jnp.float32), (grads, params))
                exact, kept = tx.update(wide[0], state, wide[1])
                tiny = 2.0**-24 if theirs == "float16" else 0.0
                flushed = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < tiny, 0.0, x), exact)  # noqa: B023
                assert bits(updates) == bits(jax.tree.map(lambda x: x.astype(theirs), flushed))  # noqa: B023
                assert bits(after) == bits(kept)


def test_o3_nothing_is_promoted_with_x64(representative):
    """In eager calls; compiled, `test_o7_compiled_once_with_donated_buffers` runs every rule both ways."""
    expected = optax_trajectory(transform_of(representative), "mixed")
    with jax.enable_x64(True):
        assert optax_trajectory(transform_of(representative), "mixed") == expected
        params = {dtype: jnp.ones(3, dtype) for dtype in DTYPES}
        tx = transform_of(representative, lr=optax.linear_schedule(0.1, 0.01, 10))
        state = tx.init(params)
        updates, after = jax.jit(tx.update)(params, state, params)
        assert types(after) == types(state)
        assert {key: leaf.dtype.name for key, leaf in updates.items()} == {dtype: dtype for dtype in DTYPES}
        for narrow in ("float32", "bfloat16"):  # without params the state says in which dtype it is kept
            tx, given = transform_of(representative, weight_decay=0.0), {"a": jnp.ones(3, jnp.float64)}
            state = tx.init(given)
            updates, after = tx.update({"a": jnp.ones(3, narrow)}, state)
            assert types(after) == types(state)
            assert updates["a"].dtype.name == narrow


@each_rule
def test_o3_numpy_leaves_are_taken(name):
    tx = transform_of(name)
    params, grads = tree(0), tree(1)
    ours = tx.update(grads, tx.init(params), params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(ours))
    assert bits(ours) == bits(tx.update(on_jax(grads), tx.init(on_jax(params)), on_jax(params)))
    restored = jax.tree.map(np.asarray, tx.init(params))  # as checkpoints give it
    assert bits(tx.update(grads, restored, params)) == bits(ours)


# -- O4 -----------------------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class Module:
    """As Equinox's: fields that are no arrays become None."""

    def __init__(self, weight, bias, frozen=None):
        self.weight, self.bias, self.frozen = weight, bias, frozen

    def tree_flatten(self):
        return (self.weight, self.bias, self.frozen), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)

    def __call__(self, x):
        return x


@each_rule
def test_o4_modules_none_and_placeholders(name):
    tx = transform_of(name)
    params = Module(jnp.ones((4, 8)), [jnp.ones(3), None, optax.MaskedNode()])
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    assert isinstance(updates, Module)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    flat = {"x": params.weight, "y": params.bias[0]}
    assert bits(jax.tree.leaves(updates)) == bits(tx.update(flat, tx.init(flat), flat)[0])


@each_rule
def test_o4_a_missing_gradient_leaves_its_leaf_alone(name):
    tx, params, grads = transform_of(name), on_jax(tree(0)), on_jax(tree(1))
    _, state = tx.update(grads, tx.init(params), params)
    updates, after = tx.update(grads | {"w": None}, state, params)
    assert updates["w"] is None
    for field, mark in marks(type(state)).items():
        if mark.kind != "shared" and getattr(state, field) is not None:
            assert bits(getattr(after, field)["w"]) == bits(getattr(state, field)["w"])
    assert int(after.step) == 2
    rest = {"b": params["b"], "s": params["s"]}
    alone = tx.update({"b": grads["b"], "s": grads["s"]}, tx.init(rest), rest)[1]
    assert jax.tree.structure(alone.step) == jax.tree.structure(after.step)


@pytest.mark.parametrize("empty", [{}, [], (), optax.MaskedNode(), {"a": None}])
def test_o4_trees_without_leaves(representative, empty):
    tx = transform_of(representative)
    state = tx.init(empty)
    updates, after = jax.jit(tx.update)(empty, state, empty)
    assert updates == empty
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert int(after.step) == 1


@each_rule
def test_o4_gradient_accumulation_keeps_dtypes(name):
    with jax.enable_x64(True):
        tx = optax.MultiSteps(transform_of(name), every_k_schedule=2)
        params = {dtype: jnp.asarray([1.0, 2.0], dtype=dtype) for dtype in DTYPES}
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, state, params)  # traces both branches of its cond
        assert {key: leaf.dtype.name for key, leaf in updates.items()} == {dtype: dtype for dtype in DTYPES}
        assert jax.tree.map(lambda s: s.dtype, after) == jax.tree.map(lambda s: s.dtype, state)


@each_variant
def test_o4_optax_finds_its_way_in_the_state(name, options):
    params = on_jax(tree(0))
    for tx in (transform_of(name, **options), optax.masked(transform_of(name, **options), lambda p: True)):
        state = tx.init(params)
        assert bits(optax.tree.map_params(tx, lambda leaf: leaf, state)) == bits(state)
        marked = optax.tree.map_params(tx, lambda _: "param", state, transform_non_params=lambda _: "other")
        inner = getattr(marked, "inner_state", marked)
        assert inner.step == "other"
        for field, mark in marks(type(inner)).items():
            if mark.kind != "shared":
                assert set(jax.tree.leaves(getattr(inner, field))) <= {"param"}
        specs = jax.tree.map(lambda p: p.ndim, params)
        optax.tree.map_params(tx, lambda leaf, spec: spec, state, specs)
        assert bits(optax.tree.get(state, "step")) == bits(jnp.asarray(0, jnp.int32))
        moved = optax.tree.set(state, step=jnp.asarray(7, jnp.int32))
        assert int(optax.tree.get(moved, "step")) == 7
        for field, mark in marks(type(inner)).items():
            if mark.kind == "element":
                kept = options.get("state_dtype", "float32")
                zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, kept), params)  # noqa: B023
                assert bits(optax.tree.get(state, field)) == bits(zeros)


# -- O5 -----------------------------------------------------------------------------------------------------


def test_o5_spellings_of_the_learning_rate(representative):
    expected = numpy_trajectory(rule_of(representative))
    for rate in (
        0.01,
        np.float64(0.01),
        np.asarray(0.01),
        np.float32(0.01),
        jnp.asarray(0.01),
        jnp.asarray([0.01]),
        lambda count: 0.01,
        optax.constant_schedule(0.01),
        sc.schedules.constant(0.01),
        lambda count: jnp.float32(0.01),
    ):
        assert optax_trajectory(transform_of(representative, lr=rate)) == expected
    traced = jax.jit(lambda rate, g, s, p: transform_of(representative, lr=rate).update(g, s, p))
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    state = transform_of(representative).init(params)
    assert bits(traced(0.01, grads, state, params)) == bits(transform_of(representative).update(grads, state, params))


SCHEDULES = [
    sc.schedules.cosine(0.1, total_steps=3),
    sc.schedules.linear_warmup(0.1, 2, then=sc.schedules.inverse_sqrt(0.1)),
    sc.schedules.step(0.1, size=2),
]


def test_o5_schedules(representative):
    for schedule in SCHEDULES:
        expected = numpy_trajectory(rule_of(representative, lr=schedule))
        assert optax_trajectory(transform_of(representative, lr=schedule)) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_o5_compiled_schedules_and_those_of_float64(representative, dtype):
    def expected(schedule):
        return numpy_trajectory(rule_of(representative, lr=schedule), dtype)

    with x64(dtype):
        for schedule in SCHEDULES if dtype == "float64" else ():
            assert optax_trajectory(transform_of(representative, lr=schedule), dtype) == expected(schedule)
        tx = transform_of(representative, lr=SCHEDULES[1])
        assert optax_trajectory(tx, dtype, jax.jit) == expected(SCHEDULES[1])


def test_o5_forms_of_the_mask(representative):
    mask = {"w": True, "b": [False, None], "s": (False,)}
    with_decay, without = (
        numpy_trajectory(rule_of(representative)),
        numpy_trajectory(rule_of(representative, weight_decay=0.0)),
    )
    expected = numpy_trajectory(rule_of(representative), decay_mask={"w": True, "b": [False, False], "s": (False,)})
    assert expected not in (with_decay, without)
    for form in (
        mask,
        {"w": True, "b": False, "s": False},  # a prefix
        lambda p: jax.tree.map(lambda leaf: leaf.ndim == 2, p),
        {"w": np.True_, "b": False, "s": np.asarray(False)},
    ):
        assert optax_trajectory(transform_of(representative, mask=form)) == expected
        assert optax_trajectory(signcore_optax.from_rule(rule_of(representative), mask=form)) == expected
    assert optax_trajectory(transform_of(representative, mask=form), wrap=jax.jit) == expected
    assert optax_trajectory(transform_of(representative, mask=True)) == with_decay
    assert optax_trajectory(transform_of(representative, mask=False)) == without
    assert optax_trajectory(transform_of(representative, weight_decay=0.0, mask=form)) == without
    tx = transform_of(representative, mask={"w": True})
    params = on_jax(tree(0))
    with pytest.raises(ValueError, match=r"`mask` does not fit the params"):
        tx.update(params, tx.init(params), params)
    tx = transform_of(representative, mask=lambda p: jax.tree.map(lambda leaf: leaf.sum() > 0, p))
    with pytest.raises(TypeError, match=r"`mask` at 'b/0' is a traced value"):
        jax.jit(tx.update)(params, tx.init(params), params)


def test_o5_a_module_of_bools_is_no_function():
    tx = signcore_optax.signsgd(0.5, weight_decay=1.0, mask=Module(True, False))
    params = Module(jnp.ones(1), jnp.ones(1))
    updates, _ = tx.update(params, tx.init(params), params)
    assert (updates.weight[0], updates.bias[0]) == (-1.0, -0.5)


# -- O6 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_o6_injected_in_every_dtype(representative, dtype):
    injected_is_direct(representative, dtype, dtype, jax.jit)


def test_o6_injected_in_eager_calls(representative):
    injected_is_direct(representative, "float32", "float32", lambda function: function)


def injected_is_direct(name, dtype, kind, wrap):
    options = options_of(name, lr=0.0123, weight_decay=0.0321)
    if dtype == "float32" and "seed" in {field.name for field in dataclasses.fields(classes()[name])}:
        options |= {"sign_zero": "random", "seed": 5}
    rate = options.pop("lr")
    with x64(dtype):
        expected = numpy_trajectory(sc.rule(name, lr=rate, **options), kind)
        injected = optax.inject_hyperparams(getattr(signcore_optax, name))(learning_rate=rate, **options)
        params = on_jax(tree(0, kind))
        state, found = wrap(injected.init)(params), []
        update = wrap(injected.update)
        for step in range(STEPS):
            updates, after = update(on_jax(tree(step + 1, kind)), state, params)
            assert types(after) == types(state)
            state, params = after, optax.apply_updates(params, updates)
            found.append(bits((params, state.inner_state)))
        assert found == expected
        numbers = {"learning_rate" if key == "lr" else key for key in ranges(classes()[name])}
        assert set(state.hyperparams) == numbers


@each_variant
def test_o6_every_option_passes_without_being_named(name, options):
    given = options_of(name, **options)
    rate = given.pop("lr")
    mask = {"w": True, "b": False, "s": True}
    injected = optax.inject_hyperparams(getattr(signcore_optax, name))(learning_rate=rate, mask=lambda p: mask, **given)
    direct = transform_of(name, mask=mask, **options)
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    updates, state = injected.update(grads, injected.init(params), params)
    jax.eval_shape(injected.update, grads, jax.eval_shape(injected.init, params), params)  # nor does a trace mind
    expected, after = direct.update(grads, direct.init(params), params)
    assert bits(updates) == bits(expected)
    assert bits(state.inner_state) == bits(after)
    assert bits(optax.tree.map_params(injected, lambda leaf: leaf, state)) == bits(state)


def test_o6_injected_values_can_be_changed_and_scheduled(representative):
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    injected = optax.inject_hyperparams(getattr(signcore_optax, representative))(learning_rate=0.5, weight_decay=0.1)
    state = injected.init(params)
    update = jax.jit(injected.update)
    update(grads, state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25, dtype=state.hyperparams["learning_rate"].dtype)
    updates, _ = update(grads, state, params)
    assert update._cache_size() == 1
    direct = getattr(signcore_optax, representative)(0.25, weight_decay=0.1)
    assert bits(updates) == bits(direct.update(grads, direct.init(params), params)[0])

    schedule = sc.schedules.linear_warmup(0.1, 2, then=sc.schedules.inverse_sqrt(0.1))
    injected = optax.inject_hyperparams(getattr(signcore_optax, representative))(
        learning_rate=schedule, weight_decay=0.1
    )
    direct = getattr(signcore_optax, representative)(schedule, weight_decay=0.1)

    def trajectory(tx, inner):
        now, state, found = params, jax.jit(tx.init)(params), []
        for _ in range(STEPS):
            updates, state = jax.jit(tx.update)(grads, state, now)
            now = optax.apply_updates(now, updates)
            found.append(bits((now, inner(state))))
        return found

    assert trajectory(injected, lambda state: state.inner_state) == trajectory(direct, lambda state: state)


WEAK = {
    "cosine": optax.cosine_decay_schedule(0.0123, 10),
    "python": lambda count: 0.0123,
    "constant": optax.constant_schedule(0.0123),
    "piecewise": optax.piecewise_constant_schedule(0.0123, {1: 0.321}),
    "joined": optax.join_schedules([optax.linear_schedule(0.0123, 0.1, 7), optax.constant_schedule(0.0321)], [2]),
    "array": jnp.asarray(0.0123),
    "numpy": np.asarray(0.0123),
}


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("rate", WEAK.values(), ids=WEAK)
def test_o6_weakly_typed_values_are_not_rounded_beside_bfloat16(rate, wrap):
    draw = np.random.default_rng(0)
    start, grads = ({"w": jnp.asarray(draw.standard_normal(400), jnp.bfloat16)} for _ in range(2))
    found = []
    for factory, inner in (
        (signcore_optax.lion, lambda state: state),
        (optax.inject_hyperparams(signcore_optax.lion), lambda state: state.inner_state),
    ):
        tx, params, words = factory(rate, weight_decay=WEAK["python"]), start, []
        state, update = wrap(tx.init)(params), wrap(tx.update)
        for _ in range(3):
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            words.append(bits((updates, params, inner(state))))
        found.append(words)
        assert bool(np.any(np.asarray(updates["w"])))
    assert found[0] == found[1]
    assert {leaf.dtype.name for leaf in state.hyperparams.values()} == {"float32"}


def test_o6_a_scheduled_float64_stays_one():
    with jax.enable_x64(True):
        params, found = {"w": jnp.asarray([1.0, -3.0])}, []
        for factory in (signcore_optax.lion, optax.inject_hyperparams(signcore_optax.lion)):
            tx = factory(lambda count: 0.0123, weight_decay=lambda count: jnp.asarray(0.1) / 3.0)
            found.append(bits(tx.update(params, tx.init(params), params)[0]))
        assert params["w"].dtype == np.float64
        assert found[0] == found[1]


def test_o6_injection_around_partial_and_own_factories(representative):
    factory = getattr(signcore_optax, representative)
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    direct = factory(0.01, weight_decay=0.1)
    expected = direct.update(grads, direct.init(params), params)[0]
    partial = optax.inject_hyperparams(functools.partial(factory, weight_decay=0.1))(learning_rate=0.01)
    own = optax.inject_hyperparams(lambda learning_rate: optax.chain(factory(learning_rate, weight_decay=0.1)))(0.01)
    static = optax.inject_hyperparams(factory, static_args=("weight_decay", "mask"))(0.01, weight_decay=0.1)
    for tx in (partial, own, static):
        assert bits(jax.jit(tx.update)(grads, tx.init(params), params)[0]) == bits(expected)


# -- O7 -----------------------------------------------------------------------------------------------------


@each_mixture
@each_rule
def test_o7_compiled_once_with_donated_buffers(name, dtype):
    with x64(dtype):
        tx = transform_of(name)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = on_jax(tree(0, dtype))
        state, expected = tx.init(params), numpy_trajectory(rule_of(name), dtype)
        kinds = types(state)
        for k in range(STEPS):
            params, state = step(params, state, on_jax(tree(k + 1, dtype)))
            assert bits((params, state)) == expected[k]
            assert types(state) == kinds
        assert step._cache_size() == 1


@each_mixture
def test_o7_eager_scan_and_vmap(representative, dtype):
    with x64(dtype):
        tx = transform_of(representative)
        expected = numpy_trajectory(rule_of(representative), dtype)
        assert optax_trajectory(tx, dtype) == expected

        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(tree(k + 1, dtype) for k in range(STEPS)))
        params = on_jax(tree(0, dtype))
        _, scanned = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), stacked))(params)
        assert [bits(jax.tree.map(lambda leaf: leaf[k], scanned)) for k in range(STEPS)] == expected  # noqa: B023

        twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
        carry = (twice, jax.vmap(tx.init)(twice))
        both = jax.jit(jax.vmap(step, in_axes=(0, None)))
        for k in range(STEPS):
            carry, _ = both(carry, on_jax(tree(k + 1, dtype)))
            for copy in range(2):
                assert bits(jax.tree.map(lambda leaf: leaf[copy], carry)) == expected[k]  # noqa: B023


@each_variant
def test_o7_every_option(name, options):
    expected = numpy_trajectory(rule_of(name, **options), "one leaf")
    assert optax_trajectory(transform_of(name, **options), "one leaf", wrap=jax.jit) == expected


def test_o7_skipped_steps(representative):
    tx = transform_of(representative, nonfinite="skip")
    params, grads = on_jax(tree(0)), on_jax(tree(1))
    _, state = tx.update(grads, tx.init(params), params)
    bad = grads | {"s": (jnp.asarray(np.inf, jnp.float32),)}
    updates, after = jax.jit(tx.update)(bad, state, params)
    assert bits(after) == bits(state)
    assert bits(optax.apply_updates(params, updates)) == bits(params)
    with pytest.raises(ValueError, match="use nonfinite='skip'"):
        jax.jit(transform_of(representative, nonfinite="raise").update)(bad, state, params)
    with pytest.raises(FloatingPointError, match=r"`grads` at 's/0'"):
        transform_of(representative, nonfinite="raise").update(bad, state, params)


def sharded(mode, representatives):
    """(rule, dtype) to a digest of the trajectory with params spread over all devices."""
    kind = jax.sharding.AxisType.Explicit if mode == "explicit" else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(kind,))
    spread = {2: jax.NamedSharding(mesh, jax.P(None, "x"))}
    whole = jax.NamedSharding(mesh, jax.P())

    def place(values):
        return jax.tree.map(lambda leaf: jax.device_put(leaf, spread.get(leaf.ndim, whole)), values)

    found = {}
    with jax.set_mesh(mesh) if mode == "explicit" else contextlib.nullcontext():
        for name, options in sharded_cases(mode, representatives):
            tx = transform_of(name, **options)
            params = place(tree(0))
            state, words = tx.init(params), []
            update = jax.jit(tx.update)
            for step in range(STEPS):
                updates, after = update(place(tree(step + 1)), state, params)
                if mode == "auto":  # explicit axes spell one sharding in two ways, in optax's own states too
                    assert types(after) == types(state), (name, options)
                params, state = optax.apply_updates(params, updates), after
                words.append(bits((params, state)))
            assert mode == "explicit" or update._cache_size() == 1, (name, options)
            found[f"{name} {options}"] = digest(words)
    return found


def sharded_cases(mode, representatives):
    """Options whose arithmetic is over the whole tree or its indices; explicit axes also without them."""
    wanted = [{"sign_zero": "random"}, {"nonfinite": "skip"} if mode == "auto" else {}]
    return [(name, options) for name, options in VARIANTS if name in representatives and options in wanted]


def digest(words):
    return hashlib.sha256(repr(words).encode()).hexdigest()


def test_o7_options_on_eight_devices(representatives):
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), str(root / "adapters"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = [sys.executable, __file__, *representatives]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    for mode in ("auto", "explicit"):
        expected = {
            f"{name} {options}": digest(numpy_trajectory(rule_of(name, **options)))
            for name, options in sharded_cases(mode, representatives)
        }
        assert len(expected) >= len(representatives)
        assert found[mode] == expected


# -- as optax's own suite uses an optimizer -------------------------------------------------------------------


@each_rule
def test_descends_a_parabola(name):
    target = jnp.asarray([1.0, -1.0, 1.0])
    tx = getattr(signcore_optax, name)(0.01)
    params = jnp.asarray([-1.0, 3.0, 1.0])

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(lambda p: jnp.sum((p - target) ** 2))(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=1000))(params)
    assert jnp.abs(params - target).max() < 0.05


if __name__ == "__main__":
    runs = {mode: sharded(mode, sys.argv[1:]) for mode in ("auto", "explicit")}
    print(json.dumps({"devices": jax.device_count(), **runs}))
