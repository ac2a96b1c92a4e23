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
