"""The reference is independent, and right where it can be held against something else."""

from __future__ import annotations

import ast
import inspect
import math

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import signcore as sc
from signcore_conformance import golden, reference, words, workloads
from signcore_conformance.reference import Scalar, Tools, round_to

FLOATS = st.floats(allow_nan=False, width=32)


STANDARD = {"__future__", "collections.abc", "hashlib", "math", "struct", "typing"}


def test_it_imports_nothing_of_signcore() -> None:
    tree = ast.parse(inspect.getsource(reference))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == STANDARD | {"mpmath", "numpy", "ml_dtypes", "scipy.special"}


@given(st.floats(allow_nan=False))
def test_rounding_agrees_with_numpy_and_ml_dtypes(x: float) -> None:
    with np.errstate(all="ignore"):
        for name, kind in (("float32", np.float32), ("float16", np.float16)):
            assert round_to(x, name) == float(kind(x))
        assert round_to(x, "bfloat16") == float(np.float32(x).astype(ml_dtypes.bfloat16))


@given(FLOATS, FLOATS)
def test_scalar_operations_round_once_as_numpy_does(a: float, b: float) -> None:
    with np.errstate(all="ignore"):
        for operation in ("__add__", "__sub__", "__mul__"):
            got = getattr(Scalar(a, "float32"), operation)(Scalar(b, "float32")).value
            want = float(getattr(np.float32(a), operation)(np.float32(b)))
            assert got == want or (math.isnan(got) and math.isnan(want))


def test_the_float64_arcsine_is_within_one_ulp_of_mpmath() -> None:
    x = np.random.default_rng(0).uniform(-1.0, 1.0, 2000)
    got = reference._arcsin4pi_float64(x)
    with mpmath.workprec(200):
        for value, result in zip(x, got, strict=True):
            exact = 4 / mpmath.pi * mpmath.asin(mpmath.mpf(float(value)))
            assert abs(exact - mpmath.mpf(float(result))) <= math.ulp(float(result))


def test_the_float32_arcsine_on_arrays_is_the_one_on_numbers() -> None:
    x = np.random.default_rng(1).uniform(-1.0, 1.0, 500).astype(np.float32)
    got = Tools("float32", None).arcsin4pi(x)
    assert [reference._arcsin4pi_float32(float(v)) for v in x] == got.tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", sc.rules())
def test_a_formula_gives_the_same_number_by_number_and_by_numpy(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rule in golden.variants(name):
        for workload in ("random", "hostile"):
            made = workloads.make(workload, rule, dtype, workloads.SMALL)
            outcomes = []
            for most in (0, 64):
                monkeypatch.setattr(reference, "SCALARS", most)
                model = golden.reference(rule)
                params = {"edge/2": made.params["edge/2"]}
                state = model.init(params)
                with np.errstate(all="ignore"):
                    for grads in made.inputs[3:9]:  # with inf and NaN, if they are hostile
                        extras = workloads.losses(params, model.needs)
                        params, state = model.step(params, {"edge/2": grads["edge/2"]}, state, **extras)
                fields = [state[field] for field in model.fields]
                fields = [np.asarray(field["edge/2"] if isinstance(field, dict) else field) for field in fields]
                outcomes.append([params["edge/2"], *fields])
            for by_numpy, by_number in zip(*outcomes, strict=True):
                assert len(words.different(by_numpy, by_number)) == 0


def test_threefry_known_answers() -> None:
    # Random123, kat_vectors: threefry2x32 20
    assert [hex(int(w)) for w in reference.threefry(0, 0, 0, 0)] == ["0x6b200159", "0x99ba4efe"]
    ones = 0xFFFFFFFF
    assert [hex(int(w)) for w in reference.threefry(ones, ones, ones, ones)] == ["0x1cb996fc", "0xbb002be7"]
    pi = reference.threefry(0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3)
    assert [hex(int(w)) for w in pi] == ["0xc4923a9c", "0x483df7a0"]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 128])
def test_ordered_sums_of_integers_are_exact(n: int) -> None:
    x = np.arange(n, dtype=np.float32)[:, None]
    assert reference.ordered_sum(x, 0).tolist() == [n * (n - 1) / 2]
