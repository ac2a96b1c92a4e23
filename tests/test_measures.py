"""Measures: exact on every backend, bounds that hold and are met with equality where theory says so."""

import itertools
import math
from collections import OrderedDict
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

import signcore as sc
from signcore import drift, measures, sums

RNG = np.random.default_rng(20)
GRADIENT = {
    "w": RNG.normal(size=(5, 7)).astype(np.float32),
    "b": [np.float32([0.0, -0.0, 1e-38, -3e20]), None, np.float32([])],
}
NOISE = {
    "w": RNG.uniform(0, 3, (5, 7)).astype(np.float32),
    "b": [np.float32([0.0, 1.0, 2.0, 3.0]), None, np.float32([])],
}
RHO = {"w": RNG.uniform(0, 1, (5, 7)).astype(np.float32), "b": [np.float32([0.0, 1.0, 0.5, 0.7]), None, np.float32([])]}
SIGNS = RNG.integers(-1, 2, (7, 5, 11)).astype(np.float32)


def stacked(tree, count, spread):
    """Samples of a tree with noise, in a fixed order of drawing."""
    if isinstance(tree, dict):
        return {key: stacked(child, count, spread) for key, child in tree.items()}
    if isinstance(tree, list):
        return [stacked(child, count, spread) for child in tree]
    if tree is None:
        return None
    noise = RNG.normal(size=(count, *tree.shape)) * spread
    return (tree + noise).astype(tree.dtype)


SAMPLES = stacked(GRADIENT, 9, 1.0)
NUMBERS = RNG.normal(size=(3, 40)).astype(np.float32) * np.float32(2.0) ** RNG.integers(-30, 30, (3, 40)).astype(
    np.float32
)

