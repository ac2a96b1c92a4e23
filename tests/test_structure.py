"""What the core is made of: a rule per file, documented, and no framework brought along."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import signcore as sc

CORE = Path(sc.__file__).resolve().parent
FILES = sorted(CORE.rglob("*.py"))
RULES = sorted(path for path in (CORE / "rules").glob("*.py") if path.stem != "__init__")
FRAMEWORKS = {"torch", "jax", "jaxlib", "cupy", "cupyx", "optax", "ml_dtypes", "array_api_strict", "tensorflow", "mlx"}


def relative(path):
    return path.relative_to(CORE).as_posix()


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node):
    """Top-level names that an import statement brings in, relative ones left out."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [(node.module or "").partition(".")[0]]
    return []


def at_module_level(node):
    """Nodes that run when the module is imported: functions' bodies do not."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from at_module_level(child)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_framework_is_imported_with_a_module(path):
    assert not FRAMEWORKS & {name for node in at_module_level(parsed(path)) for name in imported(node)}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_one_file_knows_frameworks_by_name(path):
    named = FRAMEWORKS & {name for node in ast.walk(parsed(path)) for name in imported(node)}
    assert not named or relative(path) == "frameworks.py"


def test_the_registry_is_the_folder():
    assert sc.rules() == [path.stem for path in RULES]
    for path in RULES:
        rule = getattr(sc, type(sc.rule(path.stem, lr=0.1)).__name__)
        assert rule.__module__ == f"signcore.rules.{path.stem}"
        assert issubclass(rule, sc.Rule)


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_a_rule_is_a_file_of_60_to_150_lines_and_no_other_names_it(path):
    assert 60 <= len(path.read_text(encoding="utf-8").splitlines()) <= 150
    cls = type(sc.rule(path.stem, lr=0.1)).__name__
    for other in FILES:
        # docstrings may speak of any rule
        names = {node.id for node in ast.walk(parsed(other)) if isinstance(node, ast.Name)}
        modules = {node.module for node in ast.walk(parsed(other)) if isinstance(node, ast.ImportFrom)}
        if other != path:
            assert cls not in names, relative(other)
            assert not {module for module in modules if module and module.endswith(f"rules.{path.stem}")}, relative(
                other
            )


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_a_rule_is_documented_with_its_formula_its_arguments_and_an_example(path):
    module = importlib.import_module(f"signcore.rules.{path.stem}")
    assert "\n" not in module.__doc__.strip()
    rule = type(sc.rule(path.stem, lr=0.1))
    doc = inspect.getdoc(rule)
    for section in ("Parameters\n----------", "Notes\n-----", "Raises\n------", "Examples\n--------"):
        assert section in doc, section
    assert re.search(r"delta += -\((lr|size) \* \(", doc)  # a rate, or a size of each coordinate, times a direction
    assert ">>> " in doc
    assert "Deviations" in doc
    parameters = doc.partition("Parameters\n---")[2].partition("\nNotes\n")[0]
    for argument in inspect.signature(rule).parameters:
        assert argument in parameters, argument


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_a_rule_has_a_test_of_its_own(path):
    assert (Path(__file__).parent / "rules" / f"test_{path.stem}.py").exists()


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_a_rules_arithmetic_does_not_branch_on_decay_and_raises_nothing(path):
    # design.md: "No `if weight_decay:` inside the arithmetic: a branch is a second specification."
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.If, ast.IfExp)):
            assert "weight_decay" not in ast.unparse(node.test)


def public():
    """Every public function, class and method of the core, by its dotted name."""
    for path in FILES:
        parts = path.relative_to(CORE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module.__name__}.{name}", value
            if inspect.isclass(value) and not issubclass(value, sc.Rule):
                for attribute, member in vars(value).items():
                    if not attribute.startswith("_") and inspect.isfunction(member):
                        yield f"{module.__name__}.{name}.{attribute}", member


PUBLIC = dict(public())
# A schedule's `at` is described once, in the base.
HOOKS = {"at"}


def test_everything_public_has_a_docstring():
    lacking = [
        name
        for name, value in PUBLIC.items()
        if not (value.__doc__ or "").strip()
        and not name.endswith(("Message", "State"))
        and name.split(".")[-1] not in HOOKS
    ]
    # a dataclass without a docstring gets its signature, a NamedTuple its fields
    generated = [name for name, value in PUBLIC.items() if (value.__doc__ or "").startswith(f"{value.__name__}(")]
    assert lacking == []
    assert [name for name in generated if not name.endswith(("Message", "State"))] == []


@pytest.mark.parametrize("name", sorted({*sc.__all__, *(f"schedules.{n}" for n in ("constant", "inverse_sqrt"))}))
def test_what_users_call_is_shown_in_an_example(name):
    value = sc
    for part in name.split("."):
        value = getattr(value, part)
    if inspect.ismodule(value):
        for each in vars(value).values():
            own = getattr(each, "__module__", None) == value.__name__
            if own and not each.__name__.startswith("_") and each.__name__ != "Schedule":
                assert ">>> " in inspect.getdoc(each), each.__name__
    elif value is not sc.Rule:
        assert ">>> " in inspect.getdoc(value) or "rule(" in inspect.getdoc(value)


def test_the_primitives_that_return_numbers_show_one():
    from signcore import ops

    shown = {name for name in ops.__all__ if ">>> " in inspect.getdoc(getattr(ops, name))}
    assert shown >= {"rounded", "product", "flush", "sign", "ema", "sqrt", "quotient", "arcsin4pi"}
