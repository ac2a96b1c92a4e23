"""The torch adapter on two and on three processes, point T11 and parts of T3, T6 and T8: bits, never a tolerance.

The processes of one group make all checks of distributed_worker.py one after the other, because starting them takes
longer than the checks.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("distributed_worker.py")
PROCESSES = [3, 2]  # three first: two go on from what three saved
CHECKS = [
    node.name
    for node in ast.parse(WORKER.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and any(getattr(mark, "id", "") == "check" for mark in node.decorator_list)
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Number of processes to what each of them found."""
    folder, found = tmp_path_factory.mktemp("distributed"), {}
    for count in PROCESSES:
        done = subprocess.run(
            [sys.executable, str(WORKER), str(count), str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        files = [folder / f"{count}-{rank}.json" for rank in range(count)]
        assert all(file.exists() for file in files), done.stderr[-4000:]
        found[count] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return found


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("count", PROCESSES)
def test_on_several_processes(count, check, outcomes):
    for rank, found in enumerate(outcomes[count]):
        assert check in found, f"rank {rank} stopped after {list(found)[-1]}"
        assert found[check] is None, f"rank {rank}: {found[check]}"
