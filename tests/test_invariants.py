"""The invariants I1 to I5 of the notes, section 0, asked of every rule with inputs that hypothesis chooses.

What a rule is excused from stands in the tables below, with the reason.
"""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import signcore as sc
from signcore import frameworks, ops
from signcore.tree import flatten, unflatten

FEW = settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
STEPS = 4
RULES = {name: sc.rule(name, lr=0.01) for name in sc.rules()}

# I1. A positive factor of all gradients is seen ...
SEEN_FACTORS = {
    "sgd": "its steps are gradients",
    "noisy_signsgd": "its noise has a size of its own",
    "dithered_signum": "so has its dither",
    "ef_signsgd": "its scale is that of the gradients",
    "alias": "compares changes of the gradients with losses: section 8 scales both",
    "alias_momentum": "likewise",
    "alias_compact": "likewise",
    "alias_adam": "its eps has the gradients' unit",
    "hybrid": "lambda divides by them, with an eps",
}
# I2. A step is more than lr in a coordinate, or has no such bound ...
BOUNDS = {"aass": 2.0}
NO_BOUND = {
    "sgd": "its steps are gradients",
    "ef_signsgd": "likewise: the mean magnitude of what was left over",
    "rprop": "its sizes are its state",
    "alias": "its rate is estimated",
    "alias_momentum": "likewise",
    "alias_compact": "likewise",
    "alias_adam": "likewise",
    "tiger": "relative to the leaf's rms: see below",
}


def loss(params):
    leaves = [leaf for _, leaf in flatten(params) if leaf is not None]
    return ops.norm1(leaves) + 1.0  # above the lower bound that some rules ask for


def halves(params):
    leaves = [leaf for _, leaf in flatten(params)]
    return unflatten(params, [frameworks.namespace(x).astype(x * 0.5, x.dtype) for x in leaves])


def inputs(rule, params):
    made = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: halves}
    return {name: made[name]() for name in rule.needs}


def run(rule, params, grads, state=None, names=None):
    state = rule.init(params, names=names) if state is None else state
    for g in grads:
        params, state = rule.step(params, g, state, **inputs(rule, params))
    return params, state


def plain_numbers(size):
    """Multiples of 1/64 up to 16: scaled by powers of two, or squared and summed, they stay exact or nearly so."""
    return st.lists(st.integers(-1024, 1024).map(lambda k: k / 64), min_size=size, max_size=size)


@st.composite
def trajectories(draw, least=2, most=12):
    """(params, gradients) of a vector."""
    size = draw(st.integers(least, most))
    params = np.asarray(draw(plain_numbers(size)), np.float32)
    grads = np.asarray([draw(plain_numbers(size)) for _ in range(STEPS)], np.float32)
    return params, grads


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def decayed(rule):
    """With decay, where the rule has any."""
    try:
        return rule.replace(weight_decay=0.125)
    except ValueError:
        return rule


def draws(rule):
    return rule.draws_noise


def choices(rule, option):
    fields = {field.name: field for field in dataclasses.fields(rule)}
    return fields[option].metadata["choices"] if option in fields else ()


# -- I1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RULES if name not in SEEN_FACTORS])
def test_i1_a_positive_factor_of_all_gradients_changes_no_parameter(name, same):
    @FEW
    @given(trajectories(), st.integers(-40, 40).map(lambda k: 2.0**k))
    def check(trajectory, factor):
        params, grads = trajectory
        here = run(decayed(RULES[name]), params, grads)[0]
        same(run(decayed(RULES[name]), params, grads * np.float32(factor))[0], here)

    check()


@pytest.mark.parametrize("name", SEEN_FACTORS)
def test_i1_does_not_hold_where_the_table_says_so(name, differ):
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal(40).astype(np.float32), rng.standard_normal((STEPS, 40)).astype(np.float32)
    rule = RULES[name]
    if name == "hybrid":
        rule = rule.replace(switch_step=2, eps=0.125)
    assert differ(run(rule, params, grads)[0], run(rule, params, np.float32(2.0**-10) * grads)[0])


# -- I2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RULES if name not in NO_BOUND])
def test_i2_no_coordinate_moves_by_more_than_lr_and_decay(name):
    @FEW
    @given(trajectories())
    def check(trajectory):
        params, grads = trajectory
        rule = decayed(RULES[name]).replace(lr=0.25)
        state, decay = rule.init(params), float(rule.weight_decay)
        for g in grads:
            bound = 0.25 * BOUNDS.get(name, 1.0) + 0.25 * decay * float(np.abs(params).max())
            delta, after = rule.delta(params, g, state, **inputs(rule, params))
            assert np.abs(delta).max() <= bound * (1.0 + 2.0**-22)  # two roundings
            params, state = params + delta, after

    check()


def test_i2_of_tiger_and_rprop():
    @FEW
    @given(trajectories())
    def check(trajectory):
        params, grads = trajectory
        tiger, rprop = sc.Tiger(lr=0.25, weight_decay=0.0), sc.Rprop(lr=0.25)
        _, state = run(rprop, params, grads)
        rms = np.sqrt(np.mean(params.astype(np.float64) ** 2))
        assert np.abs(tiger.delta(params, grads[0], tiger.init(params))[0]).max() <= 0.25 * rms * (1.0 + 2.0**-20)
        delta, after = rprop.delta(params, grads[0], state)
        assert np.all(np.abs(delta) <= after.size)

    check()


