"""What every rule promises, asked of every rule that is found, and of each of its options."""

import copy
import dataclasses
import pickle
from collections import OrderedDict, defaultdict
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from every_option import BESIDE, CLASSES, VARIANTS, buildable, numbers_for_all, options, other_number

import signcore as sc
from signcore import blocks, dtypes, frameworks, ops, schedules, vote
from signcore.rules.signsgd import SignSGD
from signcore.rules.signum import Signum
from signcore.tree import flatten, unflatten

INT32_MAX = 2**31 - 1


def machinery(rule):
    """What of the base a rule makes use of."""
    wires = {wire.aggregate for wire in rule._wires.values()}
    partials = {partial.kind or name for name, partial in rule.partials.items() if name != "nonfinite"}
    extra = {name for name in ("settlements", "draws_noise", "applies_noise") if getattr(rule, name)}
    return {*rule.kinds.values(), *wires, *partials, *rule.needs, *extra, rule.scope}


def representatives():
    """A few rules that between them make use of everything; what is slow is asked of them."""
    left = {name: machinery(VARIANTS[name]) for name in CLASSES}
    chosen = []
    while any(left.values()):
        chosen.append(max(sorted(left), key=lambda name: len(left[name])))
        done = left[chosen[-1]]
        left = {name: features - done for name, features in left.items()}
    return sorted(chosen)


REPRESENTATIVES = representatives()
# A coordinate's step depends on its own numbers alone.
ELEMENTWISE = [name for name in CLASSES if not VARIANTS[name].partials and not VARIANTS[name].settlements]
RNG = np.random.default_rng(0)
PARAMS = RNG.standard_normal(37).astype(np.float32)
GRADS = RNG.standard_normal((5, 37)).astype(np.float32)
GRADS[:, :6] = np.float32([0.0, -0.0, 1e-38, -(2.0**-101), 1e3, -3.0])
HOSTILE = GRADS.copy()  # what makes NumPy warn of overflow
HOSTILE[:, 4] = 3e38
HOSTILE[1, 10:13] = np.float32([np.inf, -np.inf, np.nan])
LIBRARIES = ("numpy-readonly", "torch", "array-api-strict")


def cells():
    """Each rule and each library; the other variants take turns. The suite of conformance/ has the whole product."""
    for k, (name, rule) in enumerate(VARIANTS.items()):
        able = LIBRARIES[:2] if rule.state_dtype in {"float16", "bfloat16"} else LIBRARIES
        for library in able if name in CLASSES else [able[k % len(able)]]:
            yield name, library


@pytest.fixture(params=cells(), ids="-".join)
def cell(request, libraries):
    """A variant, and a library that can hold its state."""
    name, library = request.param
    return VARIANTS[name], libraries[library]


@pytest.fixture(params=[*cells(), *((name, "jax") for name in REPRESENTATIVES)], ids="-".join)
def any_cell(request, libraries):
    """The same, and compiled by JAX, which costs seconds each."""
    name, library = request.param
    return VARIANTS[name], libraries[library]


@pytest.fixture(params=REPRESENTATIVES)
def representative(request):
    return VARIANTS[request.param]


@pytest.fixture(params=ELEMENTWISE)
def elementwise(request):
    return VARIANTS[request.param]


@pytest.fixture(params=[name for name in CLASSES if "weight_decay" in numbers_for_all(CLASSES[name])])
def decaying(request):
    return VARIANTS[request.param]


@pytest.fixture(params=VARIANTS)
def rule(request):
    return VARIANTS[request.param]


@pytest.fixture(params=sc.rules())
def plain(request):
    return VARIANTS[request.param]


def loss(params):
    """Of any library, and the same number in each."""
    leaves = [leaf for _, leaf in flatten(params) if leaf is not None]
    return ops.norm1(leaves) + 1.0 if leaves else 1.0  # above the lower bound that some rules ask for


def halves(params):
    """Gradients at other params, exact."""
    leaves = [leaf for _, leaf in flatten(params)]
    return unflatten(params, [None if x is None else frameworks.namespace(x).astype(x * 0.5, x.dtype) for x in leaves])


def inputs(rule, params):
    """What a step of the rule needs beside the gradients."""

    def seen(params):
        return -loss(params) if rule.maximize else loss(params)  # what is raised, and is below minus the lower bound

    made = {"value": lambda: seen(params), "value_fn": lambda: seen, "grad_fn": lambda: halves}
    return {name: made[name]() for name in rule.needs}


def quiet(rule):
    """NumPy warns of overflow: of second moments in float16, of rates that run away, in scalars of a skipped step."""
    may = rule.state_dtype == "float16" or rule.name not in ELEMENTWISE
    return np.errstate(over="ignore", invalid="ignore") if may else nullcontext()


def step_of(rule, params, g, state, **options):
    with quiet(rule):
        return rule.step(params, g, state, **inputs(rule, params), **options)


def delta_of(rule, params, g, state, **options):
    with quiet(rule):
        return rule.delta(params, g, state, **inputs(rule, params), **options)


def run(rule, params=PARAMS, grads=GRADS, names=None, **options):
    state = rule.init(params, names=names)
    for g in grads:
        params, state = step_of(rule, params, g, state, **options)
    return params, state


def arrays_of(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]


# -- the boxes ---------------------------------------------------------------------------------------------


def scalars_of(rule, params, g, state):
    given = {name: each for name, each in inputs(rule, params).items() if name != "value_fn"}
    return rule.finish(rule.measure(params, g, state, **given))


def second_round(rule, params, g, state, message, scalars):
    """(aggregate of one worker's message, all scalars)."""
    aggregate = vote.alone_in_trees(rule._wires, message, params)
    return aggregate, {**scalars, **rule.finish(rule.settle(params, g, aggregate, state, scalars))}


def boxes(rule, params, g, state):
    scalars = scalars_of(rule, params, g, state)
    message, state = rule.message(params, g, state, scalars)
    aggregate, scalars = second_round(rule, params, g, state, message, scalars)
    given = {name: each for name, each in inputs(rule, params).items() if name == "value_fn"}
    with quiet(rule):
        return rule.apply(params, g, aggregate, state, scalars, **given)


