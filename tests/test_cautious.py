"""Cautious masks and cautious decay over any rule. Oracles: the notes, sections 0 and 15, and NumPy's formulas."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import signcore as sc
import signcore_optax
import signcore_torch
from signcore import cautious, cautious_decay

RNG = np.random.default_rng(15)
PARAMS = {"a": RNG.standard_normal((3, 4)).astype(np.float32), "b": RNG.standard_normal(7).astype(np.float32)}
GRADS = [{name: RNG.standard_normal(p.shape).astype(np.float32) for name, p in PARAMS.items()} for _ in range(5)]
GRADS[1]["b"][:2] = 0.0
# Rules of every kind: of signs, of numbers, with a number of the whole tree, with noise.
RULES = [
    sc.Lion(lr=0.1, beta1=0.5, weight_decay=0.1),
    sc.SGD(lr=0.1, momentum=0.75, weight_decay=0.1),
    sc.EFSignSGD(lr=0.1, weight_decay=0.1),
    sc.Hybrid(lr=0.1, switch_step=2, dithered=True, weight_decay=0.1),
]


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def masked(delta, g):
    """The notes' formula: phi = 1[u g > 0], u phi / max(mean(phi), min_mean); a step is -lr u."""
    phi = delta * np.sign(g) < 0.0
    mean = np.float32(phi.sum()) / np.float32(phi.size)
    return np.where(phi, delta / max(mean, np.float32(1e-3)), np.float32(0.0)).astype(np.float32)


def test_the_formula_in_numpy(same):
    beta, lr, wd = np.float32(0.75), np.float32(0.1), np.float32(0.1)
    p, m = PARAMS, {name: np.zeros_like(x) for name, x in PARAMS.items()}
    shares = []
    for g in GRADS:
        m = {n: beta * m[n] + (np.float32(1.0) - beta) * g[n] for n in m}
        bare = {n: -(lr * np.sign(m[n])) for n in m}
        whole = {n: -(lr * (np.sign(m[n]) + wd * p[n])) for n in m}
        p = {n: p[n] + (masked(bare[n], g[n]) + (whole[n] - bare[n])) for n in p}
        shares += [np.mean(masked(bare[n], g[n]) != 0.0) for n in m]
    assert 0.0 < min(shares) < 1.0
    params, state = run(cautious(sc.Signum(lr=0.1, beta=0.75, weight_decay=0.1)))
    same(params, p)
    same(state.m, m)


def test_a_direction_of_the_gradient_is_left_as_it_is(same):
    # u = g: nothing is masked, also with decay.
    for rule in (sc.SGD(lr=0.1), sc.SignSGD(lr=0.1), sc.SignSGD(lr=0.1, weight_decay=0.01)):
        grads = [{name: np.where(x == 0.0, np.float32(1.0), x) for name, x in g.items()} for g in GRADS]
        same(run(cautious(rule), grads=grads)[0], run(rule, grads=grads)[0])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_no_step_goes_uphill(rule):
    rule = cautious(rule.replace(weight_decay=0.0))
    params, state = PARAMS, rule.init(PARAMS)
    for g in GRADS:
        delta, state = rule.delta(params, g, state)
        params = {name: params[name] + delta[name] for name in params}
        for name in g:
            assert np.all(delta[name] * np.sign(g[name]) <= 0.0)
            assert not np.any(delta[name][g[name] == 0.0])


def test_where_nothing_agrees_nothing_moves(same):
    rule = cautious(sc.Signum(lr=0.1, beta=0.99))
    p = np.ones(4, np.float32)
    for first, second in ((1.0, -1e-3), (1.0, 0.0)):
        state = rule.step(p, np.full(4, first, np.float32), rule.init(p))[1]
        same(rule.step(p, np.full(4, second, np.float32), state)[0], p)