# -- I3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RULES if not draws(RULES[name])])
def test_i3_coordinates_may_be_permuted(name, same):
    @FEW
    @given(trajectories(), st.randoms(use_true_random=False))
    def check(trajectory, random):
        params, grads = trajectory
        order = list(range(len(params)))
        random.shuffle(order)
        rule = decayed(RULES[name])
        same(run(rule, params, grads)[0][order], run(rule, params[order], grads[:, order])[0])

    check()


@pytest.mark.parametrize("name", [name for name in RULES if not draws(RULES[name])])
def test_i3_a_tensor_may_be_split_unless_scalars_are_of_a_leaf(name, same):
    @FEW
    @given(trajectories(), st.integers(1, 11))
    def check(trajectory, at):
        params, grads = trajectory
        at = min(at, len(params) - 1)
        rule = decayed(RULES[name])
        if rule.scope == "leaf":
            try:
                rule = rule.replace(scope="global")
            except ValueError:
                return  # nothing but leaves: below
        whole = run(rule, params, grads)[0]
        parts = run(rule, [params[:at], params[at:]], [[g[:at], g[at:]] for g in grads])[0]
        same(whole, np.concatenate(parts))

    check()


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].scope == "leaf"])
def test_i3_splitting_changes_what_has_scalars_of_a_leaf(name, differ):
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal(40).astype(np.float32), rng.standard_normal((STEPS, 40)).astype(np.float32)
    params[20:] *= 16.0
    grads[:, 20:] *= 16.0
    parts = run(RULES[name], [params[:20], params[20:]], [[g[:20], g[20:]] for g in grads])[0]
    assert differ(run(RULES[name], params, grads)[0], np.concatenate(parts))


@pytest.mark.parametrize("name", [name for name in RULES if draws(RULES[name])])
def test_i3_noise_is_drawn_by_name_and_index(name, same, differ):
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal(40).astype(np.float32), rng.standard_normal((STEPS, 40)).astype(np.float32)
    rule, tree = RULES[name], lambda x: {"a": x[:20], "b": x[20:]}
    here = run(rule, tree(params), list(map(tree, grads)))[0]
    there = run(rule, [params[:20], params[20:]], [[g[:20], g[20:]] for g in grads], names=["a", "b"])[0]
    same(list(here.values()), there)
    renamed = run(rule, tree(params), list(map(tree, grads)), names=["b", "a"])[0]
    assert differ(here, renamed)


@pytest.mark.parametrize("name", RULES)
def test_i3_the_order_of_the_leaves_does_not_matter(name, same):
    @FEW
    @given(trajectories(), trajectories())
    def check(one, two):
        rule = decayed(RULES[name])
        forward = [{"a": g, "b": h} for g, h in zip(one[1], two[1], strict=True)]
        back = [{"b": h, "a": g} for g, h in zip(one[1], two[1], strict=True)]
        same(
            run(rule, {"a": one[0], "b": two[0]}, forward)[0],
            {name: x for name, x in sorted(run(rule, {"b": two[0], "a": one[0]}, back)[0].items())},
        )

    check()


# -- I4 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coins", [False, True])
def test_i4_a_run_that_is_stopped_and_resumed_is_the_run(rule, coins, same):
    """Through pickle, and through bare arrays with their dtypes, which is what a checkpoint holds."""
    if coins:
        if "random" not in choices(rule, "sign_zero"):
            return  # no coins: the run above is all
        rule = rule.replace(sign_zero="random", seed=3)

    @FEW
    @given(trajectories(), st.integers(1, STEPS - 1))
    def check(trajectory, at):
        params, grads = trajectory
        whole = run(rule, params, grads)
        kept = run(rule, params, grads[:at])
        same(run(rule, kept[0], grads[at:], pickle.loads(pickle.dumps(kept[1]))), whole)
        raw = [None if x is None else (x.dtype, x.shape, x.tobytes()) for x in kept[1]]
        state = rule.State(*(None if x is None else np.frombuffer(x[2], x[0]).reshape(x[1]) for x in raw))
        same(run(rule, kept[0], grads[at:], state), whole)

    check()


def test_i4_a_rule_is_made_again_from_its_hyperparameters(rule, same):
    params, grads = np.float32([1.0, -2.0, 0.5]), np.float32([[1.0, 0.0, -3.0], [2.0, -1.0, 0.0]])
    twin = sc.rule(rule.name, **{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)})
    assert twin == rule
    same(run(twin, params, grads), run(rule, params, grads))


# -- I5 ----------------------------------------------------------------------------------------------------


def test_i5_nothing_that_is_passed_in_is_changed(rule):
    @FEW
    @given(trajectories())
    def check(trajectory):
        params, grads = trajectory
        state = run(rule, params, grads[:2])[1]
        before = pickle.dumps((params, grads, state))
        for array in (params, grads, *(x for x in state if isinstance(x, np.ndarray))):
            array.flags.writeable = False
        rule.step(params, grads[2], state, **inputs(rule, params))
        assert pickle.dumps((params, grads, state)) == before

    check()


def test_the_tables_name_rules():
    assert {*SEEN_FACTORS, *BOUNDS, *NO_BOUND} <= set(RULES)
