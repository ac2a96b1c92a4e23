"""Rprop: what is special about sizes that follow signs. Oracles: torch.optim.Rprop, and the notes, section 14."""

import numpy as np
import optax
import pytest
import torch

import signcore as sc
from signcore import ops
from signcore.rules.rprop import Rprop, RpropState

CURVATURE = np.exp2(np.random.default_rng(0).integers(-12, 12, 40)).astype(np.float32)
PARAMS = np.random.default_rng(1).standard_normal(40).astype(np.float32)
GRADS = np.random.default_rng(2).standard_normal((12, 40)).astype(np.float32)
GRADS[:, :5] = np.float32([0.0, -0.0, 1e-38, 3.0, -3.0])
GRADS[5, 5:8] = 0.0


def run(rule, params=PARAMS, grads=GRADS, **options):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, **options)
    return params, state


def descend(rule, params=PARAMS, steps=40):
    """On the quadratic ``sum(CURVATURE x^2)/2``: all points on the way, and the last state."""
    state, points = rule.init(params), []
    for _ in range(steps):
        params, state = rule.step(params, CURVATURE * params, state)
        points.append(params)
    return np.stack(points), state


OPTIONS = {
    "defaults": {},
    "other factors": {"eta_minus": 0.3, "eta_plus": 1.7},
    "narrow bounds": {"lr": 0.1, "size_min": 0.05, "size_max": 0.15},
    "first size below": {"lr": 0.01, "size_min": 0.05},
    "first size above": {"lr": 1.0, "size_max": 0.125},
    "no first size": {"lr": 0.0},
    "uphill": {"maximize": True, "size_max": 1.0},
}


def theirs(lr=0.01, eta_minus=0.5, eta_plus=1.2, size_min=1e-6, size_max=50.0, maximize=False):
    parameter = torch.nn.Parameter(torch.tensor(PARAMS))
    sizes = {"etas": (eta_minus, eta_plus), "step_sizes": (size_min, size_max)}
    return parameter, torch.optim.Rprop([parameter], lr=lr, **sizes, maximize=maximize, foreach=False)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_quadratic_takes_torchs_way_to_the_bit(options, same):
    # torch.optim.Rprop, foreach=False: sizes are one rounded product each, a step is a sign times a size.
    parameter, optimizer = theirs(**options)
    points, state = descend(Rprop(**options))
    for x in points:
        parameter.grad = torch.tensor(CURVATURE) * parameter.detach()
        optimizer.step()
        same(x, parameter)
    same(state.size, optimizer.state[parameter]["step_size"])
    same(state.prev, optimizer.state[parameter]["prev"].sign() + 0.0)


def test_random_gradients_give_torchs_words_too(same):
    parameter, optimizer = theirs()
    grads = np.where(np.abs(GRADS) < 2.0**-100, np.float32(0.0), GRADS)  # a deviation: signcore takes 1e-38 for 0
    for g in grads:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    same(run(Rprop())[0], parameter)


def test_optaxs_state_agrees_and_its_updates_come_a_step_late(same):
    # optax.scale_by_rprop of 0.2.8 keeps the sizes and the signed steps that are kept here, and returns
    # ``where(s < 0, 0, prev_g)`` with the *old* signed step: its updates lag behind by one. So its state is compared.
    grads = np.where(np.abs(GRADS) < 2.0**-100, np.float32(0.0), GRADS)
    tx = optax.scale_by_rprop(0.01)
    theirs, rule = tx.init(PARAMS), Rprop()
    ours, late = rule.init(PARAMS), np.zeros_like(PARAMS)
    for g in grads:
        update, theirs = tx.update(g, theirs)
        delta, ours = rule.delta(PARAMS, g, ours)
        same(np.asarray(theirs.step_sizes), ours.size)
        same(np.asarray(theirs.prev_updates) + 0.0, -delta + 0.0)
        kept = (ours.prev != 0.0) | (g == 0.0)
        same(np.asarray(update)[kept] + 0.0, late[kept])
        late = -delta + 0.0


def test_a_coordinate_by_hand(same):
    # f(x) = x^2/2 from 1 with size 1/2, factors 1/2 and 3/2: x = 1, .5, -.25 (size .75), turned: size .375, rest;
    # then prev = 0: the size stays, x = .125; turned: .1875, rest.
    rule = Rprop(lr=0.5, eta_plus=1.5)
    x, state, way = np.float32([1.0]), None, []
    state = rule.init(x)
    for _ in range(5):
        x, state = rule.step(x, x, state)
        way.append((float(x[0]), float(state.size[0]), float(state.prev[0])))
    assert way == [
        (0.5, 0.5, 1.0),
        (-0.25, 0.75, 1.0),
        (-0.25, 0.375, 0.0),
        (0.125, 0.375, -1.0),
        (0.125, 0.1875, 0.0),
    ]