def test_message_then_apply_is_delta(any_cell, same):
    rule, backend = any_cell
    both = backend.compiled(lambda p, g, s: (delta_of(rule, p, g, s), boxes(rule, p, g, s)))
    step = backend.compiled(partial(step_of, rule))
    params, state = backend.array(PARAMS), rule.init(backend.array(PARAMS))
    for g in map(backend.array, GRADS[:2]):
        same(*both(params, g, state))
        params, state = step(params, g, state)


def test_message_then_apply_is_delta_when_a_step_is_skipped(plain, same):
    rule = plain.replace(nonfinite="skip")
    state = run(rule)[1]
    for g in (GRADS[0], np.where(GRADS[0] == -3.0, np.float32(np.nan), GRADS[0])):
        same(boxes(rule, PARAMS, g, state), delta_of(rule, PARAMS, g, state))


def test_measure_gives_what_partials_names(plain):
    given = {name: each for name, each in inputs(plain, PARAMS).items() if name != "value_fn"}
    for rule in (plain, plain.replace(nonfinite="skip")):
        partials = rule.measure(PARAMS, GRADS[0], rule.init(PARAMS), **given)
        assert set(partials) == set(rule.partials)
        for partial_, how in zip(partials.values(), map(rule.partials.get, partials), strict=True):
            assert partial_.dtype.kind == "i"
            assert (how.merge, how.over) in {(m, o) for m in ("sum", "max") for o in ("shards", "workers")}
    assert set(rule.partials) - set(plain.partials) == {"nonfinite"}
    bad = rule.measure(PARAMS, np.full(37, np.inf, np.float32), rule.init(PARAMS), **given)
    assert (bad["nonfinite"].dtype, int(bad["nonfinite"])) == (np.int32, 1)


def test_an_elementwise_rule_measures_nothing(elementwise):
    assert elementwise.measure(PARAMS, GRADS[0], elementwise.init(PARAMS)) == {}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_step_is_params_plus_delta_in_the_compute_dtype_rounded_once(plain, dtype, same):
    params, g = PARAMS.astype(dtype), np.clip(GRADS[0], -1e4, 1e4).astype(dtype)
    state = plain.init(params)
    delta, after = delta_of(plain, params, g, state)
    wide = np.float64 if dtype is np.float64 else np.float32
    assert delta.dtype == dtype
    same(step_of(plain, params, g, state), ((params.astype(wide) + delta.astype(wide)).astype(dtype), after))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_delta_is_rounded_before_it_is_added(dtype, differ):
    # arithmetic.md section 2: optax wants the update in the gradient's dtype, so that is where it is rounded, also
    # in step. One rounding of p + delta would give other words.
    rule = SignSGD(lr=0.01, weight_decay=0.3)
    params = np.random.default_rng(4).standard_normal(20000).astype(dtype)
    grads = np.ones_like(params)
    exact = -(np.float32(0.01) * (np.float32(1.0) + np.float32(0.3) * params.astype(np.float32)))
    once = (params.astype(np.float32) + exact).astype(dtype)
    assert differ(step_of(rule, params, grads, rule.init(params))[0], once)


# -- purity ------------------------------------------------------------------------------------------------


def test_nothing_that_is_passed_in_is_written_to(rule):
    params = {"a": PARAMS.copy(), "b": [PARAMS[:4].astype(np.float16), PARAMS[:3].astype(np.float64)]}
    grads = {"a": GRADS[0].copy(), "b": [GRADS[0][:4].astype(np.float16), GRADS[0][:3].astype(np.float64)]}
    state = run(rule, params, [grads])[1]
    before = pickle.dumps((params, grads, state))
    for array in arrays_of((params, grads, state)):
        array.flags.writeable = False
    new_params, new_state = step_of(rule, params, grads, state)
    changes = delta_of(rule, params, grads, state)
    boxes(rule, params, grads, state)
    assert pickle.dumps((params, grads, state)) == before
    for array in arrays_of(new_params):
        assert array.flags.writeable
        assert not any(np.shares_memory(array, old) for old in arrays_of((params, grads, state)))
    for array in arrays_of((new_state, changes)):  # a buffer that is used again must not change what was kept
        assert not any(np.shares_memory(array, old) for old in arrays_of((params, grads)))


def test_torch_tensors_are_not_written_to_either(plain, same):
    params, g = torch.tensor(PARAMS), torch.tensor(GRADS[0])
    state = plain.init(params)
    kept = copy.deepcopy((params, g, state))
    version = params._version, g._version
    step_of(plain, params, g, state)
    same((params, g, tuple(state)), (*kept[:2], tuple(kept[2])))
    assert (params._version, g._version) == version


def test_torch_states_hold_none_of_the_callers_tensors(rule, same):
    params, g = torch.tensor(PARAMS), torch.tensor(GRADS[0])
    _, state = step_of(rule, params, g, rule.init(params))
    kept = copy.deepcopy(tuple(state))
    params.zero_()
    g.zero_()
    same(tuple(state), kept)


def test_a_rule_called_twice_answers_twice_the_same(rule, same):
    state = run(rule)[1]
    same(step_of(rule, PARAMS, GRADS[0], state), step_of(rule, PARAMS, GRADS[0], state))


def test_parameters_that_want_gradients_need_no_context(plain, same):
    parameter = torch.nn.Parameter(torch.tensor(PARAMS))
    state = plain.init(parameter)
    params, after = step_of(plain, parameter, torch.tensor(GRADS[0]), state)
    same(params, step_of(plain, PARAMS, GRADS[0], plain.init(PARAMS))[0])
    assert not any(leaf.requires_grad for leaf in after if isinstance(leaf, torch.Tensor))
    assert parameter.grad is None


@pytest.mark.parametrize(
    "view",
    [
        lambda x: np.asfortranarray(x.reshape(1, -1).repeat(3, axis=0)),
        lambda x: np.stack([x, x, x])[::2],
        lambda x: x[::-1],
        lambda x: np.broadcast_to(x, (2, x.size)),
    ],
    ids=["column-major", "strided", "reversed", "broadcast"],
)
def test_the_layout_in_memory_does_not_matter(plain, view, same):
    params, g = view(PARAMS), view(GRADS[0])
    same(
        step_of(plain, params, g, plain.init(params)),
        step_of(plain, params.copy(order="C"), g.copy(order="C"), plain.init(params)),
    )


