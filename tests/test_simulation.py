"""Many workers in one process, and votes: what distributed runs must equal. Oracles: the notes, section 5."""

from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

import signcore as sc
from signcore import random
from signcore.marks import WeightedVote
from signcore.rules.aass import AASS
from signcore.rules.lion import Lion
from signcore.rules.sgd import SGD
from signcore.rules.signsgd import SignSGD
from signcore.rules.signum import Signum

RNG = np.random.default_rng(0)
PARAMS = RNG.standard_normal(24).astype(np.float32)
GRADS = RNG.standard_normal((4, 6, 24)).astype(np.float32)  # step, worker
GRADS[:, :, :3] = 0.0
VOTERS = [name for name in sc.rules() if hasattr(sc.rule(name, lr=0.1), "aggregation")]


def loss(p):
    """Exact, so that all workers get one number."""
    return float(sum(np.abs(leaf.astype(np.float64)).sum() for leaf in (p.values() if isinstance(p, dict) else [p])))


def inputs(rule, params, workers=None):
    """What a step of the rule needs beside the gradients."""
    made = {"value": loss(params), "value_fn": loss}
    found = {name: made[name] for name in rule.needs & made.keys()}
    if "grad_fn" in rule.needs:

        def half(p):
            return p * np.float32(0.5)

        found |= {"grad_fn": half} if workers is None else {"grad_fns": [half] * workers}
    return found


def together(rule, grads=GRADS, params=PARAMS, **options):
    """Steps of all workers: the params, and every worker's state."""
    states = None
    for each in grads:
        params, states = sc.simulate(rule, params, list(each), states, **inputs(rule, params, len(each)), **options)
    return params, states


def alone(rule, grads, params=PARAMS):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, **inputs(rule, params))
    return params, state


# -- one worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sc.rules())
def test_one_worker_is_a_step(name, same):
    rule = sc.rule(name, lr=0.01)
    params, states = together(rule, GRADS[:, :1])
    same((params, states[0]), alone(rule, GRADS[:, 0]))


@pytest.mark.parametrize("name", VOTERS)
@pytest.mark.parametrize(
    "options", [{"ties": "minus"}, {"ties": "random"}, {"aggregation": "mean"}, {"aggregation": "weighted"}], ids=str
)
def test_one_workers_signs_are_no_vote(name, options, same):
    rule = sc.rule(name, lr=0.01)
    params, states = together(rule.replace(**options), GRADS[:2, :1])
    same((params, states[0]), alone(rule, GRADS[:2, 0]))


@pytest.mark.parametrize("name", sc.rules())
def test_all_workers_keep_what_is_replicated_and_count_their_steps(name, same):
    rule = sc.rule(name, lr=0.01)
    params, states = together(rule, GRADS[:2, :3])
    assert [int(state.step) for state in states] == [2, 2, 2]
    assert params.dtype == np.float32
    same(together(rule, GRADS[:2, :3]), (params, states))


@pytest.mark.parametrize(
    "rule", [Lion(lr=0.01), Signum(lr=0.01), SignSGD(lr=0.01), AASS(lr=0.01)], ids=lambda r: r.name
)
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_identical_workers_are_one(rule, workers, same):
    # the notes, section 12: N identical workers == Lion.
    params, states = together(rule.replace(weight_decay=0.1), np.repeat(GRADS[:, :1], workers, axis=1))
    expected = alone(rule.replace(weight_decay=0.1), GRADS[:, 0])
    same(params, expected[0])
    for state in states:
        same(state, expected[1])


def test_the_mean_of_identical_gradients_is_the_gradient(same):
    rule = SGD(lr=0.01, momentum=0.9)
    params, states = together(rule, np.repeat(GRADS[:, :1], 4, axis=1))  # sums of four alike round nothing
    same((params, states[3]), alone(rule, GRADS[:, 0]))


