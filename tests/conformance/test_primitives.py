"""The run over the primitives: what it covers, and that it would see a difference."""

import ast
import inspect
import json

import pytest

from signcore import bits, frameworks, ops, random, sums, tally
from signcore_conformance import oracles, primitives
from signcore_conformance.__main__ import main

ROWS = {backend.name: backend for backend in primitives.plain()}
BY_NAME = {primitive.name: primitive for primitive in primitives.PRIMITIVES}


def test_every_primitive_agrees_with_its_oracle_and_on_every_backend(tmp_path, capsys):
    file = tmp_path / "primitives.json"
    names = ["numpy", "array-api-strict", "torch", "jax-jit"]
    assert main(["primitives", "--quick", "--json", str(file), "--backends", *names]) == 0
    found = json.loads(file.read_text())
    assert found["passed"]
    assert {one["backend"] for one in found["findings"]} == set(names)
    assert {one["primitive"] for one in found["findings"]} == set(BY_NAME)
    assert all(one["decided"] >= 250 for one in found["findings"] if one["backend"] == "numpy")
    assert "0" in capsys.readouterr().out


def test_compiled_torch_agrees(capsys):
    # a compilation each: the whole list takes minutes, and is `python -m signcore_conformance primitives`;
    # uniform numbers, bfloat16 and packed bits are compiled in test_sampling.py, test_dtypes.py and test_bits.py
    some = ["product, added", "sign, plus", "quotient"]
    arguments = ["primitives", "--quick", "--backends", "numpy", "torch-compile", "--primitives", *some]
    assert main(arguments) == 0, capsys.readouterr().out


def test_the_list_holds_every_primitive_of_the_core():
    called = set()
    source = ast.parse(inspect.getsource(primitives))
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called.add((node.value.id, node.attr))
    # what rounds a Python number, moves values or is a part of the others
    plain = {"cast", "rounded", "complement", "where", "widen", "exact_sum", "exact_dot", "norm1", "norm2", "norm_inf"}
    wanted = {("ops", name) for name in set(ops.__all__) - plain}
    wanted |= (
        {("bits", name) for name in bits.__all__}
        | {("tally", name) for name in tally.__all__}
        | {("sums", "partial"), ("sums", "finish")}
    )
    samplers = ("threefry", "words", "uniform", "bernoulli", "normal", "stochastic_sign", "stochastic_round")
    wanted |= {("random", name) for name in samplers}
    assert wanted <= called
    assert set(sums.KINDS) <= set(BY_NAME)
    assert all(hasattr(random, name) for name in samplers)


def test_a_product_without_the_guard_is_seen(monkeypatch, traces_afresh):
    monkeypatch.setattr(frameworks, "contracts", lambda array: False)
    monkeypatch.setattr("signcore_conformance.backends._COMPILED", {})
    found = primitives.run(ROWS["jax-jit"], BY_NAME["product, added"], "float32", primitives.QUICK)
    assert "words, first at" in (found.mismatch or "")


WRONG = {
    "sqrt": lambda x: float(oracles.sqrt(x)) * (1 + 2.0**-22),
    "sign, plus": oracles.sign("minus"),
    "quotient": lambda a, b: float(a) / float(b) * (1 + 2.0**-22),
    "normal": lambda w: -oracles.normal(w),
    "sum": oracles.reduction("norm1"),
    "pack": lambda s: oracles.pack(-s),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_oracle_that_says_otherwise_is_seen(name):
    primitive = BY_NAME[name]._replace(oracle=WRONG[name])
    assert primitives.run(ROWS["numpy"], primitive, "float32", primitives.QUICK).mismatch is not None


def test_an_exception_is_a_mismatch():
    primitive = BY_NAME["flush"]._replace(call=lambda x: x.no_such_attribute)
    assert "no_such_attribute" in (primitives.run(ROWS["torch"], primitive, "float32", 100).mismatch or "")


@pytest.mark.parametrize("arguments", [["--backends", "nothing"], ["--primitives", "nothing"], ["--json", "/no/x"]])
def test_bad_usage_has_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["primitives", *arguments])
    assert caught.value.code == 2
    assert arguments[1] in capsys.readouterr().err
