"""The page of the adapters' contracts says of each rule what pytest would run, and nothing else."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import signcore as sc

_spec = importlib.util.spec_from_file_location(
    "adapter_points", Path(__file__).resolve().parents[1] / "tools" / "adapter_points.py"
)
tool = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = tool
_spec.loader.exec_module(tool)


def item(case, *marks):
    return SimpleNamespace(
        callspec=SimpleNamespace(id=case),
        iter_markers=lambda: [SimpleNamespace(name=mark) for mark in marks],
        path=Path("test_x.py"),
        originalname="test_t1_x",
    )


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ([], "-"),
        (["lion"], "passed"),
        (["lion", "lion-float32"], "passed"),
        (["lion-float32", "lion-not-applicable"], "in part (1)"),
        (["lion-not-applicable", "lion-not-applicable-float32"], "not applicable (1)"),
        (["signum"], "-"),
    ],
)
def test_what_a_cell_says(cases, said):
    point, reasons = tool.Point(), []
    point.reasons["lion"] = "so it is"
    for case in cases:
        point.add(item(case))
    assert point.cell("lion", reasons) == said
    assert reasons == (["so it is"] if "(1)" in said else [])


@pytest.mark.parametrize("mark", ["skip", "skipif", "xfail"])
def test_what_may_not_run_is_not_counted(mark):
    point = tool.Point()
    point.add(item("lion", mark))
    assert point.cell("lion", []) == "-"
    assert not point.tests


def test_a_case_belongs_to_one_rule():
    assert [tool.rule_in(case) for case in ("alias", "alias-float32", "alias_adam-x", "float32-alias", "other")] == [
        "alias",
        "alias",
        "alias_adam",
        None,
        None,
    ]
    assert [tool.rule_in(name) for name in sc.rules()] == sc.rules()
