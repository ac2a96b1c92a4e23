"""The main job: train the digits network with every rule (that needs no callback) on every backend: all bits agree.

Forward, backward and update run on the backend itself (JAX jits the first two, also where it is eager); the SHA-256 of
a trajectory covers all parameters and all state after every step. The losses of the picture are computed from those
parameters.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

import signcore as sc

from . import golden, network, words
from .backends import BACKENDS, Backend, by_group, is_short
from .compare import by_path, versions
from .worker import WorkerDied, each, lines
from .workloads import Workload, digits

STEPS = 300  # 25 epochs of 12 batches
ACCURACY = 0.93  # what every sign rule must reach on the 261 test images
MARK = "signcore-run "


class Run(NamedTuple):
    """One training: what a worker process prints."""

    rule: str
    backend: str
    digest: str
    accuracy: float
    losses: list[float]
    seconds: float


def shown() -> list[str]:
    """The rules that are trained: all that need nothing beside gradients."""
    return [name for name in sc.rules() if golden.load(name).get("demo") is not None]


def demo_rule(name: str) -> sc.Rule:
    """A rule with the demo's settings from its golden file."""
    return sc.rule(name, **golden.load(name)["demo"])


def train(rule: sc.Rule, backend: Backend, steps: int = STEPS) -> Run:
    """Train on one backend; the losses are of the batches, before each step."""
    begun = time.perf_counter()
    workload: Workload = digits("float32", steps)
    digest, losses = words.Digest(), []
    params: Any = workload.params
    for inputs, (after, state) in zip(workload.inputs, backend.run(rule, workload), strict=True):
        losses.append(float(network.gradient(params, inputs)[1]))
        params = {path: np.array(value) for path, value in after.items()}
        for _, value in sorted(by_path(params).items()):
            digest.add(value)
        for field, tree in state._asdict().items():
            if tree is not None and field != "stream":
                for _, value in sorted(by_path(tree).items()):
                    digest.add(value)
    accuracy = network.evaluate(params, network.digits()[1])
    return Run(rule.name, backend.name, digest.hex(), accuracy, losses, time.perf_counter() - begun)


def _worker(rules: list[str], backends: list[str], steps: int) -> Iterator[Run | str]:
    """Train in a process of its own, one per framework."""
    try:
        for values in lines(__name__, json.dumps([rules, backends, steps]), MARK):
            yield Run(*values)
    except WorkerDied as died:
        yield f"{', '.join(backends)}: {died}"


def _jobs(rules: list[str], backends: list[Backend], steps: int) -> list[tuple[list[str], list[str], int]]:
    return [(rules, names, steps) for names in sorted(by_group(backends), key=is_short)]


def run(rules: list[str], backends: list[Backend], steps: int) -> tuple[list[Run], list[str]]:
    """All trainings, as many processes at a time as there are cores, with a progress bar."""
    runs: list[Run] = []
    errors: list[str] = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("training", total=len(rules) * len(backends))

        def take(found: Run | str) -> None:
            if isinstance(found, str):
                errors.append(found)
                return
            runs.append(found)
            progress.update(task, advance=1, description=f"{found.rule} on {found.backend}")

        each(_jobs(rules, backends, steps), lambda job: _worker(*job), take)
    return runs, errors


def verdict(runs: list[Run], errors: list[str], rules: list[str], backends: list[Backend]) -> list[str]:
    """What is wrong: digests that differ, trainings that are missing, accuracies that are too low."""
    problems = list(errors) if backends else ["no backend could run"]
    for rule in rules:
        mine = [r for r in runs if r.rule == rule]
        digests = {r.digest for r in mine}
        if len(digests) > 1:
            problems.append(f"{rule}: {len(digests)} different trajectories")
        missing = {b.name for b in backends} - {r.backend for r in mine}
        if missing:
            problems.append(f"{rule}: no result from {', '.join(sorted(missing))}")
        least = golden.load(rule).get("demo_accuracy", ACCURACY)  # less for what 300 steps of one worker cannot reach
        if any(r.accuracy < least for r in mine):
            problems.append(f"{rule}: test accuracy {min(r.accuracy for r in mine):.1%} is below {least:.0%}")
    return problems


