"""Signum: what is special about the sign of an average. Oracles: the notes, section 4 and figure 1 of AASS."""

from fractions import Fraction

import numpy as np
import pytest

from signcore import ops
from signcore.rules.aass import AASS
from signcore.rules.sgd import SGD
from signcore.rules.signsgd import SignSGD
from signcore.rules.signum import Signum, SignumMessage

PARAMS = np.random.default_rng(1).standard_normal(64).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((12, 64)).astype(np.float32)
HOSTILE = GRADS.copy()
HOSTILE[:, :6] = np.float32([0.0, -0.0, 1e-38, -(2.0**-101), 1e38, -1e-45])


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def deltas(rule, grads):
    params, state = np.zeros_like(grads[0]), None
    state = rule.init(params)
    out = []
    for g in grads:
        delta, state = rule.delta(params, g, state)
        out.append(delta)
    return np.stack(out)


@pytest.mark.parametrize("sign_zero", ["zero", "plus", "minus", "random"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_without_memory_it_is_signsgd(nesterov, sign_zero, same):
    options = {"lr": 0.01, "weight_decay": 0.1, "sign_zero": sign_zero}
    same(
        run(Signum(beta=0.0, nesterov=nesterov, **options), grads=HOSTILE)[0], run(SignSGD(**options), grads=HOSTILE)[0]
    )


def test_the_first_step_is_signsgds(same):
    # the notes, section 4: m = (1 - beta) g_0 has the sign of g_0.
    same(run(Signum(lr=0.01), grads=GRADS[:1])[0], run(SignSGD(lr=0.01), grads=GRADS[:1])[0])


def test_the_average_is_two_rounded_products_and_a_sum(same, differ):
    beta, keep = np.float32(0.9), np.float32(1.0) - np.float32(0.9)
    m = lerp = np.zeros(64, np.float32)
    for g in GRADS:
        m = beta * m + keep * g
        lerp = lerp + keep * (g - lerp)
    same(run(Signum())[1].m, m)
    assert differ(m, lerp)


def test_the_complement_of_beta_is_formed_from_the_rounded_beta(differ, same):
    # arithmetic.md section 2, "where constants are rounded": 1 - 0.9 formed in double gives other words.
    rounded = np.float32(1.0) - np.float32(0.9)
    assert rounded != np.float32(1.0 - 0.9)
    same(run(Signum(), grads=GRADS[:1])[1].m, rounded * GRADS[0])
    assert differ(rounded * GRADS[0], np.float32(1.0 - 0.9) * GRADS[0])


def test_one_outlier_turns_signum_for_two_steps_and_aass_never():
    # Figure 1 of AASS (the notes, sections 4 and 7): gradients of -1 for 26 steps, one of +10, then -1 again.
    history = [-1] * 26 + [10] + [-1] * 13
    m, wrong = Fraction(0), []
    for k, g in enumerate(history):  # the real numbers, without a rounding
        m = Fraction(9, 10) * m + Fraction(1, 10) * g
        if m > 0:
            wrong.append(k)
    assert wrong == [26, 27]
    grads = np.asarray(history, np.float32)[:, None]
    assert [k for k, d in enumerate(deltas(Signum(lr=1.0, beta=0.9), grads)[:, 0]) if d < 0] == wrong
    for options in ({}, {"variance": "lagged"}, {"response": "linear"}):
        assert np.all(deltas(AASS(lr=1.0, beta=0.9, **options), grads) > 0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_has_the_signs_of_the_average(nesterov, same):
    # the notes, section 4: v = mu v + g with v_0 = g_0 is m/(1 - mu), so the signs are identical, and Nesterov's is
    # sign(g + mu v). Integers and mu = 1/2: nothing rounds, so this holds to the bit, zeros included.
    grads = np.random.default_rng(5).integers(-3, 4, (12, 64)).astype(np.float32)
    ball = SGD(lr=1.0, momentum=0.5, nesterov=nesterov)
    same(deltas(Signum(lr=1.0, beta=0.5, nesterov=nesterov), grads), np.sign(deltas(ball, grads)) + 0.0)


def test_nesterov_changes_signs(differ):
    assert differ(run(Signum(lr=0.01))[0], run(Signum(lr=0.01, nesterov=True))[0])


def test_decay_is_seen_neither_by_the_average_nor_by_the_sign(same):
    lr, wd = np.float32(0.01), np.float32(0.3)
    plain = run(Signum(lr=0.01))
    decayed = run(Signum(lr=0.01, weight_decay=0.3))
    same(plain[1].m, decayed[1].m)
    p = PARAMS
    for delta in deltas(Signum(lr=1.0), GRADS):
        p = p + -(lr * (-delta + wd * p))
    same(decayed[0], p)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_all_gradients_changes_no_parameter(scale, same):
    rule = Signum(lr=0.01, weight_decay=0.1)
    same(run(rule)[0], run(rule, grads=GRADS * np.float32(scale))[0])


def test_each_worker_averages_before_the_vote(same):
    # the notes, section 5: momentum on the worker, before the vote; momentum after it is a different rule.
    rule = Signum(lr=0.01)
    message, state = rule.message(PARAMS, GRADS[0], rule.init(PARAMS))
    same(state.m, run(rule, grads=GRADS[:1])[1].m)
    same(message.sign, np.sign(GRADS[0]))
    _, after = rule.apply(PARAMS, GRADS[0], SignumMessage(-message.sign), state)
    same(after.m, state.m)


class Lerp(Signum):
    def message_leaf(self, p, g, s, h, noise):
        m = s.m + ops.product(ops.complement(h.beta, g), g - s.m)
        return SignumMessage(ops.sign(m)), s._replace(m=m)


class Forgetful(Signum):
    def message_leaf(self, p, g, s, h, noise):
        return super().message_leaf(p, g, s._replace(m=0 * s.m), h, noise)


class Swapped(Signum):
    def message_leaf(self, p, g, s, h, noise):
        m = ops.ema(ops.complement(h.beta, g), s.m, g)
        return SignumMessage(ops.sign(m)), s._replace(m=m)


class OldAverage(Signum):
    def message_leaf(self, p, g, s, h, noise):
        _, new = super().message_leaf(p, g, s, h, noise)
        return SignumMessage(ops.sign(s.m)), new


class DecayInsideTheSign(Signum):
    def message_leaf(self, p, g, s, h, noise):
        return super().message_leaf(p, g + ops.product(h.weight_decay, p), s, h, noise)


class TieToPlus(Signum):
    def message_leaf(self, p, g, s, h, noise):
        message, s = super().message_leaf(p, g, s, h, noise)
        return SignumMessage(ops.where(message.sign == 0.0, 1.0, message.sign)), s


class Uphill(Signum):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(-h.lr, aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize(
    "broken", [Lerp, Forgetful, Swapped, OldAverage, DecayInsideTheSign, TieToPlus, Uphill], ids=lambda c: c.__name__
)
def test_a_changed_formula_changes_the_words(broken, differ):
    options = {"lr": 0.01, "weight_decay": 0.1}
    assert differ(run(Signum(**options), grads=HOSTILE), run(broken(**options), grads=HOSTILE))


def test_beta_changes_the_words(differ):
    assert differ(run(Signum(lr=0.01, beta=0.9))[0], run(Signum(lr=0.01, beta=0.99))[0])
