"""The authors' AdamLike. Oracles: the notes, section 8.5 A, from the published code, and Adam's own formula."""

import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.rules.alias_adam import ALIASAdam

RNG = np.random.default_rng(11)
PARAMS = {"a": RNG.standard_normal(12), "b": RNG.standard_normal(5)}
GRADS = [{"a": RNG.standard_normal(12), "b": 3 * RNG.standard_normal(5)} for _ in range(15)]


def run(rule, grads=GRADS, params=PARAMS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def scaled(grads, factor):
    return [{name: factor * g for name, g in each.items()} for each in grads]


def published(params, grads, lr=0.01, b1=0.9, b2=0.999, eps=1e-8, wd=0.0, d0=1.0, warmup=0, growth=True):
    """The code's lines as the notes give them, in float64."""
    x, root = dict(params), np.sqrt(b2)
    held = {name: {"m": 0.0, "v": 0.0, "r": 1.0, "d": d0, "g": None} for name in x}
    for t, g in enumerate(grads):
        for name, s in held.items():
            if s["g"] is not None and (growth or t >= warmup):
                q = np.sum(np.abs(g[name]) * np.abs(s["g"]))
                s["r"] = root * s["r"] + (1 - root) * s["d"] * q
                s["d"] = max(s["d"], s["r"])
            s["g"], d = g[name], s["d"]
            s["m"] = b1 * s["m"] + (1 - b1) * d * g[name]
            s["v"] = b2 * s["v"] + (1 - b2) * d**2 * g[name] ** 2
            factor = 1.0 if t < warmup else d
            size = lr * np.sqrt(factor**2 / (1 + (s["v"] - s["m"] ** 2) / (s["m"] ** 2 + eps)))
            x[name] = (x[name] - size * np.sign(s["m"])) * (1 - lr * wd)
    return x, held


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({}, {}),
        ({"weight_decay": 0.5}, {"wd": 0.5}),
        ({"d0": 1e-3, "warmup_growth": False, "warmup_steps": 4}, {"d0": 1e-3, "growth": False, "warmup": 4}),
        ({"warmup_steps": 6, "eps": 1e-2}, {"warmup": 6, "eps": 1e-2}),
        ({"beta1": 0.5, "beta2": 0.9}, {"b1": 0.5, "b2": 0.9}),
    ],
    ids=str,
)
def test_it_is_the_published_formula(mine, theirs):
    x, state = run(ALIASAdam(lr=0.01, **mine))
    y, held = published(PARAMS, GRADS, **theirs)
    for name in x:
        assert x[name] == pytest.approx(y[name], rel=1e-9)
        assert float(state.d[name]) == pytest.approx(held[name]["d"], rel=1e-12)
        assert float(state.r[name]) == pytest.approx(held[name]["r"], rel=1e-12)
    assert float(state.d["b"]) > max(mine.get("d0", 1.0), 0.5)


def test_with_d_at_one_it_is_adam_without_bias_correction():
    # the notes, section 8.5, "Tests": d frozen at 1, eps -> 0, no decay: lr*m/sqrt(v)
    small = scaled(GRADS, 0.01)
    x, state = run(ALIASAdam(lr=0.01, eps=1e-30), small)
    m = v = 0.0
    y = PARAMS["a"]
    for g in small:
        m, v = 0.9 * m + 0.1 * g["a"], 0.999 * v + 0.001 * g["a"] ** 2
        y = y - 0.01 * m / np.sqrt(v)
    assert x["a"] == pytest.approx(y, rel=1e-9)
    assert float(state.d["a"]) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipped_gradients_leave_d_at_one_for_ever(dtype):
    # the notes, section 8.5, FACT: sum g^2 <= 1 makes q <= 1 by Cauchy-Schwarz, so r <= 1 and d stays EXACTLY 1
    g = (np.ones(4) / 2).astype(dtype)  # a norm of exactly 1, the worst case
    rule, x = ALIASAdam(), np.zeros(4, dtype)
    state = rule.init(x)
    for _ in range(40):
        x, state = rule.step(x, g, state)
        assert float(state.d) == 1.0
        assert float(state.r) <= 1.0


