"""ALIAS: what its rate is made of. Oracles: the notes, section 8, from the paper and the authors' code."""

import jax
import numpy as np
import pytest
import torch

import signcore as sc
import signcore_torch
from signcore import ops
from signcore.rules.alias import ALIAS

RNG = np.random.default_rng(3)
PARAMS = {"a": {"w": RNG.standard_normal(5).astype(np.float32)}, "b": RNG.standard_normal(3).astype(np.float32)}
NOISE = [{"a": {"w": RNG.standard_normal(5)}, "b": 8 * RNG.standard_normal(3)} for _ in range(12)]
SHARP = {"a": {"w": 1.0}, "b": 16.0}


def mapped(function, *trees):
    return {"a": {"w": function(*(t["a"]["w"] for t in trees))}, "b": function(*(t["b"] for t in trees))}


def loss(x):
    return 0.5 * float(np.sum(x["a"]["w"] ** 2)) + 8.0 * float(np.sum(x["b"] ** 2))


def noisy(x, noise):
    return mapped(lambda v, c, n: (c * v + n).astype(np.float32), x, SHARP, noise)


def run(rule, x=PARAMS, steps=12, grad=noisy, f=loss):
    """A trajectory of the quadratic of two curvatures, with noise of 1 and 8."""
    state = rule.init(x)
    for noise in NOISE[:steps]:
        inputs = {"value": -f(x) if rule.maximize else f(x), "grad_fn": lambda at, noise=noise: grad(at, noise)}
        x, state = rule.step(x, grad(x, noise), state, **inputs)
    return x, state


def steps_on(rule, curvature, x, steps, dtype=np.float64):
    """Sizes of the steps on 0.5*L*|x|^2, and the state."""
    x = np.asarray(x, dtype)
    state, sizes = rule.init(x), []
    for _ in range(steps):
        before = x
        x, state = rule.step(x, dtype(curvature) * x, state, value=0.5 * curvature * float(np.sum(x * x)))
        sizes.append(float(np.max(np.abs(x - before))))
    return sizes, state, x


@pytest.mark.parametrize("curvature", [1.0, 0.01, 4.0, 100.0])
def test_rates_on_a_parabola(curvature):
    # the notes, section 8.1, "Tests": x0 = 3, L0 = L, f_low = 0 gives |x0|/sqrt(2(t + 1)), whatever L is.
    sizes, state, _ = steps_on(ALIAS(l_inf0=curvature), curvature, [3.0], 4)
    assert [round(size, 5) for size in sizes] == [2.12132, 1.5, 1.22474, 1.06066]
    assert float(state.eta) == pytest.approx(4 * curvature, rel=1e-14)


