"""Writes the table of rules into README.md, from the rules, and docs/adapters.md, from the tests; ``--check`` compares.

State bytes are counted on a leaf of 4096 float32 numbers; wire bits are what the rule's message declares.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from adapter_points import page

import signcore as sc
from signcore.rule import classes
from signcore.tree import flatten

ROOT = Path(__file__).resolve().parents[1]
README, ADAPTERS = ROOT / "README.md", ROOT / "docs" / "adapters.md"
BEGIN, END = "<!-- rules: generated -->\n", "<!-- /rules -->"
SIZE = 4096  # elements of the leaf that states are counted on
SMALL = 64  # bytes of scalars, counters and keys; nothing that grows with the parameters is as small


def state_bytes(rule: sc.Rule) -> tuple[float, int]:
    """(bytes per parameter, bytes per leaf or state) of a rule's state beside float32 parameters."""
    state = rule.init(np.zeros(SIZE, np.float32))
    sizes = [leaf.value.nbytes for field in state if field is not None for leaf in flatten(field)]
    large = sum(size for size in sizes if size > SMALL)
    return large / SIZE, sum(sizes) - large


def down(rule: sc.Rule, bits: dict[str, float]) -> str:
    """Bits per parameter of what every worker is told, of M workers."""
    parts = []
    for name, wire in rule._wires.items():
        if wire.aggregate == "gathered":
            continue
        if wire.aggregate in ("vote", "weighted"):
            parts.append(_number(bits[name]))
        elif wire.aggregate == "mean" and wire.bits is None:
            parts.append("log2(2M+1)")
        else:
            parts.append("32")
    return " + ".join(parts)


def _number(value: float) -> str:
    return f"{value:g}" if round(value, 3) == round(value, 2) else f"{value:.3f}"


def row(name: str, cls: Any) -> str:
    """One rule as a line of the table."""
    rule = sc.rule(name, lr=0.1)
    head, _, source = sys.modules[cls.__module__].__doc__.strip().rstrip(".").partition(" (")
    source = source.rstrip(")").replace("),", ",")
    bits = rule.wire_bits()
    per_parameter, once = state_bytes(rule)
    what = head.partition(": ")[2] or head.partition(", ")[2] or head
    up = " + ".join(_number(v) for v in bits.values() if v)
    return f"| `{name}` | {what} | {source} | {_number(per_parameter)} (+{once}) | {up} | {down(rule, bits)} |"


def table() -> str:
    """The whole table."""
    lines = [
        "| rule | step | paper, equation | state, bytes per parameter (+ once) | wire up, bits | wire down, bits |",
        "|---|---|---|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(row(name, cls) for name, cls in sorted(classes().items()))]) + "\n"


def readme() -> str:
    """The README with the table of today."""
    before, _, rest = README.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def main() -> int:
    """Exit status 1 when a file is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check, stale = parser.parse_args().check, False
    for path, text in ((README, readme()), (ADAPTERS, page())):
        if path.exists() and path.read_bytes() == text.encode():
            continue
        stale = True
        if check:
            print(f"{path.relative_to(ROOT)} is stale; run `make stubs`")
        else:
            path.write_text(text)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
