"""Tiger: what is special about a rate by the size of a leaf. Oracles: the notes, section 14, and the author's code."""

import math
from fractions import Fraction

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.signum import Signum
from signcore.rules.tiger import Tiger

PARAMS = np.random.default_rng(1).standard_normal(64).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((10, 64)).astype(np.float32)
GRADS[:, :4] = np.float32([0.0, -0.0, 1e-38, 3.0])


def run(rule, params=PARAMS, grads=GRADS, **options):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, **options)
    return params, state


def rms_of(p):
    """Each operation rounded once, the norm from the exact sum of squares."""
    squares = sum(Fraction(float(x)) ** 2 for x in p.ravel())
    root = math.isqrt(int(squares * 4**100))  # floor of 2**100 times the norm: 76 bits below float32's last
    return np.float32(Fraction(root, 2**100)) / np.sqrt(np.float32(p.size))


def test_the_step_is_the_authors_with_each_operation_rounded_once(same):
    # github.com/bojone/tiger, tiger.py: lr * root_mean_square(var); m <- b1 m + (1 - b1) g;
    # var - lr (sign(m) + wd var).
    beta, lr, wd, one = np.float32(0.965), np.float32(1e-3), np.float32(0.01), np.float32(1.0)
    p, m = PARAMS, np.zeros(64, np.float32)
    for g in GRADS:
        m = beta * m + (one - beta) * np.where(np.abs(g) < 2.0**-100, np.float32(0.0), g)
        p = p + -((lr * rms_of(p)) * (np.sign(m) + wd * p))
    params, state = run(Tiger())
    same(params, p)
    same(state.m, m)


def test_the_authors_code_in_double_precision_leads_to_the_same_place():
    p, m = PARAMS.astype(np.float64), np.zeros(64)
    for g in GRADS.astype(np.float64):
        m = 0.965 * m + 0.035 * g
        p = p - 1e-3 * np.sqrt(np.mean(p**2)) * (np.sign(m) + 0.01 * p)
    found = run(Tiger(), PARAMS.astype(np.float64), GRADS.astype(np.float64))[0]
    assert np.abs(found[4:] - p[4:]).max() < 1e-14


@pytest.mark.parametrize("sign_zero", ["zero", "plus", "minus", "random"])
def test_without_the_rms_it_is_signum(sign_zero, same):
    # the notes, section 14: the form that others call Tiger is Signum with decoupled decay.
    options = {"lr": 0.01, "beta": 0.9, "weight_decay": 0.1, "sign_zero": sign_zero}
    tiger, signum = run(Tiger(scale_by_rms=False, **options)), run(Signum(**options))
    same(tiger[0], signum[0])
    same(tiger[1].m, signum[1].m)
    assert Tiger(scale_by_rms=False).partials == {}


def test_a_leaf_of_rms_one_steps_as_signum_does(same):
    p = np.where(PARAMS > 0, np.float32(1.0), np.float32(-1.0))
    tiger, signum = Tiger(lr=0.01, beta=0.9, weight_decay=0.1), Signum(lr=0.01, beta=0.9, weight_decay=0.1)
    same(tiger.step(p, GRADS[4], tiger.init(p))[0], signum.step(p, GRADS[4], signum.init(p))[0])


def test_parameters_scaled_by_a_power_of_two_stay_so(same):
    # Relative steps, without decay: x -> 4 x. Powers of two, so exact.
    rule = Tiger(lr=0.01, weight_decay=0.0)
    same(run(rule, 4 * PARAMS)[0], 4 * run(rule)[0])


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_all_gradients_changes_no_parameter(scale, same):
    same(run(Tiger())[0], run(Tiger(), grads=GRADS * np.float32(scale))[0])


def test_each_leaf_has_its_own_rms(same, differ):
    a, b = PARAMS[:20], 100 * PARAMS[20:]
    both = run(Tiger(), {"a": a, "b": b}, [{"a": g[:20], "b": g[20:]} for g in GRADS])[0]
    same(both["a"], run(Tiger(), a, GRADS[:, :20])[0])
    same(both["b"], run(Tiger(), b, GRADS[:, 20:])[0])
    whole = run(Tiger(), np.concatenate([a, b]))[0]
    assert differ(np.concatenate([both["a"], both["b"]]), whole)  # the notes, section 0, I3: documented


