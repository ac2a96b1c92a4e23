"""What CuPy's users expect of a loop: points C1 to C3 of its contract, for every rule; bits alone.

On NumPy's arrays, on strict ones, on torch's, and on arrays that refuse to be read back, which stand for a device's. A
test is named after its point, and the case after the rule. Arguments and bars are in test_cupy_loop.py.
"""

import ast
import gc
import importlib.util
import itertools
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
import torch

import signcore as sc
import signcore_cupy
from signcore import checkpoint
from signcore.tree import flatten, unflatten
from signcore_conformance import golden

_spec = importlib.util.spec_from_file_location("guarded_array", Path(__file__).with_name("guarded_array.py"))
guarded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(guarded)

STEPS = 4
RULES = sc.rules()
# Where a part of a point cannot be had, and why; the case's id ends in "-not-applicable", and it asserts the error that
# says so.
NOT_APPLICABLE = {
    (
        "c3",
        name,
    ): "some of its variants ask for gradients at other parameters, which an iterable cannot give; a function "
    "of (params, step) does"
    for name in RULES
    if any("grad_fn" in rule.needs for rule in golden.variants(name))
}
LIBRARIES = {
    "guarded": (guarded.xp.asarray, guarded.read),
    "strict": (array_api_strict.asarray, np.asarray),
    "torch": (torch.tensor, np.asarray),
}


def each_rule(point=None):
    """Every rule, with those that the point does not apply to marked."""
    cases = [pytest.param(n, id=f"{n}-not-applicable" if (point, n) in NOT_APPLICABLE else n) for n in RULES]
    return pytest.mark.parametrize("name", cases)


def tree(seed):
    """Params (seed 0) or gradients: zeros of both signs, a 0-d leaf, an empty one and none."""
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((3, 5)).astype(np.float32)
    w.ravel()[:3] = [0.0, -0.0, 1e-39 if seed else 0.5]
    return {"w": w, "b": [np.asarray(draw.standard_normal(), np.float32), np.zeros((0, 2), np.float32), None]}


GRADS = [tree(seed) for seed in range(1, STEPS + 2)]


class Task:
    """Gradients and losses of a run in a library; other calls than the first of a step are at other parameters."""

    def __init__(self, make=np.asarray):
        self.grads, self.params = (
            unflatten(node, [None if leaf.value is None else make(leaf.value) for leaf in flatten(node)])
            for node in (GRADS, tree(0))
        )

    def grad_fn(self, params, step):
        return self.grads[step]

    def value_fn(self, params, step):
        return sc.sums.norm1(params)

    def run(self, rule, steps=STEPS, **more):
        given = {"params": self.params, "grad_fn": self.grad_fn, "value_fn": self.value_fn, "progress": False} | more
        return signcore_cupy.run(rule, given.pop("params"), given.pop("grad_fn"), steps, **given)


def words(node, read=np.asarray):
    """Path, dtype, shape and bytes of every leaf."""
    arrays = [(str(leaf.path), read(leaf.value)) for leaf in flatten(node) if leaf.value is not None]
    return [(path, array.dtype.name, array.shape, array.tobytes()) for path, array in arrays]


def by_hand(rule, steps=STEPS):
    """The rule's own steps, as words."""
    task, state = Task(), rule.init(tree(0))
    params, every = task.params, {"value": task.value_fn, "value_fn": None}
    for step in range(steps):
        more = {key: (lambda p: task.value_fn(p, 0)) if every[key] is None else every[key](params, step)
                for key in rule.needs}  # fmt: skip
        params, state = rule.step(params, task.grads[step], state, **more)
    return words((params, state))


def main_of(name):
    return golden.variants(name)[0]


# -- C1: everything stays on the device -----------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [False, True], ids=["apart", "joined"])
@each_rule()
def test_c1_nothing_is_read_back(name, foreach):
    """Bars, callbacks and savings are at intervals; between them the loop only queues work."""
    for rule in golden.variants(name):
        if rule.nonfinite == "raise" or rule.state_dtype == "bfloat16" or "grad_fn" in rule.needs:
            continue  # which must look at each gradient; no dtype of NumPy's; see C3
        seen = []
        task = Task(guarded.xp.asarray)
        got = task.run(rule, foreach=foreach, every=2, callback=lambda *now, seen=seen: seen.append(now[0]))
        assert words(got, guarded.read) == by_hand(rule)
        assert seen == [2, 4]


@each_rule()
def test_c1_memory_does_not_grow_with_the_steps(name, monkeypatch):
    alive, seen = itertools.count(), []
    held = {"now": 0}
    real = guarded.GuardedArray.__init__

    def begin(self, data):
        held["now"] += 1
        real(self, data)

    def end(self):
        held["now"] -= 1

    monkeypatch.setattr(guarded.GuardedArray, "__init__", begin)
    monkeypatch.setattr(guarded.GuardedArray, "__del__", end, raising=False)
    task = Task(guarded.xp.asarray)

    def callback(step, params, state):
        gc.collect(0)
        seen.append(held["now"])

    task.run(main_of(name), 6, grad_fn=lambda params, step: task.grads[next(alive) % STEPS], callback=callback)
    assert len(set(seen[2:])) == 1, seen


