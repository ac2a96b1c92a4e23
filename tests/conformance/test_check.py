"""What `check` says of steps that are wrong, of steps that are no steps, and of arguments it cannot use."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import numpy as np
import pytest

import signcore as sc
from signcore.tree import flatten, unflatten
from signcore_conformance import check
from signcore_conformance.backends import BACKENDS, tree_map

RULE = sc.Signum(lr=1e-3)
RAISES = RULE.replace(nonfinite="raise")
FEW: Any = {"workloads": ("recorded",)}


def problem(step: Any, rule: sc.Rule = RULE, **options: Any) -> dict[str, Any]:
    verdict = check(step, rule, **(FEW | options))
    assert not verdict
    assert verdict.mismatch is not None
    assert {"rule", "dtype", "workload", "step", "path"} <= set(verdict.mismatch)
    assert str(verdict.mismatch["workload"]) in str(verdict)
    return verdict.mismatch


def never(*_: Any) -> Any:
    raise AssertionError("errors about arguments come before anything is run")


# The other two dtypes are those of quick runs of the suite, a part of `make test`.
CELLS = [(name, dtype) for name in sc.rules() for dtype in ("float16", "float64")]


@pytest.mark.parametrize(("name", "dtype"), [*CELLS, ("lion", "bfloat16"), ("lion", "float32")])
def test_every_rule_holds_in_every_dtype(name: str, dtype: str) -> None:
    rule = sc.rule(name, lr=0.01)
    assert check(rule.step, rule, dtype=dtype, workloads=("hostile", "mixed"))


@pytest.mark.parametrize("backend", ["torch", "array-api-strict"])
def test_other_libraries_hold(backend: str) -> None:
    verdict = check(RULE.step, RULE, backend=backend)
    assert verdict
    assert verdict.words > 10_000_000


@pytest.mark.parametrize("donated", [(), (0, 2)])
def test_a_jitted_step_holds_and_may_be_given_its_buffers(donated: tuple[int, ...]) -> None:
    step = jax.jit(RULE.step, donate_argnums=donated)
    assert check(step, RULE, backend="jax", workloads=("recorded", "mixed"))


# -- what is run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["random", "near-ties", "hostile", "recorded"])
def test_a_step_that_is_wrong_on_large_leaves_alone_is_caught(workload: str) -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        new, state = RULE.step(params, grads, state)
        return tree_map(lambda p: -p if p.size > 65_536 else p, new), state

    assert problem(step, workloads=(workload,))["path"] == "params/big"


def test_a_step_that_is_wrong_on_trees_of_several_dtypes_is_caught() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        new, state = RULE.step(params, grads, state)
        several = len({leaf.value.dtype for leaf in flatten(params) if leaf.value is not None}) > 1
        return tree_map(lambda p: -p, new) if several else new, state

    assert check(step, RULE, **FEW)
    verdict = check(step, RULE, workloads=("mixed",))
    assert verdict.mismatch is not None
    assert (verdict.mismatch["workload"], verdict.mismatch["dtype"]) == ("mixed", "mixed")


def test_a_step_that_raises_where_the_rule_does_is_right() -> None:
    verdict = check(RAISES.step, RAISES)
    assert verdict, str(verdict)


def test_a_step_that_computes_where_the_rule_raises_is_wrong() -> None:
    found = problem(RULE.step, RAISES, workloads=("hostile",))
    assert found["step"] == 4
    assert "did not raise" in found["problem"]


def test_a_step_that_raises_at_finite_gradients_is_wrong_whatever_the_policy() -> None:
    found = problem(jax.jit(RAISES.step), RAISES, backend="jax")
    assert found["step"] == 0
    assert "while a function is traced" in found["problem"]


# -- steps that cannot be compared -------------------------------------------------------------------------------


def test_a_step_that_raises_is_a_mismatch_with_its_error() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        if int(state.step) == 2:
            raise KeyError("lost")
        return RULE.step(params, grads, state)

    found = problem(step)
    assert (found["step"], found["workload"]) == (2, "recorded")
    assert "KeyError: 'lost'" in found["problem"]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda p, s: None, "returned a NoneType where (params, state) belongs"),
        (lambda p, s: p, "returned a dict where (params, state) belongs"),
        (lambda p, s: (p, s, 0.0), "returned a tuple of 3 where (params, state) belongs"),
        (lambda p, s: (p, tuple(s)), "returned a tuple as state where"),
        (lambda p, s: (p, s._asdict()), "returned a dict as state where"),
        (lambda p, s: (p, None), "returned a NoneType as state where"),
        (lambda p, s: (p, sc.SignSGD(lr=1.0).init(p)), "as state where"),
        (lambda p, s: (None, s), "missing"),
        (lambda p, s: (p | {"w1": 1.0}, s), "float64[] where float32[64, 32] belongs"),
        (lambda p, s: (p | {"w1": "text"}, s), "where float32[64, 32] belongs"),
        (lambda p, s: (p | {"more": p["w1"]}, s), "not in the reference"),
        (lambda p, s: (p, s._replace(m=None)), "missing"),
        (lambda p, s: (p, s._replace(step=None)), "where int32[] belongs"),
    ],
)
def test_a_step_that_returns_something_else_is_a_mismatch(returned: Any, words: str) -> None:
    found = problem(lambda p, g, s: returned(*RULE.step(p, g, s)))
    assert found["step"] == 0
    assert words in found["problem"]


def test_what_the_backend_cannot_read_is_a_mismatch() -> None:
    found = problem(lambda p, g, s: (tree_map(lambda x: x.numpy(), p), s), backend="torch")
    assert "torch cannot read" in found["problem"]


# -- inputs are not written to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("path", "leaf"),
    [
        ("params/w1", lambda p, g, s: p["w1"]),
        ("grads/w1", lambda p, g, s: g["w1"]),
        ("state/m/w1", lambda p, g, s: s.m["w1"]),
        ("state/step", lambda p, g, s: s.step),
    ],
)
def test_a_step_that_writes_to_its_inputs_is_caught(path: str, leaf: Any, backend: str) -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        result = RULE.step(params, grads, state)
        leaf(params, grads, state)[...] = 7
        return result

    found = problem(step, backend=backend)
    assert found["problem"] == f"the step changed its inputs: {path}"
    assert (found["step"], found["path"]) == (0, path)


def test_an_update_in_place_is_caught_though_its_words_are_right() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        delta, state = RULE.delta(params, grads, state)
        for p, d in zip(flatten(params), flatten(delta), strict=True):
            if p.value is not None:
                p.value[...] += d.value
        return params, state

    assert "changed its inputs: params/" in problem(step)["problem"]


def test_a_tree_whose_entries_are_replaced_is_caught() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        result = RULE.step(params, grads, state)
        grads["w1"] = -grads["w1"]
        return result

    assert problem(step)["path"] == "grads/w1"


def test_a_step_that_writes_before_it_raises_is_caught() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        if not all(np.isfinite(leaf.value).all() for leaf in flatten(grads) if leaf.value is not None):
            params["w1"][...] = 0.0
        return RAISES.step(params, grads, state)

    assert problem(step, RAISES, workloads=("hostile",))["problem"] == "the step changed its inputs: params/w1"


def test_a_step_that_returns_its_inputs_unchanged_has_not_written_to_them() -> None:
    skips = sc.SignSGD(lr=0.0, nonfinite="skip")
    assert check(skips.step, skips, workloads=("hostile",))


def test_views_of_the_inputs_are_no_writes() -> None:
    def step(params: Any, grads: Any, state: Any) -> Any:
        views = unflatten(params, [None if x.value is None else x.value[...] for x in flatten(params)])
        return RULE.step(views, grads, state)

    assert check(step, RULE, **FEW)


# -- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "lion"}, "`rule` is 'lion'; pass a rule"),
        ({"rule": sc.Lion}, "`rule` is <class .*Lion'>; pass a rule"),
        ({"rule": RULE.replace(lr=sc.schedules.cosine(1.0, 9))}, r"`rule` has lr=cosine\(.*rule.replace\(lr=...\)"),
        ({"rule": RULE.replace(lr=lambda k: 0.1)}, r"`rule` has lr=<function .*rule.replace\(lr=...\)"),
        ({"rule": RULE.replace(lr=np.asarray(0.1))}, r"`rule` has lr=array\(0.1\).*rule.replace\(lr=...\)"),
        ({"rule": RULE.replace(weight_decay=np.asarray(0.1))}, "`rule` has weight_decay=array"),
        ({"step": RULE}, r"`step` is Signum\(.*pass a function"),
        ({"dtype": "int32"}, "`dtype` is 'int32'; choose one of 'float16', 'bfloat16', 'float32', 'float64'"),
        ({"dtype": np.float32}, "`dtype` is <class 'numpy.float32'>; choose one of"),
        ({"dtype": np.dtype("float32")}, r"`dtype` is dtype\('float32'\); choose one of"),
        ({"backend": "jaxs"}, "`backend` is 'jaxs'; did you mean 'jax'"),
        (
            {"backend": "jax", "dtype": "float64"},
            "`dtype` is 'float64'.*'jax' does not have; enable x64.*jax_enable_x64",
        ),
        ({"backend": "array-api-strict", "dtype": "bfloat16"}, "`dtype` is 'bfloat16'.*one of 'float32', 'float64'"),
        (
            {"backend": "array-api-strict", "rule": RULE.replace(state_dtype="bfloat16")},
            "`rule` has state_dtype 'bfloat16'.*'array-api-strict' does not have; choose one of",
        ),
        ({"workloads": ()}, r"`workloads` is \(\); pass a tuple of names"),
        ({"workloads": "random"}, "`workloads` is 'random'; pass a tuple of names"),
        ({"workloads": None}, "`workloads` is None; pass a tuple of names"),
        ({"workloads": ("random", "hostil")}, "`workloads` is 'hostil'; did you mean 'hostile'"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_run(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        check(**({"step": never, "rule": RULE} | options))


def test_a_rule_that_is_not_signcores_is_refused() -> None:
    class Mine(sc.Signum):
        pass

    with pytest.raises(ValueError, match=r"`rule` is 'Mine'.*known: aass, alias"):
        check(never, Mine(lr=0.1))


def test_a_backend_that_is_not_installed_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(BACKENDS[0], name="absent", needs=("no_such_module",))
    monkeypatch.setattr(sys.modules["signcore_conformance.check"], "BACKENDS", (*BACKENDS, absent))
    with pytest.raises(ValueError, match="`backend` is 'absent', but no_such_module is not installed; install"):
        check(never, RULE, backend="absent")


def test_jax_has_float64_with_x64() -> None:
    with jax.enable_x64(True):
        assert check(jax.jit(RULE.step), RULE, backend="jax", dtype="float64", workloads=("recorded", "mixed"))