def test_a_leaf_of_zeros_never_moves_and_an_empty_one_does_no_harm(same):
    params = {"zeros": np.zeros(64, np.float32), "empty": np.zeros((0, 3), np.float32), "other": PARAMS}
    grads = [{"zeros": g, "empty": params["empty"], "other": g} for g in GRADS]
    with np.errstate(all="raise", under="ignore"):
        params, _ = run(Tiger(), params, grads)
    same(params["zeros"], np.zeros(64, np.float32))
    same(params["other"], run(Tiger())[0])
    moved = run(Tiger(scale_by_rms=False), np.zeros(64, np.float32))[0]
    assert np.all(moved[4:] != 0.0)


def test_a_huge_leaf_and_a_tiny_one_have_an_rms():
    for size in (1e30, 1e-25):  # whose squares leave float32
        p = np.full(8, size, np.float32)
        delta = Tiger(lr=0.5, weight_decay=0.0).delta(p, p, Tiger().init(p))[0]
        assert np.allclose(delta, -0.5 * p, rtol=1e-6)


def test_a_gradient_with_nan_follows_the_policy(same):
    # A deviation from the author, who shrinks the tensor by 1 % and leaves m.
    grads = GRADS.copy()
    grads[3, 9] = np.nan
    with pytest.raises(FloatingPointError):
        run(Tiger(nonfinite="raise"), grads=grads)
    same(run(Tiger(nonfinite="skip"), grads=grads)[0], run(Tiger(), grads=np.delete(GRADS, 3, axis=0))[0])


def test_parameters_that_are_not_finite_follow_the_policy_too(same):
    p = np.float32([1.0, np.inf])
    rule = Tiger(nonfinite="skip")
    with np.errstate(invalid="ignore"):  # of the step that is not made
        same(rule.step(p, GRADS[0][:2], rule.init(p))[0], p)
    with pytest.raises(FloatingPointError, match="`norm` holds inf or NaN"):
        Tiger(nonfinite="raise").step(p, GRADS[0][:2], rule.init(p))


def test_workers_average_their_own_gradients_and_share_the_rate(same):
    p, states = sc.simulate(Tiger(), PARAMS, [GRADS[0], GRADS[0], -GRADS[0]])
    one = Tiger().step(PARAMS, GRADS[0], Tiger().init(PARAMS))
    same(p, one[0])
    same(states[0].m, one[1].m)
    same(states[2].m, -one[1].m + 0.0)


def test_it_needs_the_params_though_nothing_decays():
    assert Tiger(weight_decay=0.0).needs_params
    assert not Tiger(weight_decay=0.0, scale_by_rms=False).needs_params


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"scale_by_rms": False}, {"weight_decay": 0.0}, {"lr": 0.002}])
def test_each_argument_changes_the_words(change, differ):
    assert differ(run(Tiger())[0], run(Tiger(**change))[0])


@pytest.mark.parametrize(("argument", "bad"), [("beta", 1.0), ("beta", -0.1), ("scale_by_rms", 1), ("lr", math.nan)])
def test_bad_arguments_are_named(argument, bad):
    with pytest.raises(ValueError, match=rf"`{argument}` is {bad!r}; (it must be|choose one of)"):
        Tiger(**{argument: bad})


class DecayAtFullRate(Tiger):
    def apply_leaf(self, p, aggregate, s, h):
        u = ops.product(h.rms, aggregate.sign)
        return ops.descent(h.lr, u, h.weight_decay, p), s


class SumOfSquares(Tiger):
    def advance(self, found, s, h):
        return {"rms": found["norm"]}, {}


class RmsOfGradient(Tiger):
    def measure_leaf(self, p, g, s, h):
        return {"norm": g, "count": g}


class RmsOfTheTree(Tiger):
    @property
    def scope(self):
        return "global"


class Uphill(Tiger):
    def apply_leaf(self, p, aggregate, s, h):
        return super().apply_leaf(p, aggregate._replace(sign=-aggregate.sign), s, h)


class OldAverage(Tiger):
    def argument_leaf(self, p, g, s, h, noise):
        _, new = super().argument_leaf(p, g, s, h, noise)
        return s.m, new


@pytest.mark.parametrize(
    "broken",
    [DecayAtFullRate, SumOfSquares, RmsOfGradient, RmsOfTheTree, Uphill, OldAverage],
    ids=lambda c: c.__name__,
)
def test_a_changed_formula_changes_the_words(broken, differ):
    params, grads = {"a": PARAMS[:20], "b": 3 * PARAMS[20:]}, [{"a": g[:20], "b": g[20:]} for g in GRADS]
    assert differ(run(Tiger(), params, grads)[0], run(broken(), params, grads)[0])
