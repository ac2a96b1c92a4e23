"""Joined leaves in the loop: every word as leaf by leaf, in as many operations for many leaves as for few."""

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest

import signcore as sc
import signcore_cupy
from signcore import joined, tapes
from signcore_conformance import __main__, golden, launches
from signcore_conformance.backends import BACKENDS

_spec = importlib.util.spec_from_file_location("guarded_array", Path(__file__).with_name("guarded_array.py"))
guarded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(guarded)
guarded.xp.floor = lambda x: guarded.GuardedArray(np.floor(guarded.read(x)))  # of annealed noise

STEPS = 3
VARIANTS = [(name, rule) for name in sc.rules() for rule in golden.variants(name)]
VARIANTS += [("cautious", sc.cautious(sc.Lion(lr=0.1, weight_decay=0.1))),
             ("cautious_decay", sc.cautious_decay(sc.Signum(lr=0.1, weight_decay=0.1)))]  # fmt: skip
each_variant = pytest.mark.parametrize(
    ("name", "rule"), VARIANTS, ids=[f"{n}-{k}" for k, (n, _) in enumerate(VARIANTS)]
)
each_rule = pytest.mark.parametrize("rule", [golden.variants(name)[0] for name in sc.rules()], ids=sc.rules())


def tree(seed, make=np.asarray):
    """Leaves of two dtypes, a 0-d one, an empty one, one that lies in memory in another order, and none."""
    draw = np.random.default_rng(seed)

    def leaf(*shape, dtype="float32"):
        return make(np.asarray(draw.standard_normal(shape)).astype(dtype))

    return {
        "w": [leaf(3, 5), leaf(7, dtype="float64"), None],
        "b": {"scale": leaf(), "none": leaf(0, 4), "turned": make(draw.standard_normal((4, 3)).astype(np.float32).T)},
        "z": (leaf(9, dtype="float64"), leaf(130)),
    }


GRADS = [tree(seed) for seed in range(1, STEPS + 1)]


def grad_fn(params, step):
    """The drawn gradients, and where a rule asks elsewhere, those plus the params."""
    return mapped(lambda p, g: g + p * p.dtype.type(0.25), params, GRADS[step])


def value_fn(params, step):
    return sum(float(np.sum(np.abs(p))) for p in leaves(params))


def leaves(node):
    if node is None or hasattr(node, "dtype"):
        return [] if node is None else [node]
    return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]


def mapped(function, node, *others):
    if node is None or any(other is None for other in others):
        return None
    if hasattr(node, "dtype"):
        found = function(node, *others)
        return None if found is None else np.asarray(found)
    if isinstance(node, dict):
        return {key: mapped(function, node[key], *(other[key] for other in others)) for key in node}
    return type(node)(mapped(function, *each) for each in zip(node, *others, strict=True))


def words(node, read=np.asarray):
    if node is None:
        return None
    if hasattr(node, "dtype"):
        array = read(node)
        return array.dtype.name, array.shape, array.tobytes()
    if isinstance(node, dict):
        return {key: words(child, read) for key, child in node.items()}
    return type(node).__name__, [words(child, read) for child in node]


def both(rule, grads=grad_fn, params=None, steps=STEPS, **more):
    """A run leaf by leaf and a joined one, with all that their callbacks saw."""
    found = []
    for foreach in (False, True):
        seen = []
        options = {"value_fn": value_fn, "progress": False, **more, "foreach": foreach}
        options["callback"] = lambda *now, seen=seen: seen.append((now[0], words(now[1]), words(now[2])))
        end = signcore_cupy.run(rule, tree(0) if params is None else params, grads, steps, **options)
        found.append((words(end[0]), words(end[1]), seen))
    return found


@pytest.fixture
def counted(monkeypatch):
    """How many arrays the elementwise part of each step of a rule was given."""
    seen = []
    real = sc.Rule.step

    def step(self, params, *rest, **more):
        seen.append(len(leaves(params)))
        return real(self, params, *rest, **more)

    monkeypatch.setattr(sc.Rule, "step", step)
    return seen


