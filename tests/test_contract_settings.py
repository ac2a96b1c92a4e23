"""The guarded product in every setting of arithmetic.md section 2, row 1: NumPy's words, whatever XLA is shown.

Signum with weight decay has the products that feed sums; AASS goes through float64 in a scoped x64 region, which
has to work under every transform; lagged AASS has squares, roots and a quotient besides.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import signcore as sc
from signcore import frameworks

ROOT = Path(__file__).resolve().parents[1]
T, N = 30, 42
RNG = np.random.default_rng(0)
PARAMS = RNG.standard_normal(N).astype(np.float32)
GRADS = RNG.standard_normal((T, N)).astype(np.float32)
GRADS[:, :2] = 0.0
RATES = (0.001 + 0.01 * RNG.random(T)).astype(np.float32)
RULES = {
    "signum": sc.Signum(lr=0.01, weight_decay=0.1),
    "aass": sc.AASS(lr=0.01, weight_decay=0.1),
    "aass-lagged": sc.AASS(lr=0.01, weight_decay=0.1, variance="lagged"),
}


@cache
def trajectory(name, steps=T, rates=False):
    """NumPy's parameters and state."""
    rule, params = RULES[name], PARAMS
    state = rule.init(params)
    for g, lr in zip(GRADS[:steps], RATES, strict=False):
        params, state = rule.step(params, g, state, hyper={"lr": lr} if rates else None)
    return params, state


@pytest.fixture(params=RULES)
def name(request):
    return request.param


def step_of(rule):
    # a function of its own for each test: what one compiled, another must not find
    return lambda p, g, s, hyper=None: rule.step(p, g, s, hyper=hyper)


def unrolled(rule, params, grads, rates=None):
    state = rule.init(params)
    for k in range(len(grads)):
        params, state = rule.step(params, grads[k], state, hyper=None if rates is None else {"lr": rates[k]})
    return params, state


def test_one_step_per_call(name, same):
    rule = RULES[name]
    step = jax.jit(step_of(rule))
    params = jnp.asarray(PARAMS)
    state = rule.init(params)
    for g in GRADS:
        params, state = step(params, g, state)
    same((params, state), trajectory(name))


def test_eagerly(name, same):
    same(unrolled(RULES[name], jnp.asarray(PARAMS), jnp.asarray(GRADS[:8])), trajectory(name, 8))


def test_init_and_thirty_steps_unrolled_in_one_function(name, same):
    rule = RULES[name]
    same(jax.jit(lambda p, gs: unrolled(rule, p, gs))(PARAMS, GRADS), trajectory(name))


def test_everything_closed_over(name, same):
    rule, params, grads = RULES[name], jnp.asarray(PARAMS), jnp.asarray(GRADS)
    same(jax.jit(lambda: unrolled(rule, params, grads[:5]))(), trajectory(name, 5))


def test_parameters_state_gradients_and_rates_made_inside_the_function(name, same):
    rule = RULES[name]

    def all_constants():
        params = jnp.array(PARAMS.tolist(), dtype=jnp.float32)
        grads = [jnp.array(g.tolist(), dtype=jnp.float32) for g in GRADS[:5]]
        rates = [jnp.array(float(lr), dtype=jnp.float32) for lr in RATES[:5]]
        return unrolled(rule, params, grads, rates)

    same(jax.jit(all_constants)(), trajectory(name, 5, rates=True))


@pytest.mark.parametrize("constant", ["params", "grads", "rates", "state"])
def test_one_of_them_made_inside_the_function(name, constant, same):
    rule = RULES[name]
    arrays = {"params": PARAMS, "grads": GRADS[:3], "rates": RATES[:3]}

    def some_constants(given):
        made = {k: given[k] if k in given else jnp.array(v.tolist(), dtype=jnp.float32) for k, v in arrays.items()}
        return unrolled(rule, made["params"], made["grads"], made["rates"])  # the state is made inside in any case

    given = {k: v for k, v in arrays.items() if k != constant}
    same(jax.jit(some_constants)(given), trajectory(name, 3, rates=True))


def test_constant_gradients_of_the_same_value_everywhere(name, same):
    # What XLA sees as a broadcast scalar.
    rule = RULES[name]
    params, state = PARAMS, rule.init(PARAMS)
    for _ in range(5):
        params, state = rule.step(params, np.full(N, 0.3, np.float32), state)
    made = jax.jit(lambda p: unrolled(rule, p, [jnp.full(N, 0.3, jnp.float32)] * 5))(PARAMS)
    same(made, (params, state))


def test_parameters_made_of_one_value_inside_the_function(name, same):
    rule = RULES[name]
    made = jax.jit(lambda gs: unrolled(rule, jnp.full(N, 0.7, jnp.float32), gs))(GRADS[:5])
    params, state = np.full(N, 0.7, np.float32), rule.init(PARAMS)
    for g in GRADS[:5]:
        params, state = rule.step(params, g, state)
    same(made, (params, state))


