"""The fuzzer: its programs keep to the contract, what differs is found, and what is found becomes short."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from signcore_conformance import fuzz, programs
from signcore_conformance.__main__ import main
from signcore_conformance.backends import BACKENDS, Backend
from signcore_conformance.programs import LIMITS, Bounds, Line, Program, program, shrink

NUMPY = BACKENDS[0]
ANY = Bounds(-126, 127)
EMA = Program(
    "float32", 3, ("normal",), (), (Line("v0", "ema", (0.9, "x0", "x0"), ANY), Line("v1", "abs", ("v0",), ANY))
)


def backend(name: str, **changes: Any) -> Backend:
    return dataclasses.replace(NUMPY, name=name, **changes)


@pytest.fixture(scope="module")
def made() -> list[Program]:
    return [program(0, index)[0] for index in range(100)]


# -- programs ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_programs_in_any_process(made: list[Program]) -> None:
    assert program(0, 42)[0] == made[42]
    code = "from signcore_conformance.programs import program; print(program(0, 42)[0], end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == str(made[42])
    assert program(1, 42)[0] != made[42]


def test_programs_are_of_many_lengths_and_of_both_dtypes(made: list[Program]) -> None:
    lengths = [len(one.lines) for one in made]
    assert min(lengths) >= programs.SHORTEST
    assert max(lengths) > 40
    assert {one.dtype for one in made} == {"float32", "float64"}
    assert {kind for one in made for kind in one.kinds} == set(programs.KINDS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some inputs are infinite
def test_no_program_leaves_the_contract(made: list[Program]) -> None:
    for one in made:
        values: dict[str, Any] = dict(one.inputs())
        for line in one.lines:
            exec(line.text(one.dtype, exact=True), programs.FUNCTIONS, values)
            value = np.asarray(values[line.name])
            assert (value.dtype.name, value.shape) == (one.dtype, (programs.SIZE,)), f"{line} of\n{one}"
            low, high, finite = line.bounds
            assert low >= LIMITS[one.dtype].normal, line
            size = np.abs(value[np.isfinite(value) & (value != 0.0)])
            assert ((size >= 2.0**low) & (size <= 2.0**high)).all(), f"{line} of\n{one}"
            assert not (finite and np.isinf(value).any()), f"{line} of\n{one}"


def test_every_primitive_occurs_in_a_twentieth_of_the_programs(made: list[Program]) -> None:
    shares = fuzz.coverage(made)
    assert min(shares.values()) >= fuzz.LEAST, shares
    outcome = fuzz.Outcome([fuzz.Result("jax", 0, 0.0, None)])
    options = fuzz.Options(100, 0, 20)
    assert fuzz.verdict(outcome, shares, options) == []
    assert fuzz.verdict(outcome, shares | {"ema": 0.04}, options) == ["ema occurs in 4.0% of the programs"]


def test_a_program_prints_as_the_code_that_is_run() -> None:
    assert str(EMA).splitlines() == ["x0 = normal  # float32", "v0 = ema(0.9, x0, x0)", "v1 = abs(v0)"]
    assert EMA.lines[0].text("float32", exact=True) == "v0 = ema(0.8999999761581421, x0, x0)"
    assert [len(array) for array in fuzz.reference(EMA)] == [programs.SIZE]


def uses(*primitives: str) -> Callable[[Program], bool]:
    return lambda one: set(primitives) <= {line.primitive for line in one.lines}


def test_a_failing_program_shrinks_to_what_fails() -> None:
    fails = uses("ema", "arcsin4pi")
    drawn = next(
        drawn for one, drawn in (program(0, i) for i in range(100)) if fails(one) and len(one.lines) in range(8, 30)
    )
    small = shrink(drawn, fails)
    assert fails(small)
    assert len(small.lines) <= 4  # and the operand of the arcsine in its domain
    assert len(small.kinds) == 1


# -- comparing ---------------------------------------------------------------------------------------------------


def test_a_word_that_differs_is_described_with_the_inputs_it_came_from() -> None:
    def back(array: Any) -> np.ndarray:
        array = np.array(array)
        array[7] = np.nextafter(array[7], np.float32(9.0))
        return array

    found = fuzz.problems(backend("an ulp off", back=back), (EMA,))[0]
    assert found is not None
    assert found[0] == "v1"
    assert re.match(r"v1\[7\] is [0-9a-f]{8} \(.*\), expected [0-9a-f]{8} \(.*\): 1 ulps; 1 of 101 elements", found[1])
    assert re.search(r"^x0\[7\] is [0-9a-f]{8} \(", found[1], re.MULTILINE)


def test_nan_is_compared_by_class() -> None:
    payload = np.full(101, 0x7FC12345, np.uint32).view(np.float32)
    nan = EMA._replace(kinds=("nonfinite",), lines=(Line("v0", "subtract", ("x0", "x0"), ANY),))
    where = np.isnan(fuzz.reference(nan)[0])
    assert where.any()
    assert fuzz.difference(nan, [np.where(where, payload, np.float32(0.0))]) is None
    assert fuzz.difference(nan, [np.zeros(101, np.float32)]) is not None


def test_a_pack_that_fails_is_halved_until_the_program_is_found() -> None:
    def wrap(function: Any) -> Any:
        def run(given: Any) -> Any:
            if any("x1" in inputs for inputs in given):
                raise RuntimeError("cannot be compiled")
            return function(given)

        return run

    bad = EMA._replace(kinds=("normal", "ties"), lines=(Line("v0", "add", ("x0", "x1"), ANY),))
    pack = tuple(EMA._replace(data=i) for i in range(6))
    found = fuzz.problems(backend("halves", wrap=wrap), (*pack[:4], bad, *pack[4:]))
    assert [problem is not None for problem in found] == [False] * 4 + [True] + [False] * 2
    assert "cannot be compiled" in str(found[4])


# -- the command -------------------------------------------------------------------------------------------------


def test_fifty_programs_give_the_same_words_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    # not JAX's eager operations, which are compiled one by one for the same processor as jitted ones
    run = [row for row in fuzz.ROWS if row.name != "jax"]
    status = main(["fuzz", "--programs", "50", "--compile", "2", "--backends", ",".join(row.name for row in run)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for row in run:
        reason = row.missing()
        assert re.search(
            rf"^{row.name} +\d+ programs, +0 differ" if reason is None else rf"not run: {row.name} ",
            printed,
            re.MULTILINE,
        )
    assert "exact_sum" in printed
    assert "every backend gives NumPy's words" in printed


def test_products_without_the_guard_are_found_and_become_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--programs", "12", "--backends", "jax-jit", "--without-guard"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"FAILED: \d+ programs differ", printed)
    assert "of seed 0 differs on jax-jit" in printed
    assert "1 ulps" in printed
    assert "jaxlib " in printed
    assert 1 <= len(re.findall(r"^ +v\d+ = ", printed, re.MULTILINE)) <= 6


def test_what_did_not_run_is_a_failure() -> None:
    options = fuzz.Options(10, 0, 2)
    assert fuzz.verdict(fuzz.Outcome(), {}, options) == ["no backend could run"]
    died = fuzz.Outcome([fuzz.Result("jax", 0, 0.0, None)], errors=["worker for jax ended"])
    assert fuzz.verdict(died, {}, options) == ["worker for jax ended"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backends", "jax-jot"], "`--backends` is 'jax-jot'; did you mean 'jax-jit'"),
        (["--backends", "numpy"], "`--backends` is 'numpy'"),
        (["--programs", "0"], "pass a whole number from 1 on"),
        (["--seed", "-1"], "pass a whole number from 0 on"),
    ],
)
def test_bad_usage_has_status_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
