"""Checkpoints of the loop: written every N steps and on Ctrl-C, and gone on from, to the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import signcore as sc
import signcore_cupy
from signcore.checkpoint import CheckpointError, Saved, load
from signcore_conformance import golden
from signcore_cupy import saving

RULES = [name for name in sc.rules() if not golden.variants(name)[0].needs]
PARAMS = {"w": np.linspace(-1, 1, 7).astype(np.float32), "b": np.ones(3, np.float32)}


def grad_fn(params: Any, step: int) -> Any:
    random = np.random.default_rng(step)
    return {name: params[name] + random.standard_normal(p.shape).astype(np.float32) for name, p in PARAMS.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_run_that_was_stopped_ends_where_an_undisturbed_one_does(name: str, tmp_path: Path, same: Any) -> None:
    rule = golden.variants(name)[0]
    whole = signcore_cupy.run(rule, PARAMS, grad_fn, 7)

    def stop(step: int, *_: Any) -> None:
        if step == 5:
            raise RuntimeError("the machine is gone")

    again = {"checkpoint": tmp_path / "run", "save_every": 2}
    with pytest.raises(RuntimeError):
        signcore_cupy.run(rule, PARAMS, grad_fn, 7, callback=stop, **again)
    with Saved(tmp_path / "run") as saved:
        assert saved.extra == {"steps": 4}
    seen: list[int] = []
    found = signcore_cupy.run(rule, PARAMS, grad_fn, 7, callback=lambda step, *_: seen.append(step), **again)
    assert seen == [5, 6, 7]
    same(found, whole)
    same(tuple(load(tmp_path / "run")[1:]), whole)
    same(signcore_cupy.run(rule, PARAMS, grad_fn, 7, **again), whole)  # nothing is left to do


def test_ctrl_c_saves_the_last_complete_step(tmp_path: Path, same: Any) -> None:
    rule = sc.Lion(lr=0.1)

    def stop(params: Any, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return grad_fn(params, step)

    with pytest.raises(signcore_cupy.Interrupted) as caught:
        signcore_cupy.run(rule, PARAMS, stop, 9, checkpoint=tmp_path / "run", save_every=100)
    same(tuple(load(tmp_path / "run")[1:]), (caught.value.params, caught.value.state))
    found = signcore_cupy.run(rule, PARAMS, grad_fn, 9, checkpoint=tmp_path / "run", save_every=100)
    same(found, signcore_cupy.run(rule, PARAMS, grad_fn, 9))


def test_ctrl_c_just_after_a_checkpoint_writes_no_second_one(tmp_path: Path) -> None:
    def stop(step: int, *_: Any) -> None:
        (tmp_path / "run").unlink()
        raise KeyboardInterrupt

    def later(params: Any, step: int) -> Any:
        if step == 1:
            stop(step)
        return grad_fn(params, step)

    with pytest.raises(signcore_cupy.Interrupted):
        signcore_cupy.run(sc.Lion(lr=0.1), PARAMS, later, 9, checkpoint=tmp_path / "run", save_every=1)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_last_checkpoint_is_written(monkeypatch: Any, tmp_path: Path, same: Any) -> None:
    write, calls = saving.write, []

    def interrupted(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(saving, "write", interrupted)
    with pytest.raises(signcore_cupy.Interrupted) as caught:
        signcore_cupy.run(sc.Lion(lr=0.1), PARAMS, grad_fn, 3, checkpoint=tmp_path / "run", save_every=100)
    assert caught.value.step == 3
    whole = signcore_cupy.run(sc.Lion(lr=0.1), PARAMS, grad_fn, 3)
    same((caught.value.params, caught.value.state), whole)
    same(tuple(load(tmp_path / "run")[1:]), whole)


def test_steps_that_were_skipped_count_as_done(tmp_path: Path, same: Any) -> None:
    rule = sc.Lion(lr=0.1, nonfinite="skip")

    def bad(params: Any, step: int) -> Any:
        grads = grad_fn(params, step)
        return {"w": grads["w"] * np.float32(np.nan), "b": grads["b"]} if step == 1 else grads

    whole = signcore_cupy.run(rule, PARAMS, bad, 6)
    again = {"checkpoint": tmp_path / "run", "save_every": 1}
    signcore_cupy.run(rule, PARAMS, bad, 4, **again)
    found = signcore_cupy.run(rule, PARAMS, bad, 6, **again)
    same(found, whole)
    assert int(found[1].step) == 5


def test_a_run_that_starts_late_stops_where_it_should(tmp_path: Path, same: Any) -> None:
    rule = sc.Lion(lr=0.1)
    begun = signcore_cupy.run(rule, PARAMS, grad_fn, 2)
    again = {"start": 2, "checkpoint": tmp_path / "run", "save_every": 1}
    signcore_cupy.run(rule, begun[0], grad_fn, 1, state=begun[1], **again)
    found = signcore_cupy.run(rule, begun[0], grad_fn, 4, **again)
    same(found, signcore_cupy.run(rule, PARAMS, grad_fn, 6))


def test_the_arrays_are_those_of_the_params_library(tmp_path: Path) -> None:
    params = {name: array_api_strict.asarray(p) for name, p in PARAMS.items()}
    again = {"checkpoint": tmp_path / "run", "save_every": 1}
    grads = {name: array_api_strict.asarray(p) for name, p in PARAMS.items()}
    signcore_cupy.run(sc.Lion(lr=0.1), params, lambda *_: grads, 1, **again)
    found, _ = signcore_cupy.run(sc.Lion(lr=0.1), params, lambda *_: grads, 2, **again)
    assert type(found["w"]) is type(params["w"])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"checkpoint": "run"}, ValueError, r"`checkpoint` is given and `save_every` is None; pass a file and"),
        ({"save_every": 3}, ValueError, r"`save_every` is given and `checkpoint` is None"),
        ({"checkpoint": "run", "save_every": 0}, ValueError, r"`save_every` is 0; pass an int of at least 1"),
        ({"checkpoint": "run", "save_every": True}, ValueError, r"`save_every` is True"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        signcore_cupy.run(sc.Lion(lr=0.1), PARAMS, grad_fn, 1, **options)


def test_a_file_that_does_not_belong_to_the_run(tmp_path: Path) -> None:
    rule, again = sc.Lion(lr=0.1), {"checkpoint": tmp_path / "run", "save_every": 1}
    _, state = signcore_cupy.run(rule, PARAMS, grad_fn, 1, **again)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(
        ValueError, match=r"`state` is given and `checkpoint` .* exists, from which the run would go on"
    ):
        signcore_cupy.run(rule, PARAMS, grad_fn, 2, state=state, **again)
    with pytest.raises(ValueError, match="`rule` is 'signum', and the checkpoint is of 'lion'"):
        signcore_cupy.run(sc.Signum(lr=0.1), PARAMS, grad_fn, 2, **again)
    with pytest.raises(ValueError, match="are different trees"):
        signcore_cupy.run(rule, {"v": PARAMS["w"]}, grad_fn, 2, **again)
    assert (tmp_path / "run").read_bytes() == before
    (tmp_path / "run").write_bytes(before[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        signcore_cupy.run(rule, PARAMS, grad_fn, 2, **again)
