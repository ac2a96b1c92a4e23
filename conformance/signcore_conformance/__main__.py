"""``python -m signcore_conformance``: the suite, and beside it ``demo``, ``primitives``, ``fuzz``, ``relay``, ..."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import signcore as sc
from signcore import checks

from . import launches, report
from .backends import ALL, BACKENDS
from .cells import Cell, Plan
from .suite import Results, cells_expected, choose, execute, names_in
from .workloads import LARGE, NAMES, QUICK_NAMES, SMALL, USUAL

COMMANDS = ("demo", "primitives", "fuzz", "relay", "distributed")  # a module each, with a `main`
DEVICES = ("cupy", "torch-cuda", "torch-cuda-compile", "jax-cuda", "jax-cuda-jit")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m signcore_conformance",
        description="Compare every backend with an independent reference, bit for bit. "
        "Subcommands: demo (train on digits everywhere), primitives (each one against an oracle and on every backend), "
        "fuzz (random programs over the primitives), "
        "relay (a run that changes backend through checkpoint files), "
        "distributed (many processes and devices against the simulation in one), "
        "gpu (the suite on the devices of this machine, and the launches of a step of the CuPy loop).",
    )
    parser.add_argument("--json", metavar="FILE", help="write all results to FILE")
    parser.add_argument("--rules", type=names_in, default=sc.rules(), help="comma-separated; default: all")
    parser.add_argument("--backends", type=names_in, help="comma-separated; default: all that can run")
    parser.add_argument("--dtypes", type=names_in, help=f"comma-separated; default: {','.join(ALL)}")
    parser.add_argument(
        "--workloads", type=names_in, help=f"default: {','.join(NAMES)}, of which --quick leaves out digits"
    )
    parser.add_argument("--quick", action="store_true", help="small leaves, fewer dtypes and options, few compilations")
    parser.add_argument(
        "--full",
        action="store_true",
        help="every backend in every dtype, with leaves of 100,000 and the network; options compiled in float32",
    )
    parser.add_argument("--guarantees", metavar="FILE", help="put the generated table into this Markdown file")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for; unknown names raise ValueError."""
    for argument, values, known in (
        ("--rules", options.rules, sc.rules()),
        ("--backends", options.backends or [], [backend.name for backend in BACKENDS]),
        ("--dtypes", options.dtypes or [], ALL),
        ("--workloads", options.workloads or [], NAMES),
    ):
        for value in values:
            checks.known(argument, value, known)
    workloads = options.workloads or (QUICK_NAMES if options.quick else NAMES)
    large = SMALL if options.quick else LARGE if options.full else USUAL
    rules, dtypes = tuple(options.rules), tuple(options.dtypes or ())
    return Plan(rules, dtypes, large, options.quick, options.full, tuple(workloads))


def suite(plan: Plan, names: list[str] | None, console: Console) -> Results:
    """Run the suite with a progress bar (none when stderr is not a terminal)."""
    backends, _ = choose(names)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("comparing", total=cells_expected(backends, plan))

        def advance(cell: Cell) -> None:
            text = f"{cell.rule} {cell.backend} {cell.dtype} {cell.workload}"
            progress.update(task, advance=1, description=text)
            if cell.mismatch is not None:
                progress.console.print(f"MISMATCH {text}")

        return execute(plan, names, advance)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when everything agreed, 1 on any mismatch, 2 on bad usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in COMMANDS:
        module = importlib.import_module(f".{arguments[0]}", __package__)
        return int(module.main(arguments[1:]))
    parser = _parser()
    on_gpu = arguments[:1] == ["gpu"]
    options = parser.parse_args(arguments[1:] if on_gpu else arguments)
    if on_gpu:
        options.backends = options.backends or ["numpy", *DEVICES]
    try:
        plan = plan_of(options)
    except ValueError as error:
        parser.error(str(error))
    problem = _cannot_write(options)
    if problem:
        parser.error(problem)
    console = Console(width=None if sys.stdout.isatty() else 110)
    if on_gpu and not _any_device(options.backends, console):
        return 1
    results = suite(plan, options.backends, console)
    report.show(results, console)
    counted = {"launches": launches_of(results)} if on_gpu else {}
    for found in filter(None, counted.values()):
        console.print(launches.described(found), highlight=False, soft_wrap=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results.as_json() | counted, indent=1) + "\n")
    if options.guarantees:
        _insert(Path(options.guarantees), report.guarantees(results))
    return 0 if results.passed else 1


def _any_device(names: list[str], console: Console) -> bool:
    """Whether a device can run; says why none can."""
    run, not_run = choose(names)
    if any(backend.name in DEVICES for backend in run):
        return True
    for name, reason in not_run.items():
        console.print(f"not run: {name} ({reason})", highlight=False, soft_wrap=True)
    console.print(f"FAILED: none of {', '.join(DEVICES)} can run here", highlight=False, soft_wrap=True)
    return False


def launches_of(results: Results) -> dict[str, dict[str, int]]:
    """Operations per step of the CuPy loop, where CuPy ran."""
    cupy = [backend for backend in results.backends if backend.name == "cupy"]
    return launches.report(cupy[0].to, results.plan.rules) if cupy else {}


BEGIN, END = "<!-- guarantees: generated -->\n", "<!-- /guarantees -->"


def _cannot_write(options: argparse.Namespace) -> str | None:
    """Why the results could not be written: told before the work and not after it."""
    if options.json and not Path(options.json).absolute().parent.is_dir():
        return f"`--json` is {options.json!r}, in a folder that does not exist; make the folder first"
    if not options.guarantees:
        return None
    if not Path(options.guarantees).is_file() or BEGIN not in Path(options.guarantees).read_text():
        return f"`--guarantees` is {options.guarantees!r}, which holds no line {BEGIN.strip()!r} to put the table after"
    narrowed = options.quick or options.backends or options.dtypes or options.workloads or options.rules != sc.rules()
    return "`--guarantees` takes a whole run; leave out whatever narrows it" if narrowed else None


def _insert(path: Path, table: str) -> None:
    """Replace what stands between the two marks of generated text."""
    head, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{head}{BEGIN}{table}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