def test_the_floor_of_the_mean(same):
    # One of 8 coordinates agrees: 8 times as far, or 1/min_mean.
    m = np.float32([1, -1, -1, -1, -1, -1, -1, -1])
    for min_mean, far in ((1e-3, 8.0), (0.25, 4.0), (1.0, 1.0)):
        rule = cautious(sc.Signum(lr=0.5, beta=0.5), min_mean=min_mean)
        state = rule.init(m)._replace(m=4.0 * m)
        delta = rule.delta(m, np.ones(8, np.float32), state)[0]
        same(delta, np.float32([-0.5 * far, 0, 0, 0, 0, 0, 0, 0]))
    state = rule.init(m)._replace(m=4.0 * m)
    same(rule.delta(m, np.ones(8, np.float32), state, hyper={"min_mean": 0.5})[0][0], np.float32(-1.0))


def test_each_leaf_has_its_own_mean(same):
    rule = cautious(sc.Signum(lr=0.5, beta=0.5))
    p = {"a": np.zeros(2, np.float32), "b": np.zeros(4, np.float32)}
    state = rule.init(p)._replace(m={"a": np.float32([4, -4]), "b": np.float32([4, -4, -4, -4])})
    delta = rule.delta(p, {name: np.ones_like(x) for name, x in p.items()}, state)[0]
    same(delta, {"a": np.float32([-1.0, 0.0]), "b": np.float32([-2.0, 0.0, 0.0, 0.0])})


def test_a_wrong_mask_is_seen(same):
    def wrong(delta, g):
        return masked(delta, -g)

    p, g = PARAMS["a"], GRADS[0]["a"]
    rule = cautious(sc.SGD(lr=0.5))
    delta = rule.delta(p, g, rule.init(p))[0]
    same(delta, masked(-np.float32(0.5) * g, g))
    with pytest.raises(AssertionError):
        same(delta, wrong(-np.float32(0.5) * g, g))


# -- decay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_decay_acts_where_the_step_shrinks(rule, same):
    # arXiv 2510.12402: only where u x >= 0; a step is -lr u.
    bare, whole, own = rule.replace(weight_decay=0.0), rule, cautious_decay(rule)
    state = rule.init(PARAMS)
    for g in GRADS[:3]:
        state = whole.step(PARAMS, g, state)[1]
    u, v, w = (each.delta(PARAMS, GRADS[3], state)[0] for each in (bare, whole, own))
    along = {name: -u[name] * PARAMS[name] >= 0.0 for name in u}
    assert any(x.any() and not x.all() for x in along.values())
    same(w, {name: np.where(along[name], v[name], u[name]) for name in u})


def test_a_coordinate_that_rests_decays(same):
    rule = cautious_decay(sc.SignSGD(lr=0.5, weight_decay=0.5))
    p = np.float32([2.0, -2.0, 0.0])
    same(rule.step(p, np.zeros(3, np.float32), rule.init(p))[0], np.float32([1.5, -1.5, 0.0]))


def test_without_decay_nothing_changes(same):
    for rule in RULES:
        rule = rule.replace(weight_decay=0.0)
        same(run(cautious_decay(rule)), run(rule))


def test_a_decay_mask_still_counts(same):
    rule = sc.Lion(lr=0.1, weight_decay=0.5)
    keep = {"a": False, "b": True}
    for wrap in (cautious, cautious_decay):
        made, state = wrap(rule), rule.init(PARAMS)
        got = made.delta(PARAMS, GRADS[0], state, decay_mask=keep)[0]
        same(got["a"], wrap(rule.replace(weight_decay=0.0)).delta(PARAMS, GRADS[0], state)[0]["a"])
        same(got["b"], made.delta(PARAMS, GRADS[0], state)[0]["b"])