@each_variant
def test_every_word_of_every_step_is_that_of_leaf_by_leaf(name, rule):
    apart, together = both(rule)
    assert apart == together


@each_rule
def test_checkpoints_are_the_same_files_and_either_form_goes_on_from_them(rule, tmp_path):
    ends, files = [], []
    for k, (first, second) in enumerate([(False, False), (False, True), (True, False)]):
        path = tmp_path / str(k)
        more = {"value_fn": value_fn, "checkpoint": path, "save_every": 1}
        signcore_cupy.run(rule, tree(0), grad_fn, 2, foreach=first, **more)
        middle = path.read_bytes()
        ends.append(words(signcore_cupy.run(rule, tree(0), grad_fn, STEPS, foreach=second, **more)))
        files.append((middle, path.read_bytes()))
    assert all(end == ends[0] for end in ends)
    assert all(file == files[0] for file in files)


@each_rule
@pytest.mark.parametrize("where", ["never", "always", "sometimes"])
def test_gradients_of_none(rule, where):
    """A leaf that joins late, one that is frozen and one that comes and goes, with all that flags say of them."""

    def some(params, step):
        grads = grad_fn(params, step)
        if where == "always":
            grads["w"][0] = grads["b"]["none"] = None  # the latter is the first leaf of its vector
        if where == "sometimes":
            grads["z"] = (grads["z"][0], None) if step == 0 else grads["z"]
            grads["b"]["scale"] = None if step == 1 else grads["b"]["scale"]
        return grads if where != "never" else mapped(lambda p: None, params)

    def loss(params, step):
        return 1.0

    apart, together = both(rule, some, value_fn=loss)
    assert apart == together


@each_rule
def test_a_state_whose_flags_differ_goes_on(rule):
    def late(params, step):
        grads = grad_fn(params, step)
        grads["z"] = (None, grads["z"][1])
        return grads

    params, state = signcore_cupy.run(rule, tree(0), late, 1, value_fn=value_fn, foreach=False)
    for start in (None, 1):
        apart, together = both(rule, params=params, steps=2, state=state, start=start)
        assert apart == together


@each_rule
def test_bad_gradients_are_skipped_alike(rule):
    def bad(params, step):
        grads = grad_fn(params, step)
        grads["z"][1][3] = np.nan if step == 1 else 0.0
        return grads

    apart, together = both(rule.replace(nonfinite="skip"), bad)
    assert apart == together


def test_joined_are_all_rules_but_those_with_something_of_each_leaf(counted):
    """Of the 7 leaves, two vectors."""
    apart = {name for name in sc.rules() if not joined.fits(golden.variants(name)[0])}
    for name in sc.rules():
        counted.clear()
        signcore_cupy.run(golden.variants(name)[0], tree(0), grad_fn, 2, value_fn=value_fn, foreach=True)
        assert counted == ([7, 7] if name in apart else [2, 2]), name
    assert len(apart) < len(sc.rules()) / 3
    packed = next(rule for _, rule in VARIANTS if "packed" in rule.kinds.values())
    for rule in (sc.Tiger(lr=0.1), sc.EFSignSGD(lr=0.1), packed, sc.cautious(sc.Lion(lr=0.1))):
        assert not joined.fits(rule)  # a rate, a scale, bits, a share of each leaf
    for rule in (sc.SGD(lr=0.1), sc.ALIAS(), sc.SSDM(lr=0.1), sc.Tiger(lr=0.1, scale_by_rms=False)):
        assert joined.fits(rule)  # flags, sums over the tree, noise; an option that measures nothing


def test_a_leaf_of_its_own_history_is_a_vector_of_its_own(counted):
    def some(params, step):
        grads = grad_fn(params, step)
        grads["w"][0] = None
        return grads

    signcore_cupy.run(sc.SGD(lr=0.1, momentum=0.5), tree(0), some, 3, foreach=True)
    assert counted == [3, 3, 3]