# -- the boxes, by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["majority", "mean"])
def test_a_step_is_message_vote_and_apply(aggregation, same):
    rule = Signum(lr=0.01, beta=0.9, weight_decay=0.1, aggregation=aggregation)
    p, m = PARAMS, np.zeros((3, 24), np.float32)
    lr, wd, beta = np.float32(0.01), np.float32(0.1), np.float32(0.9)
    for g in GRADS[:, :3]:
        m = beta * m + (np.float32(1.0) - beta) * g
        total = np.sign(m).sum(axis=0)
        vote = np.sign(total) if aggregation == "majority" else total / np.float32(3.0)
        p = p + -(lr * (vote + wd * p))
    params, states = together(rule, GRADS[:, :3])
    same(params, p)
    for mine, state in zip(m, states, strict=True):
        same(state.m, mine + 0.0)  # each worker its own momentum, before the vote


@pytest.mark.parametrize("aggregation", ["majority", "mean"])
def test_aass_votes_on_signs_and_replicates_its_momentum(aggregation, same):
    rule = AASS(lr=0.01, beta=0.9, aggregation=aggregation)
    params, states = together(rule, GRADS[:, :3])
    for state in states[1:]:
        same(state.m, states[0].m)
    m, beta = np.zeros(24, np.float32), np.float32(0.9)
    for g in GRADS[:, :3]:
        total = np.sign(g).sum(axis=0)
        m = beta * m + (np.float32(1.0) - beta) * (
            np.sign(total) if aggregation == "majority" else total / np.float32(3.0)
        )
    same(states[0].m, m)
    assert np.abs(params - PARAMS).max() <= 4 * 2 * 0.01 * (1 + 1e-5)  # the notes, section 0, I2: at most 2 lr


def test_the_two_aggregations_differ(differ):
    for rule in (Signum(lr=0.01), AASS(lr=0.01), Lion(lr=0.01)):
        assert differ(together(rule, GRADS[:, :3])[0], together(rule.replace(aggregation="mean"), GRADS[:, :3])[0])


@pytest.mark.parametrize(("ties", "sign"), [("zero", 0.0), ("plus", 1.0), ("minus", -1.0)])
def test_an_undecided_vote_goes_where_it_is_told(ties, sign, same):
    zero, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    rule = SignSGD(lr=1.0, ties=ties)
    for grads in ([ones, -ones], [zero, zero], [ones, -ones, zero]):
        same(sc.simulate(rule, zero, grads)[0], np.full(5, -sign, np.float32) + 0.0)


def test_random_ties_are_fair_coins_that_all_workers_share(differ, same):
    params = {"a": np.zeros(2048, np.float32), "b": np.zeros(2048, np.float32)}
    up, down = ({name: np.full(2048, g, np.float32) for name in params} for g in (1.0, -1.0))

    def flips(seed=0, steps=1):
        rule, p, states = SignSGD(lr=1.0, ties="random", seed=seed), params, None
        for _ in range(steps):
            before = p
            p, states = sc.simulate(rule, p, [up, down], states)
        return {name: p[name] - before[name] for name in p}

    coins = flips()
    assert set(np.concatenate(list(coins.values()))) == {-1.0, 1.0}
    assert abs(np.concatenate(list(coins.values())).sum()) < 5 * 4096**0.5  # five standard deviations
    same(coins, flips())
    assert differ(coins["a"], coins["b"])
    assert differ(coins, flips(seed=1))
    assert differ(coins, flips(steps=2))


def test_coins_are_tossed_for_ties_alone(same):
    rule = SignSGD(lr=0.01)
    grads = [g + np.float32(0.5) for g in GRADS[0, :3]]  # no zeros, and an odd number
    same(sc.simulate(rule.replace(ties="random"), PARAMS, grads)[0], sc.simulate(rule, PARAMS, grads)[0])