@pytest.mark.parametrize("l_inf0", [1.5, 100.0, 1e4])
def test_the_first_estimate_stays_in_the_sum(l_inf0):
    # the notes, section 8.1: gamma_t = sqrt(0.5 L x0^2/(L0 + t L)); that is how sensitive a run is to l_inf0.
    sizes, _, _ = steps_on(ALIAS(l_inf0=l_inf0), 2.0, [3.0], 6)
    assert sizes == pytest.approx([np.sqrt(9.0 / (l_inf0 + 2.0 * t)) for t in range(6)], rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eta_of_seven_coordinates_that_move_together(dtype):
    # the notes, section 8.1: L = 2, d = 7, L0 = 14, T = 50: every ratio is L d, eta = (1 + 49) 14 = 700.
    _, state, _ = steps_on(ALIAS(l_inf0=14.0), 2.0, [1.0] * 7, 50, dtype)
    assert float(state.eta) == pytest.approx(700.0, rel=1e-6 if dtype is np.float32 else 1e-13)


OPTIONS = [{}, {"d0": 1.0}, {"scope": "leaf"}, {"d0": 0.25, "scope": "group", "update_gap": 2}, {"sample": "same"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equivariance_is_exact(options, same):
    # the notes, section 8.1: f -> 4f with L0, f_low, d0 times 4; x -> 2x with L0/4; x^T A x with another A. To the bit.
    rule = ALIAS(l_inf0=4.0, lower_bound=0.0 if "d0" in options else -1.0, **options)
    d0 = {"d0": 4 * rule.d0} if rule.d0 else {}
    x, state = run(rule)
    scaled = rule.replace(l_inf0=16.0, lower_bound=4 * rule.lower_bound, **d0)
    y, _ = run(scaled, grad=lambda x, n: mapped(lambda g: 4 * g, noisy(x, n)), f=lambda x: 4 * loss(x))
    same(x, y)

    def stretched(x, noise):
        return mapped(lambda g: g / 2, noisy(mapped(lambda v: v / 2, x), noise))

    twice = mapped(lambda v: 2 * v, PARAMS)
    y, other = run(rule.replace(l_inf0=1.0), twice, grad=stretched, f=lambda x: loss(mapped(lambda v: v / 2, x)))
    same(mapped(lambda v: 2 * v, x), y)
    same(np.asarray(state.eta) / 4, np.asarray(other.eta)) if rule.scope != "leaf" else None


def test_estimates_are_monotone():
    # the notes, section 8.1: eta and d never fall, the rate of option II never grows.
    rule, x = ALIAS(d0=0.01, l_inf0=1.0), PARAMS
    state, seen = rule.init(x), []
    for noise in NOISE:
        x, state = rule.step(x, noisy(x, noise), state)
        seen.append((float(state.eta), float(state.d)))
    assert seen == sorted(seen)
    assert [d for _, d in seen] == sorted(d for _, d in seen)
    sizes, _, _ = steps_on(ALIAS(l_inf0=1.0), 3.0, [3.0], 30)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("curvature", "d", "digits"), [(1.0, 3.5587, 4), (100.0, 364.3, 1)])
def test_d_stays_below_the_gap_of_a_convex_function(curvature, d, digits):
    # the notes, section 8.1: x0 = 3, L = L0 = 1, T = 1000, d0 = 1e-3: d = 3.5587 <= 4.5; L = 100: 364.3 <= 450.
    _, state, _ = steps_on(ALIAS(l_inf0=curvature, d0=1e-3), curvature, [3.0], 1000)
    assert round(float(state.d), digits) == d


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.2}, {"update_gap": 3}, {"warmup_steps": 3}, {"lr": 4.0}])
def test_the_bound_holds_for_every_displacement(options):
    # the notes, section 8.1: <g_t, x_prev - x_t> is a lower bound of the descent of a convex f, whatever moved x.
    rule, x = ALIAS(d0=1e-3, l_inf0=1.0, warmup_lr=0.1, **options), PARAMS
    state, start = rule.init(x), loss(PARAMS)
    for _ in range(60):
        x, state = rule.step(x, mapped(lambda v, c: np.float32(c) * v, x, SHARP), state)
        assert float(state.d) <= start


def test_a_small_d0_costs_steps():
    # the notes, section 8: oracle for the sensitivity to d0: the first rate is sqrt(d0/l_inf0), d grows from there.
    needed = []
    for d0 in (1e-12, 1e-6, 1e-3, 1.0):
        rule, x = ALIAS(d0=d0, l_inf0=1.0), np.asarray([3.0])
        state, steps = rule.init(x), 0
        while float(x[0]) > 1.5:
            x, state = rule.step(x, x, state)
            steps += 1
            assert steps > 1 or float(x[0]) == pytest.approx(3.0 - np.sqrt(d0), rel=1e-15)
        needed.append(steps)
    assert needed == sorted(set(needed), reverse=True)


def test_the_same_sample_cancels_noise_and_consecutive_samples_do_not():
    # the notes, section 8.2: |dg|_1 of one sample is L d |dx|_inf on L|x|^2/2, so eta = L0 + (T - 1) L d = T L d: 500.
    rng = np.random.default_rng(1)
    etas, rates = {}, {}
    for sample in ("same", "consecutive"):
        rule, x = ALIAS(l_inf0=5.0, sample=sample, lower_bound=-1.0), np.full(5, 1.0)
        state = rule.init(x)
        for t in range(100):
            noise = rng.standard_normal(5) * 3

            def grad(at, noise=noise):
                return at + noise

            before = x
            x, state = rule.step(x, grad(x), state, value=2.5, grad_fn=grad)
            rates[sample] = float(np.max(np.abs(x - before)))
            assert t == 0 or sample == "consecutive" or float(state.eta) == pytest.approx(5.0 * (t + 1), rel=1e-9)
        etas[sample] = float(state.eta)
    assert etas["same"] == pytest.approx(500.0, rel=1e-9)
    assert etas["consecutive"] > 5 * etas["same"]
    assert rates["consecutive"] < rates["same"] / 2


