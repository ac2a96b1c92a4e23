"""EF-signSGD: what is special about the error. Oracles: the notes, section 11, and the formulas in plain NumPy."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.ef_signsgd import EFSignSGD, EFSignSGDMessage

RNG = np.random.default_rng(11)
PARAMS = {"a": {"x": RNG.standard_normal((4, 3)), "y": RNG.standard_normal(5)}, "b": {"z": RNG.standard_normal(16)}}
GRADS = [{"a": {"x": RNG.standard_normal((4, 3)), "y": np.zeros(5)}, "b": {"z": np.arange(16) % 3}}]
GRADS += [{"a": {"x": RNG.standard_normal((4, 3)), "y": np.ones(5)}, "b": {"z": np.arange(16)}} for _ in range(4)]


def narrowed(tree):
    if isinstance(tree, dict):
        return {key: narrowed(child) for key, child in tree.items()}
    return np.asarray(tree, np.float32)


PARAMS, GRADS = narrowed(PARAMS), [narrowed(g) for g in GRADS]


def run(rule, params=PARAMS, grads=GRADS, state=None):
    state = rule.init(params) if state is None else state
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def golden_step(rule_class, same):
    """The notes' numbers: p = (.3, -.1, 0), so D = (.13333, -.13333, 0) and e = (.16667, .03333, 0)."""
    x = np.zeros(3, np.float32)
    rule = rule_class(lr=1.0)
    p, state = rule.step(x, np.float32([0.3, -0.1, 0.0]), rule.init(x))
    # |q|_1 of the float32 numbers, in rationals, rounded once; the quotient rounded once.
    norm = np.float32(float(Fraction(float(np.float32(0.3))) + Fraction(float(np.float32(0.1)))))
    d = norm / np.float32(3.0) * np.float32([1.0, -1.0, 0.0])
    same(p, x - d)
    same(state.e, np.float32([0.3, -0.1, 0.0]) - d)
    np.testing.assert_allclose(p, [-0.13333, 0.13333, 0.0], atol=1e-5)
    np.testing.assert_allclose(state.e, [0.16667, 0.03333, 0.0], atol=1e-5)


def test_the_notes_golden_step(same):
    golden_step(EFSignSGD, same)


class WrongError(EFSignSGD):
    """Adds what was sent where it must be taken away."""

    def message_leaf(self, p, g, s, h, noise):
        message, new = super().message_leaf(p, g, s, h, noise)
        return message, new._replace(e=ops.flush(new.v + ops.product(h.scale, message.sign)))


class WrongScale(EFSignSGD):
    """Sums where the mean belongs."""

    def advance(self, found, s, h):
        return {"scale": found["norm"]}, {}


class Forgetful(EFSignSGD):
    """Keeps no error: the authors' code by its default, which is another method."""

    def message_leaf(self, p, g, s, h, noise):
        message, new = super().message_leaf(p, g, s, h, noise)
        return message, new._replace(e=s.e)


@pytest.mark.parametrize("broken", [WrongError, WrongScale, Forgetful])
def test_a_wrong_formula_is_seen(broken, same):
    with pytest.raises(AssertionError):
        golden_step(broken, same)


@pytest.mark.parametrize("scope", ["leaf", "group", "global"])
def test_the_formula_in_numpy(scope, same):
    blocks = {"leaf": [["a/x"], ["a/y"], ["b/z"]], "group": [["a/x", "a/y"], ["b/z"]]}.get(
        scope, [["a/x", "a/y", "b/z"]]
    )
    lr, mu, wd = np.float32(0.1), np.float32(0.9), np.float32(0.05)

    def flat(tree):
        return {"a/x": tree["a"]["x"], "a/y": tree["a"]["y"], "b/z": tree["b"]["z"]}

    p = flat(PARAMS)
    v = e = {name: np.zeros_like(x) for name, x in p.items()}
    for g in GRADS:
        g, v0, e0, v, e, p0, p = flat(g), v, e, {}, {}, p, {}
        for block in blocks:
            q = {}
            for name in block:
                v[name] = mu * v0[name] + g[name]
                q[name] = lr * v[name] + e0[name]
            exact = sum(Fraction(abs(float(x))) for name in block for x in q[name].ravel())
            scale = np.float32(exact) / np.float32(sum(q[name].size for name in block))
            for name in block:
                d = scale * np.sign(q[name])
                e[name] = q[name] - d
                p[name] = p0[name] + (-(lr * (wd * p0[name])) - d)
    params, state = run(EFSignSGD(lr=0.1, momentum=0.9, weight_decay=0.05, scope=scope))
    same(flat(params), p)
    same(flat(state.e), e)
    same(flat(state.v), v)