def test_the_branch_dev_jumps_to_the_start_of_r():
    # the notes, section 8.5, FACT: dev starts at d = 1e-3 and r = 1, so d is 0.9995 after one update
    small = scaled(GRADS, 1e-3)
    _, state = run(ALIASAdam(d0=1e-3), small[:1])
    assert float(state.d["a"]) == 1e-3
    _, state = run(ALIASAdam(d0=1e-3), small[:2])
    assert round(float(state.d["a"]), 4) == 0.9995


def test_d_never_falls():
    rule, x = ALIASAdam(), PARAMS
    state, seen = rule.init(x), [1.0]
    for factor, g in zip([1, 3, 0.1, 5, 0.01] * 3, GRADS, strict=True):
        x, state = rule.step(x, {name: factor * v for name, v in g.items()}, state)
        seen.append(float(state.d["a"]))
    assert seen == sorted(seen)
    assert seen[-1] > 1.0


def test_at_the_scale_of_a_language_model_it_is_nearly_signum():
    # the notes, section 8.5, FACT 2: rms(g) = 8.8e-5: a step of .77 lr on average, where |m|/sqrt(v) is .20
    rng, size = np.random.default_rng(0), 8.8e-5
    rule, x = ALIASAdam(lr=1.0), np.zeros(2000)
    state, steps, adams = rule.init(x)._replace(v=np.full(2000, size**2)), [], []
    for t in range(60):
        delta, state = rule.delta(x, size * rng.standard_normal(2000), state)
        if t >= 30:
            steps.append(np.mean(np.abs(delta)))
            adams.append(np.mean(np.abs(state.m) / np.sqrt(state.v)))
    # stationary v: both means are those of the notes to the digits given
    assert np.mean(adams) == pytest.approx(0.2, abs=0.03)
    assert np.mean(steps) == pytest.approx(0.77, abs=0.04)


def test_decay_comes_after_the_step():
    # the notes, section 0: only ALIAS-AdamLike decays after the step
    x, g = np.asarray([2.0]), np.asarray([1.0])
    y, _ = (plain := ALIASAdam(lr=0.5)).step(x, g, plain.init(x))
    z, _ = (rule := ALIASAdam(lr=0.5, weight_decay=0.25)).step(x, g, rule.init(x))
    assert float(z[0]) == pytest.approx(float(y[0]) * (1 - 0.5 * 0.25), rel=1e-15)


def test_a_leaf_has_its_own_d_and_begins_with_its_first_gradient(same):
    rule = ALIASAdam()
    x, state = PARAMS, rule.init(PARAMS)
    y, alone = PARAMS["b"], rule.init(PARAMS["b"])
    for t, g in enumerate(GRADS):
        late = {"a": g["a"], "b": g["b"] if t >= 3 else None}
        x, state = rule.step(x, late, state)
        if t >= 3:
            y, alone = rule.step(y, g["b"], alone)
    same(x["b"], y)
    same(state.d["b"], alone.d)
    assert float(state.d["a"]) != float(state.d["b"])


def test_workers_send_gradients(same):
    rule, x, states = ALIASAdam(), PARAMS, None
    for t in range(5):
        x, states = sc.simulate(rule, x, [GRADS[t], GRADS[t + 5]], states)
    for name in ("m", "v", "r", "d"):
        same(getattr(states[0], name), getattr(states[1], name))
    y, state = run(rule, GRADS[:5])
    z, one = PARAMS, None
    for g in GRADS[:5]:
        z, one = sc.simulate(rule, z, [g], one)
    same((y, state), (z, one[0]))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.5},
        {"beta1": 0.5},
        {"beta2": 0.9},
        {"eps": 1e-2},
        {"d0": 0.5},
        {"warmup_steps": 4},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"state_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_each_option_changes_the_words(change, differ):
    assert differ(run(ALIASAdam())[0], run(ALIASAdam(**change))[0])


