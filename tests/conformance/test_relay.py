"""The relay: its walk has every pair, a wrong word and a missing leg are found, and it passes."""

from __future__ import annotations

import re
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import signcore as sc
from signcore import checkpoint
from signcore_conformance import legs, relay
from signcore_conformance.__main__ import main
from signcore_conformance.backends import BACKENDS


@pytest.mark.parametrize("count", [2, 3, 7, 11])
def test_the_walk_has_every_ordered_pair_once(count: int) -> None:
    names = [str(k) for k in range(count)]
    found = list(pairwise(relay.walk(names)))
    assert sorted(found) == sorted(permutations(names, 2))


def test_every_pair_occurs_as_soon_as_there_are_legs_enough() -> None:
    names = [str(k) for k in range(11)]
    pieces = relay.order(names, rules=8, legs=15)
    assert {len(piece) for piece in pieces} == {15}
    assert {pair for piece in pieces for pair in pairwise(piece)} == set(permutations(names, 2))
    assert relay.order(["numpy"], rules=2, legs=3) == [["numpy"] * 3] * 2


def test_every_backend_has_a_leg_and_no_leg_is_left_over() -> None:
    assert set(legs.OWN) == {backend.name for backend in BACKENDS if backend.drive is not None}


def test_a_relay_over_all_kinds_of_backends(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["numpy-readonly", "array-api-strict", "cupy-loop", "torch", "torch-adapter", "jax-scan", "optax-adapter"]
    run = [backend.name for backend in BACKENDS if backend.name in names and backend.missing() is None]
    arguments = [
        "--rules",
        "dithered_signum,alias,monotone_signsgd",
        "--dtypes",
        "float32",
        "--backends",
        ",".join(run),
    ]
    status = main(["relay", *arguments, "--steps", "30", "--leg", "2"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    n = len(run)
    assert re.search(rf"^float32 +3 rules, 45 legs on {n} backends, {min(42, n * (n - 1))} of ", printed, re.MULTILINE)
    assert re.search(r"^passed: [\d,]{6,} words compared, 0 differ$", printed, re.MULTILINE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_relay_in_other_dtypes(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rules", "alias_compact,hybrid", "--dtypes", dtype, "--backends", "numpy,torch,torch-adapter"]
    assert main(["relay", *arguments, "--steps", "12", "--leg", "2"]) == 0, capsys.readouterr().out


def _job(backends: list[str]) -> Any:
    return relay.jobs(["lion"], ["float32"], [b for b in BACKENDS if b.name in backends], 6, 2)[0]


def test_a_wrong_word_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(backend: Any, path: Path, rule: sc.Rule, like: Any, grads: Any) -> None:
        legs.functional(backend, path, rule, like, grads)
        rule, params, state = checkpoint.load(path, like)
        w1 = params["w1"].copy()
        w1[0, 0] = np.nextafter(w1[0, 0], np.float32(9))
        checkpoint.save(path, rule, {**params, "w1": w1}, state)

    monkeypatch.setattr(relay, "leg_of", lambda backend: wrong if backend.name == "torch" else legs.leg_of(backend))
    job = _job(["numpy", "torch"])
    found = list(relay.run(job))
    assert [leg.problem is None for leg in found] == [True, False]
    (told,) = relay.verdict(found, [job], [])
    assert told.startswith("lion, float32, numpy to torch: ")
    assert '"path": "params/w1"' in told
    assert '"ulps": 1' in told


def test_a_leg_that_raises_or_is_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the disk is gone")

    job = _job(["numpy", "torch"])
    good = list(relay.run(job))
    assert relay.verdict(good, [job], []) == []
    assert relay.verdict(good[:2], [job], []) == ["lion, float32: 2 of 3 legs were run"]
    assert relay.verdict(good, [job], ["worker ended"]) == ["worker ended"]
    monkeypatch.setattr(relay, "leg_of", lambda backend: broken)
    (found,) = relay.run(job)
    assert "the disk is gone" in str(found.problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "lions"], "did you mean 'lion'"),
        (["--dtypes", "float8"], "known: bfloat16, float16"),
        (["--backends", "nump"], "did you mean 'numpy'"),
        (["--steps", "10", "--leg", "3"], "`--steps` is 10 and `--leg` 3, which does not divide it"),
        (["--leg", "0"], "`--leg` is 0; pass an int of at least 1"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["relay", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
