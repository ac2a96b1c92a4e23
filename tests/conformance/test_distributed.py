"""The command `distributed`: it passes on every engine, and what is wrong or missing on one rank is found."""

from __future__ import annotations

import re

import numpy as np
import pytest

import signcore as sc
from signcore_conformance import distributed, ranks, together
from signcore_conformance.__main__ import main


@pytest.mark.parametrize(
    ("engine", "size", "rules"),
    [
        ("torch", "2", "signum,alias,ef_signsgd,ssdm"),
        ("mpi", "3", "monotone_signsgd,hybrid"),
        ("jax", "1", "lion"),
    ],
)
def test_passes(engine: str, size: str, rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", engine, "--sizes", size, "--rules", rules]
    status = main(["distributed", *arguments])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert re.search(r"^passed: [\d,]{8,} words compared with the simulation, 0 differ$", printed, re.MULTILINE)


def test_a_word_that_differs_is_named() -> None:
    case = next(iter(together.cases(["signum"], "mpi")))
    *_, (params, states) = together.truth(case, 2)
    assert together.compared((params, states[0]), (params, states[0]), 0)[1] is None
    other = {name: array.copy() for name, array in params.items()}
    other["d"][3] += 1
    words, problem = together.compared(other, params, 2)
    assert words > 0
    assert problem is not None
    assert re.match(r"step 2: 1 words of params 'd' differ, \[3\] is ", problem)
    assert "missing" in str(together.compared(states[0]._replace(m=None), states[0], 0)[1])


def test_a_rank_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case = next(iter(together.cases(["sgd"], "torch")))
    wrong = ranks.run(case, lambda case: iter(()), "torch", 1, 0)
    assert "raised" in str(wrong.problem)
    launch = distributed.Launch("torch", 1, 1)
    lines = [wrong, *(wrong._replace(problem=None) for _ in range(distributed.expected(launch, ["sgd"]) - 1))]
    for given, text in ((lines, "rank 0, sgd, as it is: raised"), (lines[1:], "results came")):
        monkeypatch.setattr(distributed, "run", lambda *_, given=given: iter(given))
        assert main(["distributed", "--engines", "torch", "--sizes", "1", "--rules", "sgd"]) == 1
        assert text in capsys.readouterr().out


def test_what_ranks_see_has_zeros_and_ties() -> None:
    case = next(iter(together.cases(["signsgd"], "torch")))
    each = [together.gradients(case, rank, 0)["e"] for rank in range(2)]
    assert (each[0] == 0).any()
    assert ((each[0] == -each[1]) & (each[0] != 0)).any()
    assert not np.array_equal(*each)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distributed", "--rules", "lyon"])
    assert "did you mean 'lion'" in capsys.readouterr().err.lower()
    assert sc.rules()
