"""SGD: what is special about the baseline. The oracle is torch.optim.SGD, whose form it takes."""

import numpy as np
import pytest
import torch

import signcore as sc
from signcore import ops
from signcore.rules.sgd import SGD, SGDMessage

STEPS = 6
# Integers, and factors that are powers of two or k/4: every product and sum below is exact in float32. torch's
# eager SGD uses add(alpha=...), a fused multiply-add, so it can agree to the bit only where nothing is rounded.
GRADS = np.random.default_rng(1).integers(-4, 5, (STEPS, 24)).astype(np.float32)
PARAMS = np.random.default_rng(2).integers(1, 9, 24).astype(np.float32)
# Numbers whose products are inexact, for tests that compare SGD with itself.
ROUGH = np.random.default_rng(3).standard_normal((STEPS, 24)).astype(np.float32)


def run(rule, params=PARAMS, grads=GRADS, **options):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, **options)
    return params, state


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.5, 0.0, False), (0.5, 0.25, False), (0.75, 1.0, False), (0.5, 0.0, True), (0.75, 0.0, True)],
)
def test_the_words_of_torch_where_nothing_is_rounded(momentum, dampening, nesterov, maximize, same):
    options = {"lr": 0.125, "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "maximize": maximize}
    parameter = torch.nn.Parameter(torch.tensor(PARAMS))
    optimizer = torch.optim.SGD([parameter], **options, foreach=False)
    for g in GRADS:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    params, state = run(SGD(**options))
    same(params, parameter)
    if momentum:
        # + 0: torch may keep a velocity of -0.0, which signcore stores as +0.0
        same(state.velocity, optimizer.state[parameter]["momentum_buffer"] + 0.0)


def test_a_quadratic_contracts_by_one_minus_lr_times_curvature(same):
    # the notes, section 1: f = L x^2 / 2 gives x_{k+1} = (1 - lr L) x_k exactly.
    x = PARAMS
    rule = SGD(lr=0.125)
    state = rule.init(x)
    for k in range(5):
        x, state = rule.step(x, 2.0 * x, state)
        same(x, (PARAMS * np.float32(0.75 ** (k + 1))))


def test_each_product_is_rounded_by_itself(same):
    mu, keep, lr, wd = np.float32(0.9), np.float32(1.0) - np.float32(0.3), np.float32(0.01), np.float32(0.05)
    p, v = PARAMS, None
    for g in ROUGH:
        v = g if v is None else mu * v + keep * g
        p = p + -(lr * (v + wd * p))
    same(run(SGD(lr=0.01, momentum=0.9, dampening=0.3, weight_decay=0.05), grads=ROUGH)[0], p)


def test_nesterov_looks_ahead_by_the_new_velocity(same):
    mu, lr = np.float32(0.9), np.float32(0.01)
    p, v = PARAMS, None
    for g in ROUGH:
        v = g if v is None else mu * v + g
        p = p - lr * (g + mu * v)
    same(run(SGD(lr=0.01, momentum=0.9, nesterov=True), grads=ROUGH)[0], p)


def test_the_first_gradient_is_not_damped_and_each_leaf_has_its_own_first(same):
    rule = SGD(lr=0.5, momentum=0.5, dampening=0.75)
    one, two = np.float32([1.0, -2.0]), np.float32([4.0, 8.0])
    params = {"early": one, "late": one}
    params, state = rule.step(params, {"early": two, "late": None}, rule.init(params))
    same(state.velocity, {"early": two, "late": np.zeros(2, np.float32)})
    assert (int(state.started["early"]), int(state.started["late"])) == (1, 0)
    params, state = rule.step(params, {"early": two, "late": two}, state)
    same(state.velocity, {"early": 0.5 * two + 0.25 * two, "late": two})


def test_momentum_of_zero_leaves_the_velocity_for_later(same):
    rule = SGD(lr=0.5)
    params, state = run(rule)
    same(state.velocity, 0 * PARAMS)
    assert int(state.started) == 0
    later = rule.step(params, GRADS[0], state, hyper={"momentum": 0.5})[1]
    same(later.velocity, GRADS[0] + 0.0)


@pytest.mark.parametrize("kind", [np.float32, np.asarray, torch.tensor])
def test_momentum_of_zero_is_the_same_when_it_is_known_only_at_the_step(kind, same):
    rule = SGD(lr=0.5, momentum=0.9, dampening=0.25)
    params, state = run(rule, grads=ROUGH)
    if kind is torch.tensor:
        params, state = torch.tensor(params), type(state)(*map(torch.tensor, state))
        gradient = torch.tensor(ROUGH[0])
    else:
        gradient = ROUGH[0]
    same(
        rule.step(params, gradient, state, hyper={"momentum": kind(0.0)}),
        rule.replace(momentum=0.0).step(params, gradient, state),
    )


def test_weight_decay_is_decoupled(same):
    decayed, state = run(SGD(lr=0.5, momentum=0.5, weight_decay=0.125), grads=GRADS[:1])
    same(decayed, PARAMS - 0.5 * (GRADS[0] + 0.125 * PARAMS))
    same(state.velocity, GRADS[0] + 0.0)


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"nesterov": True}, "momentum"), ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening")],
)
def test_nesterov_needs_momentum_and_no_dampening(options, argument):
    with pytest.raises(ValueError, match=rf"`nesterov` is True and `{argument}` is 0"):
        SGD(lr=0.1, **options)