@pytest.mark.parametrize(
    ("sample", "etas", "rates", "rel"),
    [
        ("same", [500.0, 5000.0, 50000.0], [0.2121, 0.0671, 0.0212], 2e-3),
        ("consecutive", [4.5e3, 3.8e5, 3.6e7], [0.071, 0.0077, 0.0008], 0.25),
    ],
)
def test_estimates_under_noise_for_many_steps(sample, etas, rates, rel):
    # the notes, section 8.2: d = 5, L = 1, L0 = 5, T = 100, 1000, 10000: T L d and 1/sqrt(t), or the noise's 1/t.
    rule, start = ALIAS(l_inf0=5.0, sample=sample), jax.numpy.full(5, 3.0)

    def one(carry, key):
        x, state = carry
        noise = jax.random.normal(key, (5,))
        y, state = rule.step(x, x + noise, state, value=22.5, grad_fn=lambda at: at + noise)
        return (y, state), (state.eta, jax.numpy.max(jax.numpy.abs(x - y)))

    keys = jax.random.split(jax.random.key(1), 10_000)
    eta, rate = jax.jit(lambda keys: jax.lax.scan(one, (start, rule.init(start)), keys)[1])(keys)
    at = np.asarray([99, 999, 9999])
    assert np.asarray(eta)[at] == pytest.approx(etas, rel=rel)
    assert np.asarray(rate)[at] == pytest.approx(rates, rel=rel)


