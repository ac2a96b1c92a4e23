"""The loop for CuPy arrays, on NumPy's, on strict ones and on arrays that refuse to be read (C1 to C3)."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import array_api_strict
import numpy as np
import pytest

import signcore as sc
import signcore_cupy
from signcore import bits, ops, random, sums, tally
from signcore.fields import ranges
from signcore.rule import classes
from signcore_conformance import golden

_spec = importlib.util.spec_from_file_location("guarded_array", Path(__file__).with_name("guarded_array.py"))
guarded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(guarded)

STEPS = 6
RULES = golden.plain()
ALONE = ("ties", "aggregation")  # what changes nothing for one worker


def built(name, **options):
    """A rule with hyperparameters that all take part, whatever their names."""
    numbers = {
        field: 0.5 if allowed.below == 1.0 else 0.01
        for field, allowed in ranges(classes()[name]).items()
        if allowed.below == 1.0 or field in ("lr", "weight_decay")
    }
    if "momentum" in numbers:  # elsewhere it needs an option
        numbers |= {"dampening": 0.5}
    if options.get("nesterov"):
        numbers |= {key: 0.0 for key in numbers if key == "dampening"}
    return sc.rule(name, **{**numbers, **options})


def variants():
    """Every rule with every choice of each of its options; `raise` must read the gradients, so it is left out."""
    for name in RULES:
        cls = classes()[name]
        yield name, {}
        for field in dataclasses.fields(cls):
            for choice in () if field.name in ALONE else field.metadata.get("choices", ()):
                if choice not in (field.default, "raise", "bfloat16"):
                    yield name, {field.name: choice}
        for schedule in (
            sc.schedules.cosine(0.1, total_steps=4),
            sc.schedules.linear_warmup(0.1, 3, then=sc.schedules.inverse_sqrt(0.1)),
            sc.schedules.step(0.1, size=2),
            sc.schedules.constant(0.1),
        ):
            yield name, {"lr": schedule}


VARIANTS = list(variants())
IDS = ["-".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in VARIANTS]


def tree(make, seed, dtype):
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((3, 5)).astype(dtype)
    w.ravel()[::4] = [0.0, -0.0, 1e-38 if seed else 0.5, 1.0]  # params must not be subnormal
    return {"w": make(w), "b": [make(draw.standard_normal(7).astype(dtype)), None], "s": make(w[0, 0] * 0 + 2)}


def gradients(make, dtype):
    trees = [tree(make, seed, dtype) for seed in range(1, STEPS + 1)]
    return lambda params, step: trees[step]


def words(value, read):
    if value is None or isinstance(value, (list, tuple, dict)):
        children = value.items() if isinstance(value, dict) else enumerate(value or ())
        return [word for _, child in sorted(children, key=lambda item: str(item[0])) for word in words(child, read)]
    array = read(value)
    return [(array.dtype.name, array.shape, array.tobytes())]


@pytest.fixture
def rule():
    return sc.SignSGD(lr=0.125)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_never_reads_from_the_device(name, options, dtype):
    rule = built(name, **options)
    got = signcore_cupy.run(
        rule, tree(guarded.xp.asarray, 0, dtype), gradients(guarded.xp.asarray, dtype), STEPS, progress=False
    )
    expected = signcore_cupy.run(rule, tree(np.asarray, 0, dtype), gradients(np.asarray, dtype), STEPS)
    assert words(got, guarded.read) == words(expected, np.asarray)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_is_the_rules_own_steps(name, dtype):
    rule, grads = built(name, nonfinite="skip"), gradients(np.asarray, dtype)
    params = tree(np.asarray, 0, dtype)
    state = rule.init(params)
    before = words(params, np.asarray)
    got = signcore_cupy.run(rule, params, grads, STEPS)
    assert words(params, np.asarray) == before
    for step in range(STEPS):
        params, state = rule.step(params, grads(params, step), state)
    assert words(got, np.asarray) == words((params, state), np.asarray)


@pytest.mark.parametrize("name", RULES)
def test_strict_arrays(name):
    make = array_api_strict.asarray
    rule = built(name)
    params = {"w": make(tree(np.asarray, 0, "float32")["w"])}
    got = signcore_cupy.run(rule, params, lambda params, step: params, STEPS)
    expected = signcore_cupy.run(rule, {"w": np.asarray(params["w"])}, lambda params, step: params, STEPS)
    assert words(got, np.asarray) == words(expected, np.asarray)


def test_float16_never_reads_from_the_device():
    rule = sc.rule("lion", lr=0.01, weight_decay=0.1)
    got = signcore_cupy.run(
        rule, tree(guarded.xp.asarray, 0, "float16"), gradients(guarded.xp.asarray, "float16"), STEPS
    )
    expected = signcore_cupy.run(rule, tree(np.asarray, 0, "float16"), gradients(np.asarray, "float16"), STEPS)
    assert words(got, guarded.read) == words(expected, np.asarray)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("make", [np.asarray, guarded.xp.asarray], ids=["numpy", "guarded"])
def test_skips_a_bad_step_without_reading_it(name, make):
    rule = built(name, nonfinite="skip")
    bad = tree(np.asarray, 3, "float32")
    bad["w"][1, 1] = np.nan
    good = tree(np.asarray, 1, "float32")

    def of(values):
        return {"w": make(values["w"]), "b": [make(values["b"][0]), None], "s": make(values["s"])}

    read = guarded.read if make is guarded.xp.asarray else np.asarray
    params = tree(make, 0, "float32")
    got = signcore_cupy.run(rule, params, iter([of(good), of(bad), of(good)]), 3)
    expected = signcore_cupy.run(rule, params, iter([of(good), of(good)]), 2)
    assert words(got, read) == words(expected, read)


def test_a_resumed_run_goes_on(rule):
    grads, params = gradients(np.asarray, "float32"), tree(np.asarray, 0, "float32")
    whole = signcore_cupy.run(rule, params, grads, STEPS)
    seen = []
    some, state = signcore_cupy.run(rule, params, grads, 2)
    rest = signcore_cupy.run(
        rule, some, grads, STEPS - 2, state=state, callback=lambda step, *_: seen.append(step), every=2
    )
    assert words(rest, np.asarray) == words(whole, np.asarray)
    assert seen == [4, 6]


def test_resuming_what_cannot_be_read_needs_start(rule):
    grads, params = gradients(guarded.xp.asarray, "float32"), tree(guarded.xp.asarray, 0, "float32")
    whole = signcore_cupy.run(rule, params, grads, STEPS)
    some, state = signcore_cupy.run(rule, params, grads, 2)
    with pytest.raises(ValueError, match=r"`state` .* as `start`"):
        signcore_cupy.run(rule, some, grads, STEPS - 2, state=state)
    rest = signcore_cupy.run(rule, some, grads, STEPS - 2, state=state, start=2)
    assert words(rest, guarded.read) == words(whole, guarded.read)


def test_an_iterable_of_gradients(rule):
    grads, params = gradients(np.asarray, "float32"), tree(np.asarray, 0, "float32")
    expected = signcore_cupy.run(rule, params, grads, 3)
    endless = (grads(None, step) for step in itertools.count())
    assert words(signcore_cupy.run(rule, params, endless, 3), np.asarray) == words(expected, np.asarray)
    assert words(endless.__next__(), np.asarray) == words(grads(None, 3), np.asarray)  # no more than 3 were taken


def test_an_iterable_that_ends_early_ends_the_run(rule):
    grads, params = gradients(np.asarray, "float32"), tree(np.asarray, 0, "float32")
    got = signcore_cupy.run(rule, params, [grads(None, step) for step in range(3)], 100)
    assert words(got, np.asarray) == words(signcore_cupy.run(rule, params, grads, 3), np.asarray)


def test_no_steps(rule):
    params = tree(np.asarray, 0, "float32")
    got, state = signcore_cupy.run(rule, params, None.__eq__, 0)
    assert words((got, state), np.asarray) == words((params, rule.init(params)), np.asarray)


def test_callback_sees_every_so_many_steps(rule):
    seen = []
    params = np.asarray([1.0], dtype=np.float32)
    signcore_cupy.run(
        rule, params, lambda p, k: p, 7, callback=lambda k, p, s: seen.append((k, float(p[0]), int(s.step))), every=3
    )
    assert seen == [(3, 1 - 3 * 0.125, 3), (6, 1 - 6 * 0.125, 6)]


def test_hyper_for_a_run_and_for_a_step(rule):
    params = np.asarray([1.0], dtype=np.float32)
    half = signcore_cupy.run(rule, params, lambda p, k: p, 2, hyper={"lr": 0.25})
    assert half[0][0] == 0.5
    growing = signcore_cupy.run(rule, params, lambda p, k: p, 2, hyper=lambda step: {"lr": 0.25 * (step + 1)})
    assert growing[0][0] == 0.25


@pytest.mark.parametrize("where", ["grad_fn", "callback", "step"])
def test_ctrl_c_leaves_what_can_be_resumed(monkeypatch, where):
    rule = sc.rule("lion", lr=0.01)
    grads, params = gradients(np.asarray, "float32"), tree(np.asarray, 0, "float32")
    whole = signcore_cupy.run(rule, params, grads, STEPS)

    def stopping(params, step):
        if where == "grad_fn" and step == 4:
            raise KeyboardInterrupt
        return grads(params, step)

    def callback(step, params, state):
        if where == "callback" and step == 4:
            raise KeyboardInterrupt

    if where == "step":  # inside the arithmetic of the fifth step
        calls, message = itertools.count(), type(rule).message_leaf

        def breaking(self, *args):
            if next(calls) == 4 * 3 + 1:
                raise KeyboardInterrupt
            return message(self, *args)

        monkeypatch.setattr(type(rule), "message_leaf", breaking)
    with pytest.raises(KeyboardInterrupt) as stopped:
        signcore_cupy.run(rule, params, stopping, STEPS, callback=callback, foreach=False)
    monkeypatch.undo()
    reached = stopped.value
    assert isinstance(reached, signcore_cupy.Interrupted)
    assert reached.step == int(reached.state.step) == 4
    rest = signcore_cupy.run(rule, reached.params, grads, STEPS - reached.step, state=reached.state)
    assert words(rest, np.asarray) == words(whole, np.asarray)


@pytest.mark.parametrize(("terminal", "progress", "shown"), [(True, None, True), (True, False, False),
                                                             (False, None, False), (False, True, True)])  # fmt: skip
def test_progress_bar(monkeypatch, rule, terminal, progress, shown):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    signcore_cupy.run(rule, np.asarray([1.0]), lambda p, k: p, 3, progress=progress)
    assert ("3/3" in stderr.getvalue()) is shown
    assert bool(stderr.getvalue()) is shown


PRINTING = """
import numpy as np, signcore as sc, signcore_cupy
rule = sc.rule(sc.rules()[0], lr=0.1)
signcore_cupy.run(rule, np.ones(1), lambda p, k: p, 3, callback=lambda step, *_: print("reached", step))
"""


def test_prints_of_callbacks_stay_on_stdout():
    ours, theirs = os.openpty()  # a terminal as stderr, a pipe as stdout: python train.py > log.txt
    started = subprocess.Popen([sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody has open by an error
        while read := os.read(ours, 4096):
            shown += read
    os.close(ours)
    printed, _ = started.communicate()
    assert started.returncode == 0, shown
    assert b"3/3" in shown
    assert b"reached" not in shown
    assert printed.split() == b"reached 1 reached 2 reached 3".split()


def test_no_bar_without_rich(monkeypatch, rule):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    signcore_cupy.run(rule, np.asarray([1.0]), lambda p, k: p, 3, progress=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "lion"}, r"`rule` is 'lion'; pass a rule"),
        ({"grad_fn": 3}, r"`grad_fn` is 3; pass a function"),
        ({"steps": -1}, r"`steps` is -1; pass an int of at least 0"),
        ({"steps": 2.0}, r"`steps` is 2.0"),
        ({"every": 0}, r"`every` is 0; pass an int of at least 1"),
        ({"start": -2}, r"`start` is -2"),
        ({"state": {"step": 3}}, r"`state` is a dict"),
        ({"grad_fn": lambda p, k: [p]}, r"`grads` and `params` are different trees"),
        ({"hyper": {"rate": 1.0}}, r"`hyper` is 'rate'"),
    ],
)
def test_bad_arguments(rule, changes, message):
    arguments = {"rule": rule, "params": np.asarray([1.0]), "grad_fn": lambda p, k: p, "steps": 2} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        signcore_cupy.run(**arguments)


@pytest.mark.parametrize(
    "read", [bool, float, int, complex, np.asarray, list, len, lambda x: x.item(), lambda x: [1][x]]
)
def test_the_guard_itself_refuses(read):
    with pytest.raises(guarded.SynchronisationError):
        read(guarded.xp.asarray(0, dtype=guarded.xp.int32))


def test_the_guard_notices_a_rule_that_reads(monkeypatch, rule):
    monkeypatch.setattr(type(rule), "apply_leaf", lambda self, p, a, s, h: (a.sign if bool(a.sign[0]) else p, s))
    with pytest.raises(guarded.SynchronisationError):
        signcore_cupy.run(rule, guarded.xp.asarray([1.0], dtype=np.float32), lambda p, k: p, 1)


DRAWN = np.random.default_rng(8).integers(-(2**31), 2**31, 1000).astype(np.int32)
PRIMITIVES = {
    **{
        kind: lambda x, w, kind=kind: sums.finish(kind, sums.partial(kind, *([x, x] if kind == "dot" else [x])))
        for kind in sums.KINDS
    },
    "arcsin4pi": lambda x, w: ops.arcsin4pi(ops.clamp(x, 1.0)),
    "words": lambda x, w: random.words(w[:2], w[2], 100),
    "normal": lambda x, w: random.normal(w),
    "uniform": lambda x, w: random.uniform(w),
    "bernoulli": lambda x, w: random.bernoulli(w, 0.25),
    "stochastic_sign": lambda x, w: random.stochastic_sign(x, sums.norm2(x), w),
    "stochastic_round": lambda x, w: random.stochastic_round(x, "float16", w),
    "pack": lambda x, w: bits.unpack_ternary(bits.pack_ternary(x), 1000, "float32"),
    "vote": lambda x, w: tally.majority(bits.pack(x)[None, ...]),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_never_read_from_the_device(name):
    x = np.random.default_rng(7).standard_normal(1000).astype(np.float32) * np.float32(1e10)
    expected = PRIMITIVES[name](x, DRAWN)
    got = PRIMITIVES[name](guarded.xp.asarray(x), guarded.xp.asarray(DRAWN))
    assert np.asarray(expected).tobytes() == guarded.read(got).tobytes()
