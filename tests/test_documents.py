"""What the documents refer to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = (ROOT / "docs" / "arithmetic.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", CONTRACT)))


def test_the_contract_names_its_tests():
    assert len(TESTS) >= 35
    # every row of every table of rules names what holds it
    for line in CONTRACT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[-1] != "held by" and "float32 | float32" not in line and len(cells) > 1:
            held = "::test_" in cells[-1] or "tools/prove_" in cells[-1]
            assert held or cells[0] in {"leaf's dtype", "float16", "bfloat16", "float32", "float64"}, line


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_test_that_the_contract_names_exists(file, name):
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_tools_that_the_contract_names_exist_and_have_committed_results():
    tools = set(re.findall(r"`(tools/prove_\w+\.py)`", CONTRACT))
    assert len(tools) >= 3
    for tool in tools:
        assert (ROOT / tool).exists()
        assert (ROOT / "docs" / "results" / (Path(tool).stem.removeprefix("prove_") + ".json")).exists()


SHOWN = [
    (name, k, block)
    for name in ("README.md", "docs/embedding.md")
    for k, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("name", "k", "block"), SHOWN, ids=[f"{name}-{k}" for name, k, _ in SHOWN])
def test_what_a_document_shows_runs(name, k, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"{name}, block {k}", "exec"), {})


def test_documents_show_something():
    assert len(SHOWN) >= 10
