"""Noisy signSGD. Oracles: the notes, section 13; Chen et al., arXiv 1906.01736; Jin et al., arXiv 2002.10940."""

import math

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.random import normal
from signcore.rules.noisy_signsgd import NoisySignSGD

PARAMS = np.linspace(-1.0, 1.0, 64, dtype=np.float32)
GRADS = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
SIZE = 40_000


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def mean_sign(rule, g):
    """Mean over many coordinates that all have the gradient g."""
    rule = rule.replace(lr=1.0)
    p = np.zeros(SIZE, np.float32)
    return -float(np.mean(rule.delta(p, np.full(SIZE, g, np.float32), rule.init(p))[0]))


@pytest.mark.parametrize("g", [0.0, 0.3, -1.0, 2.0])
def test_the_probability_of_plus_is_that_of_the_noise(g):
    # the notes, section 13: s = sign(g + b z), z ~ N(0, 1): P(+) = Phi(g/b), in a band of five deviations.
    p = 0.5 * (1.0 + math.erf(g / 0.8 / math.sqrt(2.0)))
    band = 5.0 * math.sqrt(p * (1.0 - p) / SIZE)
    assert abs((mean_sign(NoisySignSGD(b=0.8), g) + 1.0) / 2.0 - p) < band


@pytest.mark.parametrize("g", [0.0, 0.3, -0.75, 0.8])
def test_uniform_noise_has_the_gradient_as_its_mean(g):
    # the notes, section 13: with z ~ U[-1, 1) and b >= |g| the mean of s is g/b.
    b = 0.8
    deviation = math.sqrt(1.0 - (g / b) ** 2)
    assert abs(mean_sign(NoisySignSGD(b=b, distribution="uniform"), g) - g / b) <= 5.0 * deviation / math.sqrt(SIZE)


def test_the_mean_of_uniform_noise_is_exact_over_all_words():
    # 2**24 equally likely z: of g = 3*2**-23 b, 2**23 + 3 of them give +1. The words around the step suffice.
    k = np.arange(2**23 - 8, 2**23 + 8, dtype=np.int64)
    words = (k << 8).astype(np.uint32).view(np.int32)
    g = np.full(16, 3 * 2.0**-23, np.float32)
    rule = NoisySignSGD(lr=1.0, b=1.0, distribution="uniform")
    p = np.zeros(16, np.float32)
    s = -rule.delta(p, g, rule.init(p), noise=words)[0]
    assert np.count_nonzero(s > 0) == 8 + 3
    assert np.array_equal(s > 0, k - 2**23 < 3)


def test_the_noise_is_the_samplers(same):
    rule = NoisySignSGD(lr=0.5, b=0.7)
    state = rule.init(PARAMS)
    z = normal(rule.noise(PARAMS, state))
    wanted = PARAMS - np.float32(0.5) * np.sign(GRADS[0] + np.float32(0.7) * z)
    same(rule.step(PARAMS, GRADS[0], state)[0], wanted)


@pytest.mark.parametrize("sign_zero", ["zero", "plus", "minus", "random"])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_without_noise_it_is_signsgd(distribution, sign_zero, same):
    grads = GRADS.copy()
    grads[:, :3] = np.float32([0.0, -0.0, 1e-38])
    options = {"lr": 0.01, "weight_decay": 0.1, "sign_zero": sign_zero}
    plain = run(sc.SignSGD(**options), grads=grads)[0]
    same(run(NoisySignSGD(b=0.0, distribution=distribution, **options), grads=grads)[0], plain)


def test_noise_brings_the_median_to_the_mean():
    # the notes, section 13, and the paper's point: of the gradients -1, -1, 5 the vote of signs goes up for ever; with
    # noise of their size and more each coordinate of many goes down, as the mean would.
    p = np.zeros(4000, np.float32)
    grads = [np.full(4000, g, np.float32) for g in (-1.0, -1.0, 5.0)]
    assert np.all(sc.simulate(sc.SignSGD(lr=1.0), p, grads)[0] == 1.0)
    for distribution in ("normal", "uniform"):
        rule = NoisySignSGD(lr=1.0, b=8.0, distribution=distribution)
        after, _ = sc.simulate(rule, p, grads)
        assert np.mean(after) < -5.0 / math.sqrt(4000)


def test_workers_draw_noise_of_their_own():
    rule = NoisySignSGD(lr=1.0, b=1.0, aggregation="mean")
    p, g = np.zeros(4000, np.float32), np.zeros(4000, np.float32)
    for workers, wanted in (((0, 0), 0.0), ((0, 1), 0.5)):
        after, _ = sc.simulate(rule, p, [g, g], [rule.init(p, worker=n) for n in workers])
        assert abs(np.mean(after == 0.0) - wanted) <= 5.0 * wanted / math.sqrt(4000)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_gradients_and_noise_of_another_unit_change_nothing(distribution, factor, same):
    rule = NoisySignSGD(lr=0.01, b=0.5, distribution=distribution)
    same(run(rule), run(rule.replace(b=0.5 * factor), grads=GRADS * np.float32(factor)))


def test_b_may_be_given_for_a_call(same):
    for distribution in ("normal", "uniform"):
        rule = NoisySignSGD(lr=0.5, b=0.3, distribution=distribution)
        wanted = run(rule.replace(b=2.0), grads=GRADS[:1])[0]
        for b in (2.0, np.float32(2.0), np.asarray(2.0)):
            same(rule.step(PARAMS, GRADS[0], rule.init(PARAMS), hyper={"b": b})[0], wanted)


class Subtracted(NoisySignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        return g - ops.product(h.b, normal(noise)), s


class Variance(NoisySignSGD):
    def argument_leaf(self, p, g, s, h, noise):
        return g + ops.product(h.b * h.b, normal(noise)), s


class After(NoisySignSGD):
    def message_leaf(self, p, g, s, h, noise):
        return self.Message(ops.sign(g) + ops.product(h.b, normal(noise))), s


class Uphill(NoisySignSGD):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(-h.lr, aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize("broken", [Subtracted, Variance, After, Uphill], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(NoisySignSGD(b=0.5))[0], run(broken(b=0.5))[0])


@pytest.mark.parametrize("change", [{"b": 1.0}, {"distribution": "uniform"}, {"seed": 1}, {"weight_decay": 0.1}])
def test_each_option_changes_the_words(change, differ):
    assert differ(run(NoisySignSGD(b=0.5))[0], run(NoisySignSGD(**({"b": 0.5} | change)))[0])


def test_arguments_have_a_range():
    with pytest.raises(ValueError, match=r"`b` is -1\.0; it must be finite and in \[0, inf\)"):
        NoisySignSGD(b=-1.0)
    with pytest.raises(ValueError, match=r"`distribution` is 'cauchy'; choose one of 'normal', 'uniform'"):
        NoisySignSGD(distribution="cauchy")
