"""Lion: what is special about two averages. Oracles: the notes, section 12."""

import numpy as np
import optax
import pytest
import torch

from signcore import ops
from signcore.rules.lion import Lion, LionMessage
from signcore.rules.signsgd import SignSGD
from signcore.rules.signum import Signum

PARAMS = np.random.default_rng(1).standard_normal(64).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((12, 64)).astype(np.float32)
HOSTILE = GRADS.copy()
HOSTILE[:, :6] = np.float32([0.0, -0.0, 1e-38, -(2.0**-101), 1e38, -1e-45])


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


@pytest.mark.parametrize("sign_zero", ["zero", "plus", "minus", "random"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_with_equal_betas_it_is_signum(beta, sign_zero, same):
    # the notes, section 12: c equals the new m.
    options = {"lr": 0.01, "weight_decay": 0.1, "sign_zero": sign_zero}
    lion = run(Lion(beta1=beta, beta2=beta, **options), grads=HOSTILE)
    signum = run(Signum(beta=beta, **options), grads=HOSTILE)
    same(lion[0], signum[0])
    same(lion[1]._asdict(), {name: getattr(signum[1], name) for name in lion[1]._fields})


def test_the_first_step_is_signsgds(same):
    same(run(Lion(lr=0.01), grads=GRADS[:1])[0], run(SignSGD(lr=0.01), grads=GRADS[:1])[0])


def test_the_direction_comes_from_the_average_before_the_update(same):
    # Worked by hand in powers of two: m_0 = 0, g = 8 then -3; beta1 = 3/4, beta2 = 1/2.
    #   c_1 = 2, m_1 = 4;  c_2 = 3 - 3/4 = 9/4 > 0, m_2 = 1/2
    # With the new average in the direction, c_2 would be 3/8 - 3/4 < 0.
    rule = Lion(lr=0.5, beta1=0.75, beta2=0.5)
    p, state = run(rule, np.zeros(1, np.float32), np.float32([[8.0], [-3.0]]))
    same(p, np.float32([-1.0]))
    same(state.m, np.float32([0.5]))


def test_both_averages_are_two_rounded_products_and_a_sum(same):
    b1, b2, one = np.float32(0.9), np.float32(0.99), np.float32(1.0)
    lr, wd = np.float32(0.01), np.float32(0.1)
    p, m = PARAMS, np.zeros(64, np.float32)
    for g in GRADS:
        c = b1 * m + (one - b1) * g
        m = b2 * m + (one - b2) * g
        p = p + -(lr * (np.sign(c) + wd * p))
    params, state = run(Lion(lr=0.01, weight_decay=0.1))
    same(params, p)
    same(state.m, m)


@pytest.mark.parametrize("start", [0.5, 2.0, 5.0])
def test_decay_keeps_every_coordinate_in_the_box(start):
    # the notes, section 12: |x_k| <= max(|x_0|, 1/wd) for lr*wd < 1, and eventually within 1/wd = 2.
    rule = Lion(lr=0.125, weight_decay=0.5)
    rng = np.random.default_rng(3)
    drift = np.where(np.arange(64) % 2, 1.0, -1.0)  # a lasting push on every coordinate
    x = np.full(64, start, np.float32)
    state = rule.init(x)
    for _ in range(400):
        x, state = rule.step(x, (rng.standard_normal(64) + drift).astype(np.float32), state)
        assert np.all(np.abs(x) <= max(start, 2.0))
    assert np.all(np.abs(x) <= 2.0 + 2.0**-18)  # from outside the last bits are not reached: half an ulp rounds away


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_all_gradients_changes_no_parameter(scale, same):
    rule = Lion(lr=0.01, weight_decay=0.1)
    same(run(rule)[0], run(rule, grads=GRADS * np.float32(scale))[0])


def test_workers_keep_averages_of_their_own_gradients(same):
    # the notes, section 12: N identical workers are one; the state does not see the vote.
    rule = Lion(lr=0.01)
    message, state = rule.message(PARAMS, GRADS[0], rule.init(PARAMS))
    delta, after = rule.apply(PARAMS, GRADS[0], message, state)
    same((delta, after), rule.delta(PARAMS, GRADS[0], rule.init(PARAMS)))
    _, voted = rule.apply(PARAMS, GRADS[0], LionMessage(-message.sign), state)
    same(voted.m, after.m)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optax_lion_takes_the_same_steps(weight_decay, same):
    # optax.lion 0.2.8, each operation rounded: to the bit where 1 - b1 and 1 - b2 are exact. For other betas optax
    # forms them in double precision and rounds then.
    tx = optax.lion(0.01, b1=0.75, b2=0.875, weight_decay=weight_decay)
    rule = Lion(lr=0.01, beta1=0.75, beta2=0.875, weight_decay=weight_decay)
    p, theirs, ours = PARAMS, tx.init(PARAMS), rule.init(PARAMS)
    for g in GRADS:
        update, theirs = tx.update(g, theirs, p)
        delta, ours = rule.delta(p, g, ours)
        same(np.asarray(update) + 0.0, delta)
        same(np.asarray(theirs[0].mu), ours.m)
        p = p + delta


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_pytorchs_published_formula(weight_decay, same):
    # lion-pytorch, lion_pytorch.py, update_fn: p.mul_(1 - lr*wd); u = exp_avg.mul(b1).add(g, alpha=1 - b1).sign();
    # p.add_(u, alpha=-lr); exp_avg.mul_(b2).add_(g, alpha=1 - b2). Without decay to the bit, where 1 - beta is a power
    # of two, so that the fused multiply-adds round nothing else. With decay p is rounded once more there, because it
    # shrinks before the step: the same real numbers.
    lr, b1, b2 = 0.01, 0.75, 0.5
    rule = Lion(lr=lr, beta1=b1, beta2=b2, weight_decay=weight_decay)
    p, average, x, state = torch.tensor(PARAMS), torch.zeros(64), PARAMS, rule.init(PARAMS)
    for g in GRADS:
        gradient = torch.tensor(g)
        p.mul_(1.0 - lr * weight_decay)
        update = average.clone().mul_(b1).add(gradient, alpha=1.0 - b1).sign_()
        p.add_(update, alpha=-lr)
        average.mul_(b2).add_(gradient, alpha=1.0 - b2)
        x, state = rule.step(x, g, state)
        same(state.m, average)
        if weight_decay:
            assert np.abs(x - p.numpy()).max() < 1e-6
        else:
            same(x, p)


class NewAverageFirst(Lion):
    def message_leaf(self, p, g, s, h, noise):
        m = ops.ema(h.beta2, s.m, g)
        return LionMessage(ops.sign(ops.ema(h.beta1, m, g))), s._replace(m=m)


class BetasSwapped(Lion):
    def message_leaf(self, p, g, s, h, noise):
        c = ops.ema(h.beta2, s.m, g)
        return LionMessage(ops.sign(c)), s._replace(m=ops.ema(h.beta1, s.m, g))


class Lerp(Lion):
    def message_leaf(self, p, g, s, h, noise):
        message, new = super().message_leaf(p, g, s, h, noise)
        return message, new._replace(m=s.m + ops.product(ops.complement(h.beta2, g), g - s.m))


class DirectionStored(Lion):
    def message_leaf(self, p, g, s, h, noise):
        c = ops.ema(h.beta1, s.m, g)
        return LionMessage(ops.sign(c)), s._replace(m=c)


class DecayInsideTheSign(Lion):
    def message_leaf(self, p, g, s, h, noise):
        return super().message_leaf(p, g + ops.product(h.weight_decay, p), s, h, noise)


class TieToMinus(Lion):
    """What distributed-lion-pytorch sends for zero."""

    def message_leaf(self, p, g, s, h, noise):
        message, s = super().message_leaf(p, g, s, h, noise)
        return LionMessage(ops.where(message.sign == 0.0, -1.0, message.sign)), s


class Uphill(Lion):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(h.lr, -aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize(
    "broken",
    [NewAverageFirst, BetasSwapped, Lerp, DirectionStored, DecayInsideTheSign, TieToMinus, Uphill],
    ids=lambda c: c.__name__,
)
def test_a_changed_formula_changes_the_words(broken, differ):
    options = {"lr": 0.01, "weight_decay": 0.1}
    assert differ(run(Lion(**options), grads=HOSTILE), run(broken(**options), grads=HOSTILE))


@pytest.mark.parametrize("change", [{"beta1": 0.95}, {"beta2": 0.98}])
def test_each_beta_changes_the_words(change, differ):
    assert differ(run(Lion(lr=0.01)), run(Lion(lr=0.01, **change)))