def test_cutting_leaves_into_blocks_changes_no_word(rule, same, monkeypatch):
    whole = run(rule)
    for size in (8, 36, 37):
        monkeypatch.setattr(blocks, "SIZE", size)
        same(run(rule), whole)


# -- trees -------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    weight: object
    bias: object


def test_containers_come_back_as_they_were_and_change_no_word(plain, same):
    a, b = PARAMS[:5], PARAMS[5:]
    ga, gb = GRADS[0][:5], GRADS[0][5:]
    flat = {"a": a, "b": b}
    expected, _ = step_of(plain, flat, {"a": ga, "b": gb}, plain.init(flat, names=["a", "b"]))
    for build in (
        lambda x, y: {"a": x, "b": y},
        lambda x, y: {"b": y, "a": x},
        lambda x, y: [x, y],
        lambda x, y: (x, [y]),
        lambda x, y: Pair(x, y),
        lambda x, y: {"layers": [Pair(x, None), {"deep": (y,)}], "none": None, "empty": {}},
        lambda x, y: OrderedDict(z=x, a=y),
        lambda x, y: defaultdict(list, a=x, b=y),
    ):
        params, grads = build(a, b), build(ga, gb)
        called = {id(a): "a", id(b): "b"}  # noise is drawn by name
        names = [called.get(id(leaf), path) for path, leaf in flatten(params)]
        new, state = step_of(plain, params, grads, plain.init(params, names=names))
        same(new, build(expected["a"], expected["b"]))
        assert type(new) is type(params)
        assert jax.tree.structure(new) == jax.tree.structure(params)
        if isinstance(params, dict):
            assert list(new) == list(params)
        for field, kind in plain.kinds.items():
            if kind in ("element", "copy"):
                assert jax.tree.structure(getattr(state, field)) == jax.tree.structure(params)


def test_the_order_of_insertion_changes_no_noise(same):
    rule = SignSGD(lr=1.0, sign_zero="random")
    zero = np.zeros(9, np.float32)
    one, two = {"a": zero, "b": zero}, {"b": zero, "a": zero}
    same(step_of(rule, one, one, rule.init(one)), step_of(rule, two, two, rule.init(two)))


def test_leaves_do_not_share_their_noise_and_names_carry_it(differ, same):
    rule = SignSGD(lr=1.0, sign_zero="random")
    zero = np.zeros(64, np.float32)
    params = {"a": zero, "b": zero}
    delta, _ = delta_of(rule, params, params, rule.init(params))
    assert differ(delta["a"], delta["b"])
    swapped, _ = delta_of(rule, params, params, rule.init(params, names=["b", "a"]))
    same(swapped, {"a": delta["b"], "b": delta["a"]})


def test_an_empty_tree_only_counts_its_steps(rule):
    for empty in ({}, [], (), None, {"a": None}, {"a": {}, "b": [None]}):
        params, state = step_of(rule, empty, empty, rule.init(empty))
        assert params == empty
        assert int(state.step) == 1
        assert delta_of(rule, empty, empty, state)[0] == empty


def test_a_bare_array_of_no_dimensions(cell, same):
    rule, backend = cell
    p, g = backend.array(np.asarray(PARAMS[7])), backend.array(np.asarray(GRADS[0][7]))
    params, state = backend.compiled(partial(step_of, rule))(p, g, rule.init(p))
    assert type(params) is type(p)
    assert params.shape == ()
    one = step_of(rule, PARAMS[7:8], GRADS[0][7:8], rule.init(PARAMS[7:8]))
    same(params, one[0].reshape(()))
    for field, mark in rule._marks.items():
        if mark.kind == "element" and field in rule.kinds:
            same(getattr(state, field), getattr(one[1], field).reshape(()))


def test_a_numpy_scalar_is_an_array_of_no_dimensions(plain, same):
    params, _ = step_of(plain, PARAMS[0], GRADS[0][7], plain.init(PARAMS[0]))
    assert type(params) is np.ndarray
    same(params, step_of(plain, PARAMS[:1], GRADS[0][7:8], plain.init(PARAMS[:1]))[0].reshape(()))


def test_any_shape_is_kept(cell):
    rule, backend = cell
    for shape in ((0,), (3, 0), (1,), (1, 1, 1), (2, 3, 4)):
        p = backend.array(np.ones(shape, np.float32))
        params, state = backend.compiled(partial(step_of, rule))(p, p, rule.init(p))
        assert tuple(params.shape) == shape
        for field, mark in rule._marks.items():
            if mark.kind == "element" and field in rule.kinds:
                assert tuple(getattr(state, field).shape) == shape


def test_a_mixed_tree_keeps_each_dtype(plain):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    params = [PARAMS.astype(kind) for kind in kinds]
    mixed, state = run(plain, params, [[np.clip(g, -1e4, 1e4).astype(kind) for kind in kinds] for g in GRADS])
    for i, kind in enumerate(kinds):
        assert mixed[i].dtype == kind
        for field, layout in plain.kinds.items():
            if layout == "element":
                assert getattr(state, field)[i].dtype == (np.float64 if kind is np.float64 else np.float32)
            elif layout == "copy":
                assert getattr(state, field)[i].dtype == kind


def test_a_mixed_tree_keeps_each_leaf_its_own_words(elementwise, same):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    params = [PARAMS.astype(kind) for kind in kinds]
    grads = [[np.clip(g, -1e4, 1e4).astype(kind) for kind in kinds] for g in GRADS]
    mixed, state = run(elementwise, params, grads)
    for i in range(4):
        alone, own = run(elementwise, params[i], [g[i] for g in grads], names=[str(i)])
        same(mixed[i], alone)
        for field, kind in elementwise.kinds.items():
            if kind == "element":
                same(getattr(state, field)[i], getattr(own, field))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_state_is_kept_in_the_dtype_that_was_asked_for(plain, kind):
    params, grads = PARAMS.astype(kind), np.clip(GRADS[:2], -1e4, 1e4).astype(kind)
    for state_dtype in ("float16", "bfloat16", "float32"):
        _, state = run(plain.replace(state_dtype=state_dtype), params, grads)
        for field, layout in plain.kinds.items():
            if layout == "element":
                assert dtypes.name_of(getattr(state, field).dtype) == state_dtype
            elif layout == "copy":
                assert getattr(state, field).dtype == kind


