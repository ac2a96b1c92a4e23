"""signSGD: what is special about the plain sign. Oracles: the notes, sections 0, 2 and 5."""

from fractions import Fraction
from itertools import product

import numpy as np
import optax
import pytest

import signcore as sc
from signcore import ops, schedules
from signcore.rules.signsgd import SignSGD, SignSGDMessage

PARAMS = np.random.default_rng(1).standard_normal(40).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((8, 40)).astype(np.float32)
GRADS[:, :4] = 0.0


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params


def test_every_coordinate_moves_by_the_learning_rate_against_its_gradient(same):
    # the notes, section 0, I2, with equality on coordinates that are not zero.
    delta, _ = SignSGD(lr=0.01).delta(PARAMS, GRADS[0], SignSGD().init(PARAMS))
    lr = np.float32(0.01)
    same(delta, np.where(GRADS[0] > 0, -lr, np.where(GRADS[0] < 0, lr, np.float32(0.0))))


def test_decoupled_decay_is_inside_the_step_and_rounded_by_itself(same):
    lr, wd = np.float32(0.01), np.float32(0.3)
    p = PARAMS
    for g in GRADS:
        p = p + -(lr * (np.sign(g) + wd * p))
    same(run(SignSGD(lr=0.01, weight_decay=0.3)), p)


def test_optax_sign_sgd_takes_the_same_steps(same):
    # optax.sign_sgd 0.2.8: jnp.sign, times -lr. It has no decay; -0.0 is where it leaves a zero gradient.
    tx, rule = optax.sign_sgd(0.01), SignSGD(lr=0.01)
    theirs, ours = tx.init(PARAMS), rule.init(PARAMS)
    for g in GRADS:
        update, theirs = tx.update(g, theirs, PARAMS)
        delta, ours = rule.delta(PARAMS, g, ours)
        same(np.asarray(update) + 0.0, delta)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_the_gradients_changes_nothing(scale, same):
    rule = SignSGD(lr=0.01, weight_decay=0.1)
    same(run(rule), run(rule, grads=GRADS * np.float32(scale)))


def test_a_separable_quadratic_shrinks_by_lr_until_within_lr_of_zero():
    # the notes, section 2: |x_i| decreases by exactly gamma until |x_i| < gamma. Powers of two: nothing rounds.
    curvature = np.float32([1.0, 10.0, 100.0])
    x = np.float32([1.0, -2.0, 3.0])
    rule = SignSGD(lr=0.125)
    state = rule.init(x)
    for _ in range(30):
        before = np.abs(x)
        x, state = rule.step(x, curvature * x, state)
        assert np.array_equal(np.abs(x)[before >= 0.125], before[before >= 0.125] - 0.125)
        assert np.all(np.abs(x) <= np.maximum(before, 0.125))
    assert np.all(np.abs(x) < 0.125)


@pytest.mark.parametrize("lr", [0.01, schedules.inverse_sqrt(0.5), schedules.cosine(0.1, total_steps=500)])
def test_the_counterexample_never_leaves_its_line(lr):
    # Safaryan and Richtarik 2019, section 3.2 (the notes, section 2): a1 = (1+e, -1+e), a2 = (-1+e, 1+e), gradients
    # 2 <a_i, x> a_i, start on z1 + z2 = 2. Every step has the sign of +-(1, -1), whatever its size, so the sum stays 2
    # and the optimum (0, 0) is never reached; 2000 steps, up to rounding.
    a = np.asarray([[1.5, -0.5], [-0.5, 1.5]])
    pick = np.random.default_rng(0).integers(0, 2, 2000)
    x = np.asarray([3.0, -1.0])
    rule = SignSGD(lr=lr)
    state = rule.init(x)
    for i in pick:
        x, state = rule.step(x, 2.0 * (a[i] @ x) * a[i], state)
    assert abs(x.sum() - 2.0) <= 1e-9


def test_the_policies_for_the_sign_of_zero_give_their_values(same):
    zeros = np.float32([0.0, -0.0, 1e-38, -(2.0**-101)])
    p = np.zeros(4, np.float32)
    for policy, sign in (("zero", 0.0), ("plus", 1.0), ("minus", -1.0)):
        rule = SignSGD(lr=1.0, sign_zero=policy)
        same(rule.delta(p, zeros, rule.init(p))[0], np.full(4, -sign, np.float32) + 0.0)


