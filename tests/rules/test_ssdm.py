"""SSDM: what is special about drawn signs. Oracles: the notes, section 6; Safaryan and Richtarik, arXiv 1905.12938."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.momentum import ssdm_parameters
from signcore.random import stochastic_sign
from signcore.rules.ssdm import SSDM, SSDMMessage

PARAMS = {"a": np.linspace(-1, 1, 40, dtype=np.float32), "b": np.linspace(-2, 1, 24, dtype=np.float32)}
DRAWS = np.random.default_rng(2)
GRADS = [{"a": DRAWS.normal(size=40).astype("f4"), "b": 0.1 * DRAWS.normal(size=24).astype("f4")} for _ in range(8)]


def run(rule, params=PARAMS, grads=GRADS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state)
    return params, state


def test_the_mean_of_the_drawn_signs_is_the_direction():
    # the notes, section 6: g = (3, 4) gives p = (.8, .9), and the mean of |g| ssign(g) is g, within five deviations
    # sqrt(|g|^2 - g_i^2)/sqrt(N).
    draws = 20_000
    rule, g = SSDM(lr=1.0), np.asarray([3.0, 4.0], np.float32)
    assert rule.finish(rule.measure(g, g, rule.init(g)))["norm"] == 5.0
    many = np.tile(g, (draws, 1))  # so many draws of one vector, whose norm the message is told
    message, _ = rule.message(many, many, rule.init(many), {"norm": np.asarray([5.0], np.float32)})
    mean = message.sign.mean(axis=0, dtype=np.float64)
    assert np.all(np.abs((mean + 1.0) / 2.0 - [0.8, 0.9]) < 5.0 * np.sqrt([0.16, 0.09]) / np.sqrt(draws))
    assert np.all(np.abs(5.0 * mean - g) < 5.0 * np.sqrt(25.0 - g**2) / np.sqrt(draws))


def test_a_message_is_the_stochastic_sign_of_the_momentum_over_its_norm(same):
    rule = SSDM(lr=0.5, beta=0.5)
    state = rule.init(PARAMS)
    words = rule.noise(PARAMS, state)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in GRADS[0].values()))
    signs = {name: stochastic_sign(GRADS[0][name], float(norm), words[name]) for name in PARAMS}
    after, state = rule.step(PARAMS, GRADS[0], state)
    same(after, {name: PARAMS[name] - np.float32(0.5) * signs[name] for name in PARAMS})
    same(state.m, GRADS[0])  # the first average is the first gradient
    _, state = rule.step(after, GRADS[1], state)
    same(state.m, {n: np.float32(0.5) * GRADS[0][n] + np.float32(0.5) * GRADS[1][n] for n in PARAMS})


def test_a_leaf_that_joins_late_starts_at_its_own_first_gradient(same):
    rule = SSDM(lr=0.5)
    _, state = rule.step(PARAMS, {"a": GRADS[0]["a"], "b": None}, rule.init(PARAMS))
    _, state = rule.step(PARAMS, GRADS[1], state)
    same(state.m["b"], GRADS[1]["b"])
    assert {name: int(flag) for name, flag in state.started.items()} == {"a": 1, "b": 1}


def test_a_zero_among_others_is_a_coin_and_all_zeros_are_not():
    rule = SSDM(lr=1.0)
    p = np.zeros(4001, np.float32)
    g = p.copy()
    nothing, _ = rule.delta(p, g, rule.init(p))
    assert not nothing.any()
    g[0] = 1.0
    delta, _ = rule.delta(p, g, rule.init(p))
    assert delta[0] == -1.0  # probability 1
    assert set(np.unique(delta)) == {-1.0, 1.0}
    assert abs(delta[1:].sum()) < 5.0 * np.sqrt(4000)
    for zero, step in (("plus", -1.0), ("minus", 1.0)):
        assert np.all(SSDM(lr=1.0, sign_zero=zero).delta(p, 0 * g, rule.init(p))[0] == step)


def test_the_norm_neither_overflows_nor_vanishes(same):
    # the notes, section 6: entries of 1e-30 or 1e30 neither under- nor overflow. Powers of two change nothing at all.
    rule = SSDM(lr=0.5)
    for factor in (2.0**-90, 2.0**100):
        scaled = [{name: g * np.float32(factor) for name, g in grads.items()} for grads in GRADS]
        same(run(rule)[0], run(rule, grads=scaled)[0])


SEESAW = np.asarray([(1.5, -0.5), (-0.5, 1.5)], np.float32)


def ends(rule, seeds, steps):
    """Where two workers with f_n = <a_n, x>^2 end that begin at (3, -1), for each seed; a scan in one compilation."""
    x = jnp.asarray([3.0, -1.0], jnp.float32)

    def body(carry, _):
        x, states = carry
        return sc.simulate(rule, x, [2.0 * (x @ a) * a for a in jnp.asarray(SEESAW)], states), None

    scanned = jax.jit(lambda x, states: jax.lax.scan(body, (x, states), None, length=steps)[0][0])
    return [np.asarray(scanned(x, [rule.replace(seed=seed).init(x, worker=n) for n in (0, 1)])) for seed in seeds]


def test_where_the_vote_of_signs_stays_on_a_line_for_ever_ssdm_converges():
    # the notes, sections 2 and 6: signSGD's vote stays at z1 + z2 = 2 (with a step that is a power of two exactly);
    # SSDM with the theory's parameters for K = 1e4 ends within about .02 of 0.
    steps = 10_000
    beta, lr = ssdm_parameters(steps)
    for x in ends(SSDM(lr=lr, beta=beta), (0, 1), steps):
        assert np.all(np.abs(x) < 0.1)
    (line,) = ends(sc.SignSGD(lr=2.0**-10), (0,), steps)
    assert line.sum() == 2.0
    assert np.abs(line).max() >= 1.0


def test_the_step_is_lr_over_m_times_the_integer_sum(same):
    rule = SSDM(lr=0.1, weight_decay=0.25)
    workers = [GRADS[n] for n in range(3)]
    states = [rule.init(PARAMS, worker=n) for n in range(3)]
    scalars = [rule.finish(rule.measure(PARAMS, g, s)) for g, s in zip(workers, states, strict=True)]
    sent = [rule.message(PARAMS, *each)[0].sign for each in zip(workers, states, scalars, strict=True)]
    lr, wd = np.float32(0.1), np.float32(0.25)
    mean = {name: sum(s[name] for s in sent) / np.float32(3.0) for name in PARAMS}
    wanted = {name: p + -(lr * (mean[name] + wd * p)) for name, p in PARAMS.items()}
    same(sc.simulate(rule, PARAMS, workers, states)[0], wanted)
    assert set(np.unique(3.0 * mean["a"]).round(5)) == {-3.0, -1.0, 1.0, 3.0}
    # each by its own norm: a worker whose gradients are a thousand times larger sends the same
    loud = [workers[0], {name: np.float32(1024.0) * g for name, g in workers[1].items()}, workers[2]]
    same(sc.simulate(rule, PARAMS, loud, states)[0], wanted)


def test_workers_draw_noise_of_their_own():
    # the notes, section 6: the same seed correlates the noise and kills the averaging over workers.
    rule = SSDM(lr=1.0)
    p, g = np.zeros(4000, np.float32), np.ones(4000, np.float32)

    def undecided(workers):
        after, _ = sc.simulate(rule, p, [g, g], [rule.init(p, worker=n) for n in workers])
        return np.mean(after == 0.0)

    assert undecided((0, 0)) == 0.0
    assert abs(undecided((0, 1)) - 0.5) < 5.0 * np.sqrt(0.25 / 4000)


def test_a_norm_of_each_leaf_keeps_each_leafs_own_direction(differ):
    # the notes, section 6: with a norm of its own a leaf of small gradients is as certain as others.
    p = {"large": np.zeros(400, np.float32), "small": np.zeros(400, np.float32)}
    g = {"large": np.full(400, 100.0, np.float32), "small": np.zeros(400, np.float32)}
    g["small"][:1] = 1e-3
    for scope, wanted in (("leaf", 1.0), ("global", 0.5)):
        rule = SSDM(lr=1.0, scope=scope)
        hits = []
        for seed in range(40):
            mine = rule.replace(seed=seed)
            hits.append(mine.delta(p, g, mine.init(p))[0]["small"][0] < 0.0)
        assert abs(np.mean(hits) - wanted) <= (0.0 if scope == "leaf" else 5.0 * np.sqrt(0.25 / 40))
    assert differ(run(SSDM(lr=0.5))[0], run(SSDM(lr=0.5, scope="leaf"))[0])


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_a_norm_that_is_no_number_follows_the_policy(nonfinite, same):
    rule = SSDM(lr=0.5, nonfinite=nonfinite)
    bad = {"a": np.where(np.arange(40) == 3, np.float32(np.inf), GRADS[0]["a"]), "b": GRADS[0]["b"]}
    state = rule.init(PARAMS)
    after, new = rule.step(PARAMS, bad, state)
    same(after, PARAMS)  # nothing can be drawn in units of infinity
    assert int(new.step) == (nonfinite == "propagate")
    assert bool(np.isinf(new.m["a"]).any()) == (nonfinite == "propagate")
    with pytest.raises(FloatingPointError, match="`grads`"):
        SSDM(lr=0.5, nonfinite="raise").step(PARAMS, bad, state)


class FromZero(SSDM):
    """Signum's average, which starts at zero: half as long after one step, and another after two."""

    def message_leaf(self, p, g, s, h, noise):
        return super().message_leaf(p, g, s._replace(started=s.started * 0 + 1), h, noise)


