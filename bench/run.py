"""How fast the rules are beside what a user would otherwise take: `make bench`, or `python bench/run.py --help`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import NAMES, document, primitives_document, rules_document
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sets import QUICK, SETS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import signcore as sc  # noqa: E402  (the clone's own, whatever is installed)

# Those that have peers: elementwise steps of gradients alone. Every rule is raced beside Signum, see by_bytes.py.
PLAIN = [
    rule.name
    for rule in (sc.rule(name, lr=0.1) for name in sc.rules())
    if not (rule.needs or rule.partials or rule.draws_noise)
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the harness; writes no file")
    parser.add_argument("--frameworks", nargs="+", choices=list(NAMES), default=list(NAMES), metavar="NAME")
    parser.add_argument("--only-primitives", action="store_true", help="leave out the rules")
    parser.add_argument("--only-by-bytes", action="store_true", help="only every rule beside Signum, on JAX")
    parser.add_argument("--rules", nargs="+", choices=PLAIN, default=PLAIN, metavar="NAME")
    parser.add_argument("--seconds", type=float, help="time for each table (default: 4, quick: 0.1)")
    parser.add_argument("--patience", type=float, default=300.0, help="limit for each first call, in s (default: 300)")
    parser.add_argument("--output", type=Path, help="Markdown file (default: docs/benchmarks.md for a full run)")
    parser.add_argument("--json", type=Path, help="write what the workers measured to this file as well")
    return parser.parse_args()


def worker(framework: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The messages of one worker, as they come; RuntimeError with the end of its stderr when it fails."""
    seconds = args.seconds or (0.1 if args.quick else 4.0)
    command = [sys.executable, str(HERE / "worker.py"), framework]
    command += ["--primitives"] * (not args.only_by_bytes) + ["--by-bytes"] * (not args.only_primitives)
    command += ["--rules", *([] if args.only_primitives or args.only_by_bytes else args.rules)]
    command += ["--seconds", str(seconds), "--patience", str(args.patience), *["--quick"] * args.quick]
    roots = [str(ROOT), str(ROOT / "adapters"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            errors.seek(0)
            raise RuntimeError(f"the {framework} worker failed:\n{errors.read()[-4000:]}")


def main() -> int:
    args = arguments()
    sets = QUICK if args.quick else SETS
    console = Console()
    tables: list[dict[str, Any]] = []
    races: list[dict[str, Any]] = []
    scaled: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    failed: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for framework in args.frameworks:
            task = progress.add_task(NAMES[framework], total=len(args.rules) * len(sets))
            try:
                for message in worker(framework, args):
                    if "versions" in message:
                        versions |= message["versions"]
                    elif "by_bytes" in message:
                        scaled.append(message)
                    elif "primitive" in message:
                        races.append(message)
                    else:
                        tables.append(message)
                        progress.advance(task)
            except RuntimeError as error:
                failed.append(str(error))
    texts = [document(tables, versions, sets)] * bool(tables) + [primitives_document(races, versions)] * bool(races)
    texts += [rules_document(scaled, versions)] * bool(scaled)
    text = "\n".join(texts)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
    if args.json:
        args.json.write_text(
            json.dumps({"versions": versions, "tables": tables, "primitives": races, "rules": scaled}, indent=1)
        )
    if scaled and not args.quick and not failed:
        (ROOT / "docs" / "benchmarks-rules.md").write_text(rules_document(scaled, versions))
    everything = not args.quick and args.frameworks == list(NAMES) and not failed and not args.only_by_bytes
    if everything:
        (ROOT / "docs" / "benchmarks-primitives.md").write_text(primitives_document(races, versions))
    if args.output or (everything and args.rules == PLAIN and not args.only_primitives):
        output = args.output or ROOT / "docs" / "benchmarks.md"
        output.parent.mkdir(exist_ok=True)
        output.write_text(document(tables, versions, sets))
    for error in failed:
        print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
