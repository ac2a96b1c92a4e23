"""Dithered SignSGD-M. Oracles: the notes, section 9; Chen and Wang, arXiv 2604.25550, algorithm 1, equations 9, 10."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.random import normal
from signcore.rules.dithered_signum import DitheredSignum

PARAMS = {"a": np.linspace(-1.0, 1.0, 40, dtype=np.float32), "b": np.linspace(-2.0, 1.0, 24, dtype=np.float32)}
DRAWS = np.random.default_rng(2)
GRADS = [{"a": DRAWS.normal(size=40).astype("f4"), "b": 0.1 * DRAWS.normal(size=24).astype("f4")} for _ in range(8)]
SIZE = 40_000


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def signs(rule, m, step=0):
    """u = -delta at lr = 1 of many coordinates with the momentum m after the step."""
    rule = rule.replace(lr=1.0, beta=0.0)
    p = np.zeros(SIZE, np.float32)
    state = rule.init(p)._replace(step=np.asarray(step, np.int32))
    return -rule.delta(p, np.full(SIZE, m, np.float32), state)[0]


def phi(x):
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


@pytest.mark.parametrize("step", [0, 1, 99])
@pytest.mark.parametrize("m", [0.05, -0.2, 0.5])
def test_the_probability_of_plus_is_phi_of_m_over_sigma(m, step):
    # the notes, section 9: sigma_k = sqrt(alpha) (1 + k)**-.275, and P(+) = Phi(m/sigma), in a band of five deviations.
    p = phi(m / (math.sqrt(0.1) * (1.0 + step) ** -0.275))
    assert abs(np.mean(signs(DitheredSignum(), m, step) > 0.0) - p) < 5.0 * math.sqrt(p * (1.0 - p) / SIZE)


def test_small_momenta_are_restored_with_the_slope_of_the_normal_law():
    # the notes, section 9: slope at 0 sqrt(2/pi)/sigma; m = 1e-3 gives a mean of .0025 at the start, .0557 at the end.
    for step, wanted in ((0, 0.0025), (78_199, 0.0557)):
        sigma = math.sqrt(0.1) * (1.0 + step) ** -0.275
        assert 2.0 * phi(1e-3 / sigma) - 1.0 == pytest.approx(wanted, abs=3e-4)
        assert abs(np.mean(signs(DitheredSignum(), 1e-3, step)) - wanted) < 5.0 / math.sqrt(SIZE)
    sigma, m = math.sqrt(0.1), 0.02
    assert abs(np.mean(signs(DitheredSignum(), m)) - math.sqrt(2.0 / math.pi) / sigma * m) < 5.0 / math.sqrt(SIZE)


@pytest.mark.parametrize("step", [0, 99])
def test_noise_after_the_sign_leaves_its_mean_and_knows_no_bound(step):
    # the notes, section 9: post: x -= lr*(sign(m) + xi): mean step = Signum's, |step| unbounded.
    rule = DitheredSignum(dither="after")
    sigma = math.sqrt(0.1) * (1.0 + step) ** -0.275
    u = signs(rule, -0.3, step)
    assert abs(np.mean(u) + 1.0) < 5.0 * sigma / math.sqrt(SIZE)
    assert np.std(u) == pytest.approx(sigma, rel=5.0 / math.sqrt(2.0 * SIZE))
    assert np.max(np.abs(u)) > 1.0 + 3.0 * sigma


@pytest.mark.parametrize("sign_zero", ["zero", "plus", "random"])
@pytest.mark.parametrize("dither", ["before", "after"])
def test_without_variance_it_is_signum_and_draws_nothing(dither, sign_zero, same):
    options = {"lr": 0.01, "weight_decay": 0.1, "sign_zero": sign_zero}
    grads = [{"a": np.where(np.arange(40) < 9, np.float32(0.0), g["a"]), "b": g["b"]} for g in GRADS]
    rule, signum = DitheredSignum(alpha=0.0, dither=dither, **options), sc.Signum(**options)
    (ours, state), (theirs, other) = run(rule, grads=grads), run(signum, grads=grads)
    same((ours, state.m, state.step, state.stream), (theirs, other.m, other.step, other.stream))
    assert rule.draws_noise == (sign_zero == "random")
    same(sc.simulate(rule, PARAMS, grads[:2])[0], sc.simulate(signum, PARAMS, grads[:2])[0])


def test_a_variance_that_is_zero_only_in_a_call_is_signum_as_well(same, differ):
    rule = DitheredSignum(lr=0.01)
    ours = rule.step(PARAMS, GRADS[0], rule.init(PARAMS), hyper={"alpha": 0.0})[0]
    same(ours, run(sc.Signum(lr=0.01), grads=GRADS[:1])[0])
    grown = rule.step(PARAMS, GRADS[0], rule.init(PARAMS), hyper={"alpha": np.asarray(4.0), "gamma": np.float32(0.1)})
    same(grown, run(rule.replace(alpha=4.0, gamma=0.1), grads=GRADS[:1]))
    assert differ(grown[0], ours)


def test_numbers_may_be_traced(same):
    rule = DitheredSignum(lr=0.01)
    given = jax.tree.map(jnp.asarray, (PARAMS, GRADS[0], rule.init(PARAMS)._replace(step=np.asarray(6, np.int32))))
    wanted = rule.step(*jax.tree.map(np.asarray, given))[0]
    same(jax.jit(lambda h, *given: rule.step(*given, hyper=h)[0])({"alpha": 0.1, "gamma": 0.55}, *given), wanted)


def test_a_rule_built_without_noise_refuses_it_later():
    rule = DitheredSignum(alpha=0.0)
    for alpha in (0.5, np.asarray(0.5)):
        with pytest.raises(ValueError, match=r"`alpha` is 0\.5 in `hyper`, and the rule was built with alpha=0"):
            rule.step(PARAMS, GRADS[0], rule.init(PARAMS), hyper={"alpha": alpha})
    rule.step(PARAMS, GRADS[0], rule.init(PARAMS), hyper={"alpha": 0.0})


@pytest.mark.parametrize("dither", ["before", "after"])
def test_the_noise_is_the_samplers(dither, same):
    rule = DitheredSignum(lr=0.5, beta=0.0, alpha=0.25, gamma=0.0, dither=dither)
    state = rule.init(PARAMS)
    z = {name: normal(words) for name, words in rule.noise(PARAMS, state).items()}
    half = np.float32(0.5)
    u = {
        name: np.sign(g + half * z[name]) if dither == "before" else np.sign(g) + half * z[name]
        for name, g in GRADS[0].items()
    }
    same(rule.step(PARAMS, GRADS[0], state)[0], {name: p - half * u[name] for name, p in PARAMS.items()})


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_relative_noise_fits_gradients_of_any_size(scope, factor, same, differ):
    # ours: sigma_k = sqrt(alpha (1 + k)**-gamma) * rms(m); a power of two in all gradients changes nothing at all.
    rule = DitheredSignum(lr=0.01, alpha=0.5, relative=True, scope=scope)
    scaled = [{name: g * np.float32(factor) for name, g in grads.items()} for grads in GRADS]
    same(run(rule)[0], run(rule, grads=scaled)[0])
    plain = DitheredSignum(lr=0.01, alpha=0.5)
    assert differ(run(plain)[0], run(plain, grads=scaled)[0])


def test_the_scale_of_relative_noise_is_a_root_mean_square(same):
    # m = (3, 4, 0, ...) of 25 elements has rms 1, and its leaf of 100 with zeros elsewhere half of that.
    for size, rms in ((25, 1.0), (100, 0.5)):
        g = np.zeros(size, np.float32)
        g[:2] = 3.0, 4.0
        p = np.zeros(size, np.float32)
        rule = DitheredSignum(lr=1.0, beta=0.0, alpha=0.25, gamma=0.0, relative=True)
        absolute = rule.replace(relative=False, alpha=0.25 * rms * rms)
        same(run(rule, p, [g])[0], run(absolute, p, [g])[0])


def test_the_scope_of_relative_noise(differ, same):
    p = {"large": np.zeros(4000, np.float32), "small": np.zeros(4000, np.float32)}
    g = {"large": np.full(4000, 8.0, np.float32), "small": np.full(4000, 2.0**-10, np.float32)}
    for scope, wanted in (("leaf", phi(2.0)), ("global", 0.5)):
        rule = DitheredSignum(lr=1.0, alpha=0.25, relative=True, scope=scope)
        plus = np.mean(rule.delta(p, g, rule.init(p))[0]["small"] < 0.0)
        assert abs(plus - wanted) < 5.0 * math.sqrt(0.25 / 4000)
    empty = {"a": np.zeros(0, np.float32), "b": np.zeros(2, np.float32)}
    rule = DitheredSignum(lr=1.0, relative=True, scope="leaf")
    same(rule.step(empty, empty, rule.init(empty))[0], empty)


def test_before_the_sign_workers_draw_their_own_and_after_it_the_same():
    p, g = np.zeros(4000, np.float32), np.zeros(4000, np.float32)
    before = DitheredSignum(lr=1.0, aggregation="mean")
    after, _ = sc.simulate(before, p, [g, g])
    assert abs(np.mean(after == 0.0) - 0.5) < 5.0 * math.sqrt(0.25 / 4000)
    later = DitheredSignum(lr=1.0, dither="after")
    two, states = sc.simulate(later, p, [g, g])
    one, _ = later.step(p, g, later.init(p))
    assert np.array_equal(one, two)
    assert np.array_equal(states[0].stream, states[1].stream)


class Deviation(DitheredSignum):
    """alpha as a deviation: it is a variance."""

    def derived(self, h, step, compute):
        sigma = super().derived(h, step, compute)["sigma"]
        return {"sigma": sigma * sigma}


class Constant(DitheredSignum):
    def derived(self, h, step, compute):
        return super().derived(h, step * 0, compute)


class FromOne(DitheredSignum):
    def derived(self, h, step, compute):
        return super().derived(h, step + np.int32(1), compute)


class NoiseInTheAverage(DitheredSignum):
    def argument_leaf(self, p, g, s, h, noise):
        u, s = super().argument_leaf(p, g, s, h, noise)
        return u, s._replace(m=u)


class Uphill(DitheredSignum):
    def apply_leaf(self, p, aggregate, s, h, noise=None):
        return ops.descent(-h.lr, aggregate.sign, h.weight_decay, p), s


@pytest.mark.parametrize("broken", [Deviation, Constant, FromOne, NoiseInTheAverage, Uphill], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(DitheredSignum())[0], run(broken())[0])


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.5},
        {"alpha": 0.01},
        {"gamma": 2.0},
        {"dither": "after"},
        {"relative": True},
        {"seed": 1},
        {"weight_decay": 0.1},
    ],
    ids=str,
)
def test_each_option_changes_the_words(change, differ):
    assert differ(run(DitheredSignum())[0], run(DitheredSignum(**change))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"`alpha` is -0\.1; it must be finite and in \[0, inf\)"),
        ({"gamma": -1.0}, r"`gamma` is -1\.0; it must be finite"),
        ({"dither": "within"}, r"`dither` is 'within'; choose one of 'before', 'after'"),
        ({"relative": 1}, r"`relative` is 1; choose one of False, True"),
        ({"relative": True, "dither": "after"}, r"`relative` is True and `dither` is 'after'.*drop one"),
        ({"scope": "leaf"}, r"`scope` is 'leaf' and `relative` is False.*drop one"),
    ],
)
def test_arguments_have_a_range(options, message):
    with pytest.raises(ValueError, match=message):
        DitheredSignum(**options)