CASES = {
    "flip_rate": (measures.flip_rate, (GRADIENT, NOISE)),
    "flip_rate, zeros": (lambda a, b: measures.flip_rate(a, b, zeros=True), (GRADIENT, NOISE)),
    "zero_share": (measures.zero_share, (GRADIENT,)),
    "vote_margin": (measures.vote_margin, ({"a": SIGNS, "b": SIGNS[:, 0, 0]},)),
    "vote_margin, each": (lambda s: measures.vote_margin(s, elementwise=True), ({"a": SIGNS, "b": SIGNS[:, :1, 0]},)),
    "bits_at_risk": (lambda u: measures.bits_at_risk(u, ulps=2**20), (GRADIENT,)),
    "bits_at_risk, scale": (lambda u, s: measures.bits_at_risk(u, 2**22, s, zeros=False), (GRADIENT, NOISE)),
    "success_probability": (measures.success_probability, (SAMPLES, GRADIENT)),
    "success_probability, half": (lambda s, g: measures.success_probability(s, g, ties="half"), (SIGNS, SIGNS[0])),
    "noise_scale": (measures.noise_scale, (SAMPLES, GRADIENT)),
    "rho_norm": (measures.rho_norm, (GRADIENT, RHO)),
    "rho_m_norm": (lambda g, p: measures.rho_m_norm(g, p, 8), (GRADIENT, RHO)),
    "l12_norm": (measures.l12_norm, (GRADIENT, NOISE)),
    "snr_stationarity": (measures.snr_stationarity, (GRADIENT, NOISE)),
    "unimodal_bound": (measures.unimodal_bound, (GRADIENT, NOISE)),
    "gauss_bound": (measures.gauss_bound, (GRADIENT, NOISE)),
    "growth_bound": (measures.growth_bound, (NOISE, RHO)),
    "moment_batch": (measures.moment_batch, (GRADIENT, NOISE, NOISE)),
    "vote_success": (lambda p: measures.vote_success(p, 7), (RHO,)),
    "vote_variance": (lambda p: measures.vote_variance(p, 6), (RHO,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_words_are_the_same_on_every_library(case, other, same):
    function, arguments = CASES[case]
    expected = function(*arguments)
    same(other.compiled(function)(*map(other.tree, arguments)), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_words_are_the_same_in_every_dtype(case, dtype, libraries, same):
    def cast(node):
        if isinstance(node, dict):
            return {key: cast(child) for key, child in node.items()}
        if isinstance(node, list):
            return [cast(child) for child in node]
        return None if node is None else np.clip(node, -6e4, 6e4).astype(dtype)

    function, arguments = CASES[case]
    arguments = tuple(map(cast, arguments))
    expected = function(*arguments)
    same(function(*map(libraries["torch"].tree, arguments)), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_jax_gives_the_words_in_every_dtype(dtype, libraries, same):
    u, scale = (x.astype(dtype) for x in (GRADIENT["w"], NOISE["w"]))

    def every(u, scale):
        share = measures.bits_at_risk(u, 2**6, scale), measures.flip_rate(u, scale), measures.vote_margin(u)
        return share, measures.success_probability(u, scale[0]), measures.unimodal_bound(u, scale)

    with jax.enable_x64(dtype is np.float64):  # without x64 JAX has no float64
        same(jax.jit(every)(*map(libraries["jax"].array, (u, scale))), every(u, scale))


def test_dynamo_traces_the_diagnostics_without_a_break(libraries, same):
    def diagnostics(u, s):
        return (
            measures.flip_rate(u, s),
            measures.zero_share(u),
            measures.vote_margin({"w": u["w"]}),
            measures.bits_at_risk(u, 4, s),
        )

    compiled = torch.compile(diagnostics, fullgraph=True, backend="eager")
    same(compiled(libraries["torch"].tree(GRADIENT), libraries["torch"].tree(NOISE)), diagnostics(GRADIENT, NOISE))


# -- signs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_flips_zeros_and_margins_are_what_counting_gives(seed):
    s = np.random.default_rng(seed).integers(-1, 2, (6, 50)).astype(np.float32)
    a, b = s[0], s[1]
    assert measures.flip_rate(a, b) == np.float32(sum(x * y < 0 for x, y in zip(a, b, strict=True)) / 50)
    assert measures.flip_rate(a, b, zeros=True) == np.float32(sum(x != y for x, y in zip(a, b, strict=True)) / 50)
    assert measures.zero_share(a) == np.float32(list(a).count(0.0) / 50)
    assert measures.vote_margin(s) == np.float32(sum(abs(sum(column)) for column in s.T.tolist()) / 300)


def test_margins_are_the_size_of_the_mean_vote(same):
    same(measures.vote_margin(SIGNS, elementwise=True), np.abs(sc.vote.mean(SIGNS)))


def test_signs_are_those_of_the_rules():
    tiny = np.float32([2.0**-101, -(2.0**-101), np.nan, 2.0**-100])
    assert measures.zero_share(tiny) == 0.75
    assert measures.flip_rate(tiny, -tiny) == 0.25
    assert measures.vote_margin(tiny[:, None]) == 0.25


def test_a_share_of_more_than_2_24_coordinates_is_exact():
    x = np.zeros(2**24 + 2, np.float16)
    x[7] = 1.0
    assert measures.zero_share(x) == np.float32(1.0 - 2.0**-24)
    assert measures.zero_share([x[:5], x[5:]]) == np.float32(1.0 - 2.0**-24)


def test_counts_may_be_larger_than_an_int32():
    assert measures._share([np.full(4096, 2**20, np.int32)], 2**33) == 0.5


def test_results_are_arrays_without_axes():
    for value in (
        measures.flip_rate(SIGNS[0], SIGNS[1]),
        measures.zero_share(SIGNS[0, 0, 0]),
        measures.vote_margin(SIGNS[:, 0, 0]),
        measures.bits_at_risk(SIGNS),
        measures.zero_share({}),
        measures.zero_share(np.float32([])),
        measures.vote_margin(SIGNS[:, :0]),
        measures.bits_at_risk([None, np.float64([])]),
    ):
        assert isinstance(value, np.ndarray)
        assert (value.shape, value.dtype) == ((), np.float32)


def spacing(x):
    """Distance from the magnitude to the next number, by counting words up."""
    kind = {2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]
    size = np.abs(x)
    return (size.view(kind) + kind(1)).view(x.dtype).astype(np.float64) - size.astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("ulps", [0.5, 1, 3])
def test_a_bit_at_risk_is_one_that_so_many_ulps_of_its_scale_would_change(dtype, ulps):
    rng = np.random.default_rng(3)
    scale = (rng.normal(size=400) * 2.0 ** rng.integers(-12, 10, 400)).astype(dtype)
    ulp = spacing(scale)
    u = (rng.integers(-9, 10, 400) * ulp * 0.5).astype(dtype)
    expected = np.abs(u.astype(np.float64)) <= ulps * ulp
    assert 0 < expected.sum() < 400
    assert measures.bits_at_risk(u, ulps, scale) == np.float32(expected.mean())
    assert measures.bits_at_risk(u, ulps, scale, zeros=False) == np.float32((expected & (u != 0)).mean())
    largest = np.max(np.abs(u))
    expected = np.abs(u.astype(np.float64)) <= ulps * spacing(largest[None])
    assert measures.bits_at_risk(u, ulps) == measures.bits_at_risk(u, ulps, largest) == np.float32(expected.mean())
    assert measures.bits_at_risk(u, ulps, float(largest)) == np.float32(expected.mean())


def test_signs_that_two_orders_of_a_sum_disagree_on_are_at_risk():
    a, b = np.random.default_rng(4).normal(size=(2, 200_000)).astype(np.float32)
    c = -(a.astype(np.float64) + b).astype(np.float32)
    one, two = (a + b) + c, a + (b + c)
    disagree = np.sign(one) != np.sign(two)
    assert disagree.sum() > 1000
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(c))
    assert measures.bits_at_risk(one[disagree], 2, scale[disagree]) == 1.0
    # and without cancellation nothing is
    assert measures.bits_at_risk(a + b, 2, np.abs(a) + np.abs(b)) < 1e-3


def test_what_was_summed_of_nothing_is_not_at_risk():
    u = np.float32([0.0, 0.0, 1.0, 0.0])
    assert measures.bits_at_risk(u, 1, np.float32([0.0, 0.0, 1.0, 2.0])) == 0.25
    assert measures.bits_at_risk(np.zeros(3, np.float32)) == 0.0
    assert measures.bits_at_risk(np.float32([1.0, np.nan, np.inf, 2.0])) == 0.75


# -- estimates ---------------------------------------------------------------------------------------------


def test_success_is_the_share_of_samples_with_the_gradients_sign():
    samples = np.float32([[1, 0, -2, 5], [2, -1, -2, -5], [-3, 0, -1, 0]])
    gradient = np.float32([4, -1, -0.5, 0])
    third = np.float32(1 / 3)
    assert measures.success_probability(samples, gradient).tolist() == [np.float32(2 / 3), third, 1.0, 0.5]
    half = measures.success_probability(samples, gradient, ties="half")
    assert half.tolist() == [np.float32(2 / 3), np.float32(2 / 3), 1.0, 0.5]
    assert measures.success_probability(samples[:, 0], gradient[0]).shape == ()


def test_half_a_tie_makes_the_rho_norm_the_mean_step_along_the_gradient():
    gradient = RNG.integers(-4, 5, (5, 11)).astype(np.float32)
    rho = measures.success_probability(SIGNS[:4], gradient, ties="half")  # quarters: no rounding
    mean = (SIGNS[:4].astype(np.float64) * gradient).sum(axis=(1, 2)).mean()
    assert float(measures.rho_norm(gradient, rho)) == mean


def test_an_oracle_takes_the_place_of_the_sign():
    # SSDM's stochastic sign of (3, 4) is right with probabilities 0.8 and 0.9, definition 3 of the paper
    gradient, count = np.float32([3.0, -4.0]), 1000
    key = sc.random.stream_key(seed=5, name="")

    def oracle(sample, k):
        words = sc.random.words(key, np.int32(k), 2)
        return {"g": sc.random.stochastic_sign(sample["g"], sums.norm2(sample["g"]), words)}

    samples = {"g": np.broadcast_to(gradient, (count, 2))}
    rho = measures.success_probability(samples, {"g": gradient}, oracle)["g"]
    for found, expected in zip(rho, (0.8, 0.9), strict=True):
        assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / count)
    assert measures.success_probability(samples, {"g": gradient}, lambda sample, k: {"g": -sample["g"]})["g"].max() == 0
    seen = []
    measures.success_probability(samples["g"][:3], gradient, lambda sample, k: seen.append(k) or sample)
    assert seen == [0, 1, 2]


def test_gaussian_noise_has_the_success_of_its_distribution():
    rng, count = np.random.default_rng(6), 40_000
    gradient, sigma = np.float32([0.05, -0.3, 1.0, -2.5]), np.float32([1.0, 0.5, 2.0, 1.0])
    samples = (gradient + sigma * rng.normal(size=(count, 4))).astype(np.float32)
    rho = measures.success_probability(samples, gradient)
    for found, g, s in zip(rho, gradient, sigma, strict=True):
        exact = 0.5 * (1 + math.erf(abs(g) / s / math.sqrt(2)))
        assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / count)
    # the relative deviation of a sample standard deviation is 1/sqrt(2N)
    assert np.all(np.abs(measures.noise_scale(samples, gradient) / sigma - 1) < 5 / math.sqrt(2 * count))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_the_noise_scale_is_the_root_mean_square(count):
    samples, gradient = NUMBERS[:, :5].repeat(4, axis=0)[:count], NUMBERS[1, :5]
    apart = samples.astype(np.float64) - gradient
    expected = [math.sqrt(math.fsum(x * x for x in column) / count) for column in apart.T]
    np.testing.assert_allclose(measures.noise_scale(samples, gradient), expected, rtol=2.0**-24)


# -- norms -------------------------------------------------------------------------------------------------


def test_the_rho_norm_is_the_real_sum_rounded_once():
    gradient = np.float32([1e30, 3.0, -1e30, 1e-20])
    rho = np.float32([1.0, 0.75, 0.0, 0.5])
    exact = sum(Fraction(abs(float(g))) * (2 * Fraction(float(p)) - 1) for g, p in zip(gradient, rho, strict=True))
    assert float(measures.rho_norm(gradient, rho)) == float(exact) == 1.5


@pytest.mark.parametrize("norm", [measures.rho_norm, lambda g, p: measures.rho_m_norm(g, p, 5), measures.l12_norm])
def test_norms_depend_neither_on_order_nor_on_pieces(norm, same):
    weights = np.random.default_rng(1).uniform(0, 1, 40).astype(np.float32)
    whole = norm(NUMBERS[0], weights)
    order = np.random.default_rng(2).permutation(40)
    same(norm(NUMBERS[0][order], weights[order]), whole)
    same(norm([NUMBERS[0][:7], NUMBERS[0][7:]], [weights[:7], weights[7:]]), whole)


def test_norms_are_their_formulas():
    g, s = NUMBERS[0].astype(np.float64), np.abs(NUMBERS[1]).astype(np.float64)
    p = RHO["w"].reshape(-1)[:20].astype(np.float64)
    size = np.abs(g)
    close = {"rel_tol": 2.0**-22}
    assert math.isclose(
        measures.l12_norm(NUMBERS[0], np.abs(NUMBERS[1])), math.fsum(g * g / (size + 3**0.5 * s)), **close
    )
    assert math.isclose(
        measures.snr_stationarity(NUMBERS[0], np.abs(NUMBERS[1])), math.fsum(size * np.minimum(1, size / s)), **close
    )
    expected = math.fsum((3 * (2 * p - 1) - (2 * p - 1) ** 3) / 2 * size[:20])  # M = 3
    assert math.isclose(measures.rho_m_norm(NUMBERS[0][:20], RHO["w"].reshape(-1)[:20], 3), expected, **close)
    assert measures.l12_norm(NUMBERS[0], 0.0) == measures.snr_stationarity(NUMBERS[0], 0.0) == sums.norm1(NUMBERS[0])


@pytest.mark.parametrize("ratio", [0.0, 1e-3, 0.4, 0.6, 0.99, 1.0, 1.01, 30.0])
def test_each_coordinate_adds_its_own_weight(ratio):
    g = np.float64([-ratio])
    assert measures.snr_stationarity(g, 1.0) == ratio * min(1.0, ratio)
    assert math.isclose(measures.l12_norm(g, 1.0), ratio * ratio / (ratio + math.sqrt(3)), rel_tol=4e-16)
    assert measures.rho_norm(g, 0.75) == ratio / 2


def test_a_number_or_an_array_without_axes_stands_for_all_coordinates(same):
    everywhere = {"w": np.full((5, 7), 0.75, np.float32), "b": [np.full(4, 0.75, np.float32), None, np.float32([])]}
    for norm in (measures.rho_norm, measures.l12_norm, measures.snr_stationarity):
        expected = norm(GRADIENT, everywhere)
        same(norm(GRADIENT, 0.75), expected)
        same(norm(GRADIENT, np.asarray(0.75, np.float32)), expected)


@pytest.mark.parametrize("noise", ["normal", "laplace", "uniform"])
def test_the_l12_norm_is_below_the_rho_norm(noise):  # lemma 4
    s = np.abs(NUMBERS[0].astype(np.float64))
    rho = {
        "normal": 0.5 + 0.5 * np.vectorize(math.erf)(s / math.sqrt(2)),
        "laplace": 1 - 0.5 * np.exp(-math.sqrt(2) * s),
        "uniform": np.minimum(0.5 + s / math.sqrt(12), 1),
    }[noise]
    assert 0 < measures.l12_norm(s, 1.0) < measures.rho_norm(s, rho) <= sums.norm1(s)
    assert 0 < measures.snr_stationarity(s, 1.0) / math.sqrt(3) <= measures.rho_norm(s, rho)


# -- bounds of the probability -----------------------------------------------------------------------------

RATIOS = np.geomspace(1e-3, 1e3, 121)


def test_the_bounds_for_unimodal_noise_hold_and_gauss_is_met_with_equality():
    weak, sharp = measures.unimodal_bound(RATIOS, 1.0), measures.gauss_bound(RATIOS, 1.0)
    normal = 0.5 + 0.5 * np.vectorize(math.erf)(RATIOS / math.sqrt(2))
    laplace = 1 - 0.5 * np.exp(-math.sqrt(2) * RATIOS)
    uniform = np.minimum(0.5 + RATIOS / math.sqrt(12), 1)
    for exact in (normal, laplace, uniform):
        assert np.all(weak <= exact)
        assert np.all(sharp <= exact + 2e-16)
    assert np.all((weak > 0.5) & (weak <= sharp))
    # The worst noise: uniform up to 3|g|/2 with probability w, else none. Its variance w a^2/3 is 1.
    near = 2 / math.sqrt(3) >= RATIOS
    reach = 1.5 * RATIOS
    worst = 1 - 3 / reach**2 * (reach - RATIOS) / (2 * reach)
    np.testing.assert_allclose(sharp, np.where(near, uniform, worst), rtol=1e-15)


def test_the_bounds_are_correctly_rounded_in_float32():
    gradient, sigma = np.abs(NUMBERS[0]), np.abs(NUMBERS[1])
    for g, s, weak, sharp in zip(
        gradient, sigma, measures.unimodal_bound(gradient, sigma), measures.gauss_bound(gradient, sigma), strict=True
    ):
        with mpmath.workdps(40):
            ratio = mpmath.mpf(float(g)) / mpmath.mpf(float(s))
            lemma = (1 + ratio / (ratio + mpmath.sqrt(3))) / 2
            gauss = (1 + ratio / mpmath.sqrt(3)) / 2 if ratio <= 2 / mpmath.sqrt(3) else 1 - 2 / (9 * ratio**2)
        assert (weak, sharp) == (np.float32(float(lemma)), np.float32(float(gauss)))


def coin(p, gradient, tau):
    """A skewed coin's noise of variance 1: (nu^3, exact probability that the sum of tau samples has the sign of g)."""
    up, down = math.sqrt((1 - p) / p), -math.sqrt(p / (1 - p))  # with probabilities p and 1 - p
    third = p * up**3 - (1 - p) * down**3
    right = math.fsum(
        math.comb(tau, k) * p**k * (1 - p) ** (tau - k)
        for k in range(tau + 1)
        if tau * gradient + k * up + (tau - k) * down > 1e-9
    )
    return third, right


@pytest.mark.parametrize("p", [0.5, 0.4, 0.1, 0.03, 0.9, 0.99])
def test_the_bounds_of_mini_batches_hold_for_skewed_coins(p):
    for gradient, tau in itertools.product((0.02, 0.1, 0.3, 0.7, 1.5), (1, 2, 5, 20, 60)):
        third, right = coin(p, gradient, tau)
        nu = third ** (1 / 3)
        assert measures.moment_bound(gradient, 1.0, nu, tau) <= right + 1e-12
        assert measures.growth_bound(1 / gradient**2, tau) <= right + 1e-12


@pytest.mark.parametrize("p", [0.5, 0.4, 0.1, 0.03, 0.9, 0.99])
def test_a_batch_above_the_threshold_has_success_above_one_half(p):
    for gradient in (0.05, 0.1, 0.3, 0.7, 1.5):
        third, _ = coin(p, gradient, 1)
        nu = third ** (1 / 3)
        threshold = measures.moment_batch(gradient, 1.0, nu)
        assert math.isclose(threshold, 2 * min(1 / gradient**2, third / gradient), rel_tol=1e-12)
        tau = math.floor(threshold) + 1
        assert coin(p, gradient, tau)[1] > 0.5
        assert measures.moment_bound(gradient, 1.0, nu, threshold * 1.000001) > 0.5


def test_the_moment_bound_is_the_larger_of_two():
    # by mpmath, and by Chebyshev where the third moment is large
    with mpmath.workdps(30):
        normal = (1 + mpmath.erf(mpmath.mpf(0.5) * 5 / mpmath.sqrt(2)) - mpmath.mpf(1.1) ** 3 / 5) / 2
    assert math.isclose(measures.moment_bound(0.5, 1.0, 1.1, 25), float(normal), rel_tol=1e-14)
    assert measures.moment_bound(2.0, 1.0, 9.0, 2) == 1 - 1 / 8
    found = measures.moment_bound(np.float64([0.0, 1.0, 0.01]), np.float64([1.0, 0.0, 1.0]), 1.0, 1)
    assert found.tolist() == [0.5, 1.0, measures.moment_bound(0.01, 1.0, 1.0, 1)]
    assert measures.moment_bound(0.1, 1.0, 5.0, 1) == 0.0


def test_what_is_below_the_flush_threshold_is_zero():
    assert measures.moment_batch(np.float32([1e-38]), 1e-30, 1e-30).tolist() == [math.inf]
    assert measures.moment_batch(np.float32([1e25]), 1.0, 1.0).tolist() == [0.0]


def test_coordinates_without_gradient_or_noise():
    g, s = np.float32([0, 0, 2]), np.float32([0, 1, 0])
    assert measures.unimodal_bound(g, s).tolist() == [0.5, 0.5, 1.0]
    assert measures.gauss_bound(g, s).tolist() == [0.5, 0.5, 1.0]
    assert measures.moment_batch(g, s, s).tolist() == [math.inf, math.inf, 0.0]
    assert measures.l12_norm(g, s) == measures.snr_stationarity(g, s) == 2.0


# -- votes -------------------------------------------------------------------------------------------------

TABLE = {0.6: [0.2, 0.2, 0.296, 0.296, 0.36512, 0.36512], 0.75: [0.5, 0.5, 0.6875, 0.6875, 0.79297, 0.79297]}


@pytest.mark.parametrize(
    ("rho", "workers", "expected"), [(p, m + 1, e) for p, row in TABLE.items() for m, e in enumerate(row)]
)
def test_the_drift_of_the_vote_is_the_known_one(rho, workers, expected):
    assert abs(measures.vote_drift(rho, workers) - expected) < 5e-6
    assert abs(measures.vote_success(rho, workers) - (1 + expected) / 2) < 5e-6


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize(
    "rho", [Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(3, 5), Fraction(9, 10), Fraction(1)]
)
def test_drift_ties_and_variance_are_those_of_all_outcomes(rho, workers):
    outcomes = [
        (sum(votes), math.prod(rho if v > 0 else 1 - rho for v in votes))
        for votes in itertools.product((-1, 1), repeat=workers)
    ]
    mean = sum(weight * ((total > 0) - (total < 0)) for total, weight in outcomes)
    tie = sum(weight for total, weight in outcomes if total == 0)
    close = {"rel_tol": 1e-14, "abs_tol": 4e-16}
    p = float(rho)
    assert math.isclose(measures.vote_drift(p, workers), mean, **close)
    assert math.isclose(measures.vote_success(p, workers), (mean + 1) / 2, **close)
    assert math.isclose(measures.vote_tie(p, workers), tie, **close)
    assert math.isclose(measures.vote_variance(p, workers), 1 - tie - mean**2, **close)


@pytest.mark.parametrize("workers", [1, 2, 9, 50, 401])
def test_the_series_is_the_incomplete_beta_function(workers):
    half = (workers + 1) // 2
    for rho in np.linspace(0, 1, 41):
        with mpmath.workdps(30):
            exact = float(mpmath.betainc(half, half, 0, rho, regularized=True))
        assert abs(measures.vote_success(float(rho), workers) - exact) <= workers * 1e-16 + 2e-16


@pytest.mark.parametrize("workers", [1, 2, 9, 50, 401])
def test_scipy_s_incomplete_beta_function_agrees(workers):
    pytest.importorskip("scipy", reason="SciPy is optional")
    rho = np.linspace(0, 1, 201)
    np.testing.assert_allclose(
        measures.vote_success(rho, workers, method="scipy"), measures.vote_success(rho, workers), rtol=1e-12, atol=1e-14
    )
    assert measures.vote_success(0.75, 3, method="scipy") == pytest.approx(0.84375, rel=1e-14)
    assert measures.vote_success(rho.astype(np.float32), 3, method="scipy").dtype == np.float32


def test_votes_drawn_at_random_drift_as_promised():
    rng, count = np.random.default_rng(8), 100_000
    for workers, rho in ((3, 0.6), (4, 0.6), (6, 0.75)):
        votes = np.where(rng.uniform(size=(workers, count)) < rho, 1, -1).astype(np.float32)
        voted = sc.vote.majority(votes).astype(np.float64)
        variance = measures.vote_variance(rho, workers)
        assert abs(voted.mean() - measures.vote_drift(rho, workers)) < 5 * math.sqrt(variance / count)
        tie = measures.vote_tie(rho, workers)
        assert abs((voted == 0).mean() - tie) <= 5 * math.sqrt(tie * (1 - tie) / count)
        plus = sc.vote.majority(votes, ties="plus").astype(np.float64)
        assert abs(plus.mean() - measures.vote_drift(rho, workers) - tie) < 5 * math.sqrt(variance / count + 1e-9)


# -- theorems ----------------------------------------------------------------------------------------------


def test_equation_10_is_met_with_equality_at_both_ends():
    # f = x with steps of 0.5: |g| = 1 always, and f falls by 0.5 a step, f* being where it ends
    assert measures.signsgd_bound(gap=0.5 * 40, smoothness=0.0, steps=40, lr=0.5) == 1.0
    # f = L x^2/2 from lr/2: the iterates jump between lr/2 and -lr/2, where |g| = L lr/2
    lr, curvature, steps = 0.25, 3.0, 10**6
    x = lr / 2
    bound = measures.signsgd_bound(gap=curvature * x * x / 2, smoothness=curvature, steps=steps, lr=lr)
    assert math.isclose(bound, curvature * lr / 2, rel_tol=1e-6)
    assert bound > curvature * lr / 2


def test_the_best_step_size_is_the_best():
    lr = measures.signsgd_lr(3.0, 7.0, 50)
    best = measures.signsgd_bound(3.0, 7.0, 50, lr)
    assert math.isclose(best, math.sqrt(2 * 3 * 7 / 50))
    assert best < min(measures.signsgd_bound(3.0, 7.0, 50, lr * factor) for factor in (0.99, 1.01))
    assert math.isclose(measures.large_batch_lr(7.0, 50), 1 / math.sqrt(350))


def noisy_quadratic(steps, lr_of, rng, monotone=False, workers=1, batch=1):
    """Runs of signSGD on f = sum L_i x_i^2/2 with noise N(0, 1): f(x_0), and means over steps of the norms."""
    curvature, sigma = np.array([1.0, 4.0, 0.5]), 1 / math.sqrt(batch)
    x = np.tile([1.0, -0.7, 2.0], (200, 1))

    def f(x):
        return 0.5 * (curvature * x * x).sum(axis=1)

    gap, seen = f(x)[0], []
    for k in range(steps):
        g = curvature * x
        rho = 0.5 + 0.5 * np.vectorize(math.erf)(np.abs(g) / sigma / math.sqrt(2))
        drift_of_one = measures.vote_drift(rho, workers)
        phi = np.abs(g) * np.minimum(1, np.abs(g) / sigma)
        seen.append(
            [(drift_of_one * np.abs(g)).sum(axis=1).mean(), np.abs(g).sum(axis=1).mean(), phi.sum(axis=1).mean()]
        )
        noise = rng.normal(size=(workers, *x.shape)) * sigma
        y = x - lr_of(k) * np.sign(np.sign(g + noise).sum(axis=0))
        x = np.where((f(y) < f(x))[:, None], y, x) if monotone else y
    return gap, curvature.sum(), np.array(seen)


def test_runs_of_signsgd_and_of_the_vote_keep_the_promises():
    rng, steps = np.random.default_rng(9), 60
    gap, total = 0.5 * (1 + 4 * 0.49 + 0.5 * 4), 5.5
    best = measures.signsgd_lr(gap, total, steps)
    for workers in (1, 3, 4):
        found, smoothness, seen = noisy_quadratic(steps, lambda k: best, rng, workers=workers)
        assert math.isclose(found, gap)
        assert smoothness == total
        bound = measures.signsgd_bound(gap, total, steps, best)
        assert bound / 10 < seen[:, 0].mean() < bound
    _, _, seen = noisy_quadratic(steps, lambda k: 0.4 / math.sqrt(k + 1), rng)
    assert seen[:, 0].min() < measures.decaying_bound(gap, total, steps, 0.4)
    _, _, seen = noisy_quadratic(steps, lambda k: 0.4 / math.sqrt(k + 1), rng, monotone=True)
    bound = measures.monotone_bound(gap, total, steps, 0.4)
    assert bound / 20 < seen[:, 0].mean() < bound
    lr = measures.large_batch_lr(total, steps)
    _, _, seen = noisy_quadratic(steps, lambda k: lr, rng)
    assert measures.snr_bound(gap, total, steps) / 20 < seen[:, 2].mean() < measures.snr_bound(gap, total, steps)
    assert seen[:, 1].mean() < measures.snr_l1_bound(gap, total, 3.0, 1, steps)
    _, _, seen = noisy_quadratic(steps, lambda k: lr, rng, batch=steps)
    bound = measures.large_batch_bound(gap, total, 3.0, steps)
    assert bound / 10 < seen[:, 1].mean() < bound


@pytest.mark.parametrize("steps", [2, 3, 10, 1000])
def test_equation_9_and_option_2_are_above_what_their_proofs_add_up(steps):
    gap, total, lr = 2.0, 3.0, 0.7
    roots = math.fsum(1 / math.sqrt(k + 1) for k in range(steps))
    harmonic = math.fsum(1 / (k + 1) for k in range(steps))
    proof = (gap + lr * lr * total / 2 * harmonic) / (lr * roots)
    assert proof <= measures.decaying_bound(gap, total, steps, lr) <= 5 * proof
    proof = (gap * math.sqrt(steps) / lr + lr * total / 2 * roots) / steps
    assert proof <= measures.monotone_bound(gap, total, steps, lr) <= 1.3 * proof


def test_ssdm_keeps_its_promise():
    steps, runs = 4096, 20
    beta, lr = measures.ssdm_parameters(steps)
    assert (beta, lr) == (1 - 1 / 64, 4096**-0.75)
    rng = np.random.default_rng(10)
    x, m, seen = np.tile([1.5, -1.0, 0.5, 1.0], (runs, 1)), None, []
    gap = 0.5 * (x[0] @ x[0])
    for _ in range(steps):
        seen.append(np.linalg.norm(x, axis=1).mean())
        g = x + 0.5 * rng.normal(size=x.shape)  # f = |x|^2/2, L = 1, sigma = 0.5 sqrt(4)
        m = g if m is None else beta * m + (1 - beta) * g
        right = 0.5 + 0.5 * m / np.linalg.norm(m, axis=1, keepdims=True)
        x = x - lr * np.where(rng.uniform(size=x.shape) < right, 1.0, -1.0)
    assert np.mean(seen) < measures.ssdm_bound(gap, 1.0, 1.0, 4, steps)
    assert measures.ssdm_bound(0, 1.0, 0, 4, 16) == 8.0
    assert measures.ssdm_bound(1.0, 0, 0, 4, 16) == 8.0
    assert measures.ssdm_bound(0, 0, 1.0, 4, 16) == 8.0 * (2 + 1)


def test_bounds_give_curves():
    steps = np.array([4, 100, 10_000])
    for bound in (measures.signsgd_bound, measures.decaying_bound, measures.monotone_bound):
        assert bound(1.0, 2.0, steps, 0.1).tolist() == [bound(1.0, 2.0, int(k), 0.1) for k in steps]
    assert measures.snr_l1_bound(1.0, 2.0, 3.0, 4, steps).tolist() == [
        measures.snr_l1_bound(1.0, 2.0, 3.0, 4, k) for k in steps
    ]
    assert measures.ssdm_parameters(steps)[0].tolist() == [0.5, 0.9, 0.99]


def test_the_warm_up_of_signum_is_54_steps_for_0_9():
    assert measures.warmup_steps(0.9) == 54


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.55, 0.6, 0.7, 0.8, 0.95, 0.99, 0.999])
def test_the_warm_up_is_the_first_count_with_both_inequalities(beta):
    exact = Fraction(beta)
    with mpmath.workdps(40):
        b = mpmath.mpf(beta)
        first = next(
            c
            for c in range(20_000)
            if c * b**c * (1 - b * b) * (c + 1) <= 2 and (b ** (c + 1) <= 0.5 if beta else True)
        )
    assert measures.warmup_steps(beta) == first
    assert exact < 1