def report(runs: list[Run], problems: list[str], not_run: dict[str, str], steps: int) -> str:
    """demo/report.md."""
    lines = [
        "# The digits demo",
        "",
        f"A 64-32-10 network (ReLU, squared error on one-hot labels), {steps} mini-batches of {network.BATCH} of "
        "scikit-learn's handwritten digits, float32. Forward, backward and update run on the backend itself; "
        "JAX jits the first two also where it is eager.",
        "",
        "![loss curves](trajectories.png)",
        "",
        "| rule | test accuracy | backends | SHA-256 of the whole trajectory |",
        "|---|---:|---:|---|",
    ]
    for rule in sorted({r.rule for r in runs}):
        mine = [r for r in runs if r.rule == rule]
        digests = sorted({r.digest for r in mine})
        accuracy = f"{min(r.accuracy for r in mine):.1%}"
        lines.append(f"| {rule} | {accuracy} | {len(mine)} | `{'` `'.join(digests)}` |")
    lines += ["", "| backend | " + " | ".join(sorted({r.rule for r in runs})) + " |"]
    lines += ["|---|" + "---|" * len({r.rule for r in runs})]
    for backend in dict.fromkeys(r.backend for r in runs):
        mine = sorted((r for r in runs if r.backend == backend), key=lambda r: r.rule)
        lines.append(f"| {backend} | " + " | ".join(f"`{r.digest[:12]}`" for r in mine) + " |")
    for name, reason in not_run.items():
        lines.append(f"| {name} | not run: {reason} |")
    lines += ["", "All backends agree on every bit." if not problems else "**Problems:** " + "; ".join(problems)]
    lines += ["", "Versions: " + ", ".join(f"{name} {v}" for name, v in versions().items()) + "."]
    return "\n".join(lines) + "\n"


def picture(runs: list[Run], path: Path) -> None:
    """Loss curves: one line per rule, because all backends coincide; every backend is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    rules = sorted({r.rule for r in runs})
    for color, rule in enumerate(rules):
        mine = [r for r in runs if r.rule == rule]
        for i, r in enumerate(mine):
            smooth = np.convolve(r.losses, np.ones(12) / 12, mode="valid")  # an epoch is 12 batches
            label = f"{rule}: {len(mine)} backends, {r.accuracy:.1%}" if i == 0 else None
            look = {"color": f"C{color % 10}", "linestyle": ("-", "--", ":")[color // 10 % 3], "linewidth": 1.5}
            axes.plot(np.arange(len(smooth)) + 12, smooth, label=label, **look)
    axes.set(xlabel="step", ylabel="training loss (mean of an epoch)", yscale="log")
    agree = all(len({r.digest for r in runs if r.rule == rule}) == 1 for rule in rules)
    axes.set_title("One line per rule: every backend draws the same bits" if agree else "Backends DIFFER")
    axes.grid(alpha=0.3)
    axes.legend(title="rule: backends, test accuracy", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; pass a whole number from 1 on")
    return int(text)


def main(arguments: list[str]) -> int:
    """Exit status 1 when two backends differ, one fails, or a rule does not learn."""
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance demo", description=__doc__)
    parser.add_argument("--rule", action="append", choices=shown(), help="default: every rule that needs no callback")
    parser.add_argument("--backend", action="append", choices=[b.name for b in BACKENDS], help="default: all here")
    parser.add_argument("--steps", type=_steps, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of report.md and trajectories.png")
    options = parser.parse_args(arguments)
    rules = options.rule or shown()
    wanted = [b for b in BACKENDS if not options.backend or b.name in options.backend]
    not_run = {b.name: reason for b in wanted if (reason := b.missing()) is not None}
    backends = [b for b in wanted if b.name not in not_run]
    runs, errors = run(rules, backends, options.steps)
    order = [b.name for b in backends]
    runs.sort(key=lambda r: (r.rule, order.index(r.backend)))
    console = Console(width=None if sys.stdout.isatty() else 130)
    for r in runs:
        text = f"{r.rule:10s} {r.backend:18s} accuracy {r.accuracy:6.1%}  {r.seconds:5.1f} s  {r.digest}"
        console.print(text, highlight=False, soft_wrap=True)
    for name, reason in not_run.items():
        console.print(f"not run: {name} ({reason})", highlight=False, soft_wrap=True)
    problems = verdict(runs, errors, rules, backends)
    if options.steps < STEPS:
        problems = [p for p in problems if "accuracy" not in p]  # a shortened run proves bits, not learning
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "report.md").write_text(report(runs, problems, not_run, options.steps))
    if runs:
        picture(runs, options.output / "trajectories.png")
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if not problems:
        console.print(f"all {len(backends)} backends agree on every bit of {len(rules)} trajectories")
    wrote = [options.output / "report.md", *([options.output / "trajectories.png"] if runs else [])]
    console.print(f"wrote {' and '.join(map(str, wrote))}", highlight=False)
    return 1 if problems else 0


def _work(text: str) -> None:
    """A worker process: print each training as a line of JSON."""
    warnings.simplefilter("ignore")
    rules, names, steps = json.loads(text)
    for name in rules:
        for backend in BACKENDS:
            if backend.name in names:
                print(MARK + json.dumps(train(demo_rule(name), backend, steps)), flush=True)


if __name__ == "__main__":
    _work(sys.argv[1])