@pytest.mark.parametrize("name", VOTERS)
def test_workers_draw_noise_of_their_own(name, differ):
    rule = sc.rule(name, lr=0.1, sign_zero="random")
    streams = [rule.init(PARAMS, worker=n).stream for n in range(3)]
    assert differ(streams[0], streams[1])
    assert differ(streams[1], streams[2])
    coins = [random.words(stream, np.asarray(0, np.int32), 4096, 0) & 1 for stream in streams]
    agree = [(coins[a] == coins[b]).mean() for a, b in ((0, 1), (1, 2), (0, 2))]
    assert np.abs(np.asarray(agree) - 0.5).max() < 5 * 0.5 / 64  # independent within five standard deviations


# -- theory of the vote ------------------------------------------------------------------------------------


def moments(rho, workers, ties="zero"):
    """Exact mean and variance of the vote of workers that are right with probability rho."""
    outcomes = np.asarray(list(product([1.0, -1.0], repeat=workers)), dtype=np.float32)
    words = np.zeros(len(outcomes), np.int32) if ties == "random" else None
    verdicts = sc.vote.majority(outcomes.T, ties=ties, words=words)
    right = (outcomes > 0).sum(axis=1)
    chance = [rho ** int(n) * (1 - rho) ** (workers - int(n)) for n in right]
    mean = sum(c * int(v) for c, v in zip(chance, verdicts, strict=True))
    square = sum(c * int(v) ** 2 for c, v in zip(chance, verdicts, strict=True))
    return mean, square - mean**2


@pytest.mark.parametrize(
    ("rho", "drifts"),
    [
        (Fraction(3, 5), [0.2, 0.2, 0.296, 0.296, 0.36512, 0.36512]),
        (Fraction(3, 4), [0.5, 0.5, 0.6875, 0.6875, 0.79297, 0.79297]),
    ],
)
def test_the_drift_of_the_vote_is_the_exact_binomials(rho, drifts):
    # the notes, section 5: E[V] for M = 1 .. 6 with sign(0) = 0; 2l - 1 and 2l workers drift alike.
    found = [moments(rho, workers)[0] for workers in range(1, 7)]
    assert [round(float(drift), 5) for drift in found] == drifts
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[4] == found[5]


def test_an_even_number_of_workers_drifts_alike_and_varies_less():
    # the notes, section 5, rho = .6: variances .96 and .48, then .9124 and .5668.
    variances = [round(float(moments(Fraction(3, 5), workers)[1]), 4) for workers in (1, 2, 3, 4)]
    assert variances == [0.96, 0.48, 0.9124, 0.5668]


