"""The tables, as Markdown: ratios first, then times, then how and on what they were measured."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sets import Shape, describe
from targets import target

Table = dict[str, Any]  # what worker.py sends

NAMES = {"numpy": "NumPy", "torch": "torch", "jax": "JAX"}

METHOD = """\
## How it was measured

`make bench`: one process per framework, with the threads it takes by default. All contestants of a table (one
rule on one set) are timed in turn, one step each, round after round; the ratio is formed inside a round, and the
figure is the median of the rounds with the quartiles in brackets. The first call and a round of warm-up per
gradient are not part of it; the first call, compilation included, is reported by itself. float32, defaults of
each rule, `lr=1e-3`, three normally distributed gradients in turn.

- **NumPy**: `rule.step` against the formula with NumPy operators (functional) and against the same with `out=`
  and scratch arrays that are kept (in-place). These two round as they like and know no subnormals.
- **torch**: "core" is `rule.step` on lists of tensors, and compiled with its results written back to its inputs;
  "adapter" is the optimizer's `step()` as it is built, with `foreach=True` and with `compile=True`. The peers: the
  step written by hand with `torch._foreach_*`, eager and compiled, and the published optimizer class, in its
  multi-tensor form; `torch.optim.AdamW` is no peer but a scale.
- **JAX**: one jitted function that updates, applies the updates and donates parameters and state. "core" is
  `rule.delta`, and "adapter" the transformation of `signcore_optax`.
- **Passes**: bytes that a step reads and writes, over the bytes of the parameters. torch eager: the operands of
  each dispatched operation; JAX: as XLA counts them after fusion. A signum step cannot do with fewer than 5.
- **Peak extra** (torch): the most memory that a step holds at a time beside what it found, over the bytes of the
  parameters, from the allocations and releases that torch's profiler records during one step.
"""

BOUNDS = """\
## What bounds the figures that are not reached

- **NumPy**: every operation is a pass of its own. The contract adds to the formula a flush of the delta and of what is
  stored (a magnitude and its minimum, each), and a sign made of two comparisons; large leaves are cut into blocks, so
  these passes stay in the cache, and lion, signum and signsgd on one tensor keep within the target. On 150 tensors the
  new arrays of each step and about 0.1 ms of checks and calls per leaf come on top, beside peers that only compute. SGD
  without momentum is two operations for the peer. AASS evaluates an arcsine that is correctly rounded, about 30 float64
  operations where the peer makes one float32 call.
- **torch, compiled**: SGD keeps its velocity, also with a momentum of zero, so that momentum may begin later: five
  passes over memory where the peer has three. signSGD compares where the peer calls `sign`, because NaN and subnormals
  have a defined result, and tests the delta against the flush threshold.
- **torch, eager**: one pass per operation, see the column "passes"; an engine that takes a leaf in one pass is not part
  of this release.
- **JAX, lion**: XLA compiles the two results into two loops on the CPU, which both read the momentum and the gradient.
"""


RULES = """\
## What bounds the figures that are not reached

- **`aass`**: the arcsine is correctly rounded, in about 40 float64 operations where Signum has none.
- **`rprop`**: comparisons and choices: about 13 operations between two passes over memory, which on a CPU with two
  threads take longer than the memory.
- **`alias`, `update_gap=1`, and `alias_adam`**: besides the exact norm, a step reads the gradient and the parameters
  before, compares parameters with them for the largest displacement (`alias`), or keeps two averages (`alias_adam`):
  what is measured and what is stepped are two loops, because every coordinate's step depends on the whole norm.
- **`lion`**: the slow average is written after the parameters have read it, in one loop; what is over the bound lies
  within the spread of the measurement.
"""


PRIMITIVES = """\
`words` makes one word an element from a Threefry block of two; its rate counts both. The limit of `arcsin4pi` in
compiled torch is against the faster of the two peers.

## What bounds the figures that are not reached

- **`arcsin4pi`, compiled torch**: about 40 float64 operations beside 15 in float32, twice as many of which are done at
  a time. The value nearest to a rounding boundary is 2**-53.8 from it: a correctly rounded result needs all of float64.
- **`words`, NumPy and eager torch**: 110 operations on uint32 in the cache for each block. Two threads on the two
  hyperthreads of one core gain nothing, and torch's own in-place operations (it has no unsigned shift) need six where
  NumPy needs five a round.
- **`exact_sum`, jit**: XLA keeps each value that is used twice in memory, so a row of 8,192 numbers is gone through
  about 12 times, for two windows. The aim of 8 was not reached.