class OldNorm(SSDM):
    """The norm of the gradient where the momentum's belongs."""

    def measure_leaf(self, p, g, s, h):
        return {"norm": g}


class Unnormed(SSDM):
    def advance(self, found, s, h):
        return {"norm": 0.0 * found["norm"] + 1.0}, {}


class Uphill(SSDM):
    def apply_leaf(self, p, aggregate, s, h):
        return ops.descent(-h.lr, aggregate.sign, h.weight_decay, p), s


class SumOfSigns(SSDM):
    def apply_leaf(self, p, aggregate, s, h):
        return super().apply_leaf(p, SSDMMessage(2.0 * aggregate.sign), s, h)


@pytest.mark.parametrize("broken", [FromZero, OldNorm, Unnormed, Uphill, SumOfSigns], ids=lambda c: c.__name__)
def test_a_changed_formula_changes_the_words(broken, differ):
    assert differ(run(SSDM(lr=0.5))[0], run(broken(lr=0.5))[0])


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"seed": 1}, {"weight_decay": 0.1}, {"maximize": True}])
def test_each_option_changes_the_words(change, differ):
    assert differ(run(SSDM(lr=0.5))[0], run(SSDM(lr=0.5, **change))[0])


def test_random_zeros_are_coins_also_where_nothing_is_drawn(differ):
    grads = [{name: 0 * g for name, g in GRADS[0].items()}]
    assert differ(run(SSDM(lr=0.5), grads=grads)[0], run(SSDM(lr=0.5, sign_zero="random"), grads=grads)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, r"`beta` is 1\.0; it must be finite and in \[0, 1\)"),
        ({"scope": "tensor"}, r"`scope` is 'tensor'; choose one of 'global', 'leaf'"),
        ({"sign_zero": "coin"}, r"`sign_zero` is 'coin'; choose one of"),
    ],
)
def test_arguments_have_a_range(options, message):
    with pytest.raises(ValueError, match=message):
        SSDM(lr=0.1, **options)


def test_a_message_without_its_scalars_says_what_is_missing():
    rule = SSDM(lr=0.1)
    with pytest.raises(ValueError, match=r"`scalars` is None, and SSDM needs norm of the whole tree"):
        rule.message(PARAMS, GRADS[0], rule.init(PARAMS))
