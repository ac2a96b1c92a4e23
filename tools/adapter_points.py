"""The page of the adapters' contracts: which points are tested for which rule, from the tests that pytest collects."""

from __future__ import annotations

import contextlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import signcore as sc
from signcore_conformance import golden

TESTS = Path(__file__).resolve().parents[1] / "tests" / "adapters"
ADAPTERS = {"t": "torch", "o": "optax", "c": "CuPy", "k": "Keras"}
NAMED = re.compile(r"test_([a-z])(\d+)_")
DEFINED = re.compile(rf"^def {NAMED.pattern}", re.MULTILINE)
POINTS = {
    "t1": "Parameters come as tensors, dicts or named tensors; errors are of the types that torch's base class "
    "raises; every hyperparameter is in `defaults`, and what was pickled before one existed gets its default.",
    "t2": "`step(closure)` runs the closure with gradients enabled and the rest without, and returns its loss; hooks "
    "fire once each, in torch's order; a loss that a rule needs and does not get is an error.",
    "t3": "A parameter without a gradient is skipped and gets no state; gradients are never written; sparse and "
    "complex ones are clear errors; strides, empty, 0-d and shared tensors change no bit.",
    "t4": "Parameter groups are separate optimizers, bit for bit; every number may change between steps; groups may "
    "come late.",
    "t5": "A number may be a float or a tensor of one element, with the same bits; torch's schedulers work and write "
    "into such a tensor; `initial_lr` survives saving; a rate that is spoilt is an error at the step, and "
    "nothing changes.",
    "t6": "`state_dict` is deterministic, loads with `weights_only=True`, shares nothing, and going on from it, from "
    "a deepcopy or from a pickle gives the bits of never having stopped.",
    "t7": "Loading keeps every dtype beside parameters of 16 or 64 bits, and a counter of 16777217; a state of "
    "another rule, of other shapes or groups, or of a newer format is refused whole.",
    "t8": "The step of zero gradients at a rate of zero by which torch.distributed.checkpoint makes states changes no "
    "bit of a parameter, and nothing divides by the rate.",
    "t9": "Under a GradScaler a step is the step of the unscaled gradients, and one that overflows leaves everything "
    "as it was.",
    "t10": "A loop over parameters, `foreach` and `capturable` give the same bits; a capture without `capturable` is "
    "an error. Compiled steps of every rule are the cells `torch-compile` of the conformance suite; the option "
    "`compile` is tried in test_torch_options.py, `torch.compile` around a step in test_torch_contract.py.",
    "t11": "DTensors: every rank computes its own elements, with the bits and the noise of one process, and keeps its "
    "state in the placements of the parameters; the wrappers of distributed training work.",
    "t12": "A communication hook for DistributedDataParallel, whose memory of errors is kept by parameter.",
    "t13": "`maximize` and `foreach` are taken as by torch's own optimizers; `differentiable` and `fused` are refused.",
    "o1": "States are NamedTuples of arrays; extra arguments that nobody asked for are ignored; missing ones are "
    "clear errors.",
    "o2": "`init` works on shapes and under jit; types, dtypes and weak types of a state stay; cond, scan and vmap "
    "work.",
    "o3": "Updates have the gradients' dtypes, and nothing is promoted where x64 is on.",
    "o4": "None and masked leaves pass; masked, partition, chain, MultiSteps, apply_if_finite, lookahead, map_params "
    "and get work.",
    "o5": "A learning rate is a number, an array or a schedule; counts saturate; there is one flip of sign; a mask "
    "keeps decay off.",
    "o6": "Injected hyperparameters give the same bits.",
    "o7": "A second call compiles nothing; eager, compiled, scanned and sharded steps are the same bits.",
    "o8": "`apply_updates` is the sum of parameter and update, and gives the words of the rule.",
    "o9": "Flax's optimizer, Equinox's models and Orbax's files work.",
    "c1": "The loop keeps everything on the device: nothing is read back between intervals, no device or stream is "
    "chosen, and memory does not grow with the steps.",
    "c2": "The same loop runs on NumPy's arrays and on those of any other library, with the same words.",
    "c3": "Gradients come from a function or an iterable; callbacks; a bar that can be switched off; a run goes on "
    "from its checkpoint, and Ctrl-C leaves what can be gone on from.",
    "k1": "On both of its backends, torch and JAX, a step has the words of the rule; `fit`, schedules, files and "
    "Keras's own options work; what was saved goes on to the same bits.",
}
# Points whose tests take every rule in one case, because the processes that they start cost more than the rules do:
# file, test, what it runs, and why variants of rules that need the loss have no part in it.
JOINT = {
    "t11": ("test_torch_distributed.py", "test_on_several_processes", "distributed_worker.py", None),
    "k1": (
        "test_keras.py",
        "test_on",
        "keras_checks.py",
        "it needs the loss, which Keras tells no optimizer; it is refused when it is built",
    ),
}
HEAD = """# The adapters' contracts, rule by rule

Written by `tools/make_tables.py` from the tests that pytest collects in `tests/adapters`; `make check` compares it.

Each point is something that users of a framework rely on, and that its own optimizers keep. A test is named after its
point (`test_t4_...`), and each of its cases after a rule. In the tables

- `passed` means that the point's tests exist for the rule, and that `make test` runs them all and fails if one does;
- `in part (n)`, that one of them asserts the clear error which users get instead: reason n below says of what, and why;
- `not applicable (n)`, the same of all of them;
- `-`, that there is no test of the point for the rule.
"""


