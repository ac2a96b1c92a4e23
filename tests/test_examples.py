"""Every example runs as a user would run it, is short, and what it trains gets better."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from signcore_conformance import distributed

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
LOSSES = re.compile(r"before (\d+\.\d+) .*after (\d+\.\d+)")
LONGEST = 80

each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def test_there_are_examples() -> None:
    wanted = {"embed", "numpy_only", "cupy_loop", "torch_loop", "hf_trainer", "accelerate_loop", "lightning_digits"}
    assert wanted <= {path.stem for path in EXAMPLES}


@each_example
def test_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST


@each_example
def test_trains(path: Path, tmp_path: Path) -> None:
    # networks this small gain nothing from threads, which beside another process spend their time waiting
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = LOSSES.findall(done.stdout)
    assert found, done.stdout
    for before, after in found:
        assert float(after) < float(before) / 2
    assert list(tmp_path.iterdir()) == []


FOLDER = Path(__file__).resolve().parents[1] / "examples" / "distributed"
PYTHON = sys.executable
LAUNCHED = {
    "torch_workers": ([PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"], {}),
    "jax_workers": ([PYTHON], {"JAX_PLATFORMS": "cpu"}),
    "mpi_workers": ([str(distributed.mpiexec()), "-n"], distributed.MPI),
}


def test_there_are_distributed_examples() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(LAUNCHED)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < LONGEST for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "size"), [("torch_workers", 2), ("jax_workers", 4), ("mpi_workers", 4)])
def test_trains_on_several_processes(name: str, size: int, tmp_path: Path) -> None:
    start, more = LAUNCHED[name]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | more
    if name == "jax_workers":
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={size}"
        command = [*start, str(FOLDER / f"{name}.py")]
    else:
        command = [*start, str(size), *[PYTHON] * (name == "mpi_workers"), str(FOLDER / f"{name}.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ((before, after),) = LOSSES.findall(done.stdout)
    assert float(after) < float(before) / 2
    assert f"{size} " in done.stdout