def test_what_is_faster_is_the_default(counted):
    rule, small = sc.SignSGD(lr=0.1), [np.ones(10, np.float32)] * 3
    large = [np.ones(40000, np.float32)] * 2
    for params, expected in ((small, 1), (large, 2), ([*small, *large], 1)):
        signcore_cupy.run(rule, params, lambda p, k: p, 1)
        assert counted.pop() == expected
    device = [guarded.xp.asarray(p) for p in large]
    signcore_cupy.run(rule, device, lambda p, k: p, 1)
    signcore_cupy.run(rule, device, lambda p, k: p, 1, foreach=False)
    assert counted == [1, 2]


@pytest.mark.parametrize("make", [guarded.xp.asarray, array_api_strict.asarray], ids=["guarded", "strict"])
@each_rule
def test_other_arrays(rule, make):
    """Those of a device that must not be waited for, the lookups of noise included, and strict ones."""
    read = guarded.read if make is guarded.xp.asarray else np.asarray
    drawn = {name: np.asarray(p) for name, p in zip("abcd", (tree(3)["z"][1], *leaves(tree(4)["b"])), strict=True)}
    params = {name: make(p) for name, p in drawn.items()}
    more = {"value_fn": lambda p, k: make(np.float32(1.0)), "foreach": True}
    got = signcore_cupy.run(rule, params, lambda p, k: params, STEPS, **more)
    more = {"value_fn": lambda p, k: 1.0, "foreach": False}
    expected = signcore_cupy.run(rule, drawn, lambda p, k: drawn, STEPS, **more)
    assert words(got, read) == words(expected)


def test_words_of_a_vector_are_those_of_its_leaves(monkeypatch):
    sizes = (5, 0, 1, 1000)
    keys = [sc.random.stream_key(3, str(k)) for k in range(len(sizes))]
    step = np.asarray(7, np.int32)
    expected = np.concatenate([sc.random.words(key, step, size) for key, size in zip(keys, sizes, strict=True)])
    for make, read in ((np.asarray, np.asarray), (guarded.xp.asarray, guarded.read)):
        tape = tapes.Tape([[(make(key), size) for key, size in zip(keys, sizes, strict=True)]])
        assert read(tape.words(make(step))[0]).tobytes() == expected.tobytes()
    monkeypatch.setattr(tapes, "_MOST", 1006)  # vectors whose indices are no int32 are drawn leaf by leaf
    tape = tapes.Tape([[(guarded.xp.asarray(key), size) for key, size in zip(keys, sizes, strict=True)]])
    assert tape.lookups == [None]
    assert guarded.read(tape.words(guarded.xp.asarray(step))[0]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("where", ["grad_fn", "callback", "step"])
def test_ctrl_c(monkeypatch, where):
    rule = sc.Signum(lr=0.01, form="heavy_ball")
    whole = signcore_cupy.run(rule, tree(0), grad_fn, STEPS, foreach=True)

    def stopping(params, step):
        if where == "grad_fn" and step == 2:
            raise KeyboardInterrupt
        if where == "step" and step == 2:
            monkeypatch.setattr(type(rule), "apply_leaf", interrupt)
        return grad_fn(params, step)

    def interrupt(*_):
        raise KeyboardInterrupt

    def callback(step, params, state):
        if where == "callback" and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(signcore_cupy.Interrupted) as stopped:
        signcore_cupy.run(rule, tree(0), stopping, STEPS, callback=callback, foreach=True)
    monkeypatch.undo()
    reached = stopped.value
    assert reached.step == int(reached.state.step) == 2
    assert words((reached.params, reached.state)) == words(signcore_cupy.run(rule, tree(0), grad_fn, 2, foreach=False))
    rest = signcore_cupy.run(rule, reached.params, grad_fn, STEPS - 2, state=reached.state, foreach=True)
    assert words(rest) == words(whole)


@pytest.mark.parametrize("rule", [sc.SignSGD(lr=0.1), sc.SignSGD(lr=0.1, nonfinite="raise")])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: {**g, "w": g["w"][:2]},
        lambda g: {**g, "w": [g["w"][0].astype(np.float64), *g["w"][1:]]},
        lambda g: {**g, "w": [g["w"][0].T, *g["w"][1:]]},
        lambda g: {**g, "w": [g["w"][0], [g["w"][1]], None]},
        lambda g: {**g, "w": [g["w"][0], g["w"][1], g["w"][1]]},
        lambda g: {**g, "w": [g["w"][0], array_api_strict.asarray(g["w"][1]), None]},
        lambda g: {**g, "w": [g["w"][0] * np.float32(np.nan), 3.0, None]},
        lambda g: {**g, "w": [g["w"][0] * np.float32(np.nan), *g["w"][1:]]},
    ],
)
def test_errors_are_those_of_leaf_by_leaf(rule, wrong):
    found = []
    for foreach in (False, True):
        try:
            signcore_cupy.run(rule, tree(0), lambda p, k: wrong(grad_fn(p, k)), 1, foreach=foreach)
            found.append(None)
        except (TypeError, ValueError, FloatingPointError) as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]
    assert found[0] is not None or "nonfinite='raise'" not in repr(rule)