@pytest.mark.parametrize("workers", [2, 4])
def test_ties_upwards_bias_an_even_vote(workers):
    # the notes, section 5: with tie "+1" the equality breaks. The bias is the chance of a tie.
    rho = Fraction(3, 5)
    tie = Fraction(workers * (workers - 1) // (2 if workers == 4 else 1), 1) * (rho * (1 - rho)) ** (workers // 2)
    assert moments(rho, workers, "plus")[0] - moments(rho, workers)[0] == tie
    assert moments(rho, workers)[0] - moments(rho, workers, "minus")[0] == tie
    assert moments(Fraction(1, 2), workers, "plus")[0] > 0 == moments(Fraction(1, 2), workers)[0]
    assert moments(rho, workers + 1, "plus") == moments(rho, workers + 1)  # an odd number has no ties


@pytest.mark.parametrize(
    "rule", [SignSGD(lr=0.01), Signum(lr=0.01), Signum(lr=0.1, beta=0.5)], ids=["plain", "m", "m2"]
)
def test_two_workers_stay_on_their_line_for_ever(rule):
    # Safaryan and Richtarik 2019, section 3.2 (the notes, sections 2 and 5): f_n = <a_n, x>^2 with a_1 = (1+e, -1+e),
    # a_2 = (-1+e, 1+e), e = 1/2, from (3, -1): stuck on z1 + z2 = 2 for any beta and any lr.
    a = np.asarray([[1.5, -0.5], [-0.5, 1.5]])
    x, states = np.asarray([3.0, -1.0]), None
    for _ in range(300):
        x, states = sc.simulate(rule, x, [2.0 * (a_n @ x) * a_n for a_n in a], states)
    assert abs(x.sum() - 2.0) <= 1e-9
    assert np.abs(x).sum() >= 2.0 - 1e-9  # never near the optimum (0, 0)


def test_one_worker_with_random_samples_stays_there_too():
    a = np.asarray([[1.5, -0.5], [-0.5, 1.5]])
    pick = np.random.default_rng(0).integers(0, 2, 300)
    rule, x, states = SignSGD(lr=sc.schedules.inverse_sqrt(0.5)), np.asarray([3.0, -1.0]), None
    for i in pick:
        x, states = sc.simulate(rule, x, [2.0 * (a[i] @ x) * a[i]], states)
    assert abs(x.sum() - 2.0) <= 1e-9


def test_the_mean_of_signs_stays_there_and_sgd_does_not():
    # each worker's signs sum to zero, so do their means; gradients do not.
    a = np.asarray([[1.5, -0.5], [-0.5, 1.5]])
    ends = {}
    for rule in (SignSGD(lr=0.05, aggregation="mean"), SGD(lr=0.05)):
        x, states = np.asarray([3.0, -1.0]), None
        for _ in range(150):
            x, states = sc.simulate(rule, x, [2.0 * (a_n @ x) * a_n for a_n in a], states)
        ends[rule.name] = x
    assert abs(ends["signsgd"].sum() - 2.0) <= 1e-9
    assert np.abs(ends["sgd"]).max() < 1e-2


@pytest.mark.parametrize(("honest", "hostile"), [(2, 1), (3, 2), (4, 1)])
def test_a_hostile_minority_changes_nothing_that_has_a_margin(honest, hostile, same):
    # the notes, section 5: fewer than half flipped workers cannot change coordinates on which the honest agree by
    # margin, whatever they send: here the flipped signs, and every other pattern.
    rng = np.random.default_rng(honest)
    grads = rng.choice(np.float32([-1.0, 1.0]), (honest, 24))
    margin = np.abs(grads.sum(axis=0)) > hostile
    rule = SignSGD(lr=0.01)
    clean = sc.simulate(rule, PARAMS, list(grads))[0]
    flipped = [-np.sign(grads.sum(axis=0))] * hostile
    for attack in (flipped, list(1e30 * rng.standard_normal((hostile, 24)).astype(np.float32))):
        attacked = sc.simulate(rule, PARAMS, [*grads, *[np.float32(g) for g in attack]])[0]
        same(attacked[margin], clean[margin])
    assert margin.any()
    turned = sc.simulate(rule, PARAMS, [*grads, *flipped, *flipped, *flipped])[0]
    assert not np.array_equal(turned[margin], clean[margin])  # a majority can


@pytest.mark.parametrize("name", ["signsgd", "signum", "lion", "aass"])
@pytest.mark.parametrize("aggregation", ["majority", "mean"])
def test_weights_of_the_workers_losses_are_not_seen(name, aggregation, same):
    # the notes, section 5: rescaling f_n by w_n > 0 leaves iterates unchanged; powers of two, so exact.
    rule = sc.rule(name, lr=0.01, aggregation=aggregation)
    weights = np.float32([1.0, 2.0**-10, 0.5, 8.0, 1024.0, 2.0**20])[:, None]
    same(together(rule, [weights * each for each in GRADS])[0], together(rule)[0])


def test_weights_of_losses_are_seen_by_sgd(differ):
    weights = np.float32([1.0, 2.0**-10, 0.5, 8.0, 1024.0, 2.0**20])[:, None]
    rule = SGD(lr=0.01)
    assert differ(together(rule, [weights * each for each in GRADS])[0], together(rule)[0])


def test_the_order_of_the_workers_does_not_matter_to_a_vote(same):
    for aggregation in ("majority", "mean"):
        rule = Signum(lr=0.01, aggregation=aggregation)
        forward, back = together(rule), together(rule, GRADS[:, ::-1])
        same(forward[0], back[0])
        same(forward[1], back[1][::-1])


# -- weighted votes ----------------------------------------------------------------------------------------


def test_weights_decide_a_vote(same):
    signs = np.float32([[1.0, -1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]])
    same(sc.vote.weighted(signs, np.float32([3.0, 1.0, 1.0])), np.float32([1.0, -1.0, 1.0, 0.0]))
    same(sc.vote.weighted(signs, np.float32([1.0, 1.0, 1.0])), sc.vote.majority(signs))
    same(sc.vote.weighted(signs, np.float32([3.0, 1.0, 1.0]), ties="minus")[3:], np.float32([-1.0]))
    coins = np.asarray([0, 0, 0, 1], np.int32)
    same(sc.vote.weighted(signs, np.float32([3.0, 1.0, 1.0]), "random", coins)[3:], np.float32([-1.0]))


WEIGHTS = [0.5, 3.0, 1.25, 0.75, 2.0, 0.1]


@pytest.mark.parametrize("name", VOTERS)
def test_every_rule_that_votes_can_weigh_its_votes(name, same, differ):
    rule = sc.rule(name, lr=0.01)
    weighted, three = rule.replace(aggregation="weighted"), GRADS[:2, :3]
    alike = together(weighted, three, weights=[2.0, 2.0, 2.0])
    same(alike, together(rule, three))  # equal weights are none
    same(together(weighted, three, weights=[0.5] * 3), alike)
    heavy = together(weighted, three, weights=[1.0, 1.0, 3.0])
    assert differ(heavy[0], alike[0])
    assert weighted.wire_bits() == rule.wire_bits()  # the weights are a number per worker


def test_a_weighted_step_is_message_weighted_vote_and_apply(same):
    rule, p = SignSGD(lr=0.01, weight_decay=0.1, aggregation="weighted"), PARAMS
    lr, wd = np.float32(0.01), np.float32(0.1)
    for grads in GRADS:
        total = np.zeros(24, np.float32)
        for w, g in zip(np.float32(WEIGHTS), grads, strict=True):
            total = total + w * np.sign(g)
        p = p + -(lr * (np.sign(total) + wd * p))
    same(together(rule, weights=WEIGHTS)[0], p)


def test_a_worker_who_outweighs_all_others_decides(same):
    rule = Signum(lr=0.01, aggregation="weighted")
    grads = GRADS[:, :4].copy()
    grads[:, 2][grads[:, 2] == 0.0] = 1.0
    params, states = together(rule, grads, weights=[1.0, 1.0, 4.0, 1.0])
    expected = alone(rule.replace(aggregation="majority"), grads[:, 2])
    same((params, states[2]), expected)
    assert sum(not np.array_equal(state.m, states[2].m) for state in states) == 3


@pytest.mark.parametrize("ties", ["zero", "plus", "minus", "random"])
def test_a_weighted_tie_follows_the_policy_and_its_coins_are_those_of_a_vote(ties, same):
    signs = np.float32([[1.0] * 24, [-1.0] * 24, [-1.0] * 24])
    rule = SignSGD(lr=1.0, ties=ties, aggregation="weighted")
    plain = SignSGD(lr=1.0, ties=ties)
    three = sc.simulate(rule, PARAMS, list(signs), weights=[2.0, 1.0, 1.0])[0]
    same(three, sc.simulate(plain, PARAMS, list(signs[:2]))[0])  # undecided, too


def test_a_field_may_declare_itself_a_weighted_vote(same):
    class Message(NamedTuple):
        sign: WeightedVote

    Declaring = type("Declaring", (SignSGD,), {"Message": Message, "State": SignSGD.State})
    rule, option = Declaring(lr=0.01), SignSGD(lr=0.01, aggregation="weighted")
    same(together(rule, GRADS[:2, :3], weights=WEIGHTS[:3])[0], together(option, GRADS[:2, :3], weights=WEIGHTS[:3])[0])
    same(alone(rule, GRADS[:2, 0]), alone(SignSGD(lr=0.01), GRADS[:2, 0]))


@pytest.mark.parametrize(
    ("weights", "kind", "message"),
    [
        (None, TypeError, "`weights` is missing: votes of this SignSGD are weighted; pass a list of one number"),
        (2.0, TypeError, r"`weights` is 2\.0; pass a list of one number above 0 for each worker"),
        ([1.0], ValueError, "`weights` has 1 entries for 2 workers; pass one for each"),
        ([1.0, "2"], TypeError, r"`weights\[1\]` is '2'; pass a list"),
        ([1.0, None], TypeError, r"`weights\[1\]` is None; pass a list"),
        ([1.0, float("nan")], ValueError, r"`weights\[1\]` is nan; it must be finite and in"),
        ([float("inf"), 1.0], ValueError, r"`weights\[0\]` is inf; it must be finite and in"),
        ([-1.0, 1.0], ValueError, r"`weights\[0\]` is -1\.0; it must be finite and in .*: only their ratios count"),
        ([0, 1], ValueError, r"`weights\[0\]` is 0; it must be"),
        ([1e-39, 1.0], ValueError, r"`weights\[0\]` is 1e-39; it must be"),
        ([1.0, 1e39], ValueError, r"`weights\[1\]` is 1e\+39; it must be"),
    ],
)
def test_bad_weights(weights, kind, message):
    with pytest.raises(kind, match=message):
        sc.simulate(SignSGD(aggregation="weighted"), PARAMS, list(GRADS[0, :2]), weights=weights)


@pytest.mark.parametrize("rule", [SignSGD(), SignSGD(aggregation="mean"), SGD(lr=0.1)], ids=repr)
def test_weights_of_what_is_not_weighted(rule):
    with pytest.raises(ValueError, match=r"`weights` is \[1\.0, 2\.0\], and this S\w+ counts all workers alike; leave"):
        sc.simulate(rule, PARAMS, list(GRADS[0, :2]), weights=[1.0, 2.0])


def test_log_odds_are_the_best_weights():
    # Workers that are right with probabilities .9, .6, .6: weighted by log(rho/(1 - rho)) the vote is right as often
    # as the first alone, .9; the plain majority .9*(1 - .16) + .1*.36 = .792.
    rho = [0.9, 0.6, 0.6]
    outcomes = np.asarray(list(product([1.0, -1.0], repeat=3)), np.float32)
    chance = np.prod([np.where(outcomes[:, n] > 0, r, 1 - r) for n, r in enumerate(rho)], axis=0)
    weights = np.log(np.asarray(rho) / (1.0 - np.asarray(rho))).astype(np.float32)
    assert np.isclose(chance[sc.vote.weighted(outcomes.T, weights) > 0].sum(), 0.9)
    assert np.isclose(chance[sc.vote.majority(outcomes.T) > 0].sum(), 0.792)


# -- trees, libraries, bad input ---------------------------------------------------------------------------


def test_a_tree_is_its_leaves_and_a_leaf_may_have_no_gradient(same):
    rule = Signum(lr=0.01)
    params = {"a": PARAMS[:10], "b": PARAMS[10:], "c": PARAMS[:2], "none": None}
    grads = [{"a": g[:10], "b": g[10:], "c": None, "none": None} for g in GRADS[0, :3]]
    new, states = sc.simulate(rule, params, grads)
    whole = sc.simulate(rule, PARAMS, list(GRADS[0, :3]))[0]
    same(np.concatenate([new["a"], new["b"]]), whole)
    same(new["c"], params["c"])
    assert new["none"] is None
    same(states[0].m["c"], np.zeros(2, np.float32))


@pytest.mark.parametrize("aggregation", ["majority", "mean", "weighted"])
def test_every_library_gives_the_words_of_numpy(aggregation, other, same):
    rule = Signum(lr=0.01, ties="random", sign_zero="random", aggregation=aggregation)
    weights = [0.1, 0.2, 0.3, 0.6] if aggregation == "weighted" else None
    here = together(rule, GRADS[:1, :4], weights=weights)
    p = other.array(PARAMS)
    there = sc.simulate(rule, p, [other.array(g) for g in GRADS[0, :4]], weights=weights)
    same(there[0], here[0])
    same([tuple(state) for state in there[1]], [tuple(state) for state in here[1]])


def test_nothing_that_is_passed_in_is_written_to():
    p, grads = PARAMS.copy(), [g.copy() for g in GRADS[0, :3]]
    states = [Signum().init(p) for _ in grads]
    for array in (p, *grads, *(state.m for state in states)):
        array.flags.writeable = False
    sc.simulate(Signum(), p, grads, states)
    assert all(not state.m.any() for state in states)


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_one_bad_worker_stops_all(policy, same):
    rule = Signum(lr=0.01, nonfinite=policy)
    grads = [g.copy() for g in GRADS[0, :3]]
    grads[1][5] = np.nan
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="`grads` holds inf or NaN"):
            sc.simulate(rule, PARAMS, grads)
        return
    states = [rule.init(PARAMS, worker=n) for n in range(3)]
    same(sc.simulate(rule, PARAMS, grads, states), (PARAMS, states))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grads_per_worker": []}, "`grads_per_worker` is empty; pass the gradients of at least one worker"),
        ({"states": [None]}, "`states` has 1 entries for 2 workers; pass one for each"),
        ({"grad_fns": []}, "`grad_fns` has 0 entries for 2 workers; pass one for each"),
        ({"value_fn": [loss]}, "`value_fn` has 1 entries for 2 workers; pass one for each"),
        ({"value": [1.0, 2.0, 3.0]}, "`value` has 3 entries for 2 workers; pass one for each, or their mean"),
    ],
)
def test_numbers_of_workers_must_agree(arguments, message):
    given = {"grads_per_worker": list(GRADS[0, :2])} | arguments
    with pytest.raises(ValueError, match=message):
        sc.simulate(SignSGD(), PARAMS, **given)


