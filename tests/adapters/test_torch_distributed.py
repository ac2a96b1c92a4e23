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

WORKER = Path(__file__).with_name("distributed_worker.py")
PROCESSES = [3, 2]  # three first: two go on from what three saved
CHECKS = [
    node.name
    for node in ast.parse(WORKER.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and any(getattr(mark, "id", "") == "check" for mark in node.decorator_list)
]


# One test for all checks: cases of their own would go to several workers of pytest-xdist, each with its processes.
def test_on_several_processes(tmp_path):
    assert len(CHECKS) > 10
    problems = []
    for count in PROCESSES:
        done = subprocess.run(
            [sys.executable, str(WORKER), str(count), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        files = [tmp_path / f"{count}-{rank}.json" for rank in range(count)]
        assert all(file.exists() for file in files), done.stderr[-4000:]
        for rank, file in enumerate(files):
            found = json.loads(file.read_text(encoding="utf-8"))
            for check in CHECKS:
                problem = found.get(check, f"not run: the rank stopped after {list(found)[-1:]}")
                if problem is not None:
                    problems.append(f"{check} on rank {rank} of {count}: {problem}")
    assert not problems, "\n\n".join(problems)
