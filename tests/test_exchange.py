"""Steps of several workers over a transport are those of `simulate` in one process, word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import signcore as sc
from signcore.exchange import Group, Threads
from signcore.rule import Rule
from signcore_conformance import golden

SHAPES = {"a": (), "b": (7,), "c": (3, 3), "d": (0,), "e": (65,)}


def arrays(seed: int, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made = {name: np.asarray(rng.normal(size=shape) * scale, np.float32) for name, shape in SHAPES.items()}
    made["e"][::5] = 0.0
    return made


def loss(params: Any) -> Any:
    return sc.sums.norm1(params)


def inputs(rule: Rule, params: Any, rank: int) -> dict[str, Any]:
    every = {
        "value": lambda: np.float32(rank + 1) * loss(params),
        "value_fn": lambda: loss,
        "grad_fn": lambda: lambda p: {name: (value * (0.5 + rank)).astype(value.dtype) for name, value in p.items()},
    }
    return {name: every[name]() for name in rule.needs}


def simulated(rule: Rule, workers: int, steps: int, grads: Any) -> list[Any]:
    params, states, seen = arrays(0), None, []
    for k in range(steps):
        each = [inputs(rule, params, n) for n in range(workers)]
        given: dict[str, Any] = {}
        if "value" in rule.needs:
            given["value"] = [e["value"] for e in each]
        if "value_fn" in rule.needs:
            given["value_fn"] = loss
        if "grad_fn" in rule.needs:
            given["grad_fns"] = [e["grad_fn"] for e in each]
        if getattr(rule, "aggregation", "") == "weighted":
            given["weights"] = weights(workers)
        params, states = sc.simulate(rule, params, [grads(n, k) for n in range(workers)], states, **given)
        seen.append((params, states))
    return seen


def weights(workers: int) -> list[float]:
    return [1.0 + n / 3 for n in range(workers)]


def group_of(rule: Rule, transport: Any, **options: Any) -> Group:
    weighted = getattr(rule, "aggregation", "") == "weighted" and transport.size > 1
    return Group(transport, weights=weights(transport.size) if weighted else None, **options)


def exchanged(rule: Rule, workers: int, steps: int, grads: Any, **options: Any) -> list[Any]:
    def work(transport: Any) -> list[Any]:
        group = group_of(rule, transport, **options)
        params, seen = arrays(0), []
        state = rule.init(params, worker=transport.rank)
        for k in range(steps):
            more = inputs(rule, params, transport.rank)
            params, state = group.step(rule, params, grads(transport.rank, k), state, **more)
            seen.append((params, state))
        return seen

    return Threads.run(workers, work)


def gradients(rank: int, step: int) -> Any:
    return arrays(100 * step + rank + 1)


def runnable(rule: Rule) -> Rule:
    """The rule, or where it is made for one worker or cannot be undecided, one that is not."""
    if rule.name == "alias_compact" and getattr(rule, "d0", None) is not None:
        rule = rule.replace(d0=None, lower_bound=-1e4)
    if getattr(rule, "sign_zero", "zero") != "zero" and getattr(rule, "ties", None) == "zero":
        rule = rule.replace(ties="plus")
    return rule


VARIANTS = [(name, i) for name in sc.rules() for i in range(len(golden.variants(name)))]


def assert_equal(rule: Rule, workers: int, same: Any, grads: Any = gradients, steps: int = 3, **options: Any) -> None:
    expected = simulated(rule, workers, steps, grads)
    found = exchanged(rule, workers, steps, grads, **options)
    for n, mine in enumerate(found):
        for (params, state), (theirs, states) in zip(mine, expected, strict=True):
            same((params, state), (theirs, states[n]))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_option_is_the_simulation(name: str, variant: int, same: Any) -> None:
    assert_equal(runnable(golden.variants(name)[variant]), 2, same, steps=2)


@pytest.mark.parametrize("workers", [1, 3, 5])
@pytest.mark.parametrize("name", sc.rules())
def test_every_rule_is_the_simulation(name: str, workers: int, same: Any) -> None:
    assert_equal(golden.variants(name)[0], workers, same)


@pytest.mark.parametrize("bucket", [1, 10, 1000])
@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("sign_zero", ["zero", "plus", "random"])
@pytest.mark.parametrize("aggregation", ["majority", "mean", "weighted"])
def test_votes_in_buckets(aggregation: str, sign_zero: str, workers: int, bucket: int, same: Any) -> None:
    for ties in ("zero", "plus", "minus", "random"):
        if aggregation == "majority" and sign_zero != "zero" and ties == "zero":
            continue
        rule = sc.Signum(lr=0.1, sign_zero=sign_zero, ties=ties, aggregation=aggregation)
        assert_equal(rule, workers, same, steps=1, bucket=bucket)


@pytest.mark.parametrize(
    "name", [n for n in sc.rules() if any(w.bits is None for w in sc.rule(n, lr=0.1)._wires.values())]
)
def test_a_sign_that_one_bit_cannot_say(name: str, same: Any) -> None:
    """NaN is no sign, whatever zeros are; all ranks send two bits in such a step."""

    def grads(rank: int, step: int) -> Any:
        made = arrays(100 * step + rank + 1)
        if (rank, step) == (1, 1):
            made["b"][3] = np.nan
        return made

    rule = sc.rule(name, lr=0.1)
    if rule.needs:
        rule = rule.replace(lower_bound=-1e4) if "lower_bound" in rule.numbers() else rule
    rule = rule.replace(sign_zero="plus")
    if hasattr(rule, "ties"):
        rule = rule.replace(ties="minus")
    with np.errstate(all="ignore"):
        assert_equal(rule, 2, same, grads)
