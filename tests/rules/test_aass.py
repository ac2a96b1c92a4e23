"""AASS: what is special about momentum of signs. Oracles: the notes, section 7, from the author's text and code."""

import mpmath
import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.aass import AASS, AASSMessage

PARAMS = np.random.default_rng(1).standard_normal(64).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
GRADS[:, :2] = 0.0
VARIANTS = {
    "current": {},
    "lagged": {"variance": "lagged"},
    "linear": {"response": "linear"},
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def answers(rule, signs, dtype=np.float64, m=0.0):
    """(averages, u) of one coordinate that sees these signs; u is minus the delta at lr = 1."""
    rule = rule.replace(lr=1.0)
    p = np.zeros(1, dtype)
    state = rule.init(p)._replace(m=np.asarray([m], dtype))
    averages, u = [], []
    for sign in signs:
        delta, state = rule.delta(p, np.asarray([sign], dtype), state)
        averages.append(float(state.m[0]))
        u.append(-float(delta[0]))
    return averages, u


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [0.127537, 0.243395, 0.090476, 0.081415]),
        ({"variance": "lagged"}, [0.126902, 0.240242, 0.091917, 0.081455]),
        ({"response": "linear"}, [0.1, 0.19, 0.071, 0.0639]),
    ],
)
def test_the_published_rows(options, rows, dtype):
    # the notes, section 7, "Golden": beta = 0.9, signs +, +, -, 0; the blog's formula and the author's code.
    averages, u = answers(AASS(beta=0.9, **options), [1, 1, -1, 0], dtype)
    assert [round(m, 6) for m in averages] == [0.1, 0.19, 0.071, 0.0639]
    assert [round(x, 6) for x in u] == rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_clamp_caps_the_answer(dtype):
    # the notes, section 7: with eps = 1e-6 the blog's form tops out at 1.99820, without it at exactly 2.
    assert round(answers(AASS(beta=0.5), [1] * 60, np.float64)[1][-1], 5) == 1.99820
    assert answers(AASS(beta=0.5, eps=0.0), [1] * 80, dtype)[1][-1] == 2.0
    assert answers(AASS(beta=0.5, eps=0.0), [-1] * 80, dtype)[1][-1] == -2.0
    assert round(answers(AASS(beta=0.5, variance="lagged"), [1] * 80, dtype)[1][-1], 12) == 2.0


def test_the_lagged_variance_overshoots_the_first_contradiction():
    # the notes, section 7: after a long streak m goes from 1 to 0.8; the code steps 2.000 in the old direction, the
    # blog 1.1807. (The clamp of the blog's form does not matter at 0.8.)
    (m,), (current,) = answers(AASS(beta=0.9), [-1], m=1.0)
    _, (lagged,) = answers(AASS(beta=0.9, variance="lagged"), [-1], m=1.0)
    assert (round(m, 6), round(current, 4), round(lagged, 3)) == (0.8, 1.1807, 2.0)


def test_the_gap_between_the_variances_is_largest_at_full_confidence():
    # the notes, section 7: the maximum over all averages is 0.8193, at |m| = 1.
    grid = np.linspace(-1.0, 1.0, 2001)
    p = np.zeros_like(grid)
    gap = np.zeros_like(grid)
    for sign in (1.0, -1.0):
        both = []
        for options in ({"eps": 0.0}, {"variance": "lagged"}):
            rule = AASS(lr=1.0, beta=0.9, **options)
            both.append(rule.delta(p, np.full_like(grid, sign), rule.init(p)._replace(m=grid))[0])
        gap = np.maximum(gap, np.abs(both[0] - both[1]))
    assert round(gap.max(), 4) == 0.8193
    assert sorted(grid[gap == gap.max()]) == [-1.0, 1.0]


def test_alternating_signs_settle_near_zero():
    # the notes, section 7: |m| tends to (1 - beta)/(1 + beta) = 0.0526.
    averages, _ = answers(AASS(beta=0.9), [1, -1] * 300)
    assert abs(averages[-1]) == pytest.approx(0.1 / 1.9, rel=1e-12)
    assert averages[-2] == pytest.approx(0.1 / 1.9, rel=1e-12)


def test_a_constant_sign_is_answered_by_the_arcsine_of_its_confidence():
    # the notes, section 7: m_t = 1 - beta^t, exactly so for beta = 1/2; u_t = (4/pi) arcsin(m_t), correctly rounded.
    averages, u = answers(AASS(beta=0.5, eps=0.0), [1] * 20, np.float32)
    assert averages == [1.0 - 0.5**t for t in range(1, 21)]
    with mpmath.workdps(40):
        assert u == [float(np.float32(float(4 / mpmath.pi * mpmath.asin(m)))) for m in averages]


def test_the_lagged_answer_is_the_authors_atan2():
    # the notes, section 7: u = (4/pi) atan2(m, sqrt(max(1 - m_before^2, 1e-30))), in float64.
    rng = np.random.default_rng(4)
    signs = rng.choice([1, 1, 1, -1, 0], 200)
    averages, u = answers(AASS(beta=0.9, variance="lagged"), signs)
    for before, m, got in zip([0.0, *averages], averages, u, strict=False):
        with mpmath.workdps(40):
            sigma = mpmath.sqrt(max(1 - mpmath.mpf(before) ** 2, mpmath.mpf(10) ** -30))
            assert got == pytest.approx(float(4 / mpmath.pi * mpmath.atan2(m, sigma)), rel=1e-14, abs=0.0)


