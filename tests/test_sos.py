"""The search for a constant rate. Oracles: the notes, section 8.6."""

import numpy as np
import pytest

import signcore as sc
from signcore.sos import sos


def parabola(curvature):
    return lambda x: curvature * x, lambda x: 0.5 * curvature * float(np.sum(x * x))


def test_the_rate_of_a_parabola():
    # the notes, section 8.6: x0 = 3, gamma_s = 1e-8, T = 100: .16777 11 runs for L = 1 and 100 and both N
    grad, loss = parabola(100.0)
    found = sos(np.asarray([3.0]), grad, 100, value_fn=loss, lower_bound=0.0)
    assert (round(found.lr, 5), found.runs, found.bracketed) == (0.16777, 11, True)


class PlainSigns(sc.SignSGD):
    """Sign descent in NumPy, fast enough for 44,000 steps."""

    def step(self, params, grads, state, *, hyper):
        return params - hyper["lr"] * np.sign(grads), state


@pytest.mark.parametrize("curvature", [1.0, 100.0])
@pytest.mark.parametrize("lower_bound", [None, 0.0])
def test_the_rate_of_a_long_run(curvature, lower_bound, monkeypatch):
    # the notes, section 8.6: T = 1000: .04194 for L = 1 and 100 and both N, 11 runs; sqrt(Delta/(L T)) is .0671
    monkeypatch.setattr("signcore.sums.norm1", lambda x: abs(x[0]))  # sums of one number
    monkeypatch.setattr("signcore.sums.exact_dot", lambda x, y: x[0] * y[0])
    grad, loss = parabola(curvature)
    value = {} if lower_bound is None else {"value_fn": loss}
    found = sos(np.asarray([3.0]), grad, 1000, lower_bound=lower_bound, with_rule=PlainSigns(), **value)
    assert (round(found.lr, 5), found.runs, found.bracketed) == (0.04194, 11, True)


def test_the_answer_is_within_a_factor_of_two_of_the_optimum_and_moves_a_tree(same):
    # the notes, section 8.6: sqrt(Delta/(L T)) = .2121 for T = 100; here T = 20
    x = {"a": np.asarray([3.0]), "b": None}
    found = sos(x, lambda x: {"a": x["a"], "b": None}, 20, start=0.003)
    best = np.sqrt(4.5 / 20)
    assert best / 2 <= found.lr <= best
    rule, y = sc.rule("signsgd", lr=found.lr), x
    state = rule.init(y)
    for _ in range(20):
        y, state = rule.step(y, {"a": y["a"], "b": None}, state)
    same(found.params, y)


def test_scaling_the_function_changes_nothing(same):
    one, four = (sos(np.asarray([3.0]), parabola(c)[0], 15, start=2.0**-8) for c in (1.0, 4.0))
    assert one.lr == four.lr
    same(one.params, four.params)


def test_a_first_rate_that_is_too_large_is_returned():
    found = sos(np.asarray([3.0]), lambda x: x, 10, start=4.0)
    assert (found.lr, found.runs, found.bracketed) == (4.0, 1, False)


def test_a_run_that_diverges_counts_as_too_large():
    def loss(x):
        return float("inf") if abs(x[0] - 3.0) > 0.5 else float(x[0])

    wild = sos(np.asarray([3.0]), lambda x: x, 8, start=2.0**-8, value_fn=loss)
    tame = sos(np.asarray([3.0]), lambda x: x, 8, start=2.0**-8)
    assert wild.lr <= 0.5 / 8 < tame.lr


@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_a_gradient_that_is_not_finite_ends_a_run_whatever_the_policy(policy):
    def cliff(x):
        return x * np.where(np.abs(x) > 10.0, np.inf, 1.0)

    found = sos(np.asarray([3.0]), cliff, 5, start=0.25, with_rule=sc.SignSGD(nonfinite=policy))
    assert found[2:] == sos(np.asarray([3.0]), cliff, 5, start=0.25)[2:]


def test_a_linear_function_has_no_rate_that_is_too_large():
    found = sos(np.asarray([0.0]), np.ones_like, 2, start=1.0, max_runs=4)
    assert (found.runs, found.bracketed) == (4, False)


def test_another_rule_may_be_searched():
    plain = sos(np.asarray([3.0, 1.0]), lambda x: x, 10, start=2.0**-8)
    momentum = sos(np.asarray([3.0, 1.0]), lambda x: x, 10, start=2.0**-8, with_rule=sc.rule("signum", beta=0.9))
    assert momentum.bracketed
    assert not np.array_equal(plain.params, momentum.params)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": 0}, ValueError, r"`steps` is 0; pass an int of at least 1"),
        ({"max_runs": 0}, ValueError, r"`max_runs` is 0"),
        ({"start": 0.0}, ValueError, r"`start` is 0\.0; it must be finite and in"),
        ({"start": None}, TypeError, r"`start` is None; pass a number"),
        ({"grad_fn": 1}, TypeError, r"`grad_fn` is 1; pass a function"),
        ({"grad_fn": lambda x: None}, TypeError, r"`grad_fn\(params\)` is None; return gradients"),
        ({"value_fn": 3.0}, TypeError, r"`value_fn` is 3\.0; pass a function of params that returns the loss"),
        (
            {"value_fn": lambda x: None},
            TypeError,
            r"`value_fn\(params\)` is None; return the loss: .* \(a `return` is missing\)",
        ),
        (
            {"value_fn": lambda x: np.ones(2), "lower_bound": 0.0},
            TypeError,
            r"`value_fn\(params\)` is an array of float64 of shape \(2,\); return the loss",
        ),
        ({"with_rule": "signum"}, TypeError, r"`with_rule` is 'signum'; pass a rule, made by signcore\.rule\(name"),
        ({"with_rule": sc.Signum}, TypeError, r"`with_rule` is <class .*>; pass a rule, made by"),
        (
            {"with_rule": sc.MonotoneSignSGD()},
            ValueError,
            r"`with_rule` needs value, value_fn \(MonotoneSignSGD\); pass a rule whose steps need gradients alone",
        ),
        ({"lower_bound": 0.0}, TypeError, r"`value_fn` is missing and `lower_bound` is 0\.0"),
        (
            {"lower_bound": 5.0, "value_fn": lambda x: 4.5},
            ValueError,
            r"`value_fn\(params\)` is 4\.5 and `lower_bound` is 5\.0",
        ),
    ],
)
def test_bad_arguments(options, kind, message):
    arguments = {"grad_fn": lambda x: x, "steps": 3, **options}
    with pytest.raises(kind, match=message):
        sos(np.asarray([3.0]), **arguments)
