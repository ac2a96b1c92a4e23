"""The demo: real data, every backend, and an exit status that means something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from signcore_conformance import demo, network, reference
from signcore_conformance.__main__ import main
from signcore_conformance.backends import BACKENDS


def test_the_digits_are_real_and_the_split_is_fixed() -> None:
    train, test = network.digits()
    assert (len(train["x"]), len(test["x"])) == (1536, 261)
    assert set(np.unique(train["x"] * 16)) == set(range(17))
    assert (train["t"].sum(1) == 1).all()


def test_gradients_are_those_of_the_loss() -> None:
    params = {name: p.astype(np.float64) for name, p in network.initial().items()}
    batch = network.batches(1, "float64")[0]
    grads, _ = network.gradient(params, batch)
    for name, index in (("w1", (20, 3)), ("b1", (5,)), ("w2", (7, 2)), ("b2", (9,))):
        losses = []
        for h in (1e-5, -1e-5):
            moved = {**params, name: params[name].copy()}
            moved[name][index] += h
            losses.append(float(network.gradient(moved, batch)[1]))
        # a finite difference checks the derivation, not the bits: those are compared with the reference below
        assert grads[name][index] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_gradients_equal_the_reference_to_the_bit() -> None:
    params, batch = network.initial(), network.batches(1)[0]
    grads, loss = network.gradient(params, batch)
    want, want_loss = reference.network(params, batch)
    assert float(loss) == float(want_loss)
    assert all(np.array_equal(grads[name].view(np.uint32), want[name].view(np.uint32)) for name in want)


@pytest.mark.parametrize("name", demo.shown())
def test_every_rule_learns_the_digits(name: str) -> None:
    numpy = next(b for b in BACKENDS if b.name == "numpy")
    run = demo.train(demo.demo_rule(name), numpy)
    assert run.accuracy >= demo.golden.load(name).get("demo_accuracy", demo.ACCURACY)
    assert run.losses[-1] < run.losses[0] / (3 if run.accuracy >= demo.ACCURACY else 1.5)


def test_the_command_writes_report_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["demo", "--rule", "lion", "--backend", "numpy", "--backend", "array-api-strict", "--steps", "12"]
    assert main([*options, "--output", str(tmp_path)]) == 0
    assert "all 2 backends agree" in capsys.readouterr().out
    assert (tmp_path / "trajectories.png").stat().st_size > 10_000
    assert "All backends agree on every bit." in (tmp_path / "report.md").read_text()


def test_two_digests_are_a_failure() -> None:
    backends = [b for b in BACKENDS if b.name in ("numpy", "torch")]
    runs = [demo.Run("lion", b.name, f"{i}" * 64, 0.95, [1.0], 0.1) for i, b in enumerate(backends)]
    assert demo.verdict(runs, [], ["lion"], backends) == ["lion: 2 different trajectories"]
    assert demo.verdict(runs[:1], [], ["lion"], backends) == ["lion: no result from torch"]
    poor = [run._replace(digest="0" * 64, accuracy=0.5) for run in runs]
    assert "50.0% is below 93%" in demo.verdict(poor, [], ["lion"], backends)[0]


def test_a_demo_without_any_backend_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = next(b.name for b in BACKENDS if b.missing() is not None)
    assert main(["demo", "--rule", "lion", "--backend", missing, "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "no backend could run" in printed
    assert "trajectories.png" not in printed


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_a_demo_takes_at_least_one_step(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--steps", steps])
    assert ended.value.code == 2
    assert "pass a whole number from 1 on" in capsys.readouterr().err
