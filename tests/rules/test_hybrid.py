"""Hybrid: what is special about the switch. Oracles: the notes, section 10, and the formulas in plain NumPy."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.hybrid import Hybrid

RNG = np.random.default_rng(10)
PARAMS = {"a": RNG.standard_normal((3, 4)).astype(np.float32), "b": RNG.standard_normal(8).astype(np.float32)}
GRADS = [
    {"a": RNG.standard_normal((3, 4)).astype(np.float32), "b": RNG.standard_normal(8).astype(np.float32)}
    for _ in range(8)
]
GRADS[0]["b"][:3] = 0.0


def run(rule, params=PARAMS, grads=GRADS, state=None):
    state = rule.init(params) if state is None else state
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def exact_dot(left, right):
    """The float32 nearest to the sum of all products, in rationals."""
    pairs = zip((left[k].ravel() for k in left), (right[k].ravel() for k in right), strict=True)
    total = sum(Fraction(float(x)) * Fraction(float(y)) for a, b in pairs for x, y in zip(a, b, strict=True))
    return np.float32(total)


def golden_lambda(rule_class):
    """The notes: m = (.3, -.2), g = (.5, .1), delta = .01 give lambda = .0153846."""
    rule = rule_class(lr=0.01, beta=0.5, eta=0.0, eps=0.0, switch_step=1)
    p, g = np.zeros(2), np.asarray([0.5, 0.1])
    state = rule.init(p)._replace(m=np.asarray([0.1, -0.5]))  # of which and g this step makes (.3, -.2)
    new = rule.step(p, g, state)[1]
    np.testing.assert_allclose(new.m, [0.3, -0.2], rtol=1e-12)
    assert abs(0.01 * float(new.lbar) - 0.0153846) < 5e-8


def test_the_notes_golden_lambda():
    golden_lambda(Hybrid)


class OldMomentum(Hybrid):
    """Lambda from the average before this step."""

    def measure_leaf(self, p, g, s, h):
        return {"inner": (ops.sign(s.m), g), "square": (g, g)}


class NormNotSquared(Hybrid):
    """Divides by the norm."""

    def advance(self, found, s, h):
        return super().advance({**found, "square": ops.sqrt(found["square"])}, s, h)


class OtherEnd(Hybrid):
    """Projects the gradient on the signs."""

    def measure_leaf(self, p, g, s, h):
        m = ops.ema(h.beta, s.m, g)
        return {"inner": (ops.sign(m), g), "square": (ops.sign(m), ops.sign(m))}


@pytest.mark.parametrize("broken", [NormNotSquared, OtherEnd])
def test_a_wrong_formula_is_seen(broken):
    with pytest.raises(AssertionError):
        golden_lambda(broken)


def test_the_old_average_in_lambda_is_seen(same):
    # Its signs are those of the new one in the notes' numbers, so it takes a whole run.
    with pytest.raises(AssertionError):
        the_formula_in_numpy(OldMomentum, {}, same)


def the_formula_in_numpy(rule_class, options, same):
    switch = 4
    f = {"lr": 0.01, "beta": 0.9, "eta": 0.75, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.0, **options}
    rule = rule_class(switch_step=switch, **f)
    lr, beta, eta, eps, wd, mu = (np.float32(value) for value in list(f.values())[:6])
    one = np.float32(1.0)
    p, m = PARAMS, {k: np.zeros_like(v) for k, v in PARAMS.items()}
    lbar = share = np.float32(0.0)
    for k, g in enumerate(GRADS):
        first = k < switch
        b = beta if first else mu
        m = {n: b * m[n] + (one - b) * g[n] for n in m}
        if first:
            s = {n: np.sign(m[n]) for n in m}
            lam = np.abs(exact_dot(s, g)) / (exact_dot(g, g) + eps)
            lbar = eta * lbar + (one - eta) * lam
            share = eta * share + (one - eta)
        rate = lbar / share if f.get("bias_correction") else lbar
        if f.get("lr_max") is not None:
            rate = np.minimum(rate, np.float32(f["lr_max"]) / lr)
        u = {n: np.sign(m[n]) if first else rate * m[n] for n in m}
        p = {n: p[n] + -(lr * (u[n] + wd * p[n])) for n in p}
    params, state = run(rule)
    same(params, p)
    same(state.m, m)
    same(state.lbar, np.asarray(lbar))
    assert int(state.switched) == 1


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.5}, {"bias_correction": True}, {"lr_max": 1e-4, "momentum": 0.75}]
)
def test_the_formula_in_numpy(options, same):
    the_formula_in_numpy(Hybrid, options, same)


def test_before_the_switch_it_is_signum_and_after_it_sgd(same):
    hybrid, signum = (
        Hybrid(lr=0.01, beta=0.5, switch_step=5, weight_decay=0.1),
        sc.Signum(lr=0.01, beta=0.5, weight_decay=0.1),
    )
    params, state = run(hybrid, grads=GRADS[:5])
    same(params, run(signum, grads=GRADS[:5])[0])
    # lr is a power of two, so that lr*(lbar*g) is the rounded rate times g.
    hybrid = hybrid.replace(lr=0.25, weight_decay=0.0)
    sgd = sc.SGD(lr=0.25 * float(state.lbar))
    same(run(hybrid, params, GRADS[5:], state)[0], run(sgd, params, GRADS[5:])[0])


def test_the_first_step_of_sgd_is_the_projection_of_the_last_of_signum():
    # The notes: with eta = 0, <sgd step, g> = <sign step, g> where that is downhill; here in float64.
    rule = Hybrid(lr=0.01, eta=0.0, eps=0.0, switch_step=3)
    p = RNG.standard_normal(64)
    state, grads = rule.init(p), RNG.standard_normal((3, 64))
    grads[2] = grads[0] + 0.1 * grads[2]  # so that momentum and gradient agree
    for g in grads:
        before, (p, state) = p, rule.step(p, g, state)
    after = rule.step(p, g, state)[0]
    np.testing.assert_allclose((after - p) @ g, (p - before) @ g, rtol=1e-9)
    # and it is the projection: parallel to g
    np.testing.assert_allclose(after - p, ((p - before) @ g) / (g @ g) * g, rtol=1e-9)


@pytest.mark.parametrize("c", [4.0, 0.5])
def test_scaled_gradients_divide_lambda_and_leave_the_step(c, same):
    # The notes: g -> c g, lambda -> lambda/c with eps = 0; exact with powers of two.
    rule = Hybrid(lr=0.01, eps=0.0, switch_step=4)
    scaled = [{name: (np.float32(c) * g).astype(np.float32) for name, g in tree.items()} for tree in GRADS]
    (p, state), (q, other) = run(rule), run(rule, grads=scaled)
    same(p, q)
    assert float(state.lbar) == c * float(other.lbar)


def test_lambda_does_not_see_the_noise(same):
    # The notes: computed from the undithered m, so the same with and without in the first step.
    for options in ({}, {"alpha": 0.5}):
        plain, noisy = (
            run(Hybrid(lr=0.5, switch_step=9, dithered=d, **options), grads=GRADS[:1]) for d in (False, True)
        )
        same(plain[1].lbar, noisy[1].lbar)
        assert float(plain[1].lbar) > 0.0
        assert not np.array_equal(plain[0]["a"], noisy[0]["a"])


def test_no_noise_without_variance_and_none_after_the_switch(same):
    noisy = Hybrid(switch_step=3, dithered=True, alpha=0.0)
    same(run(noisy)[0], run(noisy.replace(dithered=False))[0])
    p, state = run(noisy, grads=GRADS[:3])
    same(run(noisy.replace(alpha=9.0), p, GRADS[3:], state)[0], run(noisy, p, GRADS[3:], state)[0])


def test_the_noise_has_its_variance():
    # P(+) = Phi(m/sigma_k), sigma_k^2 = alpha (1 + k)^-gamma: the notes, section 9. m/sigma = 1 at k = 3.
    n, beta = 20_000, 0.0
    rule = Hybrid(lr=1.0, beta=beta, dithered=True, alpha=4.0, gamma=0.5, switch_step=9)
    state = rule.init(np.zeros(n))._replace(step=np.asarray(3, np.int32))
    p = rule.step(np.zeros(n), np.full(n, np.sqrt(2.0)), state)[0]
    share, expected = np.mean(p < 0.0), 0.8413447460685429
    assert abs(share - expected) < 5.0 * np.sqrt(expected * (1 - expected) / n)


# -- when it switches ----------------------------------------------------------------------------------------


def switched_after(rule, grads=GRADS):
    params, state, k = PARAMS, rule.init(PARAMS), 0
    for k, g in enumerate(grads, start=1):
        params, state = rule.step(params, g, state)
        if int(state.switched):
            return k
    return None


def test_by_step_and_by_epochs():
    assert switched_after(Hybrid(switch_step=1)) == 1
    assert switched_after(Hybrid(switch_step=5)) == 5
    assert switched_after(Hybrid(switch_epoch=2, steps_per_epoch=3)) == 6
    assert switched_after(Hybrid(switch_step=100)) is None


def test_by_itself_as_swats():
    # Keskar and Socher 2017: k > 1 and |lbar/(1 - eta^k) - lambda| < 1e-9. After one step the two are always equal.
    assert switched_after(Hybrid(), [GRADS[0]] * 3) == 2  # nothing changes, so nothing is left to wait for
    assert switched_after(Hybrid()) is None
    assert switched_after(Hybrid(tolerance=1.0)) == 2
    rule = Hybrid(lr=1e-3, eta=0.5, beta=0.0, tolerance=5e-5)
    lam, average, share, expected = [], 0.0, 0.0, None
    for k, g in enumerate(GRADS, start=1):
        flat = np.concatenate([x.ravel().astype(np.float64) for x in g.values()])
        lam.append(1e-3 * np.abs(flat).sum() / (flat @ flat + 1e-8))
        average, share = 0.5 * average + 0.5 * lam[-1], 0.5 * share + 0.5
        if expected is None and k > 1 and abs(average / share - lam[-1]) < 5e-5:
            expected = k
    assert expected is not None
    assert switched_after(rule) == expected


def test_the_trigger_waits_for_a_rate_above_0():
    # two rates of 0 are always near; a warm-up that begins at 0 must not end the first phase
    assert switched_after(Hybrid(lr=0.0, tolerance=1.0)) is None
    assert switched_after(Hybrid(lr=lambda step: 0.5 * (step > 2), tolerance=10.0)) == 4
    assert switched_after(Hybrid(lr=0.0, switch_step=3)) == 3  # lbar is per unit of lr, so it is there all the same


def test_the_rate_is_frozen(same):
    rule = Hybrid(switch_step=3, bias_correction=True)
    p, state = run(rule, grads=GRADS[:3])
    after = run(rule, p, GRADS[3:], state)[1]
    for field in ("lbar", "share", "switched"):
        same(getattr(state, field), getattr(after, field))


def test_it_waits_for_a_rate():
    # With lbar = 0 nothing would ever move again.
    zeros = [{name: np.zeros_like(g) for name, g in GRADS[0].items()}] * 3
    assert switched_after(Hybrid(switch_step=2), [*zeros, GRADS[0]]) == 4
    assert switched_after(Hybrid(eps=0.0), zeros) is None


def test_a_schedule_scales_both_phases(same):
    # sched(t)/sched(T_switch) times the rate at the switch: lr*lbar with the lr of the day.
    rule = Hybrid(lr=0.5, switch_step=2)
    p, state = run(rule, grads=GRADS[:2])
    full, half = (rule.delta(p, GRADS[2], state, hyper={"lr": lr})[0] for lr in (0.5, 0.25))
    same(full, {name: np.float32(2.0) * x for name, x in half.items()})


def test_a_smaller_lr_max_is_reached():
    rule = Hybrid(lr=0.5, beta=0.0, eta=0.0, switch_step=1, lr_max=1e-3)
    p, state = run(rule, grads=GRADS[:1])
    delta = rule.delta(p, GRADS[1], state)[0]
    np.testing.assert_allclose(delta["a"], -1e-3 * GRADS[1]["a"], rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.02}, {"beta": 0.5}, {"eta": 0.5}, {"eps": 10.0}, {"switch_step": 3}, {"switch_step": 9},
     {"bias_correction": True}, {"lr_max": 1e-6}, {"momentum": 0.5}, {"dithered": True}, {"weight_decay": 0.1},
     {"sign_zero": "plus"}, {"sign_zero": "minus"}, {"sign_zero": "random"}, {"maximize": True},
     {"switch_step": None, "tolerance": 1.0}, {"switch_step": None, "switch_epoch": 1, "steps_per_epoch": 3}],
)  # fmt: skip
def test_every_option_changes_the_result(change, differ):
    rule = Hybrid(lr=0.01, switch_step=4)
    assert differ(run(rule)[0], run(dataclasses.replace(rule, **change))[0])


@pytest.mark.parametrize("change", [{"alpha": 4.0}, {"gamma": 3.0}, {"seed": 1}])
def test_every_option_of_the_noise_changes_the_result(change, differ):
    rule = Hybrid(lr=0.01, switch_step=8, dithered=True)
    assert differ(run(rule)[0], run(rule.replace(**change))[0])


# -- several workers -----------------------------------------------------------------------------------------


def test_workers_share_one_lambda_of_means_and_then_average(same):
    rule = Hybrid(lr=0.5, beta=0.0, eta=0.0, eps=0.0, switch_step=1)
    x, grads = np.zeros(2, np.float32), [np.float32([3.0, 1.0]), np.float32([1.0, -1.0]), np.float32([2.0, 4.0])]
    p, states = sc.simulate(rule, x, grads)
    same(p, np.float32([-0.5, -0.5]))
    # By hand: means of (4, 2, 6) and (10, 2, 20), 4/(32/3), quotients rounded
    expected = np.float32(4.0) / (np.float32(32.0) / np.float32(3.0))
    for state in states:
        same(state.lbar, np.asarray(expected))
    p, states = sc.simulate(rule, p, grads, states)
    mean = np.float32([6.0, 4.0]) / np.float32(3.0)
    same(p, np.float32([-0.5, -0.5]) + -(np.float32(0.5) * (expected * mean)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [({"switch_step": 0}, ValueError, "`switch_step` is 0; pass an int of at least 1"),
     ({"switch_step": 1.5}, TypeError, "`switch_step` is 1.5; pass an int of at least 1"),
     ({"switch_epoch": 0, "steps_per_epoch": 5}, ValueError, "`switch_epoch` is 0; pass an int of at least 1"),
     ({"switch_epoch": 5}, ValueError, "`switch_epoch` is 5 and `steps_per_epoch` is None; pass both"),
     ({"steps_per_epoch": 5}, ValueError, "`switch_epoch` is None and `steps_per_epoch` is 5; pass both"),
     ({"switch_step": 5, "switch_epoch": 5, "steps_per_epoch": 5}, ValueError, "pass one of them"),
     ({"switch_epoch": 2**20, "steps_per_epoch": 2**20}, ValueError, "pass fewer"),
     ({"eta": 1.0}, ValueError, r"`eta` is 1.0; it must be finite and in \[0, 1\)"),
     ({"eps": -1.0}, ValueError, "`eps` is -1.0"),
     ({"tolerance": -1.0}, ValueError, "`tolerance` is -1.0"),
     ({"tolerance": 1.0, "switch_step": 3}, ValueError,
      "`tolerance` is 1.0 and `switch_step` is 3, which leaves it idle; pass one of them"),
     ({"tolerance": 1.0, "switch_epoch": 3, "steps_per_epoch": 2}, ValueError, "and `switch_epoch` is 3, which"),
     ({"momentum": 1.0}, ValueError, "`momentum` is 1.0"),
     ({"lr_max": 0.0}, ValueError, "`lr_max` is 0.0"),
     ({"lr_max": "1"}, TypeError, "`lr_max` is '1'; pass a number above 0, or None")],
)  # fmt: skip
def test_bad_input(options, error, words):
    with pytest.raises(error, match=words):
        Hybrid(**options)