def test_the_virtual_iterate_takes_the_steps_of_gradient_descent():
    # The notes: x - e obeys x~ <- x~ - lr*g, exactly in exact arithmetic; here up to what float64 rounds.
    x = RNG.standard_normal(32)
    rule, virtual = EFSignSGD(lr=0.05), x
    state = rule.init(x)
    for k in range(50):
        g = RNG.standard_normal(32)
        x, state = rule.step(x, g, state)
        virtual = virtual - 0.05 * g
        assert np.max(np.abs(x - state.e - virtual)) < 1e-14 * (k + 2)


def test_what_is_lost_is_what_karimireddy_et_al_say():
    # |D - q|^2 = (1 - |q|_1^2/(n |q|_2^2)) |q|^2
    q = RNG.standard_normal(64)
    rule = EFSignSGD(lr=1.0)
    lost = rule.step(np.zeros(64), q, rule.init(np.zeros(64)))[1].e
    share = 1.0 - np.sum(np.abs(q)) ** 2 / (64 * np.sum(q * q))
    np.testing.assert_allclose(np.sum(lost * lost), share * np.sum(q * q), rtol=1e-13)


def counterexample(rule, steps):
    """2<a_i,x>a_i with a_1 = (1.5, -.5), a_2 = (-.5, 1.5), i a coin; x starts on the line z1 + z2 = 2."""
    a = np.asarray([[1.5, -0.5], [-0.5, 1.5]])
    x, coins = np.asarray([3.0, -1.0]), np.random.default_rng(0).integers(0, 2, steps)
    state = rule.init(x)
    for i in coins:
        x, state = rule.step(x, 2.0 * (a[i] @ x) * a[i], state)
    return x


def test_it_solves_what_signsgd_cannot():
    # The notes, sections 2 and 11: signs alone stay on the line for ever.
    assert np.max(np.abs(counterexample(EFSignSGD(lr=0.02), 2000))) < 1e-6
    assert abs(np.sum(counterexample(sc.SignSGD(lr=0.02), 300)) - 2.0) < 1e-9


def test_the_scale_of_gradients_scales_the_step(same):
    # Powers of two: exact. It is not invariant as signs are.
    grads = [sc.tree.unflatten(g, [4.0 * leaf.value for leaf in sc.tree.flatten(g)]) for g in GRADS]
    one, four = (run(EFSignSGD(lr=lr), grads=g) for lr, g in ((4.0, GRADS), (1.0, grads)))
    same(one[0], four[0])
    same(one[1].e, four[1].e)


@pytest.mark.parametrize(
    "change",
    [{"scope": "global"}, {"scope": "group"}, {"two_sided": True}, {"sign_zero": "plus"}, {"sign_zero": "minus"},
     {"momentum": 0.5}, {"weight_decay": 0.1}, {"lr": 0.2}, {"maximize": True}],
)  # fmt: skip
def test_every_option_changes_the_result(change, differ):
    assert differ(run(EFSignSGD(lr=0.1))[0], run(dataclasses.replace(EFSignSGD(lr=0.1), **change))[0])


def test_decay_is_seen_by_no_error(same):
    plain, decayed = (run(EFSignSGD(lr=0.5, weight_decay=wd), grads=GRADS) for wd in (0.0, 0.25))
    same(plain[1], decayed[1])


def test_leaves_without_numbers_or_gradients_are_left_alone(same):
    params = {"a": np.zeros((0,), np.float32), "b": np.ones(2, np.float32), "c": np.ones(2, np.float32)}
    grads = {"a": np.zeros((0,), np.float32), "b": np.float32([1.0, -3.0]), "c": None}
    for options in ({}, {"two_sided": True}, {"scope": "global", "nonfinite": "skip"}):
        rule = EFSignSGD(lr=1.0, **options)
        p, state = rule.step(params, grads, rule.init(params))
        same(p, {"a": params["a"], "b": np.float32([-1.0, 3.0]), "c": params["c"]})
        assert int(state.step) == 1


