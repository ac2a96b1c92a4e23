"""A run that writes a checkpoint after each step, killed again and again, must end where an undisturbed one ends.

``python tests/killed.py FOLDER KILLS``: each child goes on from the file that the one before left. A process of its
own, because it forks: NumPy alone has no threads that a fork would lose.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import signcore as sc
from signcore.checkpoint import load, save

RULE = sc.Lion(lr=0.01, sign_zero="random", seed=3)


def gradient(step: int) -> dict[str, Any]:
    made = np.random.default_rng(step).standard_normal(40_000)
    return {"w": np.where(abs(made) < 0.3, 0.0, made).astype(np.float32)}


def begin() -> tuple[Any, Any]:
    params = {"w": np.ones(40_000, dtype=np.float32)}
    return params, RULE.init(params)


def live(path: Path) -> None:
    """Step and save until somebody kills the process."""
    rule, params, state = load(path)
    while True:
        params, state = rule.step(params, gradient(int(state.step)), state)
        save(path, rule, params, state)


def main(folder: Path, kills: int) -> None:
    path, chance = folder / "run", random.Random(1)
    save(path, RULE, *begin())
    moments = []
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            live(path)
        moments.append(chance.uniform(0.0, 0.04))
        time.sleep(moments[-1])
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
    found = load(path)
    params, state = begin()
    for step in range(int(found.state.step)):
        params, state = RULE.step(params, gradient(step), state)
    assert params["w"].tobytes() == found.params["w"].tobytes()
    assert state.m["w"].tobytes() == found.state.m["w"].tobytes()
    left = [name for name in os.listdir(folder) if name != "run"]
    assert int(found.state.step) > 10, "too few steps were saved for this to show anything"
    print(f"{kills} kills, {found.state.step} steps, {len(left)} files that were being written")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