def test_a_missing_gradient_leaves_its_leaf_and_state_alone(rule, same):
    params = {"a": PARAMS[:20], "b": PARAMS[20:]}
    grads = [{"a": g[:20], "b": g[20:]} for g in GRADS]
    params, state = run(rule, params, grads)
    delta, after = delta_of(rule, params, {"a": grads[0]["a"], "b": None}, state)
    assert delta["b"] is None
    new, stepped = step_of(rule, params, {"a": grads[0]["a"], "b": None}, state)
    same(new["b"], params["b"])
    same(tuple(after), tuple(stepped))
    for field, mark in rule._marks.items():
        if mark.kind not in ("shared", "scalar") and getattr(state, field) is not None:
            same(getattr(stepped, field)["b"], getattr(state, field)["b"])
    assert int(stepped.step) == len(GRADS) + 1
    if not rule.partials and not rule.settlements:
        same(new["a"], step_of(rule, params, grads[0], state)[0]["a"])


def test_a_bare_gradient_of_none_is_no_gradient(plain, same):
    state = run(plain)[1]
    params, after = step_of(plain, PARAMS, None, state)
    same(params, PARAMS)
    assert int(after.step) == int(state.step) + 1
    for field, kind in plain.kinds.items():
        if kind not in ("shared", "scalar"):
            same(getattr(after, field), getattr(state, field))


# -- hyperparameters ---------------------------------------------------------------------------------------

SPELLINGS = {
    "float": float,
    "float32": np.float32,
    "float64": np.float64,
    "0-d float32": lambda x: np.asarray(x, np.float32),
    "0-d float64": lambda x: np.asarray(x, np.float64),
    "one element": lambda x: np.asarray([x], np.float32),
}


def changed(rule):
    """Another value of each number that the rule accepts beside the others."""
    values = {}
    for name in rule.numbers():
        if buildable(rule.replace, **values, **{name: other_number(rule, name)}) is not None:
            values[name] = other_number(rule, name)
    return values


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_hyper_is_the_rule_built_anew(plain, spelling, same):
    values = changed(plain)
    built = run(plain.replace(**values))
    same(run(plain, hyper={name: SPELLINGS[spelling](value) for name, value in values.items()}), built)


def test_each_number_can_be_overridden_alone(rule, same):
    for name, value in changed(rule).items():
        same(run(rule, hyper={name: np.asarray(value)}), run(rule.replace(**{name: value})))


def test_hyper_as_tensors_is_the_rule_built_anew(rule, same):
    values = changed(rule)
    built = run(rule.replace(**values))
    for kind in (torch.float32, torch.float64):
        tensors = {name: torch.tensor(value, dtype=kind) for name, value in values.items()}
        params, state = run(rule, torch.tensor(PARAMS), torch.tensor(GRADS), hyper=tensors)
        same((params, tuple(state)), (built[0], tuple(built[1])))


def test_hyper_as_traced_values_is_the_rule_built_anew(representative, same):
    plain = representative
    values = changed(plain)
    built = run(plain.replace(**values))
    step = jax.jit(lambda p, g, s, h: step_of(plain, p, g, s, hyper=h))
    params = jnp.asarray(PARAMS)
    state = plain.init(params)
    for g in GRADS:
        params, state = step(params, jnp.asarray(g), state, values)  # Python floats become traced float32
    same((params, tuple(state)), (built[0], tuple(built[1])))


def test_hyper_in_float64_keeps_float64_digits(plain, same):
    values = changed(plain)
    params, grads = PARAMS.astype(np.float64), GRADS.astype(np.float64)
    same(
        run(plain, params, grads, hyper={name: np.asarray(value) for name, value in values.items()}),
        run(plain.replace(**values), params, grads),
    )


def test_integers_are_numbers(same):
    same(run(SignSGD(lr=2, weight_decay=0)), run(SignSGD(lr=2.0)))
    same(run(SignSGD(), hyper={"lr": 2}), run(SignSGD(lr=2.0)))
    same(run(SignSGD(), hyper={"lr": np.int64(2)}), run(SignSGD(lr=2.0)))
    same(run(SignSGD(), hyper={"lr": np.asarray(2)}), run(SignSGD(lr=2.0)))


def test_a_rule_may_hold_arrays(same):
    same(run(Signum(lr=np.asarray(0.01), beta=np.float32(0.3))), run(Signum(lr=0.01, beta=0.3)))
    same(run(Signum(lr=torch.tensor(0.01)), torch.tensor(PARAMS), torch.tensor(GRADS))[0], run(Signum(lr=0.01))[0])


def test_a_learning_rate_of_zero_moves_nothing(rule, same):
    if rule.name in ("rprop", "alias_adam"):  # where it is only the first size of a step; and whose d outgrows float32
        return
    params = np.where(PARAMS == 0.0, np.float32(1.0), PARAMS)
    new, state = run(rule.replace(lr=0.0), params)
    same(new, params)
    assert int(state.step) == len(GRADS)


def test_a_huge_learning_rate_is_rounded_to_the_compute_dtype():
    g, p = np.float32([3.0, 0.0, -1.0]), np.float32([1.0, 1.0, 1.0])
    with np.errstate(all="ignore"):
        new = run(SignSGD(lr=1e300), p, [g])[0]
        wide = run(SignSGD(lr=1e300), p.astype(np.float64), [g.astype(np.float64)])[0]
    assert new.tolist()[::2] == [-np.inf, np.inf]
    assert np.isnan(new[1])  # inf * 0, as IEEE has it
    assert wide.tolist() == [-1e300, 1.0, 1e300]


SCHEDULES = {
    "constant": schedules.constant(0.01),
    "inverse_sqrt": schedules.inverse_sqrt(0.01),
    "cosine": schedules.cosine(0.01, total_steps=4),
    "step": schedules.step(0.01, size=2),
    "warmup": schedules.linear_warmup(0.01, 3, then=schedules.inverse_sqrt(0.01)),
}