class _Collected:
    """What pytest would run, by the point that it belongs to."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []

    def pytest_collection_finish(self, session: Any) -> None:
        """Keep what belongs to a point."""
        joint = {(file, test): name for name, (file, test, *_) in JOINT.items()}
        for item in session.items:
            named = NAMED.match(item.originalname)
            name = "".join(named.groups()) if named else joint.get((item.path.name, item.originalname))
            if name is not None:
                self.items.append((name, item))


def collected() -> list[tuple[str, Any]]:
    """Points and their tests' items; RuntimeError when a file of tests cannot be collected."""
    found, said = _Collected(), io.StringIO()
    whole = {file for file, *_ in JOINT.values()}
    files = [path for path in sorted(TESTS.glob("test_*.py")) if path.name in whole or DEFINED.search(path.read_text())]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *map(str, files)], plugins=[found])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests of the adapters cannot be collected:\n{said.getvalue()}")
    return found.items


def rule_in(case: str) -> str | None:
    """The rule that a case's id begins with."""
    return next((name for name in sc.rules() if case == name or case.startswith(f"{name}-")), None)


class Point:
    """What is tested of one point."""

    def __init__(self) -> None:
        self.tests: dict[str, int] = defaultdict(int)  # of a file and a name, the cases
        self.rules: dict[str, list[bool]] = defaultdict(list)  # of a rule, whether each of its cases applies
        self.reasons: dict[str, str] = {}  # of a rule

    def add(self, item: Any) -> None:
        case = item.callspec.id if hasattr(item, "callspec") else ""
        if any(mark.name in ("skip", "skipif", "xfail") for mark in item.iter_markers()):
            return  # what may not run is no promise
        self.tests[f"{item.path.name}::{item.originalname}"] += 1
        rule = rule_in(case)
        if rule is not None:
            self.rules[rule].append(not case.endswith("-not-applicable") and "-not-applicable-" not in case)

    def cell(self, rule: str, reasons: list[str]) -> str:
        """What the table says of a rule; a new reason is added to those of the table."""
        applies = self.rules.get(rule)
        if not applies:
            return "-"
        if all(applies):
            return "passed"
        reason = self.reasons[rule]
        if reason not in reasons:
            reasons.append(reason)
        return f"{'in part' if any(applies) else 'not applicable'} ({reasons.index(reason) + 1})"


def points() -> dict[str, Point]:
    """Every point that has a test."""
    found: dict[str, Point] = defaultdict(Point)
    for name, item in collected():
        found[name].add(item)
        reasons = getattr(item.module, "NOT_APPLICABLE", {})
        found[name].reasons |= {rule: reason for (point, rule), reason in reasons.items() if point == name}
    unknown = sorted(set(found) - set(POINTS))
    if unknown:
        raise RuntimeError(f"tests are named after {unknown}, which `POINTS` does not describe; describe them there")
    for name in set(JOINT) & set(found):
        *_, reason = JOINT[name]
        for rule in sc.rules():
            found[name].rules[rule] += {reason is None or not variant.needs for variant in golden.variants(rule)}
            found[name].reasons |= {} if reason is None else {rule: reason}
    return found


def section(title: str, found: dict[str, Point]) -> list[str]:
    """One adapter: the points, what tests them, the table, the reasons."""
    lines = [f"## {title}", ""]
    for name, point in found.items():
        lines.append(f"- **{name.upper()}.** {POINTS[name]}")
        for test, cases in sorted(point.tests.items()):
            lines.append(f"  - `{test}`" + (f", {cases} cases" if cases > 1 else ""))
        if name in JOINT:
            lines.append(f"  - it runs `{JOINT[name][2]}`, in which each rule is taken in turn")
    reasons: list[str] = []
    rows = [
        f"| `{rule}` | {' | '.join(point.cell(rule, reasons) for point in found.values())} |" for rule in sc.rules()
    ]
    names = " | ".join(name.upper() for name in found)
    lines += ["", f"| rule | {names} |", f"|---|{'---|' * len(found)}", *rows, ""]
    lines += [f"({number}) {reason}.\n" for number, reason in enumerate(reasons, 1)]
    return lines


def page() -> str:
    """The whole page."""
    found, lines = points(), [HEAD]
    for letter, title in ADAPTERS.items():
        own = {name: found[name] for name in POINTS if name[0] == letter and name in found}
        if own:
            lines += section(title, own)
    return "\n".join(lines).rstrip() + "\n"
