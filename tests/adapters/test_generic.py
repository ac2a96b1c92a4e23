"""No adapter knows a rule, and no file of an adapter grows beyond what one concern needs."""

import ast
import re
from pathlib import Path

import pytest

import signcore as sc
from signcore.rule import classes

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
SOURCES = sorted(path for path in ADAPTERS.rglob("*.py"))
LONGEST = 150
# Every name of a rule as a word of its own, also inside of identifiers with underscores.
NAMES = {*sc.rules(), *(cls.__name__ for cls in classes().values())}
NAMED = re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, sorted(NAMES)))})(?![a-z0-9])", re.IGNORECASE)

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ADAPTERS).as_posix())


def test_there_are_sources():
    assert {path.relative_to(ADAPTERS).parts[0] for path in SOURCES} == {
        "signcore_cupy",
        "signcore_keras",
        "signcore_mpi",
        "signcore_optax",
        "signcore_torch",
    }


@each_source
def test_names_no_rule(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {line}" for number, line in enumerate(lines, 1) if NAMED.search(line)]


@each_source
def test_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@each_source
def test_imports_no_rule(path):
    """Not the package of the rules, nor a module of it; the function `signcore.rules` is another matter."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    assert not [module for module in modules if f"{module}.".startswith("signcore.rules.")]


@pytest.mark.parametrize("text", ["lion", "sc.Lion(", "a_lion = 1", "SGD", "if name == 'aass'"])
def test_would_find_a_name(text):
    assert NAMED.search(text)


@pytest.mark.parametrize("text", ["million", "signs", "signcore", "stallion", "designsgd"])
def test_would_leave_other_words(text):
    assert not NAMED.search(text)