@pytest.mark.parametrize("gap", [1, 4])
def test_the_law_of_pure_noise(gap):
    # the notes, section 8.1, "noise law": if |dg|_1 is N at every update, gamma_t -> 2 Delta u^2/(N t).
    rule, x, n, steps = ALIAS(l_inf0=1e-3, update_gap=gap), np.zeros(1), 6.0, 400
    state = rule.init(x)
    for t in range(steps):
        before = x
        g = np.asarray([n / 2 if (t // gap) % 2 else -n / 2])  # the same sign for a whole gap: |dx| = gap*gamma
        x, state = rule.step(x, g, state, value=1.0)
    rate = float(np.abs(x - before)[0])
    assert rate == pytest.approx(2.0 * gap**2 / (n * steps), rel=0.1)


def test_a_step_that_moves_nothing_adds_no_ratio():
    rule, x = ALIAS(l_inf0=2.0), np.zeros(3, np.float32)
    state = rule.init(x)
    _, state = rule.step(x, np.zeros(3, np.float32), state, value=1.0)
    _, state = rule.step(x, np.ones(3, np.float32), state)
    assert float(state.eta) == 2.0
    assert float(state.gap) == 1.0


def test_warm_up_and_gaps_take_differences_between_updates(same):
    # the notes, section 8.1, b and c: plain sign steps first, Delta is f at step 0, snapshots only when due.
    rule, x = ALIAS(l_inf0=1.0, update_gap=2, warmup_steps=4, warmup_lr=0.25), np.asarray([8.0])
    state, points, etas = rule.init(x), [], []
    for _ in range(8):
        points.append(float(x[0]))
        x, state = rule.step(x, x, state, value=0.5 * float(x[0]) ** 2)
        etas.append(float(state.eta))
    assert points[:5] == [8.0, 7.75, 7.5, 7.25, 7.0]
    assert float(state.gap) == 32.0
    assert points[4] - points[5] == pytest.approx(np.sqrt(32.0))
    assert etas == [1.0] * 6 + [2.0] * 2  # the ratios of a parabola with L = 1, every other step
    assert float(state.x_prev[0]) == points[6]
    assert float(state.g_prev[0]) == points[6]


def test_the_schedule_and_the_ceiling(same):
    sizes, _, _ = steps_on(ALIAS(l_inf0=1.0, lr=0.5, gamma_max=1.25), 1.0, [3.0], 2)
    assert sizes[0] == 0.5 * 1.25
    x, _ = run(ALIAS(lr=sc.schedules.constant(0.5)))
    same(x, run(ALIAS(lr=0.5))[0])


def test_scopes_have_estimates_of_their_own(same):
    # the notes, section 8.1, d: one per group, or per array; a tree of one array has the same of all three.
    whole, groups, leaves = (run(ALIAS(scope=scope))[1].eta for scope in ("global", "group", "leaf"))
    assert (whole.shape, groups.shape) == ((), (2,))
    same(np.stack([leaves["a"]["w"], leaves["b"]]), groups)
    assert not np.any(np.asarray(groups) == whole)
    x = PARAMS["b"]
    trajectories = []
    for scope in ("global", "group", "leaf"):
        rule, y = ALIAS(scope=scope), x
        state = rule.init(y)
        for noise in NOISE:
            y, state = rule.step(y, noise["b"].astype(np.float32), state, value=3.0)
        trajectories.append(y)
    same(trajectories[0], trajectories[1])
    same(trajectories[0], trajectories[2])


def test_an_array_that_is_split_moves_as_one(same):
    # invariant I3 of the notes: global scalars do not see how coordinates are grouped.
    joined = np.concatenate([PARAMS["a"]["w"], PARAMS["b"]])
    for options in ({}, {"d0": 0.5}):
        rule, x, y = ALIAS(**options), {"a": joined[:5], "b": joined[5:]}, joined
        split, whole = rule.init(x), rule.init(y)
        for noise in NOISE:
            g = np.concatenate([noise["a"]["w"], noise["b"]]).astype(np.float32)
            x, split = rule.step(x, {"a": g[:5], "b": g[5:]}, split, value=2.0)
            y, whole = rule.step(y, g, whole, value=2.0)
        same(np.concatenate([x["a"], x["b"]]), y)


def test_a_leaf_without_gradients_takes_no_part_until_it_has_one(same):
    rule = ALIAS(scope="global", l_inf0=1.0)
    both, one = PARAMS, {"b": PARAMS["b"]}
    state, alone = rule.init(both), rule.init(one)
    for noise in NOISE[:3]:
        g = noise["b"].astype(np.float32)
        both, state = rule.step(both, {"a": {"w": None}, "b": g}, state, value=2.0)
        one, alone = rule.step(one, {"b": g}, alone, value=2.0)
    same(both["b"], one["b"])
    g = NOISE[3]["b"].astype(np.float32)
    _, first = rule.step(both, {"a": {"w": NOISE[3]["a"]["w"].astype(np.float32)}, "b": g}, state)
    _, alone = rule.step(one, {"b": g}, alone)
    same(first.eta, alone.eta)  # its first gradient has no difference yet


@pytest.mark.parametrize("scope", ["leaf", "group"])
def test_a_scope_that_joins_late_has_the_gap_of_the_others(scope, same):
    # the notes, section 8.1: Delta is f(x_0) - f_low, fixed at the first step; the loss is not asked for again
    rule = ALIAS(scope=scope, l_inf0=1.0)
    a, b = ({"w": np.float32(x)} for x in ([1, 2], [3, 4]))
    late, ones = {"a": a, "b": b}, {"w": np.ones(2, np.float32)}
    state = rule.init(late)
    for value in (2.0, 7.0, None):
        late, state = rule.step(late, {"a": ones, "b": {"w": None}}, state, value=value)
    same(late["b"], b)
    late, state = rule.step(late, {"a": ones, "b": ones}, state)
    same(late["b"], {"w": (b["w"] - np.sqrt(np.float32(2.0))).astype(np.float32)})
    gaps = [state.gap["a"]["w"], state.gap["b"]["w"]] if scope == "leaf" else list(state.gap)
    assert [float(gap) for gap in gaps] == [2.0, 2.0]


def test_the_loss_is_asked_for_until_there_is_a_gradient(same):
    rule, x = ALIAS(scope="leaf", l_inf0=1.0), {"a": np.ones(2, np.float32)}
    y, state = rule.step(x, {"a": None}, rule.init(x), value=9.0)
    with pytest.raises(TypeError, match="`value` is missing"):
        rule.step(y, x, state)
    _, state = rule.step(y, x, state, value=4.0)
    assert float(state.gap["a"]) == 4.0


def test_a_parameter_that_is_unfrozen_later_has_a_rate(to_numpy):
    rule = ALIAS(scope="leaf", l_inf0=1.0)
    params = [torch.nn.Parameter(torch.tensor(values)) for values in ([1.0, 2.0], [3.0, 4.0])]
    optimizer = signcore_torch.from_rule(params, rule)
    params[1].requires_grad_(False)
    for k in range(4):
        if k == 2:
            params[1].requires_grad_(True)

        def closure():
            optimizer.zero_grad()
            value = sum(p.sum() for p in params if p.requires_grad) + 1.0
            value.backward()
            return value

        optimizer.step(closure)
    # a gap of 1 + 2 + 1, the loss at first; the function is linear, so eta stays l_inf0
    assert to_numpy(params[1]) == pytest.approx([3.0 - 2 * 2.0, 4.0 - 2 * 2.0], rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "scope": "leaf", "lower_bound": -3.0}, {"d0": 1.0}])
def test_to_maximize_is_to_minimize_the_negative(options, same):
    rule, other = ALIAS(**options), ALIAS(maximize=True, **options)
    x, first = run(rule)
    y, state = run(other, grad=lambda x, n: mapped(np.negative, noisy(x, n)))
    same(x, y)
    same((first.eta, first.gap), (state.eta, state.gap))
    if "d0" not in options:
        with pytest.raises(ValueError, match=r"minus `value`, the loss .* is -2\.0 and `lower_bound` is -2\.0; pass a"):
            other.replace(lower_bound=-2.0).step(PARAMS, noisy(PARAMS, NOISE[0]), other.init(PARAMS), value=2.0)


def test_g_prev_holds_the_very_gradient_in_every_dtype(same):
    # a rounded one would count its rounding as curvature
    x = np.float16([0.1, 0.2, 0.3])
    for rule in (ALIAS(d0=1.0), ALIAS(d0=1.0, state_dtype="bfloat16")):
        _, state = rule.step(x, np.float16([1.001, 2e-7, -3.0]), rule.init(x))
        same(state.g_prev, np.float16([1.001, 2e-7, -3.0]))
        same(state.x_prev, x)
    with_same = ALIAS(d0=1.0, sample="same")
    assert with_same.init(x).g_prev is None


def simulated(rule, grads_of, workers, x, steps=6, **inputs):
    states = None
    for t in range(steps):
        x, states = sc.simulate(rule, x, [grads_of(n, t, x) for n in range(workers)], states, value=4.0, **inputs)
    return x, states


@pytest.mark.parametrize("options", [{}, {"d0": 0.5}])
def test_workers_send_signs_and_two_numbers(options, same):
    # the notes, section 8.3: mean of |dg_j|_1 over the common displacement, mean of <g_j, dx>; all nodes agree.
    data = np.random.default_rng(5).standard_normal((3, 6, 4)).astype(np.float32)
    rule, x = ALIAS(l_inf0=1.0, **options), np.ones(4, np.float32)
    points, states, expected, total = [x], None, 1.0, 0.0
    for t in range(6):
        x, states = sc.simulate(rule, x, list(data[:, t]), states, value=[3.0, 4.0, 5.0])
        points.append(x)
    for t in range(1, 6):
        dx = np.float64(points[t - 1]) - points[t]
        expected += np.mean(np.sum(np.abs(np.float64(data[:, t]) - data[:, t - 1]), axis=1)) / np.max(np.abs(dx))
        total += np.mean(data[:, t] @ dx)
        vote = np.sign(np.sum(np.sign(data[:, t]), axis=0))
        assert np.array_equal(np.sign(points[t] - points[t + 1]), vote)
    for state in states:
        same(state.eta, states[0].eta)
        assert float(state.eta) == pytest.approx(expected, rel=1e-5)
        if options:
            assert float(state.total) == pytest.approx(total, rel=1e-4)
        else:
            assert float(state.gap) == 4.0


def test_one_worker_is_the_plain_rule(same):
    rule = ALIAS(weight_decay=0.1)
    x, states = simulated(rule, lambda n, t, x: noisy(x, NOISE[t]), 1, PARAMS)
    y, state = PARAMS, rule.init(PARAMS)
    for t in range(6):
        y, state = rule.step(y, noisy(y, NOISE[t]), state, value=4.0)
    same((x, states[0]), (y, state))


def test_each_worker_evaluates_its_own_sample():
    shifts = [np.float32(1.0), np.float32(-1.5)]
    rule, x = ALIAS(sample="same", l_inf0=1.0), np.full(4, 2.0, np.float32)
    fns = [lambda at, c=c: at + c for c in shifts]
    x, states = simulated(rule, lambda n, t, x: x + shifts[n], 2, x, steps=2, grad_fns=fns)
    assert float(states[0].eta) == pytest.approx(5.0, rel=1e-6)  # L d = 4 and l_inf0


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.5},
        {"l_inf0": 50.0},
        {"lower_bound": -1.0},
        {"d0": 1.0},
        {"gamma_max": 0.125},
        {"update_gap": 2},
        {"warmup_steps": 2},
        {"warmup_steps": 2, "warmup_lr": 0.125},
        {"scope": "group"},
        {"scope": "leaf"},
        {"sample": "same"},
        {"weight_decay": 0.1},
        {"maximize": True},
    ],
    ids=str,
)
def test_each_option_changes_the_words(change, differ):
    less = {"warmup_steps": 2} if "warmup_lr" in change else {}
    assert differ(run(ALIAS(**less))[0], run(ALIAS(**change))[0])


