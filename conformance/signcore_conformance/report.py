"""What a run prints: the matrix, the first mismatch in full, and the table of guarantees for the README."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .backends import BACKENDS
from .compare import versions
from .suite import Results

COLUMNS = ("float16", "bfloat16", "float32", "float64", "mixed")


def entry(results: Results, rule: str, backend: Any, dtype: str) -> str:
    """One entry of the matrix: millions of words compared, or what else there is to say."""
    if dtype != "mixed" and dtype not in backend.dtypes:
        return "no dtype"
    if dtype not in (*results.plan.dtypes_of(backend), "mixed"):
        return ""
    cells = [c for c in results.cells if (c.rule, c.backend, c.dtype) == (rule, backend.name, dtype)]
    if any(cell.mismatch for cell in cells):
        return "MISMATCH"
    if dtype == "mixed" and not cells and not results.plan.mixes(backend):
        return ""
    words = sum(cell.words for cell in cells)
    return f"{words / 1e6:.3g} M" if words else "EMPTY"


def matrix(results: Results) -> Table:
    """Rules x backends x dtypes with the number of words compared."""
    table = Table(title="words compared with the independent reference, bit for bit")
    for column in ("rule", "backend", *COLUMNS):
        table.add_column(column, justify="left" if column in ("rule", "backend") else "right")
    for rule in results.plan.rules:
        for backend in results.backends:
            table.add_row(rule, backend.name, *(entry(results, rule, backend, d) for d in COLUMNS))
        table.add_section()
    return table


def describe(mismatch: dict[str, Any]) -> str:
    """A mismatch in full."""
    lines = [f"  {key}: {value}" for key, value in mismatch.items()]
    lines.append("  versions: " + ", ".join(f"{name} {v}" for name, v in versions().items()))
    return "first mismatch\n" + "\n".join(lines)


def show(results: Results, console: Console) -> None:
    """Print everything, the verdict last."""
    console.print(matrix(results))
    shares = sorted(
        {(c.rule, c.near) for c in results.cells if c.workload == "near-ties" and c.near is not None}, key=str
    )
    by_rule: dict[str, list[float]] = {}
    for rule, share in shares:
        by_rule.setdefault(rule, []).append(float(share))
    for rule, found in by_rule.items():
        console.print(
            f"near ties: {rule}: an ulp of the gradient decides {min(found):.1%} of all signs", highlight=False
        )
    for rule in sorted(set(results.plan.rules) - set(by_rule)):
        if "near-ties" in results.plan.workloads:
            console.print(f"near ties: {rule}: takes no sign that one leaf decides", highlight=False)
    for mismatch in results.mismatches()[:1]:
        console.print(describe(mismatch), markup=False, highlight=False, soft_wrap=True)
    for problem in (*results.errors, *results.empty_cells(), *results.far_from_ties()):
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    console.print(f"backends run: {', '.join(b.name for b in results.backends)}", highlight=False, soft_wrap=True)
    for name, reason in results.not_run.items():
        console.print(f"not run: {name} ({reason})", highlight=False, soft_wrap=True)
    verdict = "passed" if results.passed else "FAILED"
    console.print(
        f"{verdict}: {results.words:,} words compared, {len(results.mismatches())} mismatching cells", highlight=False
    )


def guarantees(results: Results) -> str:
    """The README's table: per backend, words compared over all rules, by dtype, as Markdown."""
    rows = ["| backend | " + " | ".join(COLUMNS[:-1]) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    ran = {backend.name for backend in results.backends}
    for backend in BACKENDS:
        if backend.name not in ran:
            rows.append(f"| {backend.name} | " + " | ".join(["not run"] * (len(COLUMNS) - 1)) + " |")
            continue
        entries = []
        for dtype in COLUMNS[:-1]:
            if dtype not in backend.dtypes:
                entries.append("no dtype")
                continue
            cells = [c for c in results.cells if (c.backend, c.dtype) == (backend.name, dtype)]
            wrong = sum(c.mismatch is not None for c in cells)
            words = sum(c.words for c in cells) / 1e6
            entries.append(f"{words:,.0f} M words, {wrong} differ" if cells else "not run")
        rows.append(f"| {backend.name} | " + " | ".join(entries) + " |")
    return "\n".join(rows) + "\n"
