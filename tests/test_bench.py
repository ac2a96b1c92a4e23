"""The benchmark runs and writes its tables; what they say is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from signcore_conformance import golden

ROOT = Path(__file__).resolve().parent.parent


def test_quick_run_makes_a_table_of_every_rule():
    command = [sys.executable, "bench/run.py", "--quick", "--frameworks", "numpy", "--seconds", "0.01"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    header, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "target" in header
    for rule in set(golden.plain()) - {"rprop"}:  # nobody writes that one by hand
        assert any(row.startswith(f"| {rule} | signcore | functional NumPy |") for row in rows)
