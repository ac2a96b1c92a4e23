"""Signum: what is special about the sign of an average. Oracles: the notes, section 4 and figure 1 of AASS."""

from fractions import Fraction

import numpy as np
import optax
import pytest
import torch

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


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_undamped_heavy_ball_has_the_signs_of_the_average(nesterov, beta, same):
    # the notes, section 4: damp = 0 gives v = m/(1 - mu). With mu = 1/2 and integers to the bit, zeros included; else
    # wherever the exact average is not next to zero.
    grads = np.random.default_rng(5).integers(-3, 4, (12, 64)).astype(np.float32)
    options = {"lr": 1.0, "beta": beta, "nesterov": nesterov}
    average, ball = deltas(Signum(**options), grads), deltas(Signum(form="heavy_ball", **options), grads)
    clear = np.ones(64, bool) if beta == 0.5 else np.abs(run(Signum(**options), grads=grads)[1].m) > 1e-6
    same(average[:, clear][-1], ball[:, clear][-1])
    if beta == 0.5:
        same(average, ball)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.3, 1.0])
def test_the_heavy_ball_is_the_sign_of_sgds_velocity(nesterov, dampening, same):
    # The form of ALIAS's code, SgdWithSign: the sign of what torch.optim.SGD subtracts.
    signum = Signum(lr=1.0, beta=0.9, form="heavy_ball", dampening=dampening, nesterov=nesterov)
    if nesterov and dampening:  # SGD refuses this pair, as torch does: by hand
        v = None
        for g, s in zip(GRADS, deltas(signum, GRADS), strict=True):
            v = g if v is None else np.float32(0.9) * v + (np.float32(1.0) - np.float32(dampening)) * g
            same(s, -np.sign(g + np.float32(0.9) * v) + 0.0)
        return
    sgd = SGD(lr=1.0, momentum=0.9, dampening=dampening, nesterov=nesterov)
    with np.errstate(over="ignore"):  # SGD's parameters
        same(deltas(signum, HOSTILE), np.sign(deltas(sgd, HOSTILE)) + 0.0)
        same(run(signum, grads=HOSTILE)[1].m, run(sgd, grads=HOSTILE)[1].velocity)


@pytest.mark.parametrize("dampening", [0.0, 0.25])
def test_the_heavy_ball_has_the_signs_of_torchs_sgd(dampening, same):
    # torch.optim.SGD itself, on integers and powers of two, where its fused multiply-adds round nothing.
    grads = np.random.default_rng(6).integers(-4, 5, (6, 64)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.5, dampening=dampening, foreach=False)
    signum = deltas(Signum(lr=1.0, beta=0.5, form="heavy_ball", dampening=dampening), grads)
    for g, delta in zip(grads, signum, strict=True):
        parameter.grad = torch.tensor(g)
        before = parameter.detach().clone()
        optimizer.step()
        same(delta, torch.sign(parameter.detach() - before) + 0.0)


def test_damping_does_not_damp_the_first_gradient():
    # the notes, section 4: with damp > 0 g_0 counts 1/(1 - damp) times more. By hand: g = 1, then -3, mu = 1/2,
    # damp = 7/8: v = 1, then 1/2 - 3/8 > 0, where the average, m = 1/2, then 1/4 - 3/2, has turned.
    grads = np.float32([[1.0], [-3.0]])
    ball = Signum(lr=1.0, beta=0.5, form="heavy_ball", dampening=0.875)
    assert deltas(ball, grads)[:, 0].tolist() == [-1.0, -1.0]
    assert deltas(Signum(lr=1.0, beta=0.5), grads)[:, 0].tolist() == [-1.0, 1.0]
    assert float(run(ball, np.zeros(1, np.float32), grads)[1].m[0]) == 0.125


def test_a_leaf_that_comes_late_starts_its_ball_then(same):
    params = {"early": PARAMS, "late": PARAMS}
    rule = Signum(beta=0.5, form="heavy_ball", dampening=0.75)
    params, state = rule.step(params, {"early": GRADS[0], "late": None}, rule.init(params))
    params, state = rule.step(params, {"early": GRADS[1], "late": GRADS[1]}, state)
    same(state.m["late"], GRADS[1])
    same(state.m["early"], np.float32(0.5) * GRADS[0] + np.float32(0.25) * GRADS[1])
    assert Signum().init(params).started is None


def test_dampening_belongs_to_the_heavy_ball():
    with pytest.raises(ValueError, match=r"`dampening` is 0\.1 and `form` is 'average'; pass form='heavy_ball'"):
        Signum(dampening=0.1)
    with pytest.raises(ValueError, match="`form` is 'ball'; choose one of 'average', 'heavy_ball'"):
        Signum(form="ball")
    with pytest.raises(ValueError, match=r"`dampening` is 1\.5; it must be finite and in \[0, 1\]"):
        Signum(form="heavy_ball", dampening=1.5)


def test_optax_signum_takes_the_same_steps(same):
    # optax.signum 0.2.8: sign of ``(1 - decay)*g + decay*m`` from 0, each operation rounded. To the bit where 1 - decay
    # is exact; for 0.9 optax forms it in double precision and rounds it then, so the last bits of m differ.
    for beta, exact in ((0.5, True), (0.75, True), (0.9, False)):
        tx, rule = optax.signum(0.01, beta=beta), Signum(lr=0.01, beta=beta)
        theirs, ours = tx.init(PARAMS), rule.init(PARAMS)
        for g in GRADS:
            update, theirs = tx.update(g, theirs, PARAMS)
            delta, ours = rule.delta(PARAMS, g, ours)
            clear = np.abs(ours.m) > 1e-6
            same(np.asarray(update)[clear] + 0.0, delta[clear])
            assert np.array_equal(np.asarray(theirs[0].ema), ours.m) is exact


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


class BallFromZero(Signum):
    """The heavy ball without its first use."""

    def message_leaf(self, p, g, s, h, noise):
        return super().message_leaf(p, g, s._replace(started=s.started * 0 + 1), h, noise)


class UndampedBall(Signum):
    def message_leaf(self, p, g, s, h, noise):
        h.dampening = 0.0
        return super().message_leaf(p, g, s, h, noise)


@pytest.mark.parametrize("broken", [BallFromZero, UndampedBall], ids=lambda c: c.__name__)
def test_a_changed_ball_changes_the_words(broken, differ):
    options = {"lr": 0.01, "form": "heavy_ball", "dampening": 0.9}
    assert differ(run(Signum(**options))[0], run(broken(**options))[0])


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