def test_growth_in_the_warm_up_changes_the_words(differ):
    seen = [run(ALIASAdam(warmup_steps=4, warmup_growth=growth))[0] for growth in (True, False)]
    assert differ(*seen)


def test_it_is_not_scale_invariant(differ):
    # the notes, FACT 2: eps stands beside squared gradients
    assert differ(run(ALIASAdam(), scaled(GRADS, 2.0**-20))[0], run(ALIASAdam(), scaled(GRADS, 2.0**-21))[0])


class DecayFirst(ALIASAdam):
    def apply_leaf(self, p, aggregate, s, h):
        flat = type("H", (), {**vars(h), "weight_decay": 0.0})
        delta, s = super().apply_leaf(p, aggregate, s, flat)
        return delta - ops.product(h.lr * h.weight_decay, p), s


class BiasCorrected(ALIASAdam):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        u = new.m / (1 - h.beta1) / np.sqrt(new.v / (1 - h.beta2) + h.eps)
        return ops.descent(h.lr, u, h.weight_decay, p), new


class EpsOutside(ALIASAdam):
    def apply_leaf(self, p, aggregate, s, h):
        _, new = super().apply_leaf(p, aggregate, s, h)
        return ops.descent(h.lr, new.m / (np.sqrt(new.v) + h.eps), h.weight_decay, p), new


class OldD(ALIASAdam):
    def advance(self, found, s, h):
        seen, new = super().advance(found, s, h)
        before = ops.where(s.d == 0.0, h.d0, s.d)
        return {**seen, "d": before, "factor": before}, new


@pytest.mark.parametrize("broken", [DecayFirst, BiasCorrected, EpsOutside, OldD], ids=lambda c: c.__name__)
def test_a_changed_formula_is_seen(broken):
    rule = broken(lr=0.01, weight_decay=0.5)
    x, _ = run(rule)
    y, _ = published(PARAMS, GRADS, wd=0.5)
    assert x["a"] != pytest.approx(y["a"], rel=1e-9)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"beta1": 1.0}, ValueError, r"`beta1` is 1\.0"),
        ({"beta2": -0.1}, ValueError, r"`beta2` is -0\.1"),
        ({"eps": 0.0}, ValueError, r"`eps` is 0\.0; it must be finite and in"),
        ({"d0": 0.0}, ValueError, r"`d0` is 0\.0; it must be finite and in"),
        ({"warmup_steps": -1}, ValueError, r"`warmup_steps` is -1; pass an int of at least 0"),
        ({"warmup_steps": 0.5}, TypeError, r"`warmup_steps` is 0\.5"),
        ({"warmup_growth": 1}, ValueError, r"`warmup_growth` is 1; choose one of False, True"),
    ],
)
def test_bad_arguments(options, kind, message):
    with pytest.raises(kind, match=message):
        ALIASAdam(**options)


def test_a_factor_that_overflows_follows_the_policy(same):
    # d = 1e20 after q = 1e30; then d*q is beyond float32, though q is not
    x, g = np.zeros(2, np.float32), np.float32([1e15, 0.0])
    rule = ALIASAdam(beta2=0.0, nonfinite="skip")
    with np.errstate(all="ignore"):
        x, state = rule.step(x, g, rule.init(x))
        x, state = rule.step(x, g, state)
        assert np.isfinite(state.d)
        assert float(state.d) > 1e29
        same(rule.step(x, g, state), (x, state))
        with pytest.raises(FloatingPointError, match=r"`[dr]` holds inf or NaN"):
            rule.replace(nonfinite="raise").step(x, g, state)


def test_a_gradient_whose_square_overflows_is_nan_as_in_the_code():
    # documented: (d*g)**2 must be a float32, so |d*g| below 1.8e19, whatever `nonfinite` says
    x, g = np.zeros(2, np.float32), np.float32([1e21, 1.0])
    with np.errstate(all="ignore"):
        y, state = ALIASAdam(nonfinite="skip").step(x, g, ALIASAdam().init(x))
    assert np.isnan(y[0])
    assert np.isfinite(y[1])
    assert np.isinf(state.v[0])