def test_the_invariants_of_the_arcsine_hold_along_a_trajectory(same):
    # the notes, section 7: |m| <= 1, |u| <= 2, u odd, zero only with m, u/m in [4/pi, 2].
    rule = AASS(lr=1.0, beta=0.9)
    p = np.zeros(64, np.float32)
    state, mirrored = rule.init(p), rule.init(p)
    for g in np.concatenate([GRADS, np.abs(GRADS)] * 2):
        delta, state = rule.delta(p, g, state)
        opposite, mirrored = rule.delta(p, -g, mirrored)
        same(-delta + 0.0, opposite)
        assert np.all(np.abs(state.m) <= 1.0)
        assert np.all(np.abs(delta) <= 2.0)
        assert np.array_equal(delta == 0.0, state.m == 0.0)
        ratio = (-delta / np.where(state.m == 0.0, 1.0, state.m))[state.m != 0.0]
        assert np.all((ratio > 1.2732) & (ratio <= 2.0))


def test_any_positive_factor_per_step_changes_nothing(variant, same):
    # the notes, section 7: I1 holds exactly for any c_k > 0, also c_k that are no powers of two.
    rule = AASS(lr=0.01, weight_decay=0.1, **variant)
    scales = np.random.default_rng(5).uniform(1e-6, 1e6, (40, 1)).astype(np.float32)
    same(run(rule), run(rule, grads=GRADS * scales))
    same(run(rule), run(rule, grads=GRADS * np.exp2(np.arange(-20, 20, dtype=np.float32))[:, None]))


def test_rows_without_gradient_decay_to_nothing():
    averages, u = answers(AASS(beta=0.5), [1] + [0] * 150, np.float32)
    assert averages[:3] == [0.5, 0.25, 0.125]
    assert averages[-1] == 0.0
    assert u[-1] == 0.0


def test_plus_makes_units_without_gradient_drift():
    assert answers(AASS(beta=0.5, sign_zero="plus"), [0] * 3)[0] == [0.5, 0.75, 0.875]


def test_everybody_keeps_the_same_average_of_the_voted_signs(same):
    # the notes, section 7, "Distributed": vote s, then update m identically everywhere; also for a mean of signs.
    rule = AASS(lr=0.01, beta=0.5)
    state = rule.init(PARAMS)
    signs = np.stack([rule.message(PARAMS, g, state)[0].sign for g in GRADS[:4]])
    mean = sc.vote.mean(signs)
    delta, after = rule.apply(PARAMS, GRADS[0], AASSMessage(mean), state)
    same(after.m, np.float32(0.5) * mean + 0.0)
    assert np.all(np.abs(after.m) <= 1.0)
    assert delta.dtype == np.float32


def test_linear_and_lagged_exclude_each_other():
    with pytest.raises(ValueError, match=r"`variance` is 'lagged' and `response` is 'linear'"):
        AASS(variance="lagged", response="linear")


@pytest.mark.parametrize(("eps", "fits"), [(0.0, True), (9e-3, True), (0.01, False), (-1e-9, False)])
def test_the_clamp_has_a_range(eps, fits):
    if fits:
        assert AASS(eps=eps).eps == eps
    else:
        with pytest.raises(ValueError, match=r"`eps` is"):
            AASS(eps=eps)


class GradientAverage(AASS):
    """Signum's average where the sign belongs."""

    def message_leaf(self, p, g, s, h, noise):
        return AASSMessage(g), s


class OldAverage(AASS):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(h.lr, ops.arcsin4pi(s.m), h.weight_decay, p), new


class NoFourOverPi(AASS):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(h.lr, np.arcsin(new.m), h.weight_decay, p), new


class LibraryArcsine(AASS):
    """NumPy's arcsin in the compute dtype: the right function in other words."""

    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(h.lr, np.float32(4 / np.pi) * np.arcsin(new.m), h.weight_decay, p), new


class TieToPlus(AASS):
    def message_leaf(self, p, g, s, h, noise):
        return AASSMessage(ops.sign(g, "plus")), s


class Lerp(AASS):
    def apply_leaf(self, p, aggregate, s, h):
        m = s.m + ops.product(ops.complement(h.beta, p), aggregate.sign - s.m)
        return ops.descent(h.lr, ops.arcsin4pi(m), h.weight_decay, p), s._replace(m=m)


class Uphill(AASS):
    def apply_leaf(self, p, aggregate, s, h):
        return super().apply_leaf(p, aggregate, s, type("H", (), {**vars(h), "lr": -h.lr}))


@pytest.mark.parametrize(
    "broken",
    [GradientAverage, OldAverage, NoFourOverPi, LibraryArcsine, TieToPlus, Lerp, Uphill],
    ids=lambda c: c.__name__,
)
def test_a_changed_formula_changes_the_words(broken, differ):
    options = {"lr": 0.01, "weight_decay": 0.1}
    small = PARAMS / 64
    assert differ(run(AASS(**options), small), run(broken(**options), small))


@pytest.mark.parametrize("change", [{"variance": "lagged"}, {"response": "linear"}, {"beta": 0.95}, {"eps": 9e-3}])
def test_each_option_changes_the_words(change, differ):
    grads = np.concatenate([GRADS, np.ones((80, 64), np.float32)])  # long enough that eps clamps
    assert differ(run(AASS(lr=0.01), grads=grads), run(AASS(lr=0.01, **change), grads=grads))