def test_dampening_may_be_one_and_momentum_may_not():
    SGD(lr=0.1, momentum=0.5, dampening=1.0)
    with pytest.raises(ValueError, match=r"`momentum` is 1\.0"):
        SGD(lr=0.1, momentum=1.0)


def test_the_learning_rate_has_no_default():
    with pytest.raises(TypeError, match="lr"):
        SGD()


class FirstDamped(SGD):
    def message_leaf(self, p, g, s, h, noise):
        g = g if int(s.started) else g * 0.75
        return SGDMessage(ops.flush(g)), s


class OldVelocity(SGD):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(h.lr, s.velocity, h.weight_decay, p), new


class Coupled(SGD):
    def message_leaf(self, p, g, s, h, noise):
        return SGDMessage(ops.flush(g + ops.product(h.weight_decay, p))), s

    def apply_leaf(self, p, aggregate, s, h):
        return super().apply_leaf(0 * p, aggregate, s, h)


class Ascent(SGD):
    def apply_leaf(self, p, aggregate, s, h):
        delta, s = super().apply_leaf(p, aggregate, s, h)
        return -delta, s


class Fused(SGD):
    """lr*momentum taken together: one rounding in another place."""

    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        if not int(s.started):
            return super().apply_leaf(p, aggregate, s, h)
        lead = ops.product(ops.rounded(h.lr * h.momentum, "float32"), s.velocity)
        fresh = ops.product(h.lr, ops.product(ops.complement(h.dampening, p), aggregate.gradient))
        return -(lead + fresh + ops.product(h.lr, ops.product(h.weight_decay, p))), new


@pytest.mark.parametrize("broken", [FirstDamped, OldVelocity, Coupled, Ascent, Fused])
def test_a_changed_formula_changes_the_words(broken, differ):
    options = {"lr": 0.01, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.05}
    small = ROUGH[0] / 64  # so that the last bit of a delta is not lost in p + delta
    assert differ(run(SGD(**options), small, ROUGH)[0], run(broken(**options), small, ROUGH)[0])


def test_the_message_is_the_gradient_and_the_rest_happens_after_the_mean(same):
    rule = SGD(lr=0.5, momentum=0.5)
    state = rule.init(PARAMS)
    message, sent = rule.message(PARAMS, GRADS[0], state)
    same(message.gradient, GRADS[0] + 0.0)
    same(sent, state)
    mean = SGDMessage(sc.vote.mean(np.stack([message.gradient, 3 * message.gradient])))
    delta, _ = rule.apply(PARAMS, GRADS[0], mean, sent)
    same(delta, -GRADS[0] + 0.0)
