"""StoSignSGD. Oracles: the notes, section 13; arXiv 2604.15416."""

import math

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.random import stochastic_sign
from signcore.rules.stosignsgd import StoSignSGD

PARAMS = np.linspace(-1.0, 1.0, 64, dtype=np.float32)
GRADS = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def test_the_mean_of_each_coordinate_is_its_momentum_over_its_peak():
    # the notes, section 13: E sign(m + G n) = m/G, n uniform on [-1, 1), in a band of five deviations each.
    draws = 4000
    history = np.asarray([[4.0, 1.0, -2.0, -8.0, 3.0], [0.0, -1.0, 2.0, -1.0, 3.0], [-4.0, 0.5, 0.0, 1.0, 3.0]])
    grads = np.repeat(history[:, :, None], draws, axis=2).astype(np.float32)
    p = np.zeros(grads.shape[1:], np.float32)
    rule = StoSignSGD(lr=1.0, beta=0.5)
    state, m, peak = rule.init(p), np.zeros(5), np.zeros(5)
    for g, now in zip(grads, history, strict=True):
        delta, state = rule.delta(p, g, state)
        m = 0.5 * m + 0.5 * now
        peak = np.maximum(peak, np.abs(m))
        ratio = m / peak
        assert np.all(np.abs(-delta.mean(axis=1) - ratio) <= 5.0 * np.sqrt((1.0 - ratio**2) / draws))
        assert np.array_equal(state.peak[:, 0], peak)
    assert abs(ratio[4]) == 1.0  # a coordinate at its peak is certain
    assert np.all(delta[4] == -1.0)


def test_the_mean_is_exact_over_all_words():
    # 2**24 equally likely n: for m/G = 1/4 the words below 2**23 + 2**21 give +1.
    k = 2**23 + 2**21 + np.arange(-8, 8)
    words = (k.astype(np.int64) << 8).astype(np.uint32).view(np.int32)
    rule = StoSignSGD(lr=1.0, beta=0.0)
    p = np.zeros(16, np.float32)
    state = rule.init(p)._replace(peak=np.full(16, 4.0, np.float32))
    delta, _ = rule.delta(p, np.ones(16, np.float32), state, noise=words)
    assert np.array_equal(delta < 0.0, np.arange(-8, 8) < 0)


def test_a_step_is_signums_average_in_units_of_its_peak(same):
    rule, signum = StoSignSGD(lr=0.5), sc.Signum(lr=0.5)
    state, other = rule.init(PARAMS), signum.init(PARAMS)
    peak = np.zeros(64, np.float32)
    for g in GRADS:
        words = rule.noise(PARAMS, state)
        delta, state = rule.delta(PARAMS, g, state)
        _, other = signum.delta(PARAMS, g, other)
        peak = np.maximum(peak, np.abs(other.m))
        same((state.m, state.peak), (other.m, peak))
        same(delta, np.float32(-0.5) * stochastic_sign(other.m, peak, words))


def test_one_outlier_slows_a_coordinate_for_ever():
    # the notes, section 13: G never decays, so after an outlier of 1000 the sign's mean is a thousandth.
    rule = StoSignSGD(lr=1.0, beta=0.0)
    p = np.zeros(10_000, np.float32)
    _, state = rule.delta(p, np.full_like(p, 1000.0), rule.init(p))
    for _ in range(3):
        delta, state = rule.delta(p, np.ones_like(p), state)
        assert abs(delta.mean() + 1e-3) < 5.0 / math.sqrt(p.size)
    assert np.all(state.peak == 1000.0)


def test_what_never_had_a_gradient_stands_still_and_a_later_zero_is_a_coin():
    # the notes, section 13: G = 0 gives m = 0 gives 0.
    rule = StoSignSGD(lr=1.0, beta=0.0)
    p = np.zeros(4000, np.float32)
    delta, state = rule.delta(p, p, rule.init(p))
    assert not delta.any()
    _, state = rule.delta(p, p + 1.0, state)
    delta, _ = rule.delta(p, p, state)
    assert set(np.unique(delta)) == {-1.0, 1.0}
    assert abs(delta.sum()) < 5.0 * math.sqrt(4000)
    for zero, step in (("plus", -1.0), ("minus", 1.0)):
        other = rule.replace(sign_zero=zero)
        assert np.all(other.delta(p, p, other.init(p))[0] == step)
    coins = rule.replace(sign_zero="random")
    assert set(np.unique(coins.delta(p, p, coins.init(p))[0])) == {-1.0, 1.0}


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_a_power_of_two_in_all_gradients_changes_no_parameter(factor, same):
    rule = StoSignSGD(lr=0.01, weight_decay=0.1)
    same(run(rule)[0], run(rule, grads=GRADS * np.float32(factor))[0])


def test_the_mean_over_workers_keeps_the_mean():
    # Unbiased messages average: four workers' momenta of 1, 1, 1, -1 in units of their peak.
    rule = StoSignSGD(lr=1.0, beta=0.0, aggregation="mean")
    p = np.zeros(8000, np.float32)
    states = [rule.init(p, worker=n)._replace(peak=np.full_like(p, 2.0)) for n in range(4)]
    after, states = sc.simulate(rule, p, [np.full_like(p, g) for g in (1.0, 1.0, 1.0, -1.0)], states)
    assert abs(-after.mean() - 0.25) < 5.0 * math.sqrt(0.75 / 4 / 8000)
    assert set(np.unique(after)) == {-1.0, -0.5, 0.0, 0.5, 1.0}  # noise of their own


def test_nan_and_infinity_send_nothing():
    rule = StoSignSGD(lr=1.0, beta=0.5, sign_zero="plus")
    p = np.zeros(3, np.float32)
    delta, state = rule.delta(p, np.asarray([np.nan, np.inf, 1.0], np.float32), rule.init(p))
    assert delta.tolist() == [0.0, 0.0, -1.0]
    assert state.peak.tolist() == [0.0, np.inf, 0.5]


class PeakOfTheGradient(StoSignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        _, new = super().argument_leaf(p, g, s, h, noise)
        peak = np.maximum(s.peak, np.abs(g))
        return stochastic_sign(new.m, peak, noise), new._replace(peak=peak)


class OldPeak(StoSignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        _, new = super().argument_leaf(p, g, s, h, noise)
        return stochastic_sign(new.m, s.peak, noise), new


class Certain(StoSignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        _, new = super().argument_leaf(p, g, s, h, noise)
        return new.m, new


class Forgetful(StoSignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        return super().argument_leaf(p, g, s._replace(peak=0 * s.peak), h, noise)


class Uphill(StoSignSGD):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(-h.lr, aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize("broken", [PeakOfTheGradient, OldPeak, Certain, Forgetful, Uphill], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(StoSignSGD())[0], run(broken())[0])


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"seed": 1}, {"weight_decay": 0.1}, {"maximize": True}])
def test_each_option_changes_the_words(change, differ):
    assert differ(run(StoSignSGD())[0], run(StoSignSGD(**change))[0])


def test_arguments_have_a_range():
    with pytest.raises(ValueError, match=r"`beta` is 1\.0; it must be finite and in \[0, 1\)"):
        StoSignSGD(beta=1.0)