@pytest.mark.parametrize("zero", ["plus", "minus", "random"])
def test_policies_for_zero_change_the_words(zero, differ):
    x, g = np.ones(8, np.float32), np.float32([0, 0, 0, 0, 1, 1, -1, -1])
    steps = [ALIAS(d0=1.0, sign_zero=policy) for policy in ("zero", zero)]
    assert differ(*(rule.step(x, g, rule.init(x))[0] for rule in steps))


class Forgets(ALIAS):
    """The first estimate replaced by the first ratio."""

    def ratio(self, found, s):
        return super().ratio(found, s) - (100.0 if int(s.step) == 1 else 0.0)


class WrongNorm(ALIAS):
    def measure_leaf(self, p, g, s, h):
        found = super().measure_leaf(p, g, s, h)
        return {**found, "change": found["change"] * 0.5}


class Late(ALIAS):
    """The rate without the newest ratio."""

    def ratio(self, found, s):
        return super().ratio(found, s) * 0.0


class Uphill(ALIAS):
    def apply_leaf(self, p, aggregate, s, h):
        delta, s = super().apply_leaf(p, aggregate, s, h)
        return -delta, s


class TwoRoots(ALIAS):
    """sqrt(gap)/sqrt(eta): the same number in other words."""

    def advance(self, found, s, h):
        seen, new = super().advance(found, s, h)
        return {**seen, "gamma": ops.quotient(ops.sqrt(new["gap"]), ops.sqrt(new["eta"]))}, new


