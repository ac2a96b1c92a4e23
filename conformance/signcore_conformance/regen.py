"""``python -m signcore_conformance.regen``: writes the words of the golden files; ``--check`` compares them.

Words that change are a change of the contract: writing them needs an entry in CHANGELOG.md that names the rule.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import signcore as sc

from . import golden
from .backends import ALL
from .cells import golden_words
from .workloads import SMALL


def fresh(rule: str) -> dict[str, Any]:
    """A rule's golden file as it should be."""
    held = dict(golden.load(rule))
    held["words"] = {
        f"{i}/{dtype}": golden_words(variant, dtype, SMALL)
        for i, variant in enumerate(golden.variants(rule))
        for dtype in ALL
    }
    return held


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when a golden file is stale, or would be rewritten without an entry in the changelog."""
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance.regen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--rules", nargs="*", default=None, help="default: all")
    options = parser.parse_args(arguments)
    stale, unsaid = [], []
    for rule in options.rules or sc.rules():
        held, wanted = golden.load(rule), fresh(rule)
        if held["words"] == wanted["words"]:
            continue
        stale.append(rule)
        known = {key: value for key, value in held["words"].items() if wanted["words"].get(key) != value}
        entry = _entry(rule)
        if known and not options.check and entry in ("", held.get("entry", "")):
            unsaid.append(rule)
        elif not options.check:
            wanted["entry"] = entry  # the next change needs another
            path = Path(str(golden.folder() / f"{rule}.json"))
            path.write_text(json.dumps(wanted, indent=1) + "\n")
            print(f"wrote {path.name}")
    if options.check and stale:
        print(f"golden files are stale: {', '.join(stale)}; if the change is meant, run `make golden`")
    if unsaid:
        print(
            f"known words of {', '.join(unsaid)} would change: say why in a new entry under 'Golden files' in "
            f"CHANGELOG.md first"
        )
    if not stale:
        print(f"golden files of {len(sc.rules())} rules are fresh")
    return 1 if unsaid or (options.check and stale) else 0


def _entry(rule: str) -> str:
    """What the unreleased section of the changelog says of a rule under "Golden files"."""
    path = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
    if not path.is_file():
        return ""
    unreleased = path.read_text().partition("\n## [Unreleased]")[2].partition("\n## [")[0]
    section = unreleased.partition("### Golden files")[2].partition("\n### ")[0]
    return " ".join(" ".join(item.split()) for item in section.split("\n- ")[1:] if f"`{rule}`" in item)


if __name__ == "__main__":
    sys.exit(main())