def test_they_nest(same, differ):
    rule = sc.Signum(lr=0.1, weight_decay=0.5)
    one, two = cautious(cautious_decay(rule)), cautious_decay(cautious(rule))
    assert (one.name, type(two).__name__) == ("cautious_cautious_decay_signum", "CautiousDecayCautiousSignum")
    for made in (one, two):
        assert differ(run(made)[0], run(cautious(rule))[0])
        assert differ(run(made)[0], run(cautious_decay(rule))[0])
    # Where a step is masked it is 0, with which the outer decay goes along, and the rule's own might not.
    p, state = np.float32([1.0, 1.0]), rule.init(np.zeros(2, np.float32))._replace(m=np.float32([-4.0, 4.0]))
    g = np.ones(2, np.float32)
    same(one.step(p, g, state)[0], np.float32([1.0, 1.0]) + np.float32([0.0, -0.2 - 0.05]))
    assert two.step(p, g, state)[0][0] < 1.0


# -- workers -------------------------------------------------------------------------------------------------


def test_replicas_mask_alike_by_the_majority(same):
    rule = cautious(sc.Signum(lr=0.5, beta=0.5))
    p = np.zeros(4, np.float32)
    states = [rule.init(p, worker=n)._replace(m=np.full(4, 8.0, np.float32)) for n in range(3)]
    # every vote is +; the gradients' signs have the sums 3, 1, -1 and 0
    grads = [np.float32(g) for g in ([1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 0])]
    p, states = sc.simulate(rule, p, grads, states)
    same(p, np.float32([-1.0, -1.0, 0.0, 0.0]))
    assert {int(state.step) for state in states} == {1}


def test_one_worker_is_a_step(same):
    for rule in RULES:
        made = cautious(rule)
        params, _ = sc.simulate(made, PARAMS, GRADS[:1])
        same(params, run(made, grads=GRADS[:1])[0])


@pytest.mark.parametrize(
    "rule",
    [
        sc.DitheredSignum(lr=0.1, dither="after"),
        sc.DitheredSignum(lr=0.1, dither="before"),
        sc.SignSGD(lr=0.1, sign_zero="random"),
    ],
    ids=["applied", "sent", "coins"],
)
def test_noise_that_is_given_is_the_noise_of_both_rounds(rule, same, differ):
    made = cautious(rule)
    state, grads = made.init(PARAMS), GRADS[1]
    words = {name: RNG.integers(-(2**31), 2**31, p.shape).astype(np.int32) for name, p in PARAMS.items()}
    drawn = made.step(PARAMS, grads, state)[0]
    given = made.step(PARAMS, grads, state, noise=words)[0]
    if rule.name == "dithered_signum":
        assert differ(given, drawn)
    same(made.step(PARAMS, grads, state, noise=made.noise(PARAMS, state))[0], drawn)
    bare = rule.delta(PARAMS, grads, rule.init(PARAMS), noise=words)[0]
    same(given, {name: PARAMS[name] + masked(bare[name], grads[name]) for name in PARAMS})


def test_the_gradients_sign_costs_two_bits():
    assert cautious(sc.Lion()).wire_bits() == {"sign": 2.0, "gradient_sign": 2.0}
    assert cautious_decay(sc.Lion()).wire_bits() == sc.Lion().wire_bits()


# -- everywhere ----------------------------------------------------------------------------------------------

WRAPPED = [cautious(rule) for rule in RULES] + [cautious_decay(RULES[0]), cautious_decay(cautious(RULES[1]))]


@pytest.mark.parametrize("rule", WRAPPED, ids=lambda rule: rule.name)
def test_the_words_of_torch(rule, libraries, same):
    expected = run(rule)
    there = libraries["torch"]
    same(run(rule, there.tree(PARAMS), [there.tree(g) for g in GRADS]), expected)
    parameters = [torch.nn.Parameter(torch.tensor(p)) for p in PARAMS.values()]
    optimizer = signcore_torch.from_rule(list(zip(PARAMS, parameters, strict=True)), rule)
    for g in GRADS:
        for parameter, x in zip(parameters, g.values(), strict=True):
            parameter.grad = torch.tensor(x)
        optimizer.step()
    same([p.detach() for p in parameters], list(expected[0].values()))