def test_c1_the_loop_names_no_device_and_no_stream():
    """It runs on those that are current, because it never chooses any: it speaks to arrays alone."""
    for path in Path(signcore_cupy.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any(part.split(".")[0] in ("cupy", "cupyx") for part in names), path


# -- C2: other arrays -----------------------------------------------------------------------------------------


@each_rule()
def test_c2_on_numpy_a_run_is_the_rules_own_steps(name):
    task, rule = Task(), main_of(name)
    before = words((task.params, task.grads))
    assert words(task.run(rule)) == by_hand(rule)
    assert words((task.params, task.grads)) == before


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "guarded"])
@each_rule()
def test_c2_other_libraries_give_the_same_words(name, library):
    make, read = LIBRARIES[library]
    params, state = Task(make).run(main_of(name))
    assert {type(leaf.value) for leaf in flatten(params) if leaf.value is not None} == {type(make([1.0]))}
    assert words((params, state), read) == by_hand(main_of(name))


# -- C3: gradients, callbacks, resuming, stopping -------------------------------------------------------------


@each_rule("c3")
def test_c3_gradients_from_a_function_or_an_iterable(name):
    for rule in golden.variants(name):
        if "grad_fn" in rule.needs:
            assert ("c3", name) in NOT_APPLICABLE
            with pytest.raises(TypeError, match=r"`grad_fn` is missing.*"):
                Task().run(rule, grad_fn=iter(GRADS))
            _, state = Task().run(rule)
            assert int(state.step) == STEPS
        else:
            assert words(Task().run(rule, grad_fn=iter(GRADS))) == words(Task().run(rule))
    endless = iter(GRADS)
    Task().run(main_of(name), 2, grad_fn=endless)
    assert words(next(endless)) == words(GRADS[2])  # no more than two were taken


@each_rule()
def test_c3_callbacks_see_every_so_many_steps(name):
    rule, seen = main_of(name), []
    Task().run(rule, every=2, callback=lambda step, *now: seen.append((step, words(now))))
    assert seen == [(steps, by_hand(rule, steps)) for steps in (2, 4)]


@each_rule()
def test_c3_the_bar_can_be_switched_off(name, capsys):
    Task().run(main_of(name), progress=True)
    assert "4/4" in capsys.readouterr().err
    Task().run(main_of(name), progress=False)
    assert capsys.readouterr() == ("", "")


@each_rule()
def test_c3_a_run_goes_on_from_its_checkpoint(name, tmp_path):
    rule, file = main_of(name), {"checkpoint": tmp_path / "run", "save_every": 2}

    def callback(step, params, state):
        if step == 3:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="the machine is gone"):
        Task().run(rule, callback=callback, **file)
    with checkpoint.Saved(tmp_path / "run") as saved:
        assert saved.extra == {"steps": 2}
    assert words(Task().run(rule, **file)) == by_hand(rule)


@each_rule()
def test_c3_a_checkpoint_of_a_newer_format_or_another_rule_is_left_alone(name, tmp_path, monkeypatch):
    rule, file = main_of(name), {"checkpoint": tmp_path / "run", "save_every": 2}
    Task().run(rule, 2, **file)
    before = (tmp_path / "run").read_bytes()
    other = main_of(RULES[RULES.index(name) - 1])
    with pytest.raises(ValueError, match=f"`rule` is '{other.name}', and the checkpoint is of '{name}'"):
        Task().run(other, **file)
    monkeypatch.setattr("signcore.checkpoint.file.FORMAT", checkpoint.file.FORMAT + 1)
    checkpoint.save(tmp_path / "newer", rule, *Task().run(rule, 2))
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="update signcore"):
        Task().run(rule, checkpoint=tmp_path / "newer", save_every=2)
    assert (tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize("where", ["grad_fn", "callback"])
@each_rule()
def test_c3_ctrl_c_leaves_what_can_be_resumed(name, where):
    rule, task = main_of(name), Task()

    def grad_fn(params, step):
        if where == "grad_fn" and step == 2:
            raise KeyboardInterrupt
        return task.grads[step]

    def callback(step, params, state):
        if where == "callback" and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(signcore_cupy.Interrupted) as stopped:
        task.run(rule, grad_fn=grad_fn, callback=callback)
    reached = stopped.value
    assert reached.step == int(reached.state.step) == 2
    assert words((reached.params, reached.state)) == by_hand(rule, 2)
    assert words(task.run(rule, 2, params=reached.params, state=reached.state)) == by_hand(rule)


@each_rule()
def test_c3_what_a_rule_needs_is_named(name):
    rule = main_of(name)
    if rule.needs:
        with pytest.raises(TypeError, match=rf"`({'|'.join(rule.needs)})` is missing: {type(rule).__name__} needs it"):
            Task().run(rule, value_fn=None)
    else:
        assert words(Task().run(rule, value_fn=None)) == by_hand(rule)