@pytest.mark.parametrize("lr", list(SCHEDULES.values()), ids=list(SCHEDULES))
def test_a_schedule_is_read_at_the_states_step(plain, lr, same):
    params, state = PARAMS, plain.init(PARAMS)
    for k, g in enumerate(GRADS):
        params, state = step_of(plain, params, g, state, hyper={"lr": lr(k)})
    same(run(plain.replace(lr=lr)), (params, state))


@pytest.mark.parametrize("lr", list(SCHEDULES.values()), ids=list(SCHEDULES))
def test_a_schedule_is_the_same_in_every_library(lr, other, same):
    rule = Signum(lr=lr, weight_decay=0.1)
    here, there = run(rule), run(rule, other.array(PARAMS), [other.array(g) for g in GRADS])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


def test_a_schedule_may_come_with_the_call(same):
    lr = schedules.inverse_sqrt(0.01)
    same(run(SignSGD(), hyper={"lr": lr}), run(SignSGD(lr=lr)))


def test_a_foreign_schedule_is_called_with_the_step_and_taken_as_given(same):
    seen = []

    def halving(step):
        seen.append(int(step))
        return 0.5 ** (int(step) + 1)

    params, _ = run(SignSGD(lr=halving))
    assert seen == [0, 1, 2, 3, 4]
    expected, state = PARAMS, SignSGD().init(PARAMS)
    for k, g in enumerate(GRADS):
        expected, state = SignSGD().step(expected, g, state, hyper={"lr": 0.5 ** (k + 1)})
    same(params, expected)


def test_decay_mask_keeps_decay_off_a_leaf(decaying, same):
    rule, params = decaying, {"weight": PARAMS, "bias": PARAMS}
    grads = {"weight": GRADS[0], "bias": GRADS[0]}
    state = rule.init(params)
    mask = {"bias": False, "weight": True}
    scalars = scalars_of(rule, params, grads, state)
    message, sent = rule.message(params, grads, state, scalars)
    aggregate, scalars = second_round(rule, params, grads, sent, message, scalars)
    for masked in (
        delta_of(rule, params, grads, state, decay_mask=mask)[0],
        delta_of(rule, params, grads, state, decay_mask=mask, hyper={"weight_decay": np.asarray(0.1)})[0],
        rule.apply(params, grads, aggregate, sent, scalars, decay_mask=mask)[0],
    ):
        same(masked["weight"], delta_of(rule, params, grads, state)[0]["weight"])
        same(masked["bias"], delta_of(rule.replace(weight_decay=0.0), params, grads, state)[0]["bias"])


@pytest.mark.parametrize("name", [name for name in CLASSES if not VARIANTS[name].needs])
def test_maximize_negates_the_gradients(name, same):
    # whoever is given a loss must read it the other way round, too: see the rules' own tests
    same(run(VARIANTS[name].replace(maximize=True)), run(VARIANTS[name], grads=-GRADS))


def test_decay_still_shrinks_when_maximizing(elementwise, same):
    zero = np.zeros_like(PARAMS)
    same(
        delta_of(elementwise.replace(maximize=True), PARAMS, zero, elementwise.init(PARAMS))[0],
        delta_of(elementwise, PARAMS, zero, elementwise.init(PARAMS))[0],
    )


def test_an_infinite_parameter_without_decay_gives_no_nan(elementwise):
    plain = elementwise
    params = np.float32([np.inf, -np.inf, 1.0])
    for hyper in ({"weight_decay": 0.0}, {"weight_decay": np.asarray(0.0)}):
        with np.errstate(invalid="ignore"):  # of the product that is not taken
            delta, _ = delta_of(plain, params, np.ones(3, np.float32), plain.init(params), hyper=hyper)
        assert np.all(np.isfinite(delta))


def test_needs_params_says_whether_a_delta_reads_them(elementwise):
    plain = elementwise
    assert plain.needs_params
    assert not plain.replace(weight_decay=0.0).needs_params
    assert plain.replace(weight_decay=np.asarray(0.0)).needs_params


# -- every option matters ----------------------------------------------------------------------------------


def workloads(option):
    """Params, gradients and workers in which a value may show."""
    params, grads = PARAMS.astype(np.float64), GRADS.astype(np.float64)  # so that state in float32 is narrower, too
    if option == "nonfinite":
        grads[2, 9] = np.nan
    yield params, [[g] for g in grads]
    yield params, [[g, -g, g[::-1]][:2] for g in grads]  # ties
    yield params, [[g, -g, g[::-1]] for g in grads]
    yield params, [[g] for g in np.ones((60, 37))]  # until averages are near one
    yield params, [[1e-9 * g] for g in grads]
    tree = {"a": {"x": params[:9], "y": params[9:20]}, "b": {"x": params[20:]}}
    yield tree, [[{"a": {"x": g[:9], "y": g[9:20]}, "b": {"x": g[20:]}}] for g in grads]


def together(rule, params, grads_of_workers):
    states = None
    for grads in grads_of_workers:
        given = inputs(rule, params)
        if "grad_fn" in given:
            given["grad_fns"] = [given.pop("grad_fn")] * len(grads)
        if getattr(rule, "aggregation", "majority") == "weighted":
            given["weights"] = [3.0, 1.0, 1.0][: len(grads)]
        with np.errstate(invalid="ignore", over="ignore"):
            params, states = sc.simulate(rule, params, grads, states, **given)
    return params, states


# What these do shows only in settings of their own, which are in tests/rules/test_<name>.py.
ELSEWHERE = {
    ("alias_compact", "d0"),
    ("dithered_signum", "sign_zero"),
    ("hybrid", "steps_per_epoch"),
    ("hybrid", "switch_epoch"),
    ("hybrid", "tolerance"),
    ("noisy_signsgd", "sign_zero"),
    ("rprop", "size_min"),
    ("signum", "form"),
    ("ssdm", "beta"),
    ("ssdm", "sign_zero"),
}
OPTIONS = [each for each in options() if each[:2] not in ELSEWHERE]


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS)
def test_every_value_of_every_option_changes_a_word(name, option, value, differ):
    cls = CLASSES[name]
    if option == "state_dtype" and "element" not in VARIANTS[name].kinds.values():
        assert int(VARIANTS[name].replace(state_dtype=value).init(PARAMS).step) == 0  # nothing of it is to be stored
        return
    if option == "weight_decay" and name not in {n for n in CLASSES if "weight_decay" in numbers_for_all(CLASSES[n])}:
        with pytest.raises(ValueError, match="`weight_decay` is"):
            cls(lr=0.01, weight_decay=value)
        return
    if option == "nonfinite" and value == "raise":
        with pytest.raises(FloatingPointError):
            run(VARIANTS[name].replace(nonfinite="raise"), grads=np.where(GRADS == 3.0, np.nan, GRADS) * np.nan)
        return
    for beside in BESIDE:
        others = {"lr": 0.01} | {key: each for key, each in beside.items() if key != option}
        base, other = buildable(cls, **others), buildable(cls, **{**others, option: value})
        if base is None or other is None:
            continue
        for params, grads in workloads(option):
            if differ(together(base, params, grads), together(other, params, grads)):
                return
    pytest.fail(f"{option}={value!r} of {name} changes nothing")