"""


def _ratio(quartiles: Iterable[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratios(tables: list[Table], sets: dict[str, list[Shape]]) -> str:
    """A row per rule, way of ours and peer; a column per set."""
    found: dict[tuple[str, str, str, str], dict[str, list[float]]] = {}
    for table in tables:
        for entry in table["ratios"]:
            key = (table["rule"], entry["mode"], entry["ours"], entry["peer"])
            found.setdefault(key, {})[table["set"]] = entry["quartiles"]
    framework = tables[0]["framework"]
    rows = []
    for (rule, mode, ours, peer), by_set in found.items():
        limit = target(framework, mode, rule, peer)
        row = [rule, ours if mode == framework else f"{ours}, {mode}", peer]
        row += [_ratio(by_set[name]) if name in by_set else "" for name in sets]
        if limit is None:
            row += ["", ""]
        else:
            missed = [name for name, quartiles in by_set.items() if quartiles[1] > limit]
            verdict = "reached" if not missed else "not reached"
            if missed and len(missed) < len(by_set):
                verdict += f" ({', '.join(missed)})"
            row += [f"at most {limit:g}", verdict]
        rows.append(row)
    return _markdown(["rule", "ours", "against", *sets, "target", ""], rows)


def times(tables: list[Table], sets: dict[str, list[Shape]]) -> str:
    """A row per rule and contestant: seconds of the first call, milliseconds a step, passes over memory.

    Where a framework measures it (torch), also the most memory that a step holds beside what it found.
    """
    measured = any(each["extra"] is not None for table in tables for each in table["contestants"])
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for table in tables:
        for each in table["contestants"]:
            found.setdefault((table["rule"], each["label"], each["mode"]), {})[table["set"]] = each
    rows = []
    for (rule, label, mode), by_set in found.items():
        row = [rule, label, mode]
        for name in sets:
            each = by_set.get(name)
            if each is None:
                row += ["", "", "", *[""] * measured]
                continue
            row += [f"{each['first_s']:.2f}", f"{each['median_s'] * 1e3:.3g}"]
            row += ["" if each["passes"] is None else f"{each['passes']:.1f}"]
            row += ["" if each["extra"] is None else f"{each['extra']:.2f}"] * measured
        rows.append(row)
    header = ["rule", "step", "mode"]
    for name in sets:
        header += [f"first call, s ({name})", "step, ms", "passes", *["peak extra"] * measured]
    return _markdown(header, rows)


def primitives(races: list[Table]) -> str:
    """A row per primitive and peer: the ratio, what it is held to, and the time."""
    rows = []
    for race in races:
        where = f"{NAMES[race['framework']]}, {race['mode']}" if race["mode"] != race["framework"] else "NumPy"
        time = f"{race['medians']['signcore'] * 1e3:.3g}"
        rate = "" if race["rate"] is None else f"{race['rate']:.0f}"
        for label, quartiles in race["ratios"].items() or [("", None)]:
            target, verdict = "", ""
            if race["limit"] is not None and label == race["fastest"]:
                target = f"at most {race['limit']:g}"
                verdict = "reached" if quartiles[1] <= race["limit"] else "not reached"
            if race["least_rate"] is not None:
                target = f"at least {race['least_rate']:g} M words/s"
                verdict = "reached" if race["rate"] >= race["least_rate"] else "not reached"
            row = [race["primitive"], where, label, "" if quartiles is None else _ratio(quartiles), target, verdict]
            rows.append([*row, time, rate])
    return _markdown(["primitive", "on", "against", "ratio", "target", "", "ours, ms", "M words/s"], rows)


def missing(tables: list[Table]) -> str:
    lines = {f"- {table['rule']}, {table['set']}: {what}" for table in tables for what in table["not_run"]}
    return "Not run:\n\n" + "\n".join(sorted(lines)) + "\n" if lines else ""


def machine(versions: dict[str, str]) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"- CPU: {_cpu()}, {cores} cores",
        f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or "unknown"


def primitives_document(races: list[Table], versions: dict[str, str]) -> str:
    """The whole of docs/benchmarks-primitives.md."""
    parts = [
        "# Speed of the primitives",
        "Generated by `make bench`. 4 M float32. A ratio is our time over the other's, the median of rounds\n"
        "in which each takes its turn, with the quartiles in brackets. The rules are in benchmarks.md.",
        primitives(races),
        PRIMITIVES,
        "## On what",
        f"{datetime.date.today():%Y-%m-%d}.",
        machine(versions),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def rules_document(messages: list[Table], versions: dict[str, str]) -> str:
    """The table as Markdown."""
    lines = [
        "# Every rule beside Signum",
        "",
        "One jitted step on JAX, 4 M float32 in one tensor, parameters and state donated; measured in turn, in",
        "rounds, by `make bench`. The bound scales Signum's time by the bytes per parameter that a step must read and",
        "write, and adds 1.2 times the time of `jax.random.bits` for as many words where the rule draws noise, and of",
        "each exact sum of `signcore.sums` that it measures, by itself. The last column is the rule's time over its",
        "bound (quartiles): 1 or less keeps it.",
        "",
        "| rule | bytes per parameter | rule, ms | Signum, ms | bound | time over bound |",
        "|---|---:|---:|---:|---|---|",
    ]
    for m in messages:
        name = f"`{m['by_bytes']}`" + "".join(f", {key}={value}" for key, value in m["options"].items())
        if m.get("late"):
            lines.append(f"| {name} | | the first call was given up | | | |")
            continue
        low, middle, high = m["of_bound"]
        mine, base = (1e3 * m["medians"][label] for label in ("rule", "signum"))
        found = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        lines.append(f"| {name} | {m['bytes']:g} | {mine:.1f} | {base:.1f} | {m['bound']} | {found} |")
    return "\n".join([*lines, "", RULES, machine(versions)]) + "\n"


def document(tables: list[Table], versions: dict[str, str], sets: dict[str, list[Shape]]) -> str:
    """The whole of docs/benchmarks.md."""
    frameworks = list(dict.fromkeys(table["framework"] for table in tables))
    of = {name: [table for table in tables if table["framework"] == name] for name in frameworks}
    parts = [
        "# Speed",
        "Generated by `make bench`; do not edit. A ratio is the time of our step over the time of the other: below 1\n"
        "ours is faster. Sets: " + "; ".join(f"{name}: {describe(shapes)}" for name, shapes in sets.items()) + ".",
    ]
    for name in frameworks:
        parts += [f"## {NAMES[name]}: ratios", ratios(of[name], sets), missing(of[name])]
    parts += [BOUNDS, METHOD, "## On what", f"{datetime.date.today():%Y-%m-%d}.", machine(versions)]
    for name in frameworks:
        parts += [f"## {NAMES[name]}: times", times(of[name], sets)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
