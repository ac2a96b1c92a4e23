"""ALIAS with momentum. Oracles: the notes, section 8.5 ("Recommended for the library") and section 8.1."""

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.alias import ALIAS
from signcore.rules.alias_momentum import ALIASMomentum

PARAMS = {"a": np.random.default_rng(1).standard_normal(6).astype(np.float32), "b": np.ones(3, np.float32)}
GRADS = [
    {"a": rng.standard_normal(6).astype(np.float32), "b": rng.standard_normal(3).astype(np.float32)}
    for rng in map(np.random.default_rng, range(10))
]


def run(rule, params=PARAMS, grads=GRADS):
    state, value = rule.init(params), -3.0 if rule.maximize else 3.0
    for g in grads:
        params, state = rule.step(params, g, state, value=value, grad_fn=lambda at: {k: 0.5 * v for k, v in at.items()})
    return params, state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d0": 0.5, "weight_decay": 0.1, "sign_zero": "plus"},
        {"update_gap": 2, "warmup_steps": 4, "scope": "leaf", "gamma_max": 0.25},
        {"sample": "same", "lr": 0.5},
    ],
    ids=str,
)
def test_without_momentum_it_is_alias(options, same):
    # the notes, section 8.5: alias_momentum(beta=0) == 8.1 bitwise
    mine, state = run(ALIASMomentum(beta=0.0, **options))
    theirs, other = run(ALIAS(**options))
    same(mine, theirs)
    for name in other._fields:
        same(getattr(state, name), getattr(other, name))


def test_the_direction_is_signums_and_the_rate_alias(same):
    # sign(m) with Signum's average; the rate times a common sign vector gives the step
    plain, state, average = ALIASMomentum(beta=0.75, d0=1.0), None, None
    signum = sc.Signum(lr=1.0, beta=0.75)
    x = PARAMS
    state, average = plain.init(x), signum.init(x)
    for g in GRADS:
        before = x
        x, state = plain.step(x, g, state)
        delta, average = signum.delta(before, g, average)
        same(state.m, average.m)
        rate = np.sqrt(np.float64(state.d) / np.float64(state.eta))
        for name in x:
            assert (before[name] - x[name]) == pytest.approx(-rate * delta[name], rel=1e-4, abs=1e-6)


def test_eta_has_raw_gradients_and_the_true_displacement():
    # the notes, section 8.5: eta from RAW gradients and TRUE displacement, decay and schedule included
    rule = ALIASMomentum(beta=0.9, l_inf0=1.0, weight_decay=0.25, lr=sc.schedules.inverse_sqrt(0.5))
    x, last, expected = PARAMS["a"], None, 1.0
    state = rule.init(x)
    for t, g in enumerate(GRADS):
        before = x
        if t:
            change = np.float64(g["a"]) - GRADS[t - 1]["a"]
            expected += np.sum(np.abs(change)) / np.max(np.abs(np.float64(last) - x))
        x, state = rule.step(x, g["a"], state, value=2.0)
        last = before
        assert float(state.eta) == pytest.approx(expected, rel=1e-6)


def test_the_schedule_multiplies_the_rate():
    for c in (1.0, 0.5, 0.125):
        x = np.zeros(1)
        x, _ = (rule := ALIASMomentum(lr=c, l_inf0=4.0, d0=1.0)).step(x, np.ones(1), rule.init(x))
        assert float(x[0]) == -0.5 * c


def test_d_stays_below_the_gap_with_momentum():
    # the notes, section 8.1: the displacement's form of the bound holds for any step, if f is convex
    rule, x = ALIASMomentum(beta=0.9, d0=1e-3, l_inf0=1.0), np.asarray([3.0, -1.0])
    state = rule.init(x)
    for _ in range(80):
        x, state = rule.step(x, x * [1.0, 9.0], state)
        assert float(state.d) <= 4.5 + 4.5


def test_each_worker_averages_its_own(same):
    rule = ALIASMomentum(beta=0.5, d0=1.0)
    x, states = PARAMS, None
    for t in range(4):
        x, states = sc.simulate(rule, x, [GRADS[t], GRADS[t + 4]], states)
    same(states[0].eta, states[1].eta)
    same(states[0].x_prev, states[1].x_prev)
    assert not np.array_equal(states[0].m["a"], states[1].m["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.5},
        {"lr": 0.5},
        {"l_inf0": 50.0},
        {"lower_bound": -1.0},
        {"d0": 1.0},
        {"gamma_max": 0.125},
        {"update_gap": 2},
        {"warmup_steps": 2},
        {"warmup_steps": 2, "warmup_lr": 0.5},
        {"scope": "leaf"},
        {"sample": "same"},
        {"weight_decay": 0.1},
        {"maximize": True},
    ],
    ids=str,
)
def test_each_option_changes_the_words(change, differ):
    less = {"warmup_steps": 2} if "warmup_lr" in change else {}
    assert differ(run(ALIASMomentum(**less))[0], run(ALIASMomentum(**change))[0])


class Averaged(ALIASMomentum):
    """The average where eta wants the gradient."""

    def argument_leaf(self, p, g, s, h, noise):
        m, s = super().argument_leaf(p, g, s, h, noise)
        return m, s._replace(g_prev=m)


class Lerp(ALIASMomentum):
    """The same average in other words; at the boundary of a sign that decides."""

    def argument_leaf(self, p, g, s, h, noise):
        _, new = super().argument_leaf(p, g, s, h, noise)
        m = s.m + ops.product(ops.complement(h.beta, g), g - s.m)
        return m, new._replace(m=m)


class SignOfGradient(ALIASMomentum):
    def argument_leaf(self, p, g, s, h, noise):
        return g, super().argument_leaf(p, g, s, h, noise)[1]


@pytest.mark.parametrize("broken", [Averaged, Lerp, SignOfGradient], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(ALIASMomentum()), run(broken()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, r"`beta` is 1\.0; it must be finite and in \[0, 1\)"),
        ({"warmup_steps": 3, "update_gap": 2}, r"`warmup_steps` is 3 and `update_gap` is 2"),
        ({"d0": -1.0}, r"`d0` is -1\.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ALIASMomentum(**options)


def test_the_loss_is_asked_for_in_the_first_step():
    rule, x = ALIASMomentum(), PARAMS
    with pytest.raises(TypeError, match=r"`value` is missing: ALIASMomentum needs it"):
        rule.step(x, GRADS[0], rule.init(x))
    with pytest.raises(ValueError, match=r"is -1\.0 and `lower_bound` is 0\.0"):
        rule.step(x, GRADS[0], rule.init(x), value=-1.0)


def test_to_maximize_is_to_minimize_the_negative(same):
    rule = ALIASMomentum(lower_bound=-1.0, scope="leaf")
    same(run(rule), run(rule.replace(maximize=True), grads=[{k: -g for k, g in each.items()} for each in GRADS]))


def test_a_leaf_that_joins_late_has_the_gap_of_the_others():
    rule = ALIASMomentum(scope="leaf", l_inf0=1.0, beta=0.0)
    x, state = rule.step(PARAMS, {"a": GRADS[0]["a"], "b": None}, rule.init(PARAMS), value=4.0)
    x, state = rule.step(x, GRADS[1], state)
    assert x["b"] == pytest.approx(PARAMS["b"] - 2.0 * np.sign(GRADS[1]["b"]), rel=1e-6)