# -- sign(0) -----------------------------------------------------------------------------------------------


COINS = [name for name in CLASSES if buildable(CLASSES[name], lr=0.01, sign_zero="random") is not None]
DRAWING = [name for name in CLASSES if name in COINS or VARIANTS[name].draws_noise]
# the words are the same whatever the rule: one rule for JAX, where each costs seconds of compilation
NOISY = [(name, library) for name in DRAWING for library in LIBRARIES]


def drawing(name):
    options = {"sign_zero": "random"} if name in COINS else {}
    return VARIANTS[name].replace(**options, **({"seed": 7} if hasattr(VARIANTS[name], "seed") else {}))


@pytest.fixture(params=DRAWING)
def random_rule(request):
    return drawing(request.param)


@pytest.mark.parametrize(("name", "library"), [*NOISY, (DRAWING[-1], "jax")])
def test_given_noise_is_the_noise_that_is_drawn(name, library, libraries, same):
    random_rule, backend = drawing(name), libraries[library]
    params = backend.tree({"a": PARAMS, "b": np.zeros((2, 3), np.float32), "c": np.asarray(np.float32(0.0))})
    grads = backend.tree({"a": GRADS[0], "b": np.zeros((2, 3), np.float32), "c": np.asarray(np.float32(0.0))})
    state = random_rule.init(params)
    draw, step = backend.compiled(random_rule.noise), backend.compiled(partial(step_of, random_rule))
    step_with = backend.compiled(lambda p, g, s, noise: step_of(random_rule, p, g, s, noise=noise))
    for _ in range(2):
        noise = draw(params, state)
        given = step_with(params, grads, state, noise)
        params, state = step(params, grads, state)
        same((params, tuple(state)), (given[0], tuple(given[1])))
        assert tuple(noise["b"].shape) == (2, 3)
        assert "int32" in str(noise["b"].dtype)


@pytest.mark.parametrize("name", [name for name in COINS if not VARIANTS[name].draws_noise])
def test_the_given_noise_is_used(name, same):
    zero = np.zeros(4, np.float32)
    rule = VARIANTS[name].replace(lr=1.0, weight_decay=0.0, sign_zero="random")
    scalars = scalars_of(rule, zero, zero, rule.init(zero))
    message, _ = rule.message(zero, zero, rule.init(zero), scalars, noise=np.asarray([0, 1, 2, 3], np.int32))
    same(message.sign, np.float32([1.0, -1.0, 1.0, -1.0]))


@pytest.mark.parametrize(("name", "library"), [*NOISY, *((name, "jax") for name in REPRESENTATIVES if name in DRAWING)])
def test_every_backend_draws_the_same_noise(name, library, libraries, same):
    random_rule, other = drawing(name), libraries[library]
    grads = np.zeros_like(GRADS)
    here = run(random_rule, grads=grads)
    there = run(random_rule, other.array(PARAMS), [other.array(g) for g in grads])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


@pytest.mark.parametrize("name", [name for name in CLASSES if not VARIANTS[name].draws_noise])
def test_rules_without_coins_have_no_noise(name):
    plain = VARIANTS[name]
    state = plain.init(PARAMS)
    assert not plain.draws_noise
    assert plain.noise(PARAMS, state) is None
    assert getattr(state, "stream", None) is None


# -- gradients that are not finite -------------------------------------------------------------------------


@pytest.fixture(params=[np.inf, -np.inf, np.nan])
def bad(request):
    grads = {"w": GRADS[0].copy(), "b": GRADS[1].copy()}
    grads["b"][11] = request.param
    return grads


def check_skip(rule, bad, backend, same):
    rule = rule.replace(nonfinite="skip")
    both = backend.compiled(lambda p, g, s: (step_of(rule, p, g, s), delta_of(rule, p, g, s)))
    params = backend.tree({"w": PARAMS, "b": PARAMS})
    (params, state), _ = both(params, backend.tree({"w": GRADS[2], "b": GRADS[3]}), rule.init(params))
    params["b"] = backend.array(np.where(np.arange(37) < 3, np.float32(-0.0), PARAMS))
    stepped, (delta, after) = both(params, backend.tree(bad), state)
    same(stepped, (params, state))
    same(after, state)
    same(params["b"] + delta["b"], params["b"])  # whoever adds the delta, as optax does, keeps -0.0, too


def test_skip_leaves_parameters_state_and_step_as_they_are(plain, bad, libraries, same):
    check_skip(plain, bad, libraries["numpy"], same)


def test_skip_is_skip_in_every_library(any_cell, same):
    bad = {"w": GRADS[0], "b": np.where(GRADS[0] == -3.0, np.float32(np.nan), GRADS[1])}
    check_skip(any_cell[0], bad, any_cell[1], same)


def test_training_goes_on_after_a_skipped_step(plain, bad, same):
    rule = plain.replace(nonfinite="skip")
    params, grads = {"w": PARAMS, "b": PARAMS}, [{"w": GRADS[i], "b": GRADS[i + 1]} for i in (0, 2)]
    same(run(rule, params, [grads[0], bad, grads[1]]), run(plain, params, grads))


def test_skip_does_nothing_to_finite_gradients(rule, same):
    same(run(rule.replace(nonfinite="skip")), run(rule))


