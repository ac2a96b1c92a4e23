"""Products of stored numbers with tiny hyperparameters may underflow on the way; no stored word may show it.

XLA flushes subnormals in arithmetic and NumPy keeps them, so this is where they would part.
"""

from __future__ import annotations

from typing import Any

import pytest

import signcore as sc
from signcore_conformance import golden
from signcore_conformance.backends import BACKENDS
from signcore_conformance.compare import compare, expected, find
from signcore_conformance.workloads import SMALL, TWO


def tiny(name: str, size: float) -> sc.Rule:
    """A rule with every number that may be that small."""
    rule = sc.rule(name, lr=size)
    numbers: dict[str, Any] = {}
    for number in rule.numbers():
        try:
            rule.replace(**{number: size})
        except ValueError:
            continue  # a range or another option forbids it
        numbers[number] = size
    return rule.replace(**numbers)


SIZES = [(size, lr) for size in (1e-9, 2e-38) for lr in (size, 1.0)]
# Each of these is compiled: what shows most, and of exact sums and noise, which take seconds, one.
COMPILED = {name: [(1e-9, 1e-9), (2e-38, 1.0)] if name in golden.plain() else [(2e-38, 1.0)] for name in sc.rules()}
CASES = [
    (name, backend, size, lr)
    for name in sc.rules()
    for backend in ("numpy", "torch", "jax-jit")
    for size, lr in (COMPILED[name] if backend == "jax-jit" else SIZES)
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # hostile gradients overflow, as they should
@pytest.mark.parametrize(("name", "backend", "size", "lr"), CASES)
def test_tiny_hyperparameters_give_the_reference_s_words(name: str, backend: str, size: float, lr: float) -> None:
    rule = tiny(name, size).replace(lr=lr)
    assert tiny(name, size).numbers()["lr"] == size
    chosen = next(b for b in BACKENDS if b.name == backend)
    tree = TWO if chosen.costly else SMALL  # each leaf is compiled
    workload = find("hostile", rule, "float32", tree)
    outcome = compare(chosen.run(rule, workload), expected("hostile", rule, "float32", tree))
    assert outcome.mismatch is None
