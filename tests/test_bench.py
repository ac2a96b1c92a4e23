"""The benchmark runs and writes its tables; what they say is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_peak_extra_memory_is_what_a_step_holds_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import on_torch

    grads = [torch.ones(1000), torch.ones(24)]
    size = sum(g.nbytes for g in grads)

    def one_after_the_other(grads: list[torch.Tensor]) -> None:
        for g in grads:
            g.mul_(g + 1)

    steps = {
        "in place": (lambda grads: torch._foreach_mul_(grads, 0.5), 0),
        "all at once": (lambda grads: torch._foreach_mul_(grads, torch._foreach_add(grads, 1)), size),
        "one after the other": (one_after_the_other, grads[0].nbytes),
    }
    for name, (step, held) in steps.items():
        found = on_torch._extra(step, grads)
        # scalars of the operations themselves, and the allocator's rounding to 64 bytes
        assert held <= found <= held + 256, name