@pytest.mark.parametrize("broken", [Forgets, WrongNorm, Late, Uphill, TwoRoots], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(ALIAS())[0], run(broken())[0])


def test_a_loss_at_the_lower_bound_is_refused_with_both_numbers():
    x, g = np.ones(2, np.float32), np.ones(2, np.float32)
    rule = ALIAS(lower_bound=2.5)
    with pytest.raises(ValueError, match=r"`value`, .* is 1\.5 and `lower_bound` is 2\.5; pass a `lower_bound` below"):
        rule.step(x, g, rule.init(x), value=1.5)
    with pytest.raises(ValueError, match=r"is 2\.5 and `lower_bound` is 2\.5"):
        rule.step(x, g, rule.init(x), value=2.5)
    _, state = rule.step(x, g, rule.init(x), value=3.0)
    rule.step(x, g, state, value=1.0)  # later losses are not asked for


def test_under_a_trace_such_a_loss_is_seen_at_once():
    x, g = jax.numpy.ones(2), jax.numpy.ones(2)
    rule = ALIAS(lower_bound=2.5)
    y, _ = jax.jit(rule.step)(x, g, rule.init(x), value=jax.numpy.asarray(1.5))
    assert np.isnan(np.asarray(y)).all()


def test_inputs_that_are_missing_are_named():
    x, g = np.ones(2, np.float32), np.ones(2, np.float32)
    rule = ALIAS()
    with pytest.raises(TypeError, match=r"`value` is missing: ALIAS needs it"):
        rule.step(x, g, rule.init(x))
    _, state = rule.step(x, g, rule.init(x), value=1.0)
    rule.step(x, g, state)  # the first step's only
    rule = ALIAS(d0=1.0, sample="same")
    with pytest.raises(TypeError, match=r"`grad_fn` is missing: ALIAS needs it"):
        rule.step(x, g, rule.init(x))
    with pytest.raises(ValueError, match=r"`grad_fn\(params\)` has shape \(3,\)"):
        rule.step(x, g, rule.init(x), grad_fn=lambda at: np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"l_inf0": 0.0}, ValueError, r"`l_inf0` is 0\.0; it must be finite and in"),
        ({"lower_bound": float("-inf")}, ValueError, r"`lower_bound` is -inf"),
        ({"d0": 0.0}, ValueError, r"`d0` is 0\.0; it must be finite and in"),
        ({"d0": "1"}, TypeError, r"`d0` is '1'; pass a number above 0, or None"),
        ({"gamma_max": -1.0}, ValueError, r"`gamma_max` is -1\.0"),
        ({"gamma_max": float("inf")}, ValueError, r"`gamma_max` is inf"),
        ({"update_gap": 0}, ValueError, r"`update_gap` is 0; pass an int of at least 1"),
        ({"update_gap": 1.5}, TypeError, r"`update_gap` is 1\.5"),
        ({"warmup_steps": -1}, ValueError, r"`warmup_steps` is -1"),
        (
            {"warmup_steps": 5, "update_gap": 2},
            ValueError,
            r"`warmup_steps` is 5 and `update_gap` is 2, which does not divide it; pass 6 steps",
        ),
        ({"warmup_lr": -1.0}, ValueError, r"`warmup_lr` is -1\.0"),
        ({"scope": "tensor"}, ValueError, r"`scope` is 'tensor'; choose one of"),
        ({"sample": "both"}, ValueError, r"`sample` is 'both'; choose one of"),
        (
            {"d0": 1.0, "lower_bound": -5.0},
            ValueError,
            r"`lower_bound` is -5\.0 and `d0` is 1\.0, which needs none; pass one of the two",
        ),
    ],
)
def test_bad_arguments(options, kind, message):
    with pytest.raises(kind, match=message):
        ALIAS(**options)