def test_workers_must_have_gradients_for_the_same_leaves():
    params = {"a": PARAMS, "b": PARAMS}
    first, second = {"a": PARAMS, "b": PARAMS}, {"a": PARAMS, "b": None}
    with pytest.raises(
        ValueError, match=r"`grads_per_worker\[1\]` and `grads_per_worker\[0\]` are different trees: 'b'"
    ):
        sc.simulate(SignSGD(), params, [first, second])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"weights": np.float32([1.0])}, ValueError, r"`weights` has shape \(1,\); pass one number for each of 2"),
        ({"weights": 1.0}, TypeError, "`weights` is a float, not an array"),
        ({"ties": "up"}, ValueError, "`ties` is 'up'; choose one of 'zero', 'plus', 'minus', 'random'"),
    ],
)
def test_bad_arguments_of_a_weighted_vote(arguments, kind, message):
    stacked = np.ones((2, 3), np.float32)
    with pytest.raises(kind, match=message):
        sc.vote.weighted(stacked, **({"weights": np.float32([1.0, 2.0])} | arguments))


# -- the same loss on every worker -------------------------------------------------------------------------


DECIDING = [name for name in sc.rules() if "value_fn" in sc.rule(name, lr=0.1).needs]


@pytest.mark.parametrize("name", DECIDING)
def test_workers_with_functions_of_their_own_decide_alike(name, same):
    rule = sc.rule(name, lr=0.01)
    expected = sc.simulate(rule, PARAMS, list(GRADS[0, :3]), value=loss(PARAMS), value_fn=loss)
    # one word as the rule sees it
    own = [lambda p: loss(p), lambda p: np.float32(loss(p)), lambda p: np.asarray(loss(p))]
    same(sc.simulate(rule, PARAMS, list(GRADS[0, :3]), value=loss(PARAMS), value_fn=own), expected)
    nans = [lambda p: np.nan, lambda p: -np.nan]
    same(sc.simulate(rule, PARAMS, list(GRADS[0, :2]), value=loss(PARAMS), value_fn=nans)[0], PARAMS)