def test_traced_learning_rates(name, same):
    rule = RULES[name]
    step = jax.jit(step_of(rule))
    params = jnp.asarray(PARAMS)
    state = rule.init(params)
    for g, lr in zip(GRADS, RATES, strict=True):
        params, state = step(params, g, state, {"lr": lr})
    same((params, state), trajectory(name, rates=True))


def test_all_numbers_traced(name, same):
    rule = RULES[name]
    step = jax.jit(step_of(rule))
    params = jnp.asarray(PARAMS)
    state = rule.init(params)
    for g in GRADS:
        params, state = step(params, g, state, rule.numbers())
    same((params, state), trajectory(name))


def test_scan(name, same):
    step = step_of(RULES[name])
    start = jnp.asarray(PARAMS), RULES[name].init(jnp.asarray(PARAMS))
    same(jax.lax.scan(lambda c, g: (step(c[0], g, c[1]), None), start, GRADS)[0], trajectory(name))


def test_scan_over_rates_from_init_inside(name, same):
    rule = RULES[name]

    def train(p, gs, rates):
        def body(c, x):
            return rule.step(c[0], x[0], c[1], hyper={"lr": x[1]}), None

        return jax.lax.scan(body, (p, rule.init(p)), (gs, rates), unroll=3)[0]

    same(jax.jit(train)(PARAMS, GRADS, RATES), trajectory(name, rates=True))


def test_fori_loop(name, same):
    step = step_of(RULES[name])
    train = jax.jit(
        lambda p, gs: jax.lax.fori_loop(0, T, lambda k, c: step(c[0], gs[k], c[1]), (p, RULES[name].init(p)))
    )
    same(train(PARAMS, GRADS), trajectory(name))


def test_while_loop(name, same):
    step = step_of(RULES[name])

    def train(p, gs):
        return jax.lax.while_loop(
            lambda c: c[1].step < T, lambda c: step(c[0], gs[c[1].step], c[1]), (p, RULES[name].init(p))
        )

    same(jax.jit(train)(PARAMS, GRADS), trajectory(name))


def test_cond_and_switch(name, same):
    rule = RULES[name]

    def train(p, gs):
        def body(c, g):
            taken = jax.lax.cond(g[2] < 10.0, lambda: rule.step(c[0], g, c[1]), lambda: c)
            idle = jax.lax.switch(c[1].step % 2, [lambda: c, lambda: rule.step(c[0], g, c[1])])
            return jax.tree.map(lambda a, b: jnp.where(g[2] < 10.0, a, b), taken, idle), None

        return jax.lax.scan(body, (p, rule.init(p)), gs)[0]

    same(jax.jit(train)(PARAMS, GRADS), trajectory(name))


def test_remat(name, same):
    step = jax.checkpoint(step_of(RULES[name]))
    start = jnp.asarray(PARAMS), RULES[name].init(jnp.asarray(PARAMS))
    same(
        jax.jit(lambda c, gs: jax.lax.scan(lambda c, g: (step(c[0], g, c[1]), None), c, gs)[0])(start, GRADS),
        trajectory(name),
    )


def test_vmap(name, same):
    rule = RULES[name]
    params, grads = jnp.asarray(PARAMS).reshape(6, 7), GRADS.reshape(T, 6, 7)
    state = jax.vmap(rule.init)(params)
    step = jax.jit(jax.vmap(step_of(rule)))
    for g in grads:
        params, state = step(params, g, state)
    assert state.step.shape == (6,)
    expected = trajectory(name)
    same((params.reshape(N), state.m.reshape(N), state.step[0]), (expected[0], expected[1].m, expected[1].step))


def test_vmap_over_learning_rates(name, same):
    rule = RULES[name]
    params, grads, state = jnp.asarray(PARAMS), jnp.asarray(GRADS[3]), rule.init(jnp.asarray(PARAMS))
    swept = jax.vmap(lambda lr: rule.step(params, grads, state, hyper={"lr": lr})[0])(jnp.asarray(RATES))
    expected = [rule.step(PARAMS, GRADS[3], rule.init(PARAMS), hyper={"lr": lr})[0] for lr in RATES]
    same(swept, np.stack(expected))


def test_inside_a_jit_inside_a_jit(name, same):
    step = jax.jit(step_of(RULES[name]))
    outer = jax.jit(lambda c, gs: jax.lax.scan(lambda c, g: (step(c[0], g, c[1]), None), c, gs)[0])
    same(outer((jnp.asarray(PARAMS), RULES[name].init(jnp.asarray(PARAMS))), GRADS), trajectory(name))