# -- several workers -----------------------------------------------------------------------------------------


def test_workers_keep_their_own_errors_and_the_server_averages(same):
    x, rule = np.zeros(2, np.float32), EFSignSGD(lr=1.0)
    grads = [np.float32([4.0, -2.0]), np.float32([1.0, 7.0])]
    p, states = sc.simulate(rule, x, grads)
    # By hand: D_1 = 3 (1, -1), D_2 = 4 (1, 1), their mean (3.5, .5)
    same(p, np.float32([-3.5, -0.5]))
    same(states[0].e, np.float32([1.0, 1.0]))
    same(states[1].e, np.float32([-3.0, 3.0]))


def test_the_server_keeps_what_it_does_not_send(same):
    x, rule = np.zeros(2, np.float32), EFSignSGD(lr=1.0, two_sided=True)
    grads = [np.float32([4.0, -2.0]), np.float32([1.0, 7.0])]
    p, states = sc.simulate(rule, x, grads)
    # As above, then (3.5, .5) becomes 2 (1, 1) and 1.5 (1, -1) is kept, by everybody.
    same(p, np.float32([-2.0, -2.0]))
    for state in states:
        same(state.server_e, np.float32([1.5, -1.5]))
    zero = [np.zeros(2, np.float32)] * 2
    # Now q_1 = (1, 1), q_2 = (-3, 3): D = (1, 1), (-3, 3), mean (-1, 2), with the server's error (.5, .5).
    p, states = sc.simulate(rule, p, zero, states)
    same(p, np.float32([-2.5, -2.5]))
    same(states[1].server_e, np.float32([0.0, 0.0]))


def test_both_errors_make_up_for_what_is_lost():
    # x - server_e - mean(e_n) takes the steps of gradient descent with the mean gradient (Tang et al. 2019).
    rule, x = EFSignSGD(lr=0.125, two_sided=True), np.zeros(16)
    states, sent = None, np.zeros(16)
    for _ in range(20):
        grads = list(RNG.standard_normal((3, 16)))
        x, states = sc.simulate(rule, x, grads, states)
        sent = sent - 0.125 * np.mean(grads, axis=0)
    owed = states[0].server_e + np.mean([state.e for state in states], axis=0)
    np.testing.assert_allclose(x - owed, sent, atol=1e-13)


def test_one_worker_of_equal_magnitudes_is_compressed_once(same):
    grads = [np.float32([1.0, -1.0, 1.0, 1.0])]
    one, two = (run(EFSignSGD(lr=0.5, two_sided=t), np.zeros(4, np.float32), grads)[0] for t in (False, True))
    same(one, two)


def test_the_scale_is_sent_once_a_leaf():
    rule = EFSignSGD(lr=1.0)
    assert rule.wire_bits() == {"sign": 2.0, "scale": 0.0}
    assert rule.replace(sign_zero="plus").wire_bits()["sign"] == 1.0
    state = rule.init(PARAMS)
    scalars = rule.finish(rule.measure(PARAMS, GRADS[0], state))
    message, _ = rule.message(PARAMS, GRADS[0], state, scalars)
    assert isinstance(message, EFSignSGDMessage)
    assert message.scale["a"]["x"].shape == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"scope": "tensor"}, "`scope` is 'tensor'; choose one of 'leaf', 'group', 'global'"),
     ({"momentum": 1.0}, r"`momentum` is 1.0; it must be finite and in \[0, 1\)"),
     ({"sign_zero": "random"}, "`sign_zero` is 'random'; choose one of 'zero', 'plus', 'minus'"),
     ({"two_sided": 1}, "`two_sided` is 1; choose one of False, True")],
)  # fmt: skip
def test_bad_input(options, words):
    with pytest.raises(ValueError, match=words):
        EFSignSGD(lr=0.1, **options)


def test_a_rate_is_needed():
    with pytest.raises(TypeError, match="lr"):
        EFSignSGD()
