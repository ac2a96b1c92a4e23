"""The tools are tested with rules that are broken on purpose: each must be caught, by name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import signcore as sc
from signcore import ops
from signcore.tree import flatten, unflatten
from signcore_conformance import check, golden
from signcore_conformance.backends import BACKENDS
from signcore_conformance.compare import compare, expected, find
from signcore_conformance.reference import Reference
from signcore_conformance.workloads import SMALL

DECAYED = sc.Signum(lr=1e-3, weight_decay=0.01)


def altered(rule: sc.Rule, change: dict[str, str], **numbers: float) -> Any:
    """A step function from a rule's formula with some lines replaced or numbers changed."""
    model = golden.reference(rule)
    lines = [change.get(line, line) for line in golden.load(rule.name)["formula"]]
    assert set(change) <= set(golden.load(rule.name)["formula"]), "the formula has no such line"
    broken = Reference(lines, model.fields, model.numbers | numbers, model.options)

    def step(params: Any, grads: Any, state: Any) -> Any:
        paths = [leaf.path for leaf in flatten(params) if leaf.value is not None]
        flat = [{leaf.path: leaf.value for leaf in flatten(tree) if leaf.value is not None} for tree in (params, grads)]
        old = {name: {x.path: x.value for x in flatten(getattr(state, name))} for name in model.fields}
        new, fields = broken.step(*flat, {"step": int(state.step), **old})

        def rebuilt(values: dict[str, Any]) -> Any:
            return unflatten(params, [values[p.path] if p.path in paths else None for p in flatten(params)])

        trees = {name: rebuilt(fields[name]) for name in model.fields}
        return rebuilt(new), state._replace(step=np.asarray(fields["step"], np.int32), **trees)

    return step


def test_the_unbroken_formula_passes() -> None:
    assert check(altered(DECAYED, {}), DECAYED)


def test_lerp_instead_of_two_products_is_caught() -> None:
    lerp = {"average = flush(beta*m + (1 - beta)*g)": "average = flush(m + (1 - beta)*(g - m))"}
    verdict = check(altered(DECAYED, lerp), DECAYED)
    assert verdict.mismatch is not None
    assert verdict.mismatch["path"].startswith("state/m")
    assert verdict.mismatch["ulps"] >= 1


def test_momentum_that_is_zeroed_each_step_is_caught() -> None:
    zeroed = {"average = flush(beta*m + (1 - beta)*g)": "average = flush((1 - beta)*g)"}
    verdict = check(altered(DECAYED, zeroed), DECAYED)
    assert verdict.mismatch is not None
    assert verdict.mismatch["step"] == 1, "the first step has no momentum to lose"


def test_decay_inside_the_sign_is_caught() -> None:
    inside = {
        "s = sign(u, sign_zero)": "s = sign(decayed(u, weight_decay, p), sign_zero)",
        "delta = flush(-(lr * decayed(s, weight_decay, p)))": "delta = flush(-(lr * s))",
    }
    verdict = check(altered(DECAYED, inside), DECAYED)
    assert verdict.mismatch is not None
    assert verdict.mismatch["path"].startswith("params/")


def test_a_tie_that_becomes_plus_one_is_caught() -> None:
    plus = {"s = sign(u, sign_zero)": "s = sign(u, 'plus')"}
    assert not check(altered(DECAYED, plus), DECAYED)
    verdict = check(altered(DECAYED, plus), DECAYED, workloads=("hostile",))
    assert verdict.mismatch is not None
    assert verdict.mismatch["workload"] == "hostile"


def test_state_that_passes_through_bfloat16_is_caught() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        params, state = DECAYED.step(params, grads, state)
        values = [
            None if leaf.value is None else leaf.value.astype(ml_dtypes.bfloat16).astype(np.float32)
            for leaf in flatten(state.m)
        ]
        return params, state._replace(m=unflatten(state.m, values))

    verdict = check(step, DECAYED)
    assert verdict.mismatch is not None
    assert verdict.mismatch["path"].startswith("state/m")


def test_one_ulp_in_the_learning_rate_is_caught() -> None:
    lr = float(np.nextafter(np.float32(DECAYED.lr), np.float32(1.0)))
    verdict = check(altered(DECAYED, {}, lr=lr), DECAYED)
    assert verdict.mismatch is not None
    assert "lr=0.001" in verdict.mismatch["rule"]


# inductor compiles its C++ for the CPU without contraction; every other compiler may contract.
CONTRACT = [b.name for b in BACKENDS if b.traced and b.name != "torch-compile"]


@pytest.mark.parametrize("name", CONTRACT)
def test_an_unguarded_product_is_caught_on_every_backend_that_contracts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = next(b for b in BACKENDS if b.name == name)
    reason = backend.missing()
    if reason is not None:
        pytest.skip(f"{name} cannot run here: {reason}")
    monkeypatch.setattr(ops, "product", lambda a, b: a * b)
    rule = DECAYED.replace(beta=0.85)  # no other test compiles this rule
    workload = find("random", rule, "float32", SMALL)
    outcome = compare(backend.run(rule, workload), expected("random", rule, "float32", SMALL))
    assert outcome.mismatch is not None
    assert outcome.mismatch["ulps"] is not None


def test_an_unguarded_product_is_harmless_where_nothing_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "product", lambda a, b: a * b)
    assert check(DECAYED.step, DECAYED, workloads=("random",))


def test_the_report_tells_everything_about_the_first_difference() -> None:
    lr = float(np.nextafter(np.float32(DECAYED.lr), np.float32(1.0)))
    text = str(check(altered(DECAYED, {}, lr=lr), DECAYED))
    for word in ("rule:", "workload:", "step:", "path:", "index:", "got:", "expected:", "ulps:", "versions:"):
        assert word in text