@pytest.mark.parametrize("rule", [WRAPPED[0], WRAPPED[3], WRAPPED[5]], ids=lambda rule: rule.name)
def test_the_words_of_jax_under_jit_and_optax(rule, libraries, same):
    expected = run(rule)[0]
    there = libraries["jax"]
    params, grads = there.tree(PARAMS), [there.tree(g) for g in GRADS]
    state, step = rule.init(params), jax.jit(rule.step)
    for g in grads:
        params, state = step(params, g, state)
    same(params, expected)
    optimizer, params = signcore_optax.from_rule(rule), there.tree(PARAMS)
    held, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in grads:
        updates, held = update(g, held, params)
        params = optax.apply_updates(params, updates)
    same(params, expected)


def test_a_traced_floor(same):
    rule, p = cautious(sc.Signum(lr=0.5, beta=0.5)), jnp.asarray(np.float32([1, -1, -1, -1]))
    state, g = rule.init(p)._replace(m=4.0 * p), jnp.ones(4)
    delta = jax.jit(lambda floor: rule.delta(p, g, state, hyper={"min_mean": floor})[0])(0.5)
    same(delta, np.float32([-1.0, 0.0, 0.0, 0.0]))


def test_float16_and_state_survive(same):
    rule = cautious(sc.Lion(lr=0.25, weight_decay=0.5))
    p = {name: x.astype(np.float16) for name, x in PARAMS.items()}
    grads = [{name: x.astype(np.float16) for name, x in g.items()} for g in GRADS]
    params, state = run(rule, p, grads)
    assert params["a"].dtype == np.float16
    assert type(state) is type(sc.Lion().init(p))


# -- classes and rules ---------------------------------------------------------------------------------------


def test_classes_are_made_once_and_rules_equal_copy_and_pickle():
    rule = sc.Lion(lr=0.1, weight_decay=0.1)
    assert cautious(sc.Lion) is cautious(sc.Lion)
    assert cautious(sc.Lion)(lr=0.1, weight_decay=0.1) == cautious(rule)
    assert cautious(sc.Lion, min_mean=0.5)().min_mean == 0.5
    assert cautious(rule) != rule
    assert hash(cautious(rule)) == hash(cautious(rule))
    assert cautious(rule).replace(min_mean=0.5) == cautious(rule, min_mean=0.5)
    for made in (cautious(rule, 0.5), cautious_decay(rule), cautious(cautious_decay(rule)), cautious(sc.Lion, 0.25)()):
        for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
            assert other == made
            assert type(other) is type(made)
    assert "min_mean" in repr(cautious(rule))
    assert isinstance(cautious(rule), sc.Lion)
    assert "signcore.cautious" in (type(cautious(rule)).__doc__ or "")


def test_bad_input():
    for wrap in (cautious, cautious_decay):
        for wrong in ("lion", None, dict, sc.Rule):
            with pytest.raises(TypeError, match=r"`rule` is .*pass a rule or its class"):
                wrap(wrong)
        for again in (wrap(sc.Lion), wrap(sc.Lion())):
            with pytest.raises(ValueError, match="which is made like that already"):
                wrap(again)
    with pytest.raises(ValueError, match=r"`min_mean` is 0; pass a number in \(0, 1\]"):
        cautious(sc.Lion(), min_mean=0)
    with pytest.raises(ValueError, match=r"`min_mean` is 1.5; it must be finite and in \[0, 1\]"):
        cautious(sc.Lion(), min_mean=1.5)
    with pytest.raises(TypeError, match="`min_mean` is 'a'; for a class pass a number"):
        cautious(sc.Lion, min_mean="a")
    with pytest.raises(ValueError, match=r"server_norm.*in the same round"):
        cautious(sc.EFSignSGD(lr=0.1, two_sided=True))