def test_raise_names_the_leaf_and_changes_nothing(cell):
    rule, backend = cell
    rule = rule.replace(nonfinite="raise")
    params = backend.tree({"w": PARAMS, "b": PARAMS})
    state = rule.init(params)
    for bad in (np.inf, -np.inf, np.nan):
        grads = backend.tree({"w": GRADS[0], "b": np.where(np.arange(37) == 11, np.float32(bad), GRADS[1])})
        with pytest.raises(FloatingPointError, match=r"`grads` at 'b' holds inf or NaN; nothing was changed: .*'skip'"):
            step_of(rule, params, grads, state)


def test_raise_does_nothing_to_finite_gradients(plain, same):
    same(run(plain.replace(nonfinite="raise")), run(plain))


@pytest.mark.parametrize("closed", [False, True])
def test_raise_under_a_trace_is_an_error_that_names_skip(representative, closed):
    rule = representative.replace(nonfinite="raise")
    p, g = jnp.asarray(PARAMS), jnp.asarray(GRADS[0])
    # closed over: gradients with values, inside a trace
    step = (
        (lambda *_: step_of(rule, p, g, rule.init(p))) if closed else (lambda p, g: step_of(rule, p, g, rule.init(p)))
    )
    with pytest.raises(ValueError, match=r"`nonfinite`='raise' cannot .* traced .*nonfinite='skip'"):
        jax.jit(step)(p, g)


def test_propagate_lets_nan_into_one_coordinate_only(elementwise, same):
    plain = elementwise
    grads = GRADS.copy()
    grads[0, 9] = np.nan
    with np.errstate(invalid="ignore"):
        params, state = run(plain, grads=grads)
    rest = np.arange(37) != 9
    same(params[rest], run(plain)[0][rest])
    assert int(state.step) == len(GRADS)


# -- the step counter --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library"), [(n, lib) for n in CLASSES for lib in LIBRARIES] + [(n, "jax") for n in REPRESENTATIVES]
)
def test_the_counter_is_an_int32_that_grows_by_one_in_apply(name, library, libraries):
    rule, backend = VARIANTS[name], libraries[library]
    params, g = backend.array(PARAMS), backend.array(GRADS[0])
    state = rule.init(params)
    assert "int32" in str(state.step.dtype)
    assert state.step.shape == ()
    scalars = scalars_of(rule, params, g, state)
    message, sent = rule.message(params, g, state, scalars)
    assert int(sent.step) == 0
    aggregate, scalars = second_round(rule, params, g, sent, message, scalars)
    given = {"value_fn": loss} if "value_fn" in rule.needs else {}
    _, after = rule.apply(params, g, aggregate, sent, scalars, **given)
    assert int(after.step) == 1
    assert type(after.step) is type(state.step)


def test_the_counter_stays_at_the_largest_int32(cell, same):
    rule, other = cell
    rule = rule.replace(lr=schedules.inverse_sqrt(0.01))
    results = []
    for array in (np.asarray, other.array):
        params = array(PARAMS)
        state = rule.init(params)._replace(step=array(np.asarray(INT32_MAX - 1, np.int32)))
        for g in GRADS[:3]:
            params, state = step_of(rule, params, array(g), state)
        assert int(state.step) == INT32_MAX
        results.append((params, tuple(state)))
    same(*results)


# -- rules as values ---------------------------------------------------------------------------------------


