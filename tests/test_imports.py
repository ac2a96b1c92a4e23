"""What `import signcore` brings along."""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The standard library alone, so that what the script itself needs is loaded before it looks.
SCRIPT = """
import json, sys
before = set(sys.modules)
import signcore
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


@pytest.fixture(scope="module")
def imported():
    """Top-level names of the modules that a fresh interpreter loads for `import signcore`."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("framework", ["torch", "jax", "jaxlib", "cupy", "optax", "ml_dtypes"])
def test_imports_no_framework(imported, framework):
    assert "signcore" in imported
    assert framework not in imported


def test_imports_only_the_two_dependencies(imported):
    # Stands for the import time, which is not measured here: what costs time is what else gets loaded.
    third_party = imported & set(packages_distributions())
    assert third_party - {"signcore"} == {"numpy", "array_api_compat"}