@pytest.mark.parametrize("name", DECIDING)
def test_workers_who_would_decide_by_other_losses_are_refused(name, other):
    # an ulp of float32 is enough; the value itself is merged, so that all have the same
    rule, p = sc.rule(name, lr=0.01), other.array(PARAMS)
    grads = [other.array(g) for g in GRADS[0, :3]]
    own = [lambda p: 2.0, lambda p: 2.0, lambda p: 2.0 + 2.0**-22]
    message = r"`value_fn\(params\)` of worker 0 is 2\.0 and that of worker 2 is 2\.00000023841\d+, for the same params"
    with pytest.raises(ValueError, match=message):
        sc.simulate(rule, p, grads, value=[3.0, 1.0, 5.0], value_fn=own)


@pytest.mark.parametrize("name", DECIDING)
def test_nodes_are_shown_the_words_by_which_they_decide(name, same):
    # what a transport compares: the loss before and after, as the rule sees them
    rule = sc.rule(name, lr=0.01)
    state, seen = rule.init(PARAMS), []
    scalars = rule.finish(rule.measure(PARAMS, GRADS[0, 0], state, value=3.0))
    message, state = rule.message(PARAMS, GRADS[0, 0], state, scalars)
    rule.apply(PARAMS, GRADS[0, 0], message, state, scalars, value_fn=lambda p: 2.5, agree=seen.append)
    same(seen, [np.float32([3.0, 2.5]).view(np.int32)])