def test_equal_rules_are_equal_and_hash_alike(plain):
    twin = type(plain)(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    assert twin == plain
    assert hash(twin) == hash(plain)
    assert plain.replace(lr=0.5) != plain
    assert plain != object()
    assert len({twin, plain, plain.replace(lr=0.5)}) == 2


def test_rules_of_two_classes_are_never_equal():
    assert len({type(rule)(lr=0.1) for rule in VARIANTS.values()}) == len(sc.rules())


def test_rules_may_be_static_arguments_of_jit(representative, same):
    plain = representative
    step = jax.jit(step_of, static_argnums=0)
    p = jnp.asarray(PARAMS)
    new, _ = step(plain, p, jnp.asarray(GRADS[0]), plain.init(p))
    same(new, run(plain, grads=GRADS[:1])[0])


@pytest.mark.parametrize("array", [np.asarray(0.1), torch.tensor(0.1), jnp.asarray(0.1)], ids=["numpy", "torch", "jax"])
def test_a_rule_that_holds_an_array_says_why_it_has_no_hash(plain, array):
    with pytest.raises(TypeError, match=r"`lr` of this \w+ is an array, .*hyper=\{'lr': \.\.\.\}"):
        hash(plain.replace(lr=array))


def test_rules_survive_pickle_and_copies(rule, same):
    for twin in (pickle.loads(pickle.dumps(rule)), copy.copy(rule), copy.deepcopy(rule), dataclasses.replace(rule)):
        assert twin == rule
        same(run(twin), run(rule))


def test_state_survives_pickle(rule, same):
    params, state = run(rule)
    thawed = pickle.loads(pickle.dumps(state))
    same(step_of(rule, params, GRADS[0], thawed), step_of(rule, params, GRADS[0], state))


def test_rules_are_frozen_and_keyword_only(plain):
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.lr = 1.0
    with pytest.raises(TypeError):
        type(plain)(0.1)


def test_replace_checks_anew_and_knows_its_names(plain):
    assert plain.replace(lr=0.5).lr == 0.5
    assert plain.lr == 0.01
    with pytest.raises(ValueError, match=r"`lr` is -1\.0"):
        plain.replace(lr=-1.0)
    with pytest.raises(ValueError, match=r"`hyperparameter` is 'weight_deca'; did you mean 'weight_decay'\?"):
        plain.replace(weight_deca=0.1)


def test_the_registry_holds_the_classes_by_name():
    for name in sc.rules():
        rule = sc.rule(name, lr=0.1)
        assert rule.name == name
        assert getattr(sc, type(rule).__name__) is type(rule)
        assert type(rule).__name__ in sc.__all__
        assert type(rule).__name__.lower() == name.replace("_", "")
    assert sc.rules() == sorted(sc.rules())


def test_a_rule_by_name_and_by_class_are_the_same_rule():
    assert sc.rule("signum", lr=0.1, beta=0.5) == sc.Signum(lr=0.1, beta=0.5)


def test_wire_bits_count_a_sign_as_one_bit_only_where_it_cannot_be_zero(plain):
    bits = plain.wire_bits()
    assert list(bits) == list(plain.Message._fields)
    for name, wire in plain._wires.items():
        assert bits[name] in ({1.0, 2.0} if wire.bits is None else {wire.bits})
        if wire.bits is None and hasattr(plain, "sign_zero"):
            assert bits[name] == 2.0
            for policy in set(plain.__dataclass_fields__["sign_zero"].metadata["choices"]) - {"zero"}:
                assert plain.replace(sign_zero=policy).wire_bits()[name] == 1.0


def test_marks_describe_the_state_that_init_makes(rule):
    params = {"a": PARAMS, "b": PARAMS[:2].reshape(1, 2)}
    state = rule.init(params)
    assert list(rule._marks) == list(state._fields)
    assert state._fields[0] == "step"
    for field, mark in rule._marks.items():
        value = getattr(state, field)
        if field not in rule.kinds:
            assert value is None
        elif mark.kind == "shared":
            assert (value.dtype, value.shape) == (np.int32, ())
        elif mark.kind == "element":
            assert jax.tree.map(np.shape, value) == jax.tree.map(np.shape, params)
            assert not any(x.any() for x in value.values())
        elif mark.kind == "copy":
            assert jax.tree.map(lambda x: (x.shape, x.dtype), value) == jax.tree.map(
                lambda x: (x.shape, x.dtype), params
            )
        elif mark.kind == "packed":
            assert [(x.dtype, x.shape) for x in value.values()] == [(np.uint8, (5,)), (np.uint8, (1,))]
        elif mark.kind == "scalar":
            shapes = {"global": (), "group": (1,)}
            found = [(x.dtype, x.shape) for x in (value.values() if rule.scope == "leaf" else [value])]
            assert found == [(np.float32, shapes.get(rule.scope, ()))] * len(found)
        elif mark.kind == "leaf":
            assert [(x.dtype, x.shape) for x in value.values()] == [(np.int32, ())] * 2
        else:
            assert [(x.dtype, x.shape) for x in value.values()] == [(np.int32, (2,))] * 2


def test_a_rule_without_its_boxes_says_so():
    class Hollow(sc.Rule):
        State, Message = SignSGD.State, SignSGD.Message

    rule = Hollow(lr=0.1)
    with pytest.raises(TypeError, match="Hollow defines no message_leaf"):
        step_of(rule, PARAMS, GRADS[0], rule.init(PARAMS))


def test_a_users_own_subclass_is_a_rule(same):
    class Twice(SignSGD):
        def apply_leaf(self, p, aggregate, s, h):
            return ops.descent(h.lr, 2.0 * aggregate.sign, h.weight_decay, p), s

    assert Twice.name == "Twice"
    assert "Twice" not in sc.rules()
    same(run(Twice(lr=0.01)), run(SignSGD(lr=0.02)))


# -- other libraries ---------------------------------------------------------------------------------------


def test_every_library_gives_the_words_of_numpy(any_cell, same):
    rule, other = any_cell
    with np.errstate(all="ignore"):
        here = run(rule, grads=HOSTILE)
        there = run(rule, other.array(PARAMS), [other.array(g) for g in HOSTILE])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


def flushing():
    """Every rule, dtype and library; of other variants one each."""
    for name in VARIANTS:
        for dtype in ("float32", "float16", "bfloat16") if name in CLASSES else ["float32"]:
            yield from ((name, dtype, library) for library in (("numpy", "torch") if name in CLASSES else ["torch"]))


@pytest.mark.parametrize(("name", "dtype", "library"), list(flushing()))
def test_a_processor_that_flushes_subnormals_gives_the_same_words(name, dtype, library, libraries, same):
    rule, kind = VARIANTS[name], libraries[library].array
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    # torch.set_flush_denormal sets a flag of this thread's processor, which NumPy's loops obey, too.
    with np.errstate(all="ignore"):
        params, grads = PARAMS.astype(dtype), HOSTILE.astype(dtype)
        params[np.abs(params.astype(np.float32)) < 1e-6] = 0.0
        expected = run(rule, params, grads)
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot be told to flush subnormals")
        try:
            found = run(rule, kind(params), [kind(g) for g in grads])
        finally:
            torch.set_flush_denormal(False)
    same((found[0], tuple(found[1])), (expected[0], tuple(expected[1])))


@pytest.mark.parametrize(
    ("name", "library"),
    [(n, lib) for n in CLASSES for lib in ("numpy-readonly", "torch")] + [(n, "jax") for n in REPRESENTATIVES],
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_library_with_16_bits_gives_the_words_of_numpy(name, library, dtype, same, libraries):
    plain, other = VARIANTS[name], libraries[library]
    params, grads = PARAMS.astype(dtype), np.clip(GRADS, -6e4, 6e4).astype(dtype)
    here = run(plain, params, grads)
    there = run(plain, other.array(params), [other.array(g) for g in grads])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


@pytest.mark.parametrize("name", ["numpy-readonly", "array-api-strict", "torch"])
def test_every_library_with_float64_gives_the_words_of_numpy(plain, name, same, libraries):
    library = libraries[name]
    params, grads = PARAMS.astype(np.float64), GRADS.astype(np.float64)
    here = run(plain, params, grads)
    there = run(plain, library.array(params), [library.array(g) for g in grads])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


def test_a_run_may_change_its_library_in_the_middle(representative, same, libraries):
    plain = representative
    params, state = PARAMS, plain.init(PARAMS)
    for g, name in zip(GRADS, ["torch", "jax", "numpy", "array-api-strict", "torch"], strict=True):
        to = libraries[name].tree
        params, state = step_of(plain, to(params), to(g), to(state))
        params, state = jax.tree.map(np.asarray, (params, state))
    expected = run(plain)
    same((params, tuple(state)), (expected[0], tuple(expected[1])))


def test_weakly_typed_arrays_of_jax_are_arrays(representative, same):
    plain = representative
    p = jnp.asarray(1.5)
    assert p.weak_type
    carry = jax.lax.scan(
        lambda c, g: (step_of(plain, c[0], g, c[1]), None), (p, plain.init(p)), jnp.asarray(GRADS[:, 7])
    )[0]
    expected = run(plain, np.asarray(1.5, np.float32), GRADS[:, 7])
    same((carry[0], tuple(carry[1])), (expected[0], tuple(expected[1])))