@pytest.mark.parametrize("argument", [1, "yes"])
def test_foreach_is_checked(argument):
    with pytest.raises(TypeError, match=f"`foreach` is {argument!r}; pass True"):
        signcore_cupy.run(sc.SignSGD(lr=0.1), tree(0), grad_fn, 1, foreach=argument)


def test_a_state_of_other_params_is_refused_as_it_was():
    rule = sc.SGD(lr=0.1, momentum=0.5)
    state = rule.init({"w": np.ones(3), "b": np.ones(2)})
    for foreach in (False, True):
        with pytest.raises(ValueError, match=r"`state.velocity` and `params` are different trees"):
            signcore_cupy.run(rule, tree(0), grad_fn, 1, state=state, foreach=foreach)


def test_arrays_are_never_written_to():
    params = tree(0)
    before, grads = words(params), [words(g) for g in GRADS]
    signcore_cupy.run(sc.Lion(lr=0.1), params, lambda p, k: GRADS[k], STEPS, foreach=True)
    assert words(params) == before
    assert [words(g) for g in GRADS] == grads


COUNTED = [(name, rule) for name, rule in VARIANTS if joined.fits(rule) and rule.state_dtype != "bfloat16"]  # no CuPy's


@pytest.mark.parametrize(("name", "rule"), COUNTED, ids=[f"{n}-{k}" for k, (n, _) in enumerate(COUNTED)])
def test_operations_per_step_do_not_grow_with_the_leaves(name, rule):
    few, many = (launches.per_step(np.asarray, rule, count) for count in (3, 30))
    assert few == many > 3


def test_operations_leaf_by_leaf_do():
    rule = sc.SignSGD(lr=0.1)
    few, many = (launches.per_step(np.asarray, rule, count, foreach=False) for count in (3, 30))
    assert many > 8 * few


def test_the_counter_counts():
    box = launches.Counter("array_api_compat.cupy", np)
    x = box.hold(np.ones((2, 3), np.float32))
    assert box.count == 0
    y = box.xp.where(x > 0.0, x + 1.0, -x)
    assert box.count == 4
    z = box.xp.reshape(y, (-1,))[1:]  # views launch nothing
    assert box.count == 4
    assert z.shape == (5,)
    box.xp.concat([z, z])
    assert box.count == 5
    assert float(box.xp.sum(z)) == 10.0
    assert box.count == 6


def test_what_gpu_reports():
    """NumPy's arrays in the place of CuPy's; without CuPy nothing is said."""
    numpy = next(backend for backend in BACKENDS if backend.name == "numpy")
    cupy = SimpleNamespace(
        backends=[dataclasses.replace(numpy, name="cupy")], plan=SimpleNamespace(rules=["lion", "tiger"])
    )
    found = __main__.launches_of(cupy)
    assert list(found) == ["lion", "tiger"]
    assert found["lion"]["10"] == found["lion"]["100"] == found["lion"]["1"] + 1  # the gradients are joined
    assert found["tiger"]["100"] > found["tiger"]["10"] > found["tiger"]["1"]
    assert f"lion: {found['lion']['1']}, {found['lion']['10']}, {found['lion']['100']}" in launches.described(found)
    assert __main__.launches_of(SimpleNamespace(backends=[numpy], plan=cupy.plan)) == {}
