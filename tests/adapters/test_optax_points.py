"""What optax's users expect of an optimizer: points O1 to O8 of its contract, for every rule. Bits, never a tolerance.

A test is named after its point, and a case after its rule. O9, the libraries around optax, is in test_optax_clients.py,
and spellings, refusals and options, which depend on no rule's arithmetic, are in test_optax_contract.py.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax_runs as runs
import pytest
from optax_runs import GRADS, RULES, START, STEPS, bits, extras, on_jax, rule_of, transform_of, tree, types

import signcore as sc
import signcore_optax
from signcore.fields import ranges
from signcore.marks import WHOLE
from signcore.rule import classes
from signcore_conformance import golden

DTYPES = ["float16", "bfloat16", "float32", "float64"]

# Where a part of a point cannot be had, and why; the case's id ends in "-not-applicable", and it asserts the error that
# says so.
NOT_APPLICABLE = {
    ("o3", name): "it decides by the loss at the very parameters that are stored, so gradients in another dtype, whose "
    "updates would be rounded once more, are refused"
    for name in RULES
    if "value_fn" in rule_of(name).needs
}
NOT_APPLICABLE |= {
    (
        "o4",
        name,
    ): "optax.lookahead passes no extra arguments on, so the rule cannot get its loss; every other wrapper does"
    for name in RULES
    if rule_of(name).needs
}
NOT_APPLICABLE |= {
    ("o5", name): "it has no weight decay that a mask could keep off a leaf" for name in RULES if not runs.decays(name)
}


def each_rule(point=None):
    """Every rule, with those that the point does not apply to marked; all tests of a rule run one after the other."""
    cases = [pytest.param(n, id=f"{n}-not-applicable" if (point, n) in NOT_APPLICABLE else n) for n in RULES]
    return pytest.mark.parametrize("name", cases, scope="module")


def start(name, **options):
    """Transformation, params, gradients, first state and extra arguments of a rule."""
    tx, params = transform_of(name, **options), on_jax(tree(START))
    return tx, params, on_jax(GRADS[0]), tx.init(params), extras(rule_of(name), params)


def dtypes(values):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name, leaf.weak_type), values)


def abstract(tx, rule, params, grads):
    """What one update gives, by tracing it."""
    state = jax.eval_shape(tx.init, params)
    return state, jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extras(rule, p)), grads, state, params)


# -- O1: states, extra arguments, what is missing -------------------------------------------------------------


@each_rule()
def test_o1_a_state_is_the_rules_namedtuple_of_arrays(name):
    tx, params, *_ = start(name)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    rule = rule_of(name)
    for state in (tx.init(params), runs.eager(name)[-1].state):
        assert type(state) is rule.State
        for field in state._fields:
            value = getattr(state, field)
            if field not in rule.kinds:
                assert value is None
                continue
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
            whole = rule.kinds[field] in WHOLE
            assert jax.tree.structure(value) == jax.tree.structure(0 if whole else params)


@each_rule()
def test_o1_arguments_that_a_rule_does_not_ask_for_are_ignored(name):
    tx, params, grads, state, extra = start(name)
    every = {"value": runs.loss(params), "value_fn": runs.loss, "grad_fn": runs.half}
    given = tx.update(grads, state, params, **every, step_size=3, model=object())
    assert bits(given) == bits(tx.update(grads, state, params, **extra))


@each_rule()
def test_o1_params_that_are_missing_are_asked_for(name):
    tx, params, grads, state, extra = start(name)
    if rule_of(name).needs_params:
        with pytest.raises(ValueError, match=rf"`params` is None.*{type(rule_of(name)).__name__} needs them"):
            tx.update(grads, state, **extra)
    plain = transform_of(name, weight_decay=0.0)
    given = plain.update(grads, state, params, **extra)
    if rule_of(name, weight_decay=0.0).needs_params:
        with pytest.raises(ValueError, match=r"`params` is None.* call update\(grads, state, params\)"):
            plain.update(grads, state, **extra)
    else:
        assert bits(plain.update(grads, state, **extra)) == bits(given)


@each_rule()
def test_o1_what_a_rule_needs_reaches_it(name):
    main, *others = golden.variants(name)
    first = {rule.needs: rule for rule in [*reversed(others), main]}
    for needs, rule in first.items():
        tx, params = signcore_optax.from_rule(rule), on_jax(tree(START))
        for missing in needs:
            extra = {key: value for key, value in extras(rule, params).items() if key != missing}
            with pytest.raises(TypeError, match=rf"`{missing}` is missing: {type(rule).__name__}.* in optax update"):
                tx.update(on_jax(GRADS[0]), tx.init(params), params, **extra)
        if needs != main.needs:  # what the main variant gives is in the tests of O7
            found = runs.transformed(tx, rule)
            assert [each.params + bits(each.state) for each in found] == runs.trajectory(rule)


# -- O2: shapes, types, transformations -----------------------------------------------------------------------


@each_rule()
def test_o2_init_of_shapes_and_under_jit(name):
    tx, params, *_ = start(name)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert bits(jax.jit(tx.init)(params)) == bits(tx.init(params)) == bits(tx.init(shapes))
    with jax.enable_x64(True):
        params = {dtype: jnp.ones((2, 3), dtype) for dtype in DTYPES}
        state = tx.init(params)
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        for shaped in (jax.eval_shape(tx.init, shapes), jax.eval_shape(lambda: tx.init(shapes))):
            assert dtypes(shaped) == dtypes(state)
        _, (_, after) = abstract(tx, rule_of(name), params, params)
        assert dtypes(after) == dtypes(state)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after)))


@each_rule()
def test_o2_types_of_a_state_stay(name):
    tx, params, *_ = start(name)
    kinds = types(tx.init(params))
    assert [each.kinds for each in runs.eager(name)] == [kinds] * STEPS
    assert [each.kinds for each in runs.compiled(name).steps] == [kinds] * STEPS


@each_rule()
def test_o2_vmap_over_scan_over_cond(name):
    for found, begun in zip(runs.scanned(name), (START, runs.OTHER_START), strict=True):
        expected = runs.on_numpy(name, begun)
        assert found == [*expected, expected[-1]]  # the last step is not taken


# -- O3: dtypes of updates ------------------------------------------------------------------------------------


@each_rule()
def test_o3_updates_have_the_gradients_dtypes(name):
    with jax.enable_x64(True):
        params = {dtype: jnp.ones(3, dtype) for dtype in DTYPES}
        _, (updates, _) = abstract(transform_of(name), rule_of(name), params, params)
        assert dtypes(updates) == dtypes(params)


@each_rule("o3")
def test_o3_also_beside_params_of_others(name):
    with jax.enable_x64(True):
        pairs = [(ours, theirs) for ours in DTYPES for theirs in DTYPES]
        params = {f"{ours} {theirs}": jnp.ones(3, ours) for ours, theirs in pairs}
        grads = {f"{ours} {theirs}": jnp.ones(3, theirs) for ours, theirs in pairs}
        if ("o3", name) in NOT_APPLICABLE:
            with pytest.raises(
                ValueError, match=r"`grads` at .* has dtype .*decides by the loss .*; cast the gradients"
            ):
                abstract(transform_of(name), rule_of(name), params, grads)
            return
        state, (updates, after) = abstract(transform_of(name), rule_of(name), params, grads)
        assert dtypes(updates) == dtypes(grads)
        assert dtypes(after) == dtypes(state)


@each_rule()
def test_o3_x64_changes_no_bit(name):
    without = [each.params + each.state for each in runs.compiled(name).steps]
    assert runs.scanned(name)[0][:STEPS] == without  # which ran with x64 on


# -- O4: leaves that are none, and optax's wrappers -----------------------------------------------------------


@each_rule()
def test_o4_none_and_masked_nodes_pass(name):
    tx, params, grads, *_ = start(name)
    holes = {"none": None, "masked": optax.MaskedNode()}
    extra = extras(rule_of(name), params)
    updates, after = tx.update(grads | holes, tx.init(params | holes), params | holes, **extra)
    assert jax.tree.structure(updates) == jax.tree.structure(params | holes)
    assert jax.tree.structure(after) == jax.tree.structure(tx.init(params | holes))
    assert bits((updates, after)) == bits(tx.update(grads, tx.init(params), params, **extra))


@each_rule()
def test_o4_masked_partition_and_chain(name):
    tx, params, grads, state, extra = start(name)
    only = {"w": params["w"]}
    of_w = extras(rule_of(name), only)  # the loss of what the rule sees
    alone, _ = tx.update({"w": grads["w"]}, tx.init(only), only, **of_w)
    for wrapped, rest in (
        (optax.masked(tx, {"w": True, "b": [False, None]}), grads["b"]),
        (
            optax.partition({"ours": tx, "none": optax.set_to_zero()}, {"w": "ours", "b": ["none", None]}),
            [grads["b"][0] * 0, None],
        ),
    ):
        first = wrapped.init(params)
        updates, after = wrapped.update(grads, first, params, **of_w)
        assert bits(updates) == bits({"w": alone["w"], "b": rest})
        assert jax.tree.structure(after) == jax.tree.structure(first)
    chain = optax.chain(optax.clip(1e9), tx, optax.scale(1.0))
    updates, _ = chain.update(grads, chain.init(params), params, **extra)
    assert bits(updates) == bits(tx.update(grads, state, params, **extra)[0])


@each_rule()
def test_o4_multi_steps_and_apply_if_finite(name):
    tx, params, _, state, extra = start(name)
    grads = jax.tree.map(lambda g: g + 0.0, on_jax(GRADS[0]))  # the mean starts from +0.0
    expected, expected_state = tx.update(grads, state, params, **extra)
    wrapped = optax.MultiSteps(optax.apply_if_finite(tx, 3), every_k_schedule=2)
    first = wrapped.init(params)
    # What is asked is which branch is taken, not how well it is compiled.
    quickly = {"xla_backend_optimization_level": 0}
    update = jax.jit(lambda grads, state: wrapped.update(grads, state, params, **extra), compiler_options=quickly)
    held, between = update(grads, first)
    assert not any(leaf.any() for leaf in jax.tree.leaves(held))
    assert bits(between.inner_opt_state.inner_state) == bits(state)
    updates, after = update(grads, between)
    assert bits(updates) == bits(expected)
    assert bits(after.inner_opt_state.inner_state) == bits(expected_state)
    refused, skipped = update(jax.tree.map(lambda g: g * np.inf, grads), between)
    assert not any(leaf.any() for leaf in jax.tree.leaves(refused))
    assert bits(skipped.inner_opt_state.inner_state) == bits(state)
    assert int(skipped.inner_opt_state.total_notfinite) == 1
    assert types(after) == types(between) == types(first)
    assert update._cache_size() == 1


@each_rule("o4")
def test_o4_lookahead(name):
    tx, params, grads, state, extra = start(name)
    ahead = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(params)
    if ("o4", name) in NOT_APPLICABLE:
        with pytest.raises(TypeError, match=r"is missing: .*in optax update"):
            ahead.update(grads, ahead.init(pair), pair)
        return
    updates, after = ahead.update(grads, ahead.init(pair), pair)
    expected, expected_state = tx.update(grads, state, params, **extra)
    assert bits(updates.fast) == bits(expected)
    assert bits(after.fast_state) == bits(expected_state)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates.slow))
    updates, _ = ahead.update(grads, after, optax.apply_updates(pair, updates))
    assert any(leaf.any() for leaf in jax.tree.leaves(updates.slow))


@each_rule()
def test_o4_map_params_and_get(name):
    tx, params, *_ = start(name)
    kinds = rule_of(name).kinds
    for wrapped in (tx, optax.chain(optax.clip(1.0), tx)):
        state = wrapped.init(params)
        assert bits(optax.tree.map_params(wrapped, lambda leaf: leaf, state)) == bits(state)
        marked = optax.tree.map_params(wrapped, lambda _: "param", state, transform_non_params=lambda _: "other")
        own = marked if wrapped is tx else marked[1]
        for field, kind in kinds.items():
            assert set(jax.tree.leaves(getattr(own, field))) == {"other" if kind in WHOLE else "param"}
        for field in kinds:
            assert bits(optax.tree.get(state, field)) == bits(getattr(state if wrapped is tx else state[1], field))
        moved = optax.tree.set(state, step=jnp.asarray(7, jnp.int32))
        assert int(optax.tree.get(moved, "step")) == 7


# -- O5: learning rates, counts, signs, masks -----------------------------------------------------------------


@each_rule()
def test_o5_a_learning_rate_is_a_number_an_array_or_a_schedule(name):
    _, params, grads, state, extra = start(name)
    rates = (0.0123, np.float64(0.0123), jnp.asarray(0.0123), jnp.asarray([0.0123]), lambda count: 0.0123)
    found = [bits(transform_of(name, lr=rate).update(grads, state, params, **extra)) for rate in rates]
    assert found == found[:1] * len(rates)


@each_rule()
def test_o5_a_schedule_sees_the_steps_done(name):
    schedule, seen = sc.schedules.linear_warmup(0.1, 2, then=sc.schedules.inverse_sqrt(0.1)), []

    def watched(count):
        seen.append(int(count))
        return schedule(count)

    ran = runs.transformed(transform_of(name, lr=watched), rule_of(name))
    assert [each.params + bits(each.state) for each in ran] == runs.trajectory(rule_of(name, lr=schedule))
    assert seen == list(range(STEPS))


@each_rule()
def test_o5_the_count_saturates(name):
    tx, params, grads, state, extra = start(name)
    state = state._replace(step=jnp.asarray(2**31 - 2, jnp.int32))
    for _ in range(3):
        _, state = tx.update(grads, state, params, **extra)
        assert int(state.step) == 2**31 - 1


@each_rule()
def test_o5_signs_are_flipped_once(name):
    """One coordinate, whose sign no draw can turn: a descent lowers it, and an ascent of the negated loss does too."""
    params, found = {"x": jnp.asarray([3.0])}, []
    for tx, grads, value in (
        (transform_of(name), params, 3.0),
        (transform_of(name, maximize=True), jax.tree.map(jnp.negative, params), -3.0),
    ):
        extra = {
            "value": jnp.asarray(value),
            "value_fn": lambda p, sign=value / 3.0: sign * runs.loss(p),
        }
        found.append(tx.update(grads, tx.init(params), params, **extra)[0])
    assert found[0]["x"][0] < 0.0
    assert bits(found[0]) == bits(found[1])


@each_rule("o5")
def test_o5_a_mask_keeps_decay_off_a_leaf(name):
    if ("o5", name) in NOT_APPLICABLE:
        with pytest.raises(ValueError, match=r"`weight_decay` is 0.1; it must be .*in \[0, 0\]: "):
            transform_of(name, weight_decay=0.1)
        return
    expected = runs.trajectory(rule_of(name), decay_mask={"w": True, "b": [False, False]})
    assert expected != runs.on_numpy(name)
    for mask in ({"w": True, "b": False}, lambda params: jax.tree.map(lambda leaf: leaf.ndim == 2, params)):
        ran = runs.transformed(transform_of(name, mask=mask), rule_of(name))
        assert [each.params + bits(each.state) for each in ran] == expected


# -- O6: injected hyperparameters -----------------------------------------------------------------------------


@each_rule()
def test_o6_injected_hyperparameters_give_the_same_bits(name):
    rule, options = rule_of(name), runs.options_of(name)
    options = {"learning_rate": options.pop("lr", rule.lr)} | options
    injected = optax.inject_hyperparams(getattr(signcore_optax, name))(**options)

    functions = {key: value for key, value in extras(rule, on_jax(tree(START))).items() if callable(value)}
    compiled = jax.jit(
        lambda grads, state, params, **arrays: injected.update(grads, state, params, **arrays, **functions)
    )

    def update(grads, state, params, **extra):
        return compiled(grads, state, params, **{key: each for key, each in extra.items() if key not in functions})

    ran = runs.transformed(injected, rule, update)
    assert [each.params + bits(each.state.inner_state) for each in ran] == runs.on_numpy(name)
    assert {str(each.kinds) for each in ran} == {str(types(injected.init(on_jax(tree(START)))))}
    numbers = {"learning_rate" if key == "lr" else key for key in ranges(classes()[name])}
    assert numbers == set(ran[-1].state.hyperparams) | {key for key in numbers if options.get(key, 0) is None}

    params, state = on_jax(tree(START)), injected.init(on_jax(tree(START)))
    rate = state.hyperparams["learning_rate"]
    state.hyperparams["learning_rate"] = jnp.asarray(0.25, rate.dtype)
    changed, _ = update(on_jax(GRADS[0]), state, params, **extras(rule, params))
    direct, _, _, first, extra = start(name, lr=0.25)
    assert bits(changed) == bits(direct.update(on_jax(GRADS[0]), first, params, **extra)[0])
    assert compiled._cache_size() == 1


# -- O7: eager, compiled, scanned, on eight devices -----------------------------------------------------------


@each_rule()
def test_o7_eager_compiled_and_scanned_are_the_same_bits(name):
    expected = runs.on_numpy(name)
    assert len({str(each) for each in expected}) == STEPS
    assert [each.params + bits(each.state) for each in runs.eager(name)] == expected
    assert [each.params + each.state for each in runs.compiled(name).steps] == expected
    assert runs.scanned(name)[0][:STEPS] == expected


@each_rule()
def test_o7_a_second_call_compiles_nothing(name):
    assert runs.compiled(name).compilations == 1


@cache
def on_eight_devices():
    """What each rule's run gave that was spread over eight devices, from one process for all of them."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / folder) for folder in (".", "adapters", "conformance", "tests")]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(root / "tests" / "optax_runs.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@each_rule()
def test_o7_eight_devices_are_one(name):
    found = on_eight_devices()[name]
    assert (found["spread"], found["shard"]) == (8, 1)  # a column of eight on each
    assert found["digest"] == runs.digest(runs.on_numpy(name))
    assert found["kept"], "types of the state, shardings among them"
    assert found["compilations"] == 1


# -- O8: the form of an update --------------------------------------------------------------------------------


@each_rule()
def test_o8_apply_updates_is_p_plus_u(name):
    for step, expected in zip(runs.eager(name), runs.on_numpy(name), strict=True):
        before, updates = step.given
        for (dtype, shape, p), (_, _, u), after, ours in zip(before, updates, step.params, expected, strict=False):
            total = np.frombuffer(p, dtype) + np.frombuffer(u, dtype)  # one rounding, of NumPy
            assert after == ours == (dtype, shape, total.tobytes())