def test_the_warm_up_of_a_long_average_is_found_at_once():
    count = measures.warmup_steps(1 - 2.0**-23)
    assert 1e8 < count < 1e9


# -- errors ------------------------------------------------------------------------------------------------

G = np.float32([1.0, -2.0, 3.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: measures.flip_rate(G, G[:2]),
            ValueError,
            r"`after` has shape \(2,\), `before` has \(3,\); pass arrays",
        ),
        (lambda: measures.flip_rate({"a": G}, {"b": G}), ValueError, "`after` and `before` are different trees: 'a'"),
        (lambda: measures.flip_rate(G, torch.ones(3)), TypeError, "`after` is an array of torch, `before` of numpy"),
        (lambda: measures.flip_rate(G, G, zeros="yes"), ValueError, "`zeros` is 'yes'; choose one of False, True"),
        (lambda: measures.zero_share(np.arange(3)), TypeError, "`signs` has dtype int64; signcore computes with"),
        (lambda: measures.zero_share({"w": 1.0}), TypeError, "`signs` at 'w' is a float, not an array"),
        (lambda: measures.vote_margin(G[0]), ValueError, r"`stacked` has leaves of shapes \(\); stack the same number"),
        (lambda: measures.vote_margin(np.zeros((0, 3))), ValueError, r"`stacked` has leaves of shapes \(0, 3\); stack"),
        (lambda: measures.vote_margin([G, G[:2]]), ValueError, r"`stacked` has leaves of shapes \(3,\), \(2,\); stack"),
        (lambda: measures.bits_at_risk(G, ulps=0), ValueError, r"`ulps` is 0; it must be finite and in \[0.5, inf\)"),
        (lambda: measures.bits_at_risk(G, ulps=G), TypeError, r"`ulps` is array\(.*pass a number, at least 0.5"),
        (lambda: measures.bits_at_risk(G, scale=-1.0), ValueError, "`scale` is -1.0; it must be finite and in"),
        (lambda: measures.bits_at_risk(G, scale=G[:2]), ValueError, r"`scale` has shape \(2,\), `u` has \(3,\)"),
        (lambda: measures.bits_at_risk([G], scale={"a": G}), ValueError, "`scale` and `u` are different trees"),
        (lambda: measures.success_probability(G, G), ValueError, r"`samples` has shape \(\), `gradient` has \(3,\)"),
        (lambda: measures.success_probability(G[:0], G[0]), ValueError, "`samples` has leaves of shapes"),
        (
            lambda: measures.success_probability(G[None], G, ties="x"),
            ValueError,
            "`ties` is 'x'; choose one of 'wrong', 'half'",
        ),
        (lambda: measures.success_probability(G[None], G, oracle=3), TypeError, "`oracle` is 3; pass a function"),
        (
            lambda: measures.success_probability(G[None], G, lambda g, k: 1),
            TypeError,
            r"`oracle\(sample, k\)` is a int",
        ),
        (
            lambda: measures.success_probability(G[None], G, lambda g, k: g[:2]),
            ValueError,
            r"`samples` has shape \(2,\)",
        ),
        (lambda: measures.success_probability([G[None]], [G], lambda g, k: (*g, *g)), ValueError, "different trees"),
        (lambda: measures.rho_norm(G, 1.5), ValueError, r"`rho` is 1.5; it must be finite and in \[0, 1\]"),
        (
            lambda: measures.rho_norm(G, G.astype(np.float64)),
            ValueError,
            "`rho` has dtype float64, `gradient` has float32",
        ),
        (
            lambda: measures.rho_norm({"a": [G]}, {"a": {"0": G}}),
            ValueError,
            "`rho` and `gradient` are different trees",
        ),
        (lambda: measures.rho_norm([G, None], [None, G]), TypeError, "`rho` at '0' is a NoneType, not an array"),
        (lambda: measures.rho_m_norm(G, 0.5, 0), ValueError, "`workers` is 0; a vote needs at least one"),
        (lambda: measures.rho_m_norm(G, 0.5, 2.0), TypeError, "`workers` is 2.0; pass an int"),
        (lambda: measures.l12_norm(G, -1.0), ValueError, "`sigma` is -1.0; it must be finite and in"),
        (
            lambda: measures.snr_stationarity(G, jnp.ones(3)),
            TypeError,
            "`sigma` is an array of jax, `gradient` of numpy",
        ),
        (lambda: measures.unimodal_bound(1.0, "x"), TypeError, "`sigma` is a str, not an array"),
        (lambda: measures.moment_bound(1.0, 1.0, -1.0, 1), ValueError, "`nu` is -1.0; it must be finite and in"),
        (
            lambda: measures.vote_success(G, 3, method="x"),
            ValueError,
            "`method` is 'x'; choose one of 'series', 'scipy'",
        ),
        (lambda: measures.vote_success(jnp.ones(2), 3, method="scipy"), TypeError, "`rho` is a .*choose 'series'"),
        (
            lambda: measures.signsgd_bound(1.0, 1.0, 0, 0.1),
            ValueError,
            "`steps` is 0.0; it must be finite and at least 1",
        ),
        (lambda: measures.signsgd_bound(1.0, 1.0, 1, 0.0), ValueError, "`lr` is 0.0; it must be finite and above 0"),
        (
            lambda: measures.signsgd_bound([1], 1.0, 1, 0.1),
            TypeError,
            r"`gap` is \[1\]; pass a number or a NumPy array",
        ),
        (lambda: measures.signsgd_lr(1.0, 0.0, 1), ValueError, "`smoothness` is 0.0; it must be finite and above 0"),
        (lambda: measures.decaying_bound(1.0, 1.0, 1, 0.1), ValueError, "`steps` is 1.0; equation 9 needs at least 2"),
        (
            lambda: measures.ssdm_bound(math.inf, 1, 1, 1, 1),
            ValueError,
            "`gap` is inf; it must be finite and at least 0",
        ),
        (lambda: measures.warmup_steps(1.0), ValueError, r"`beta` is 1.0; it must be finite and in \[0, 1\)"),
        (lambda: measures.warmup_steps("x"), TypeError, "`beta` is 'x'; pass a number"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_way_out(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_scipy_the_error_says_what_to_do(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(drift.importlib, "import_module", missing)
    with pytest.raises(
        ImportError, match="`method` is 'scipy', which is not installed: pip install scipy, or choose 'series'"
    ):
        measures.vote_success(0.5, 3, method="scipy")


def test_containers_come_back_as_they_were():
    tree = OrderedDict(b=(G, None), a=[G])
    found = measures.unimodal_bound(tree, 1.0)
    assert type(found) is OrderedDict
    assert list(found) == ["b", "a"]
    assert type(found["b"]) is tuple
    assert found["b"][1] is None
    margins = measures.vote_margin({"a": (SIGNS, None)}, elementwise=True)
    assert margins["a"][1] is None
    assert margins["a"][0].shape == (5, 11)


def test_everything_is_shown_in_an_example():
    for name in measures.__all__:
        assert ">>> " in getattr(measures, name).__doc__, name