def test_sizes_stay_within_their_bounds_and_reach_them():
    state = run(Rprop(size_max=2.0), grads=np.ones((40, 40), np.float32))[1]
    assert np.all(state.size == 2.0)
    alternating = np.where(np.arange(60)[:, None] // 1 % 3 == 0, -1.0, 1.0) * np.ones((60, 40))
    sizes = run(Rprop(size_min=0.004), grads=alternating.astype(np.float32))[1].size
    assert np.all(sizes >= np.float32(0.004))


def test_a_later_learning_rate_is_not_read(same):
    # As in torch: lr is the size that each leaf starts with.
    params, state = run(Rprop())
    same(Rprop().step(params, GRADS[0], state, hyper={"lr": 7.0}), Rprop().step(params, GRADS[0], state))


def test_a_leaf_that_comes_late_starts_then(same):
    params = {"early": PARAMS, "late": PARAMS}
    rule = Rprop(lr=0.25)
    params, state = rule.step(params, {"early": GRADS[0], "late": None}, rule.init(params))
    assert (int(state.started["early"]), int(state.started["late"])) == (1, 0)
    params, state = rule.step(params, {"early": GRADS[1], "late": GRADS[1]}, state, hyper={"lr": 0.125})
    same(state.size["late"], np.full(40, 0.125, np.float32))
    same(state.size["early"], run(rule, grads=GRADS[:2])[1].size)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_a_positive_factor_of_each_coordinates_gradients_changes_nothing(scale, same):
    factors = np.where(np.arange(40) % 2, np.float32(scale), np.float32(1.0))
    same(run(Rprop()), run(Rprop(), grads=GRADS * factors))


def test_products_of_gradients_that_underflow_still_have_a_sign(same):
    # A deviation: 1e-25 squared is 0 in float32, which torch takes for "no turn, no growth".
    tiny = np.full((3, 40), 1e-25, np.float32)
    same(run(Rprop(), grads=tiny)[1].size, run(Rprop(), grads=np.ones_like(tiny))[1].size)
    parameter, optimizer = theirs()
    for g in tiny:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    assert np.all(optimizer.state[parameter]["step_size"].numpy() == np.float32(0.01))


def test_coordinates_do_not_see_each_other(same):
    changed = GRADS.copy()
    changed[:, 20:] *= -1.0
    same(run(Rprop(), grads=changed)[0][:20], run(Rprop())[0][:20])


def test_decay_is_relative_to_each_size(same):
    rule = Rprop(lr=0.5, weight_decay=0.25)
    new, state = rule.step(PARAMS, GRADS[0], rule.init(PARAMS))
    same(new, PARAMS + -(np.float32(0.5) * (state.prev + np.float32(0.25) * PARAMS)))


def test_workers_average_their_gradients(same):
    rule = Rprop(lr=0.25)
    p, states = sc.simulate(rule, PARAMS, [3 * GRADS[0], GRADS[1], -GRADS[1]])
    same(p, rule.step(PARAMS, GRADS[0], rule.init(PARAMS))[0])
    same(states[0], states[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta_minus": 0.0}, r"`eta_minus` is 0\.0; pass 0 < eta_minus < 1 < eta_plus"),
        ({"eta_minus": 1.0}, r"`eta_minus` is 1\.0; it must be finite and in \[0, 1\)"),
        ({"eta_plus": 1.0}, r"`eta_plus` is 1\.0; pass 0 < eta_minus < 1 < eta_plus"),
        ({"eta_plus": 0.9}, r"`eta_plus` is 0\.9; it must be finite and in \[1, inf\)"),
        ({"size_min": 2.0, "size_max": 1.0}, r"`size_min` is 2\.0, above `size_max`, 1\.0; exchange them"),
        ({"size_max": np.inf}, "`size_max` is inf; it must be finite"),
        ({"size_min": -1.0}, r"`size_min` is -1\.0; it must be finite"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Rprop(**options)


@pytest.mark.parametrize(
    "change",
    [{"eta_minus": 0.4}, {"eta_plus": 1.3}, {"size_min": 0.008}, {"size_max": 0.013}, {"lr": 0.02}],
    ids=lambda c: next(iter(c)),
)
def test_each_argument_changes_the_words(change, differ):
    assert differ(run(Rprop())[0], run(Rprop(**change))[0])


class MovesAfterATurn(Rprop):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(new.size, ops.sign(aggregate.gradient), h.weight_decay, p), new


class RemembersTheTurn(Rprop):
    """The first form of the paper: the gradient after a turn is kept, so the next step may shrink again."""

    def apply_leaf(self, p, aggregate, s, h):
        delta, new = super().apply_leaf(p, aggregate, s, h)
        return delta, new._replace(prev=ops.sign(aggregate.gradient))


class FactorsSwapped(Rprop):
    def apply_leaf(self, p, aggregate, s, h):
        s = s._replace(prev=-s.prev)
        return super().apply_leaf(p, aggregate, s, h)


class OldSize(Rprop):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        size = s.size if int(s.started) else new.size
        return ops.descent(size, new.prev, h.weight_decay, p), new


class Uphill(Rprop):
    def apply_leaf(self, p, aggregate, s, h):
        delta, s = super().apply_leaf(p, aggregate, s, h)
        return -delta, s


class ByTheGradient(Rprop):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(new.size, ops.product(new.prev, abs(aggregate.gradient)), h.weight_decay, p), new


@pytest.mark.parametrize(
    "broken",
    [MovesAfterATurn, RemembersTheTurn, FactorsSwapped, OldSize, Uphill, ByTheGradient],
    ids=lambda c: c.__name__,
)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(descend(Rprop())[0], descend(broken())[0])
    assert differ(run(Rprop())[0], run(broken())[0])


def test_the_state_of_torch_continues_here(same):
    parameter, optimizer = theirs()
    for g in GRADS[:6, 5:]:
        parameter.grad = torch.cat([torch.zeros(5), torch.tensor(g)])
        optimizer.step()
    held = optimizer.state[parameter]
    state = RpropState(np.int32(6), np.sign(held["prev"].numpy()), held["step_size"].numpy(), np.asarray(1, np.int32))
    g = GRADS[6]
    g[:5] = 0.0
    ours = Rprop().step(parameter.detach().numpy().copy(), g, state._replace(step=np.asarray(6, np.int32)))[0]
    parameter.grad = torch.tensor(g)
    optimizer.step()
    same(ours, parameter)