def test_what_is_not_finite_follows_the_policy(same):
    x, g = np.ones(2, np.float32), np.float32([1.0, np.inf])
    rule = ALIAS(nonfinite="skip")
    state = rule.init(x)
    same(rule.step(x, g, state, value=1.0), (x, state))
    same(rule.step(x, np.ones(2, np.float32), state, value=np.nan), (x, state))
    rule = ALIAS(nonfinite="raise")
    with pytest.raises(FloatingPointError, match="`value` holds inf or NaN"):
        rule.step(x, np.ones(2, np.float32), rule.init(x), value=np.nan)
    with pytest.raises(FloatingPointError, match="`grads` holds inf or NaN"):
        rule.step(x, g, rule.init(x), value=1.0)


def test_an_estimate_that_overflows_follows_the_policy(same):
    # what was measured is finite, 1e30 and 1e-20; their quotient is not: every later rate would be 0
    x, g = np.zeros(2, np.float32), np.ones(2, np.float32)
    rule = ALIAS(l_inf0=1.0, nonfinite="skip")
    y, state = rule.step(x, g, rule.init(x), value=1.0, hyper={"lr": 1e-20})
    with np.errstate(over="ignore"):
        same(rule.step(y, np.float32([1e30, 1.0]), state), (y, state))
        with pytest.raises(FloatingPointError, match="`eta` holds inf or NaN; nothing was changed"):
            rule.replace(nonfinite="raise").step(y, np.float32([1e30, 1.0]), state)
        _, state = rule.replace(nonfinite="propagate").step(y, np.float32([1e30, 1.0]), state)
    assert float(state.eta) == np.inf