def test_beside_a_gradient_in_one_function(name, same):
    # The gradient of <p, g> is g: loss, gradient and step in one trace.
    rule = RULES[name]

    def train(c, g):
        return rule.step(c[0], jax.grad(lambda p: jnp.vdot(p, g))(c[0]), c[1]), None

    start = jnp.asarray(PARAMS), rule.init(jnp.asarray(PARAMS))
    same(jax.jit(lambda c, gs: jax.lax.scan(train, c, gs)[0])(start, GRADS), trajectory(name))


@pytest.mark.parametrize("transform", ["vjp", "jvp"])
def test_under_differentiation(name, transform, same):
    rule = RULES[name]
    state = rule.init(jnp.asarray(PARAMS))

    def primal(p):
        f = lambda q: rule.step(q, jnp.asarray(GRADS[0]), state)[0]  # noqa: E731 (a function of one argument)
        return jax.vjp(f, p)[0] if transform == "vjp" else jax.jvp(f, (p,), (jnp.ones_like(p),))[0]

    expected = trajectory(name, 1)[0]
    same(jax.jit(primal)(PARAMS), expected)
    same(primal(jnp.asarray(PARAMS)), expected)


def test_donated_buffers(name, same):
    step = jax.jit(step_of(RULES[name]), donate_argnums=(0, 2))
    params = jnp.array(PARAMS)
    state = RULES[name].init(params)
    for g in GRADS:
        params, state = step(params, g, state)
    same((params, state), trajectory(name))


def test_a_tree_of_leaves_in_one_function(name, same):
    rule = RULES[name]
    cut = [slice(0, 5), slice(5, 6), slice(6, N)]
    split = lambda x: {"a": x[cut[0]], "b": [x[cut[1]][0], x[cut[2]].reshape(4, 9)]}  # noqa: E731
    step = jax.jit(step_of(rule))
    params = jax.tree.map(jnp.asarray, split(PARAMS))
    state = rule.init(params)
    for g in GRADS:
        params, state = step(params, split(g), state)
    expected = trajectory(name)
    same((params, state.m), (split(expected[0]), split(expected[1].m)))


def test_roundings_to_bfloat16_are_kept_in_one_function(same):
    # XLA may delete a cast to bfloat16 and back between two steps, where it sees both.
    rule = sc.Signum(lr=0.01, weight_decay=0.1, state_dtype="bfloat16")
    params, grads = PARAMS.astype(ml_dtypes.bfloat16), GRADS[:10].astype(ml_dtypes.bfloat16)
    made = jax.jit(lambda p, gs: unrolled(rule, p, gs))(params, grads)
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    same(made, (params, state))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_parameters_in_a_scan(name, dtype, same):
    rule = RULES[name]
    params, grads = PARAMS.astype(dtype), GRADS.astype(dtype)
    start = jnp.asarray(params), rule.init(jnp.asarray(params))
    made = jax.lax.scan(lambda c, g: (rule.step(c[0], g, c[1]), None), start, jnp.asarray(grads))[0]
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    same(made, (params, state))


@pytest.mark.parametrize("setting", ["per step", "scan"])
def test_without_the_guard_the_words_differ(name, setting, monkeypatch, traces_afresh, differ):
    # The negative control: if this passed without the guard, the tests above would show nothing.
    monkeypatch.setattr(frameworks, "contracts", lambda array: False)
    rule = RULES[name]
    start = jnp.asarray(PARAMS), rule.init(jnp.asarray(PARAMS))
    if setting == "per step":
        made, step = start, jax.jit(step_of(rule))
        for g in GRADS:
            made = step(made[0], g, made[1])
    else:
        made = jax.lax.scan(lambda c, g: (rule.step(c[0], g, c[1]), None), start, GRADS)[0]
    assert differ(made, trajectory(name))


# -- settings that need a process of their own -------------------------------------------------------------

PRELUDE = """
import json
import jax, jax.numpy as jnp, numpy as np
import signcore as sc

def words(x):
    x = np.asarray(x)
    return x if x.dtype.kind == "i" else np.where(x != x, -1, x.view(f"i{x.dtype.itemsize}"))

def count(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum(int((words(a) != words(b)).sum()) for a, b in pairs)

def numpy_run(rule, params, grads):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state

rng = np.random.default_rng(0)
RULES = {
    "signum": sc.Signum(lr=0.01, weight_decay=0.1),
    "aass": sc.AASS(lr=0.01, weight_decay=0.1),
    "aass-lagged": sc.AASS(lr=0.01, weight_decay=0.1, variance="lagged"),
    "sgd": sc.SGD(lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True),
    "lion-random": sc.Lion(lr=0.01, weight_decay=0.1, sign_zero="random"),
}
wrong = {}
"""

