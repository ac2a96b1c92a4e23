"""Option 2 of signSGD: the better of two points. Oracles: the notes, section 3 (Safaryan and Richtarik, equation 3)."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import signcore as sc
from signcore import schedules
from signcore.rules.monotone_signsgd import MonotoneSignSGD
from signcore.rules.signsgd import SignSGD

PARAMS = np.random.default_rng(1).standard_normal(40).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((8, 40)).astype(np.float32)
GRADS[:, :4] = 0.0


def bowl(p):
    """Of a bare vector, in float64."""
    return float((np.asarray(p, np.float64) ** 2).sum())


def run(rule, params=PARAMS, grads=GRADS, f=bowl):
    state, losses = rule.init(params), [f(params)]
    for g in grads:
        params, state = rule.step(params, g, state, value=f(params), value_fn=f)
        losses.append(f(params))
    return params, state, losses


@pytest.mark.parametrize("gradient", ["random", "uphill", "true"])
@pytest.mark.parametrize("seed", range(2))
def test_the_loss_never_rises_whatever_the_gradients(gradient, seed):
    # the notes, section 3: for any g whatever, random or adversarial.
    rng = np.random.default_rng(seed)
    rule, p = MonotoneSignSGD(lr=schedules.inverse_sqrt(0.7)), rng.standard_normal(9).astype(np.float32)
    state = rule.init(p)
    for k in range(25):
        g = {"random": rng.standard_normal(9).astype(np.float32), "uphill": -p, "true": p}[gradient]
        before = bowl(p)
        new, state = rule.step(p, g, state, value=before, value_fn=bowl)
        assert bowl(new) <= before
        assert bowl(new) < before or np.array_equal(new.view(np.int32), p.view(np.int32))
        assert int(state.step) == k + 1  # on rejection, too, so that the rate shrinks
        p = new
    if gradient == "uphill":
        assert bowl(p) == bowl(np.random.default_rng(seed).standard_normal(9).astype(np.float32))


def test_an_accepted_step_is_signsgds_and_a_rejected_one_leaves_every_word(same):
    # Worked by hand: f(x) = x^2, lr 1, true gradients: 2.25 -> 1.25 -> 0.25 -> 0.75 is worse -> 0.25 for ever.
    rule, f = MonotoneSignSGD(lr=1.0), lambda p: float(p[0] * p[0])
    p, seen = np.float32([2.25]), []
    state = rule.init(p)
    for _ in range(4):
        p, state = rule.step(p, 2 * p, state, value=f(p), value_fn=f)
        seen.append(float(p[0]))
    assert seen == [1.25, 0.25, 0.25, 0.25]
    plain = SignSGD(lr=0.01)
    same(
        MonotoneSignSGD(lr=0.01).step(PARAMS, PARAMS, rule.init(PARAMS), value=bowl(PARAMS), value_fn=bowl)[0],
        plain.step(PARAMS, PARAMS, plain.init(PARAMS))[0],
    )


def test_a_shrinking_rate_goes_on_after_rejections():
    # With gamma_k = gamma0/sqrt(k+1) the point x = 1/4 is left as soon as lr < 1/2, that is from k = 4 on.
    rule, f = MonotoneSignSGD(lr=schedules.inverse_sqrt(1.0)), lambda p: float(p[0] * p[0])
    p, moved = np.float32([0.25]), []
    state = rule.init(p)
    for k in range(6):
        new, state = rule.step(p, 2 * p, state, value=f(p), value_fn=f)
        if new[0] != p[0]:
            moved.append(k)
        p = new
    assert moved[0] == next(k for k in range(9) if abs(0.25 - (k + 1) ** -0.5) < 0.25) == 4


@pytest.mark.parametrize("after", [1.0, np.nan, np.inf])
def test_a_tie_and_what_is_no_number_keep_the_params(after, same):
    rule, p = MonotoneSignSGD(lr=0.1), np.float32([-0.0, 1.0, 3.0])
    kept, state = rule.step(p, p, rule.init(p), value=1.0, value_fn=lambda _: after)
    same(kept, p)
    assert int(state.step) == 1
    delta, _ = rule.delta(p, p, rule.init(p), value=1.0, value_fn=lambda _: after)
    same(p + delta, p)
    same(rule.step(p, p, rule.init(p), value=np.nan, value_fn=lambda _: 0.0)[0], p)


def test_the_decision_is_one_for_the_whole_tree(same):
    # a gains 0.19, b loses 0.21: together they lose, so neither moves; each by itself, a would.
    params = {"a": np.float32([1.0]), "b": np.float32([1.0])}
    grads = {"a": np.float32([1.0]), "b": np.float32([-1.0])}

    def f(p):
        return sum(bowl(leaf) for leaf in p.values())

    rule = MonotoneSignSGD(lr=0.1)
    same(rule.step(params, grads, rule.init(params), value=f(params), value_fn=f)[0], params)
    alone = rule.step(params["a"], grads["a"], rule.init(params["a"]), value=1.0, value_fn=bowl)[0]
    assert bowl(alone) < 1.0


def test_a_loss_that_is_maximized_must_rise():
    rule = MonotoneSignSGD(lr=0.25, maximize=True)
    p, state = np.float32([0.5]), None
    state = rule.init(p)
    gain = lambda x: -bowl(x)  # noqa: E731
    for expected in (0.25, 0.0, 0.0):
        p, state = rule.step(p, -2 * p, state, value=gain(p), value_fn=gain)
        assert float(p[0]) == expected


def test_torch_and_jax_decide_alike(same):
    rule = MonotoneSignSGD(lr=schedules.inverse_sqrt(0.5))
    expected = run(rule)[:2]
    p, state = torch.tensor(PARAMS), rule.init(torch.tensor(PARAMS))
    for g in GRADS:
        loss = lambda x: (x.double() ** 2).sum()  # noqa: E731
        p, state = rule.step(p, torch.tensor(g), state, value=loss(p).float(), value_fn=lambda x, f=loss: f(x).float())
    same((p, tuple(state)), (expected[0], tuple(expected[1])))

    def f(x):
        return jnp.max(jnp.abs(x))

    step = jax.jit(lambda p, g, s: rule.step(p, g, s, value=f(p), value_fn=f))
    p, state, here = jnp.asarray(PARAMS), rule.init(jnp.asarray(PARAMS)), PARAMS
    mine = rule.init(PARAMS)
    for g in GRADS:
        p, state = step(p, jnp.asarray(g), state)
        here, mine = rule.step(here, g, mine, value=np.abs(here).max(), value_fn=lambda x: np.abs(x).max())
    same((p, tuple(state)), (here, tuple(mine)))


def test_workers_decide_on_their_mean_loss_and_on_one_function(same):
    # the notes, section 3: every worker must take the same decision.
    rule, losses = MonotoneSignSGD(lr=0.5), [2.0, 6.0, 1.0]
    for after, moves in ((3.0, False), (2.999, True)):  # their mean is 3
        p, states = sc.simulate(rule, PARAMS, GRADS[:3], value=losses, value_fn=lambda _, a=after: a)
        assert (not np.array_equal(p, PARAMS)) is moves
        assert [int(s.step) for s in states] == [1, 1, 1]
    local = iter(losses)
    differ = r"`value_fn\(params\)` of worker 0 is 2\.0 and that of worker 1 is 6\.0, .*of all workers together"
    with pytest.raises(ValueError, match=differ):
        sc.simulate(rule, PARAMS, GRADS[:3], value=losses, value_fn=lambda _: next(local))
    one = sc.simulate(rule, PARAMS, [PARAMS], value=bowl(PARAMS), value_fn=bowl)
    same(one[0], rule.step(PARAMS, PARAMS, rule.init(PARAMS), value=bowl(PARAMS), value_fn=bowl)[0])


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_the_gradients_changes_nothing(scale, same):
    rule = MonotoneSignSGD(lr=0.1)
    same(run(rule)[:2], run(rule, grads=GRADS * np.float32(scale))[:2])


def test_the_theorems_schedule_meets_its_bound():
    # Theorem 2 (the notes, section 3): mean of |grad|_1 <= (gap/gamma0 + gamma0 d L)/sqrt(K) with true gradients.
    d, steps, gamma0 = 8, 100, 0.5
    rule, x = MonotoneSignSGD(lr=schedules.inverse_sqrt(gamma0)), np.random.default_rng(3).standard_normal(d)
    f = lambda p: 0.5 * bowl(p)  # noqa: E731
    state, start, total = rule.init(x), f(x), Fraction(0)
    for _ in range(steps):
        total += Fraction(float(np.abs(x).sum()))
        x, state = rule.step(x, x, state, value=f(x), value_fn=f)
    assert float(total / steps) <= (start / gamma0 + gamma0 * d) / steps**0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`value` is missing: MonotoneSignSGD needs it; pass the loss at params"),
        ({"value": 1.0}, "`value_fn` is missing: MonotoneSignSGD needs it; pass a function of params"),
        ({"value": 1.0, "value_fn": 2.0}, r"`value_fn` is 2\.0; pass a function of params"),
    ],
)
def test_a_missing_loss_is_asked_for_by_name(given, message):
    rule = MonotoneSignSGD(lr=0.1)
    with pytest.raises(TypeError, match=message):
        rule.step(PARAMS, GRADS[0], rule.init(PARAMS), **given)


def test_decay_belongs_into_the_loss():
    refusal = r"`weight_decay` is 0\.1; it must be finite and in \[0, 0\]: add the decay to the loss"
    with pytest.raises(ValueError, match=refusal):
        MonotoneSignSGD(weight_decay=0.1)
    rule = MonotoneSignSGD()
    with pytest.raises(ValueError, match=refusal):
        rule.step(PARAMS, GRADS[0], rule.init(PARAMS), value=0.0, value_fn=bowl, hyper={"weight_decay": 0.1})


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_loss_that_is_not_finite_follows_the_policy(policy, same):
    rule = MonotoneSignSGD(lr=0.1, nonfinite=policy)
    state = rule.init(PARAMS)
    inputs = {"value": np.inf, "value_fn": bowl}
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="`value` holds inf or NaN"):
            rule.step(PARAMS, GRADS[0], state, **inputs)
        return
    same(rule.step(PARAMS, GRADS[0], state, **inputs), (PARAMS, state))


class AcceptsTies(MonotoneSignSGD):
    def accepts(self, value, trial):
        return trial <= value


class AcceptsAll(MonotoneSignSGD):
    def accepts(self, value, trial):
        return trial == trial


class KeepsTheWorse(MonotoneSignSGD):
    def accepts(self, value, trial):
        return trial > value


class ComparesTwice(MonotoneSignSGD):
    """A constant in the wrong place."""

    def accepts(self, value, trial):
        return 2.0 * trial < value


@pytest.mark.parametrize("broken", [AcceptsTies, AcceptsAll, KeepsTheWorse, ComparesTwice], ids=lambda c: c.__name__)
def test_a_changed_decision_changes_the_words(broken, differ):
    def steps(f):
        return round(float(np.abs(f).sum()), 0)  # so coarse that there are ties

    grads = np.where(np.arange(8)[:, None] % 2, GRADS, PARAMS)
    assert differ(run(MonotoneSignSGD(lr=0.1), grads=grads, f=steps)[0], run(broken(lr=0.1), grads=grads, f=steps)[0])
