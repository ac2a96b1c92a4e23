"""ALIAS without arrays. Oracles: the notes, section 8.4, and the rule of section 8.1 along the same trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import signcore as sc
from signcore.rules.alias import ALIAS
from signcore.rules.alias_compact import ALIASCompact
from signcore_conformance import golden

RNG = np.random.default_rng(7)
PARAMS = RNG.standard_normal(40).astype(np.float32)
GRADS = RNG.standard_normal((10, 40)).astype(np.float32)
FITTING = {"agreement": {}, "linf_d": {}, "l1inf": {"gamma_max": 0.5}}
NORMS = list(FITTING)


def run(rule, grads=GRADS, params=PARAMS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, value=-3.0 if rule.maximize else 3.0)
    return params, state


def arrays(tree):
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [a for child in tree.values() for a in arrays(child)]
    return [tree]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("option", [{}, {"d0": 1.0, "sign_zero": "plus"}], ids=["II", "I"])
def test_bytes_of_the_state(norm, option):
    # the issue: at most 0.13 bytes per parameter plus scalars, measured; a bit is 0.125
    params = {"w": np.zeros((100, 1000), np.float32), "b": np.zeros(1003, np.float32)}
    state = ALIASCompact(norm=norm, **FITTING[norm], **option).init(params)
    sizes = [a.nbytes for field in state for a in arrays(field)]
    scalars = sum(size for size in sizes if size == 4)
    assert scalars <= 40  # and a counter for each of the two leaves
    assert (sum(sizes) - scalars) / 101_003 <= 0.13
    assert (sum(sizes) == scalars) == (not option)


def test_the_bounds_hold_and_their_order_is_that_of_the_notes():
    # the notes, section 8.4: B_t >= |g_t - g_prev|_inf; for 1000 N(0,1) coordinates d*B is about 7 |dg|_1
    rng = np.random.default_rng(0)
    ratios = {}
    for norm in ("agreement", "linf_d"):
        rule, x = ALIASCompact(norm=norm, l_inf0=1.0, d0=None), np.zeros(1000)
        state = rule.init(x)
        g = rng.standard_normal((2, 1000))
        y, state = rule.step(x, g[0], state, value=1.0)  # a rate of 1
        _, state = rule.step(y, g[1], state)
        ratios[norm] = (float(state.eta) - 1.0) / np.sum(np.abs(g[1] - g[0]))
    assert 1.0 < ratios["agreement"] < 1.6
    assert 5.0 < ratios["linf_d"] < 9.0
    for _ in range(50):
        g, h = rng.standard_normal((2, 30)) * rng.uniform(0.1, 10, 2)[:, None] + rng.standard_normal(2)[:, None]
        rule, x = ALIASCompact(norm="linf_d", l_inf0=1.0), np.zeros(30)
        _, state = rule.step(x, g, rule.init(x), value=1.0)
        _, state = rule.step(x, h, state)
        bound = (float(state.eta) - 1.0) / 30
        assert bound == max(h.max() - g.min(), g.max() - h.min()) or bound == pytest.approx(
            max(h.max() - g.min(), g.max() - h.min()), rel=1e-12
        )
        assert bound >= np.max(np.abs(h - g)) * (1 - 1e-12)


@pytest.mark.parametrize("norm", ["agreement", "linf_d"])
def test_eta_is_above_that_of_alias_on_its_trajectory(norm):
    # the notes, section 8.4, "Test": the rate is never above ALIAS's along the SAME trajectory
    full, rule = ALIAS(l_inf0=1.0), ALIASCompact(norm=norm, l_inf0=1.0)
    x = np.float64(PARAMS)
    first, state, last = full.init(x), rule.init(x), 0.0
    for g in np.float64(GRADS):
        before = x
        x, first = full.step(x, g, first, value=3.0)
        if float(state.moved):
            state = state._replace(moved=np.asarray(last))  # the displacement that was made here
        _, state = rule.step(before, g, state, value=3.0)
        last = np.max(np.abs(x - before))
        assert float(state.eta) >= float(first.eta)


def test_steps_by_hand():
    # agreement: eta 1, then 1 + (1 + 3)/2; rates sqrt(4/1), sqrt(4/3)
    rule, x = ALIASCompact(l_inf0=1.0), np.asarray([3.0, 0.0])
    x, state = rule.step(x, np.asarray([3.0, 0.0]), rule.init(x), value=4.0)
    assert (x[0], float(state.moved), float(state.size)) == (1.0, 2.0, 3.0)
    x, state = rule.step(x, np.asarray([1.0, 0.0]), state)
    assert float(state.eta) == 3.0
    # l1inf: extremes (3, 0) then (1, -1): max(1 - 0, 3 - -1) = 4 over |dx|_1 = 1*2
    rule, x = ALIASCompact(norm="l1inf", l_inf0=1.0, gamma_max=1.0), np.zeros(3)
    x, state = rule.step(x, np.asarray([3.0, 0.0, 2.0]), rule.init(x), value=4.0)
    assert (float(state.moved), float(state.most), float(state.least)) == (2.0, 3.0, 0.0)
    _, state = rule.step(x, np.asarray([1.0, -1.0, 0.0]), state)
    assert float(state.eta) == 1.0 + 4.0 / 2.0


def test_option_one_reads_packed_signs(same):
    # dtil += gamma_prev <g_t, sign(g_prev)>: with no zeros, no decay and a gap of one it is ALIAS's total (section 8.1)
    rule = ALIASCompact(d0=0.5, sign_zero="minus", l_inf0=4.0)
    x = np.float64(PARAMS)
    state, total, last, rate = rule.init(x), 0.0, None, 0.0
    for g in np.float64(GRADS):
        if last is not None:
            total += rate * float(np.sum(g * np.sign(last)))
        before = x
        x, state = rule.step(x, g, state)
        last, rate = g, float(np.max(np.abs(x - before)))
        assert float(state.total) == pytest.approx(total, rel=1e-9, abs=1e-9)
        assert float(state.d) == max(0.5, float(state.d))
        same(state.signs, sc.bits.pack(np.sign(g)))


def test_signs_count_in_the_next_step_only():
    # the notes, section 8.1: dtil += <g_t, x_{t-1} - x_t>: nothing of a leaf that did not move
    rule = ALIASCompact(l_inf0=1.0, d0=1e-6, sign_zero="plus")
    a, b = np.float32([1, 2]), np.float32([3, 4])
    x = {"a": a, "b": b}
    x, state = rule.step(x, {"a": np.ones_like(a), "b": None}, rule.init(x))
    x, state = rule.step(x, {"a": np.zeros_like(a), "b": np.float32([-1000, -1000])}, state)  # its first gradient
    assert float(state.total) == 0.0
    assert float(state.d) == np.float32(1e-6)
    rate = float(state.rate)
    x, state = rule.step(x, {"a": np.ones_like(a), "b": None}, state)
    assert float(state.total) == pytest.approx(2 * rate)
    x, state = rule.step(x, {"a": -np.ones_like(a), "b": np.ones_like(b)}, state)  # b rested for a step
    assert float(state.total) < 2 * rate


OPTION_ONE = {"d0": 0.5, "sign_zero": "plus"}


@pytest.mark.parametrize("options", [{}, {"sign_zero": "plus"}, OPTION_ONE], ids=str)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_without_any_gradient_changes_no_estimate(norm, nonfinite, options, same):
    rule = ALIASCompact(norm=norm, nonfinite=nonfinite, **options, **FITTING[norm])
    x = {"w": PARAMS}
    x, state = rule.step(x, {"w": GRADS[0]}, rule.init(x), value=3.0)
    y, after = rule.step(x, {"w": None}, state)
    same(y, x)
    free = {"step": state.step, "rate": state.rate}
    same(after._replace(**free), state)
    assert int(after.step) == 2
    same(rule.step(y, {"w": GRADS[1]}, after)[1].eta, rule.step(x, {"w": GRADS[1]}, state)[1].eta)
    _, first = rule.step(x, {"w": None}, rule.init(x), value=3.0)
    z, first = rule.step(x, {"w": GRADS[1]}, first)
    same(z, rule.step(x, {"w": GRADS[1]}, rule.init(x), value=3.0)[0])


@pytest.mark.parametrize("options", [{}, OPTION_ONE, {"norm": "linf_d", **OPTION_ONE}], ids=str)
def test_leaves_that_come_and_go_as_in_the_reference(options, same):
    rule = ALIASCompact(l_inf0=1.0, **options)
    model = golden.reference(rule)
    x = y = {"a": PARAMS[:7], "b": PARAMS[7:], "c": PARAMS[:1]}
    state, held = rule.init(x), model.init(y)
    for t, present in enumerate(["ab", "a", "b", "", "abc", "ca", "abc"]):
        g = {"a": GRADS[t][:7], "b": GRADS[t][7:], "c": GRADS[t][:1]}
        x, state = rule.step(x, {key: g[key] if key in present else None for key in g}, state, value=3.0)
        y, held = model.step(y, {key: g[key] for key in present}, held, value=3.0)
        same(x, y)
        for name in rule.kinds:
            same(getattr(state, name), held[name] if name != "step" else np.asarray(held["step"], np.int32))


@pytest.mark.parametrize("norm", NORMS)
def test_equivariance_is_exact(norm, same):
    # f -> 4f with l_inf0 and the gap times 4, as in section 8.1
    rule = ALIASCompact(norm=norm, l_inf0=4.0, **FITTING[norm])
    state, other = rule.init(PARAMS), rule.init(PARAMS)
    x = y = PARAMS
    scaled = rule.replace(l_inf0=16.0)
    for g in GRADS:
        x, state = rule.step(x, g, state, value=3.0)
        y, other = scaled.step(y, 4 * g, other, value=12.0)
    same(x, y)


@pytest.mark.parametrize("norm", NORMS)
def test_workers_agree(norm, same):
    rule, x, states = ALIASCompact(norm=norm, **FITTING[norm]), PARAMS, None
    for t in range(4):
        x, states = sc.simulate(rule, x, list(GRADS[t : t + 3]), states, value=3.0)
    same(states[0], states[2])
    one, alone = sc.simulate(rule, PARAMS, [GRADS[0]], value=3.0)
    y, state = rule.step(PARAMS, GRADS[0], rule.init(PARAMS), value=3.0)
    same((one, alone[0]), (y, state))


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "linf_d"},
        {"norm": "l1inf", "gamma_max": 0.5},
        {"lr": 0.5},
        {"l_inf0": 50.0},
        {"lower_bound": -1.0},
        {"d0": 1.0, "sign_zero": "plus"},
        {"gamma_max": 0.125},
        {"weight_decay": 0.1},
        {"maximize": True},
    ],
    ids=str,
)
def test_each_option_changes_the_words(change, differ):
    assert differ(run(ALIASCompact())[0], run(ALIASCompact(**change))[0])


def test_policies_for_zero_change_the_words(differ):
    grads = GRADS.copy()
    grads[:, :8] = 0.0
    seen = [run(ALIASCompact(sign_zero=zero), grads)[0] for zero in ("zero", "plus", "minus", "random")]
    assert all(differ(a, b) for i, a in enumerate(seen) for b in seen[:i])


class NoPast(ALIASCompact):
    def ratio(self, found, s):
        return super().ratio(found, s._replace(size=s.size * 0.0))


class ThisRate(ALIASCompact):
    """The displacement to come in the place of the last one."""

    def advance(self, found, s, h):
        seen, new = super().advance(found, s, h)
        return seen, {**new, "moved": new["moved"] * 0.5}


class Uphill(ALIASCompact):
    def argument_leaf(self, p, g, s, h, noise):
        return -g, s


@pytest.mark.parametrize("broken", [NoPast, ThisRate, Uphill], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(ALIASCompact())[0], run(broken())[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1inf"}, r"`gamma_max` is None and `norm` is 'l1inf', .* pass a gamma_max"),
        ({"norm": "l2"}, r"`norm` is 'l2'; choose one of"),
        ({"d0": 1.0}, r"`sign_zero` is 'zero' and `d0` keeps a bit for a sign; pass 'plus' or 'minus'"),
        ({"d0": 1.0, "sign_zero": "random"}, r"`sign_zero` is 'random' and `d0` keeps a bit"),
        ({"d0": 1.0, "sign_zero": "plus", "weight_decay": 0.1}, r"`weight_decay` is 0\.1 and `d0` is 1\.0"),
        ({"d0": 0.0}, r"`d0` is 0\.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ALIASCompact(**options)


def test_option_one_is_for_one_worker():
    rule = ALIASCompact(d0=1.0, sign_zero="plus")
    with pytest.raises(ValueError, match=r"`workers` is 2 and `d0` is 1\.0; pass d0=None, or take the rule 'alias'"):
        sc.simulate(rule, PARAMS, list(GRADS[:2]))


def test_the_loss_is_asked_for_and_must_be_above_the_bound():
    rule = ALIASCompact(lower_bound=1.0)
    with pytest.raises(TypeError, match=r"`value` is missing: ALIASCompact needs it"):
        rule.step(PARAMS, GRADS[0], rule.init(PARAMS))
    with pytest.raises(ValueError, match=r"is 1\.0 and `lower_bound` is 1\.0"):
        rule.step(PARAMS, GRADS[0], rule.init(PARAMS), value=1.0)


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_finite_is_skipped(norm, same):
    rule = ALIASCompact(norm=norm, nonfinite="skip", **FITTING[norm])
    x, state = run(rule)
    bad = GRADS[0].copy()
    bad[3] = np.nan
    same(rule.step(x, bad, state), (x, state))


@pytest.mark.parametrize("norm", NORMS)
def test_to_maximize_is_to_minimize_the_negative(norm, same):
    rule = ALIASCompact(norm=norm, lower_bound=-1.0, **FITTING[norm])
    same(run(rule), run(rule.replace(maximize=True), -GRADS))


@pytest.mark.parametrize("g", [[0.0, 1.0, 2.0], [-0.0, -1.0, -2.0]])
def test_an_extreme_of_zero_has_one_sign_on_every_backend(g, same):
    # XLA drops ``x + 0.0``, which would make +0 of -0
    rule = sc.ALIASCompact(norm="linf_d", gamma_max=1.0, l_inf0=1.0, sign_zero="plus")
    outcomes = []
    for array, step in ((np.asarray, rule.step), (jnp.asarray, jax.jit(rule.step)), (torch.tensor, rule.step)):
        params = {"w": array(np.float32([1.0, 2.0, 3.0]))}
        state = rule.init(params)
        for _ in range(2):
            params, state = step(params, {"w": array(np.float32(g))}, state, value=2.0)
        outcomes.append((params, tuple(state)))
    same(outcomes[1], outcomes[0])
    same(outcomes[2], outcomes[0])