SHARDED = (
    PRELUDE
    + """
from jax.sharding import Mesh, NamedSharding, PartitionSpec
assert len(jax.devices()) == 8
mesh = Mesh(np.asarray(jax.devices()), ("x",))
split, everywhere = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
P, GS = rng.standard_normal((16, 5)).astype(np.float32), rng.standard_normal((10, 16, 5)).astype(np.float32)
GS[:, :, 0] = 0.0
for name, rule in RULES.items():
    expected = numpy_run(rule, P, GS)
    params = jax.device_put(P, split)
    state = rule.init(params)
    step = jax.jit(lambda p, g, s, rule=rule: rule.step(p, g, s))
    for g in GS:
        params, state = step(params, jax.device_put(g, split), state)
    wrong[name] = count((params, state), expected)
    assert len(params.sharding.device_set) == 8, params.sharding
    # per-device programs, for rules whose words do not depend on the global index
    if name in ("signum", "aass-lagged"):
        specs = jax.tree.map(lambda x: PartitionSpec("x") if x.ndim == 2 else PartitionSpec(), rule.init(P))
        body = lambda p, gs, s, rule=rule: jax.lax.scan(lambda c, g: (rule.step(c[0], g, c[1]), None), (p, s), gs)[0]
        mapped = jax.jit(jax.shard_map(
            body, mesh=mesh, in_specs=(PartitionSpec("x"), PartitionSpec(None, "x"), specs),
            out_specs=(PartitionSpec("x"), specs), check_vma=False,
        ))
        wrong[name + " in shard_map"] = count(mapped(P, GS, rule.init(jnp.asarray(P))), expected)
# what is bad input about devices: grads that are committed elsewhere; not leaves that are placed apart
here, there = (jax.device_put(P, device) for device in jax.devices()[:2])
rule = RULES["signum"]
apart = {"a": here, "b": there}
rule.step(apart, apart, rule.init(apart))
rule.step(here, jnp.asarray(P), rule.init(here))
wrong["devices"] = 0
for params, grads, state in ((apart, {"a": here, "b": here}, rule.init(apart)), (here, here, rule.init(there))):
    try:
        rule.step(params, grads, state)
        wrong["devices"] += 1
    except ValueError as error:
        wrong["devices"] += "is on device cpu:" not in str(error)
print(json.dumps(wrong))
"""
)

DOUBLE = (
    PRELUDE
    + """
for kind in (np.float64, np.float32, np.float16):
    P, GS = rng.standard_normal(37).astype(kind), rng.standard_normal((12, 37)).astype(kind)
    GS[:, :2] = 0.0
    for name, rule in RULES.items():
        if kind is not np.float64 and "aass" not in name:
            continue
        expected = numpy_run(rule, P, GS)
        start = jnp.asarray(P), rule.init(jnp.asarray(P))
        scanned = jax.lax.scan(lambda c, g: (rule.step(c[0], g, c[1]), None), start, jnp.asarray(GS))[0]
        wrong[f"{name} {kind.__name__} scan"] = count(scanned, expected)
        assert scanned[0].dtype == kind
        if kind is np.float64 and name in ("signum", "aass-lagged"):
            step, made = jax.jit(lambda p, g, s, rule=rule: rule.step(p, g, s, hyper=rule.numbers())), start
            for g in GS:
                made = step(made[0], g, made[1])
            wrong[f"{name} {kind.__name__} per step"] = count(made, expected)
from signcore import ops
P = np.abs(rng.standard_normal(1000))
# found by fuzzing: XLA takes sqrt(a) * sqrt(a) for a where it knows that a is not negative
squared = jax.jit(lambda x: ops.product(ops.sqrt(abs(x)), ops.sqrt(abs(x))))
wrong["a root times itself"] = count(squared(P), np.sqrt(P) * np.sqrt(P))
wrong["a quotient by a root"] = count(jax.jit(lambda x: ops.quotient(x, ops.sqrt(abs(x))))(P), P / np.sqrt(P))
wrong["the root of a square"] = count(jax.jit(lambda x: ops.sqrt(ops.product(x, x)))(P), np.sqrt(P * P))
lr = sc.schedules.linear_warmup(0.1, 5, then=sc.schedules.inverse_sqrt(0.1))
for dtype in ("float32", "float64"):
    values = jax.jit(jax.vmap(lambda k: lr(k, dtype)))(jnp.arange(40, dtype=jnp.int32))
    wrong["schedule " + dtype] = count(values, np.asarray([lr(k, dtype) for k in range(40)], dtype))
print(json.dumps(wrong))
"""
)


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        (SHARDED, {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}),
        (DOUBLE, {"JAX_ENABLE_X64": "1"}),
    ],
    ids=["eight devices", "x64"],
)
def test_in_a_process_of_its_own(script, environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = json.loads(done.stdout)
    assert wrong == dict.fromkeys(wrong, 0)
    assert len(wrong) >= 7
