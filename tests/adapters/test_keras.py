"""The Keras adapter on both of its backends, each in a process of its own: Keras chooses one when it is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).with_name("keras_checks.py")


def run(backend, *arguments):
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "adapters", "conformance"))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_on(backend):
    done = run(backend, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_on_another_backend_it_says_what_to_set(backend):
    done = run(backend, "-c", "import signcore_keras")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError")
    assert f"`KERAS_BACKEND` is {backend!r}" in error
    assert "os.environ['KERAS_BACKEND'] = 'torch'" in error