def test_random_zeros_are_fair_coins_that_depend_on_seed_step_and_place(differ):
    p = np.zeros(4096, np.float32)

    def flips(seed, steps):
        rule = SignSGD(lr=1.0, sign_zero="random", seed=seed)
        state = rule.init(p)
        for _ in range(steps):
            delta, state = rule.delta(p, p, state)
        return delta

    coins = flips(0, 1)
    assert set(coins) == {-1.0, 1.0}
    assert abs(coins.sum()) < 5 * 4096**0.5  # five standard deviations
    assert differ(coins, flips(1, 1))
    assert differ(coins, flips(0, 2))
    assert differ(coins[:2048], coins[2048:])


@pytest.mark.parametrize(
    ("rho", "drifts"),
    [
        (Fraction(3, 5), [0.2, 0.2, 0.296, 0.296, 0.36512, 0.36512]),
        (Fraction(3, 4), [0.5, 0.5, 0.6875, 0.6875, 0.79297, 0.79297]),
    ],
)
def test_the_drift_of_the_majority_vote_is_that_of_the_exact_binomial(rho, drifts):
    # the notes, section 5: E[V] for M = 1 .. 6 workers that are right with probability rho, sign(0) = 0;
    # 2l - 1 and 2l workers drift alike.
    for workers, expected in enumerate(drifts, start=1):
        outcomes = np.asarray(list(product([1.0, -1.0], repeat=workers)), dtype=np.float32)
        verdicts = sc.vote.majority(outcomes.T)
        right = (outcomes > 0).sum(axis=1)
        drift = sum(
            rho ** int(n) * (1 - rho) ** (workers - int(n)) * int(v) for n, v in zip(right, verdicts, strict=True)
        )
        assert round(float(drift), 5) == expected


def test_breaking_ties_upwards_biases_the_vote_of_an_even_number():
    # the notes, section 5: "with tie '+1' the equality breaks".
    outcomes = np.asarray(list(product([1.0, -1.0], repeat=2)), dtype=np.float32).T
    assert sc.vote.majority(outcomes).sum() == 0.0
    assert sc.vote.majority(outcomes, ties="plus").sum() == 2.0
    assert sc.vote.majority(outcomes, ties="minus").sum() == -2.0


def test_a_vote_of_one_is_the_step_itself(same):
    rule = SignSGD(lr=0.01, weight_decay=0.1)
    state = rule.init(PARAMS)
    message, sent = rule.message(PARAMS, GRADS[0], state)
    verdict = SignSGDMessage(sc.vote.majority(message.sign[None]))
    same(rule.apply(PARAMS, GRADS[0], verdict, sent), rule.delta(PARAMS, GRADS[0], state))


def test_fewer_than_half_the_workers_cannot_turn_a_unanimous_vote(same):
    honest = np.sign(GRADS[:5])
    honest[:] = honest[0]
    same(sc.vote.majority(np.concatenate([honest, -honest[:4]])), honest[0])


def test_workers_may_scale_their_losses(same):
    # the notes, section 5: the iterates do not see positive weights of the workers' losses.
    rule = SignSGD(lr=0.01)
    state = rule.init(PARAMS)

    def verdict(scales):
        signs = [rule.message(PARAMS, g * np.float32(s), state)[0].sign for g, s in zip(GRADS, scales, strict=True)]
        return sc.vote.majority(np.stack(signs))

    same(verdict([1.0] * 8), verdict([1.0, 2.0, 0.5, 8.0, 64.0, 0.25, 1.0, 1024.0]))


class TieToPlus(SignSGD):
    def message_leaf(self, p, g, s, h, noise):
        return SignSGDMessage(ops.sign(g, "plus")), s


class DecayInsideTheSign(SignSGD):
    def message_leaf(self, p, g, s, h, noise):
        return SignSGDMessage(ops.sign(g + ops.product(h.weight_decay, p))), s


class DecayFirst(SignSGD):
    """``p*(1 - lr*wd) - lr*s``, torch's usual form, as a delta."""

    def apply_leaf(self, p, aggregate, s, h):
        shrunk = ops.product(1.0 - ops.product(h.lr, h.weight_decay + 0 * p), p)
        return (shrunk - ops.product(h.lr, aggregate.sign)) - p, s


class Uphill(SignSGD):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(h.lr, -aggregate.sign, h.weight_decay, p), s


class OneUlpMore(SignSGD):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(float(np.nextafter(np.float32(h.lr), np.float32(1))), aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize("broken", [TieToPlus, DecayInsideTheSign, DecayFirst, Uphill, OneUlpMore])
def test_a_changed_formula_changes_the_words(broken, differ):
    options = {"lr": 0.01, "weight_decay": 0.3}
    assert differ(run(SignSGD(**options)), run(broken(**options)))


def test_there_is_no_state_per_element():
    assert [name for name, mark in SignSGD._marks.items() if mark.kind == "element"] == []