def test_one_worker_agrees_with_itself():
    local = iter([2.0, 1.0])
    for _ in range(2):
        sc.simulate(sc.rule(DECIDING[0], lr=0.01), PARAMS, [PARAMS], value=3.0, value_fn=lambda p: next(local))


@pytest.mark.parametrize("rule", ["signum", Signum, None])
def test_what_is_no_rule_is_not_simulated(rule):
    with pytest.raises(TypeError, match=r"`rule` is .*; pass a rule, made by signcore\.rule\(name, lr=\.\.\.\)"):
        sc.simulate(rule, PARAMS, list(GRADS[0, :2]))


@pytest.mark.parametrize("value", [np.asarray([2.0, 4.0]), [2.0, "4"], "24"])
def test_a_loss_of_workers_that_is_no_number(value):
    message = "`value` is .*; pass the loss of all workers, or a list of one for each: one real number"
    with pytest.raises(TypeError, match=message):
        sc.simulate(sc.rule(DECIDING[0], lr=0.1), PARAMS, list(GRADS[0, :2]), value=value, value_fn=loss)


def test_coins_of_a_tie_are_no_leafs_noise():
    # a leaf may be called "ties/w"
    rule = SignSGD(ties="random", sign_zero="random", seed=3)
    params = {"ties": {"w": PARAMS}, "w": PARAMS}
    keys = [rule.init(params).stream["ties"]["w"].tolist(), rule.init({"ties/w": PARAMS}).stream["ties/w"].tolist()]
    assert keys == [random.stream_key(3, "ties/w").tolist()] * 2
    assert random.stream_key(3, "w", "ties").tolist() not in keys
    opposed = [{"w": np.abs(PARAMS)}, {"w": -np.abs(PARAMS)}]
    moved = sc.simulate(rule.replace(sign_zero="zero"), {"w": PARAMS}, opposed)[0]
    words = random.words(random.stream_key(3, "w", "ties"), np.asarray(0, np.int32), 24)
    np.testing.assert_array_equal(moved["w"] < PARAMS, words % 2 == 0)


def test_coins_need_words():
    with pytest.raises(TypeError, match="`words` is None, and ties='random' tosses coins; pass int32 words"):
        sc.vote.majority(np.ones((2, 3), np.float32), ties="random")
