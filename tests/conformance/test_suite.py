"""The suite's own promises: what it covers, what it says, and its exit status."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import signcore as sc
from signcore_conformance import cells, golden, regen, suite, workloads
from signcore_conformance.__main__ import DEVICES, main
from signcore_conformance.backends import BACKENDS
from signcore_conformance.compare import compare, expected, find

LISTED = (
    "numpy numpy-readonly array-api-strict cupy-loop torch torch-adapter torch-compile jax jax-jit jax-scan "
    "optax-adapter cupy torch-cuda torch-cuda-compile jax-cuda jax-cuda-jit"
)

# No sign at all (sgd); a sign of what depends on numbers of the whole tree (d of Prodigy, the norm of ssdm).
WITHOUT_NEAR_TIES = ("alias_adam", "sgd", "ssdm")


def test_every_promised_backend_is_in_the_list() -> None:
    assert [backend.name for backend in BACKENDS] == LISTED.split()


def test_a_backend_that_cannot_run_has_a_reason() -> None:
    run, not_run = suite.choose(None)
    assert {b.name for b in run} | set(not_run) == {b.name for b in BACKENDS}
    assert all(not_run.values())


@pytest.mark.parametrize("name", sc.rules())
def test_every_rule_has_a_golden_file_with_words_of_every_variant_and_dtype(name: str) -> None:
    held = golden.load(name)
    keys = {f"{i}/{dtype}" for i in range(len(held["variants"])) for dtype in suite.ALL}
    assert set(held["words"]) == keys
    assert all(len(words["sha256"]) == 64 for words in held["words"].values())


@pytest.mark.parametrize("dtype", suite.ALL)
@pytest.mark.parametrize("name", sc.rules())
def test_an_ulp_decides_at_least_a_twentieth_of_the_signs_near_ties(name: str, dtype: str) -> None:
    rule = golden.variants(name)[0]
    made = workloads.make("near-ties", rule, dtype, workloads.SMALL)
    if name in WITHOUT_NEAR_TIES:
        assert made.near is None
    else:
        assert made.near is not None
        assert made.near >= 0.05


@pytest.mark.parametrize("dtype", suite.ALL)
def test_hostile_gradients_hold_all_that_is_promised(dtype: str) -> None:
    made = workloads.make("hostile", golden.variants("signsgd")[0], dtype, workloads.SMALL)
    values = np.concatenate([g.astype(np.float64).reshape(-1) for grads in made.inputs for g in grads.values()])
    assert np.isinf(values).sum() == 1
    assert np.isnan(values).sum() == 1
    finite = values[np.isfinite(values)]
    assert ((finite == 0) & np.signbit(finite)).any()
    assert ((finite == 0) & ~np.signbit(finite)).any()
    smallest = {"float16": 2.0**-14, "float64": 2.0**-1022}.get(dtype, 2.0**-126)
    assert ((finite != 0) & (abs(finite) < smallest)).any(), "no subnormal"
    if dtype != "float16":
        assert (abs(finite) > 9e37).any()
        assert ((finite != 0) & (abs(finite) < 1.1e-38)).any()


def test_an_empty_cell_is_a_failure() -> None:
    plan = cells.Plan(("lion",), ("float32",), workloads.SMALL, quick=True)
    run, not_run = suite.choose(["numpy"])
    results = suite.Results(plan, run, not_run)
    results.cells = list(cells.run(run[:1], plan, ("float32",)))
    assert results.passed
    results.cells = [cell for cell in results.cells if cell.workload != "recorded"]
    assert not results.passed
    assert "lion x numpy x float32 x recorded: 0 words" in results.empty_cells()


def test_a_backend_that_raises_is_a_mismatch_and_stops_no_other() -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of order")

    plan = cells.Plan(("signsgd",), ("float32",), workloads.SMALL, quick=True)
    numpy = suite.choose(["numpy"])[0][0]
    found = list(cells.run([dataclasses.replace(numpy, name="broken", drive=fails), numpy], plan, ("float32",)))
    broken = [cell for cell in found if cell.backend == "broken"]
    assert all(cell.mismatch and "out of order" in cell.mismatch["problem"] for cell in broken)
    assert len(broken) == len(found) / 2
    assert all(cell.mismatch is None for cell in found if cell.backend == "numpy")


def test_the_progress_bar_knows_how_many_cells_there_are() -> None:
    plan = cells.Plan(("signsgd", "lion"), (), workloads.SMALL, quick=True)
    run, _ = suite.choose(["numpy", "array-api-strict"])
    assert suite.cells_expected(run, plan) == len(list(cells.run(run, plan, ("bfloat16", "float32"))))


def test_options_are_left_out_where_they_cost_compilations_and_nowhere_else() -> None:
    backends = {backend.name: backend for backend in BACKENDS}
    for quick, full in ((False, False), (True, False), (False, True)):
        plan = cells.Plan(("aass",), (), workloads.SMALL, quick, full)
        for name, dtype in product(
            ("numpy", "torch-adapter", "jax", "jax-jit", "torch-compile"), ("bfloat16", "float32")
        ):
            options = [t for t in cells.tasks("aass", dtype, plan) if t.variant]
            run = [t for t in options if cells.wanted(t, backends[name], plan)]
            every = {
                "numpy": not quick,
                "torch-adapter": full or (not quick and dtype == "float32"),
                "jax": False,
                "jax-jit": full and dtype == "float32",
                "torch-compile": False,
            }
            assert len(run) == (len(options) if every[name] else 0)


def test_only_full_runs_give_costly_backends_the_large_leaf() -> None:
    backends = {backend.name: backend for backend in BACKENDS}
    rule = golden.variants("lion")[0]
    for full in (False, True):
        plan = cells.Plan(("lion",), (), 500, full=full)
        assert plan.large_of(backends["numpy"], cells.Task(rule, "float32", "random")) == 500
        assert plan.large_of(backends["jax-jit"], cells.Task(rule, "float32", "random")) == (500 if full else 0)
        assert plan.large_of(backends["jax"], cells.Task(rule, "float32", "random")) == (500 if full else -1)
        assert plan.large_of(backends["jax"], cells.Task(rule, "float64", "random")) == workloads.TWO
        assert ("digits" in plan.workloads_of(backends["torch-compile"], "float32")) == full
        assert "digits" not in plan.workloads_of(backends["torch-compile"], "float16")


def test_the_command_passes_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    options = ["--quick", "--rules", "signsgd", "--backends", "numpy,array-api-strict", "--json", str(out)]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "no dtype" in printed
    assert "passed" in printed
    assert "backends run: numpy, array-api-strict" in printed
    held = json.loads(out.read_text())
    assert held["passed"]
    assert held["mismatches"] == []
    assert held["words"] > 300_000


def test_a_mismatch_gives_exit_status_1_and_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = cells.Plan(("lion",), ("float32",), workloads.SMALL, quick=True)
    run, _ = suite.choose(["numpy"])
    broken = sc.Lion(beta2=0.98)
    monkeypatch.setattr("signcore_conformance.backends._COMPILED", {})
    monkeypatch.setattr(sc.Lion, "step", lambda self, *a, **k: sc.Rule.step(broken, *a, **k))
    found = list(cells.run(run[:1], plan, ("float32",)))
    monkeypatch.setattr("signcore_conformance.suite.start", lambda job: iter(found))
    assert main(["--quick", "--rules", "lion", "--backends", "numpy", "--dtypes", "float32"]) == 1
    printed = capsys.readouterr().out
    assert "MISMATCH" in printed
    assert "FAILED" in printed
    assert "python -m signcore_conformance --rules lion --backends numpy --dtypes float32" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rules", "loin"], "did you mean 'lion'"),
        (["--backends", "jaxjit"], "did you mean 'jax-jit'"),
        (["--dtypes", "float8"], "`--dtypes` is 'float8'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_stale_golden_files_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    held = json.loads(json.dumps(golden.load("signsgd")))
    held["words"]["0/float32"]["sha256"] = "0" * 64
    monkeypatch.setattr(golden, "load", lambda rule: held)
    assert regen.main(["--check", "--rules", "signsgd"]) == 1
    assert "stale: signsgd" in capsys.readouterr().out


def test_known_words_are_not_rewritten_without_a_changelog_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads(json.dumps(golden.load("signsgd")))
    held["words"]["0/float32"]["sha256"] = "0" * 64
    monkeypatch.setattr(golden, "load", lambda rule: held)
    monkeypatch.setattr(regen, "_entry", lambda rule: "")
    monkeypatch.setattr(Path, "write_text", lambda *a: pytest.fail("it was written"))
    assert regen.main(["--rules", "signsgd"]) == 1
    assert "CHANGELOG.md" in capsys.readouterr().out


def test_one_changelog_entry_serves_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    held = json.loads(json.dumps(golden.load("signsgd"))) | {"entry": "because"}
    held["words"]["0/float32"]["sha256"] = "0" * 64
    written: list[str] = []
    monkeypatch.setattr(golden, "load", lambda rule: held)
    monkeypatch.setattr(Path, "write_text", lambda self, text: written.append(text))
    monkeypatch.setattr(regen, "_entry", lambda rule: "because")
    assert regen.main(["--rules", "signsgd"]) == 1
    assert not written
    monkeypatch.setattr(regen, "_entry", lambda rule: "because and because")
    assert regen.main(["--rules", "signsgd"]) == 0
    assert json.loads(written[0])["entry"] == "because and because"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "/nonexistent/out.json"], "`--json` is"),
        (["--guarantees", "/nonexistent/README.md"], "`--guarantees` is"),
        (["--guarantees", "{readme}", "--quick"], "takes a whole run"),
        (["--guarantees", "{readme}", "--rules", "lion"], "takes a whole run"),
    ],
)
def test_results_that_could_not_be_written_are_refused_before_the_work(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- guarantees: generated -->\n<!-- /guarantees -->\n")
    with pytest.raises(SystemExit) as ended:
        main([option.format(readme=readme) for option in options])
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_gpu_run_without_a_device_fails(capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = suite.choose(DEVICES)
    if run:
        pytest.skip(f"{run[0].name} can run here")
    assert main(["gpu", "--quick", "--rules", "signsgd"]) == 1
    assert "FAILED: none of cupy" in capsys.readouterr().out


def test_near_ties_without_a_tie_are_not_taken_for_a_rule_without_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = golden.variants("lion")[0]
    monkeypatch.setattr(workloads, "_is_near", lambda reference, p, g, old: np.zeros(g.shape, bool))
    made = workloads.near_ties("float32", workloads.SMALL, golden.reference(rule))
    assert made.near == 0.0
    cell = cells.Cell("lion", "numpy", "float32", "near-ties", 10**6, None, made.near)
    plan = cells.Plan(("lion",), ("float32",), workloads.SMALL)
    assert suite.Results(plan, [], {}, [cell]).far_from_ties() == ["lion in float32: 0.0%"]


def test_streams_of_noise_are_compared() -> None:
    rule = sc.SignSGD(sign_zero="random", seed=3)
    made = find("random", rule, "float32", workloads.SMALL)
    numpy = suite.choose(["numpy"])[0][0]

    def moved() -> Iterator[Any]:
        for params, state in numpy.run(rule, made):
            stream = dict(state.stream)
            stream["w1"] = stream["w1"] + np.int32(1)
            yield params, state._replace(stream=stream)

    truth = expected("random", rule, "float32", workloads.SMALL)
    assert compare(numpy.run(rule, made), truth).mismatch is None
    found = compare(moved(), truth).mismatch
    assert found is not None
    assert found["path"] == "state/stream/w1"
