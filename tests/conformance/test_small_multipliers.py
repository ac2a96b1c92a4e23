"""Products of stored numbers with tiny hyperparameters may underflow on the way; no stored word may show it.

XLA flushes subnormals in arithmetic and NumPy keeps them, so this is where they would part.
"""

from __future__ import annotations

from typing import Any

import pytest

import signcore as sc
from signcore_conformance.backends import BACKENDS
from signcore_conformance.compare import compare, expected, find
from signcore_conformance.workloads import SMALL


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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # hostile gradients overflow, as they should
@pytest.mark.parametrize("backend", ["numpy", "jax-jit", "torch"])
@pytest.mark.parametrize("size", [1e-9, 2e-38])
@pytest.mark.parametrize("name", sc.rules())
def test_tiny_hyperparameters_give_the_reference_s_words(name: str, size: float, backend: str) -> None:
    rule = tiny(name, size)
    assert rule.numbers()["lr"] == size
    for lr in (size, 1.0):
        rule = rule.replace(lr=lr)
        workload = find("hostile", rule, "float32", SMALL)
        chosen = next(b for b in BACKENDS if b.name == backend)
        outcome = compare(chosen.run(rule, workload), expected("hostile", rule, "float32", SMALL))
        assert outcome.mismatch is None
