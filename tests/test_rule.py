"""What every rule promises, asked of every rule that is found, and of each of its options."""

import copy
import dataclasses
import pickle
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import signcore as sc
from signcore import blocks, dtypes, ops, schedules
from signcore.rules.signsgd import SignSGD
from signcore.rules.signum import Signum

INT32_MAX = 2**31 - 1


def variants():
    """Every rule with lr and decay, and with each value of each option that its checks accept."""
    found = {}
    for name, cls in sc.rule.__globals__["classes"]().items():
        base = {"lr": 0.01, "weight_decay": 0.1}
        found[name] = cls(**base)
        for field in dataclasses.fields(cls):
            for choice in field.metadata.get("choices", ()):
                if choice == field.default or field.name == "nonfinite":
                    continue
                for more in ({}, {"momentum": 0.9}):
                    try:
                        rule = cls(**base, **more, **{field.name: choice})
                    except (TypeError, ValueError):
                        continue
                    found[f"{name}-{field.name}={choice}"] = rule
        if "momentum" in found[name].numbers():
            found[f"{name}-momentum"] = cls(**base, momentum=0.9, dampening=0.3)
    return found


VARIANTS = variants()
RNG = np.random.default_rng(0)
PARAMS = RNG.standard_normal(37).astype(np.float32)
GRADS = RNG.standard_normal((5, 37)).astype(np.float32)
GRADS[:, :6] = np.float32([0.0, -0.0, 1e-38, -(2.0**-101), 1e3, -3.0])
HOSTILE = GRADS.copy()  # what makes NumPy warn of overflow
HOSTILE[:, 4] = 3e38
HOSTILE[1, 10:13] = np.float32([np.inf, -np.inf, np.nan])


def cells():
    """Variants and libraries, without 16-bit state where there is no such dtype and with few compilations."""
    for name, rule in VARIANTS.items():
        yield name, "numpy-readonly"
        yield name, "torch"
        if rule.state_dtype not in {"float16", "bfloat16"}:
            yield name, "array-api-strict"
        if "-" not in name or name in {"aass-variance=lagged", "sgd-nesterov=True", "lion-sign_zero=random"}:
            yield name, "jax"


@pytest.fixture(params=cells(), ids="-".join)
def cell(request, libraries):
    """A variant, and a library that can hold its state."""
    name, library = request.param
    return VARIANTS[name], libraries[library]


@pytest.fixture(params=VARIANTS)
def rule(request):
    return VARIANTS[request.param]


@pytest.fixture(params=sc.rules())
def plain(request):
    return VARIANTS[request.param]


def run(rule, params=PARAMS, grads=GRADS, **options):
    state = rule.init(params)
    for g in grads:
        params, state = rule.step(params, g, state, **options)
    return params, state


def arrays_of(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]


# -- the boxes ---------------------------------------------------------------------------------------------


def boxes(rule, params, g, state):
    scalars = rule.finish(rule.measure(params, g, state))
    message, state = rule.message(params, g, state, scalars)
    return rule.apply(params, g, message, state, scalars)


def test_message_then_apply_is_delta(cell, same):
    rule, backend = cell
    step, delta = backend.compiled(rule.step), backend.compiled(rule.delta)
    by_boxes = backend.compiled(lambda p, g, s: boxes(rule, p, g, s))
    params, state = backend.array(PARAMS), rule.init(backend.array(PARAMS))
    for g in map(backend.array, GRADS[:2]):
        same(delta(params, g, state), by_boxes(params, g, state))
        params, state = step(params, g, state)


def test_message_then_apply_is_delta_when_a_step_is_skipped(plain, same):
    rule = plain.replace(nonfinite="skip")
    state = run(rule)[1]
    for g in (GRADS[0], np.where(GRADS[0] == -3.0, np.float32(np.nan), GRADS[0])):
        same(boxes(rule, PARAMS, g, state), rule.delta(PARAMS, g, state))


def test_measure_is_empty_unless_a_policy_needs_it(plain):
    state = plain.init(PARAMS)
    assert plain.measure(PARAMS, GRADS[0], state) == {}
    partials = plain.replace(nonfinite="skip").measure({"a": PARAMS}, {"a": np.full(37, np.inf)}, state)
    assert list(partials) == list(plain.PARTIALS) == ["nonfinite"]
    assert partials["nonfinite"].dtype == np.int32
    assert int(partials["nonfinite"]) == 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_step_is_params_plus_delta_in_the_compute_dtype_rounded_once(plain, dtype, same):
    params, g = PARAMS.astype(dtype), np.clip(GRADS[0], -1e4, 1e4).astype(dtype)
    state = plain.init(params)
    delta, after = plain.delta(params, g, state)
    wide = np.float64 if dtype is np.float64 else np.float32
    assert delta.dtype == dtype
    same(plain.step(params, g, state), ((params.astype(wide) + delta.astype(wide)).astype(dtype), after))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_delta_is_rounded_before_it_is_added(dtype, differ):
    # arithmetic.md section 2: optax wants the update in the gradient's dtype, so that is where it is rounded, also
    # in step. One rounding of p + delta would give other words.
    rule = SignSGD(lr=0.01, weight_decay=0.3)
    params = np.random.default_rng(4).standard_normal(20000).astype(dtype)
    grads = np.ones_like(params)
    exact = -(np.float32(0.01) * (np.float32(1.0) + np.float32(0.3) * params.astype(np.float32)))
    once = (params.astype(np.float32) + exact).astype(dtype)
    assert differ(rule.step(params, grads, rule.init(params))[0], once)


# -- purity ------------------------------------------------------------------------------------------------


def test_nothing_that_is_passed_in_is_written_to(rule):
    params = {"a": PARAMS.copy(), "b": [PARAMS[:4].astype(np.float16), PARAMS[:3].astype(np.float64)]}
    grads = {"a": GRADS[0].copy(), "b": [GRADS[0][:4].astype(np.float16), GRADS[0][:3].astype(np.float64)]}
    state = run(rule, params, [grads])[1]
    before = pickle.dumps((params, grads, state))
    for array in arrays_of((params, grads, state)):
        array.flags.writeable = False
    new_params, _ = rule.step(params, grads, state)
    rule.delta(params, grads, state)
    boxes(rule, params, grads, state)
    assert pickle.dumps((params, grads, state)) == before
    for array in arrays_of(new_params):
        assert array.flags.writeable
        assert not any(np.shares_memory(array, old) for old in arrays_of((params, grads, state)))


def test_torch_tensors_are_not_written_to_either(plain, same):
    params, g = torch.tensor(PARAMS), torch.tensor(GRADS[0])
    state = plain.init(params)
    kept = copy.deepcopy((params, g, state))
    version = params._version, g._version
    plain.step(params, g, state)
    same((params, g, tuple(state)), (*kept[:2], tuple(kept[2])))
    assert (params._version, g._version) == version


def test_a_rule_called_twice_answers_twice_the_same(rule, same):
    state = run(rule)[1]
    same(rule.step(PARAMS, GRADS[0], state), rule.step(PARAMS, GRADS[0], state))


def test_parameters_that_want_gradients_need_no_context(plain, same):
    parameter = torch.nn.Parameter(torch.tensor(PARAMS))
    state = plain.init(parameter)
    params, after = plain.step(parameter, torch.tensor(GRADS[0]), state)
    same(params, plain.step(PARAMS, GRADS[0], plain.init(PARAMS))[0])
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
        plain.step(params, g, plain.init(params)),
        plain.step(params.copy(order="C"), g.copy(order="C"), plain.init(params)),
    )


@pytest.mark.parametrize("size", [8, 36, 37])
def test_cutting_leaves_into_blocks_changes_no_word(rule, size, same, monkeypatch):
    whole = run(rule)
    monkeypatch.setattr(blocks, "SIZE", size)
    same(run(rule), whole)


# -- trees -------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    weight: object
    bias: object


def test_containers_come_back_as_they_were_and_change_no_word(plain, same):
    a, b = PARAMS[:5], PARAMS[5:]
    ga, gb = GRADS[0][:5], GRADS[0][5:]
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
        new, state = plain.step(params, grads, plain.init(params))
        same(new, build(*(plain.step(p, g, plain.init(p))[0] for p, g in ((a, ga), (b, gb)))))
        assert type(new) is type(params)
        assert jax.tree.structure(new) == jax.tree.structure(params)
        if isinstance(params, dict):
            assert list(new) == list(params)
        for field, mark in plain._marks.items():
            if mark.kind == "element":
                assert jax.tree.structure(getattr(state, field)) == jax.tree.structure(params)


def test_the_order_of_insertion_changes_no_noise(same):
    rule = SignSGD(lr=1.0, sign_zero="random")
    zero = np.zeros(9, np.float32)
    one, two = {"a": zero, "b": zero}, {"b": zero, "a": zero}
    same(rule.step(one, one, rule.init(one)), rule.step(two, two, rule.init(two)))


def test_leaves_do_not_share_their_noise_and_names_carry_it(differ, same):
    rule = SignSGD(lr=1.0, sign_zero="random")
    zero = np.zeros(64, np.float32)
    params = {"a": zero, "b": zero}
    delta, _ = rule.delta(params, params, rule.init(params))
    assert differ(delta["a"], delta["b"])
    swapped, _ = rule.delta(params, params, rule.init(params, names=["b", "a"]))
    same(swapped, {"a": delta["b"], "b": delta["a"]})


def test_splitting_a_tensor_changes_nothing_for_an_elementwise_rule(plain, same):
    # the notes, section 0, I3.
    whole = run(plain)[0]
    parts = run(plain, [PARAMS[:10], PARAMS[10:]], [[g[:10], g[10:]] for g in GRADS])[0]
    same(whole, np.concatenate(parts))


def test_coordinates_may_be_permuted(plain, same):
    order = np.random.default_rng(1).permutation(37)
    same(run(plain)[0][order], run(plain, PARAMS[order], GRADS[:, order])[0])


@pytest.mark.parametrize("empty", [{}, [], (), None, {"a": None}, {"a": {}, "b": [None]}])
def test_an_empty_tree_only_counts_its_steps(rule, empty):
    params, state = rule.step(empty, empty, rule.init(empty))
    assert params == empty
    assert int(state.step) == 1
    assert rule.delta(empty, empty, state)[0] == empty


def test_a_bare_array_of_no_dimensions(cell, same):
    rule, backend = cell
    p, g = backend.array(np.asarray(PARAMS[7])), backend.array(np.asarray(GRADS[0][7]))
    params, state = backend.compiled(rule.step)(p, g, rule.init(p))
    assert type(params) is type(p)
    assert params.shape == ()
    one = rule.step(PARAMS[7:8], GRADS[0][7:8], rule.init(PARAMS[7:8]))
    same(params, one[0].reshape(()))
    for field, mark in rule._marks.items():
        if mark.kind == "element":
            same(getattr(state, field), getattr(one[1], field).reshape(()))


def test_a_numpy_scalar_is_an_array_of_no_dimensions(plain, same):
    params, _ = plain.step(PARAMS[0], GRADS[0][7], plain.init(PARAMS[0]))
    assert type(params) is np.ndarray
    same(params, plain.step(PARAMS[:1], GRADS[0][7:8], plain.init(PARAMS[:1]))[0].reshape(()))


def test_any_shape_is_kept(cell):
    rule, backend = cell
    for shape in ((0,), (2, 1, 3)) if backend.name == "jax" else ((0,), (3, 0), (1,), (1, 1, 1), (2, 3, 4)):
        p = backend.array(np.ones(shape, np.float32))
        params, state = backend.compiled(rule.step)(p, p, rule.init(p))
        assert tuple(params.shape) == shape
        for field, mark in rule._marks.items():
            if mark.kind == "element":
                assert tuple(getattr(state, field).shape) == shape


def test_a_mixed_tree_keeps_each_dtype_and_each_leaf_its_own_words(plain, same):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
    params = [PARAMS.astype(kind) for kind in kinds]
    grads = [[np.clip(g, -1e4, 1e4).astype(kind) for kind in kinds] for g in GRADS]
    mixed, state = run(plain, params, grads)
    for i, kind in enumerate(kinds):
        alone, own = run(plain, params[i], [g[i] for g in grads])
        assert mixed[i].dtype == kind
        same(mixed[i], alone)
        for field, mark in plain._marks.items():
            if mark.kind == "element":
                same(getattr(state, field)[i], getattr(own, field))
                assert getattr(own, field).dtype == (np.float64 if kind is np.float64 else np.float32)


@pytest.mark.parametrize("state_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_state_is_kept_in_the_dtype_that_was_asked_for(plain, kind, state_dtype):
    rule = plain.replace(state_dtype=state_dtype)
    _, state = run(rule, PARAMS.astype(kind), np.clip(GRADS, -1e4, 1e4).astype(kind))
    for field, mark in rule._marks.items():
        if mark.kind == "element":
            assert dtypes.name_of(getattr(state, field).dtype) == state_dtype


def test_a_missing_gradient_leaves_its_leaf_and_state_alone(rule, same):
    params = {"a": PARAMS[:20], "b": PARAMS[20:]}
    grads = [{"a": g[:20], "b": g[20:]} for g in GRADS]
    params, state = run(rule, params, grads)
    delta, after = rule.delta(params, {"a": grads[0]["a"], "b": None}, state)
    assert delta["b"] is None
    new, stepped = rule.step(params, {"a": grads[0]["a"], "b": None}, state)
    same(new["b"], params["b"])
    same(tuple(after), tuple(stepped))
    for field, mark in rule._marks.items():
        if mark.kind != "shared" and getattr(state, field) is not None:
            same(getattr(stepped, field)["b"], getattr(state, field)["b"])
    assert int(stepped.step) == len(GRADS) + 1
    everything = rule.step(params, grads[0], state)
    same(new["a"], everything[0]["a"])


def test_a_bare_gradient_of_none_is_no_gradient(plain, same):
    state = run(plain)[1]
    params, after = plain.step(PARAMS, None, state)
    same(params, PARAMS)
    same(tuple(after), tuple(state._replace(step=state.step + np.int32(1))))


# -- hyperparameters ---------------------------------------------------------------------------------------

SPELLINGS = {
    "float": float,
    "float32": np.float32,
    "float64": np.float64,
    "0-d float32": lambda x: np.asarray(x, np.float32),
    "0-d float64": lambda x: np.asarray(x, np.float64),
    "one element": lambda x: np.asarray([x], np.float32),
}
CHANGED = {"lr": 0.003, "weight_decay": 0.07}
OTHERS = {"beta": 0.3, "beta1": 0.3, "beta2": 0.7, "eps": 0.004, "momentum": 0.7, "dampening": 0.2}


def changed(rule):
    values = {name: (CHANGED | OTHERS)[name] for name in rule.numbers()}
    if getattr(rule, "nesterov", False):
        values.pop("dampening", None)
    return values


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_hyper_is_the_rule_built_anew(rule, spelling, same):
    values = changed(rule)
    built = run(rule.replace(**values))
    same(run(rule, hyper={name: SPELLINGS[spelling](value) for name, value in values.items()}), built)


def test_each_number_can_be_overridden_alone(rule, same):
    for name, value in changed(rule).items():
        same(run(rule, hyper={name: np.asarray(value)}), run(rule.replace(**{name: value})))


def test_hyper_as_tensors_is_the_rule_built_anew(rule, same):
    values = changed(rule)
    params, grads = torch.tensor(PARAMS), torch.tensor(GRADS)
    built = run(rule.replace(**values))
    for kind in (torch.float32, torch.float64):
        params, state = run(
            rule,
            params := torch.tensor(PARAMS),
            grads,
            hyper={k: torch.tensor(v, dtype=kind) for k, v in values.items()},
        )
        same((params, tuple(state)), (built[0], tuple(built[1])))


def test_hyper_as_traced_values_is_the_rule_built_anew(plain, same):
    values = changed(plain)
    built = run(plain.replace(**values))
    step = jax.jit(lambda p, g, s, h: plain.step(p, g, s, hyper=h))
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


@pytest.mark.parametrize(
    "lr",
    [
        schedules.constant(0.01),
        schedules.inverse_sqrt(0.01),
        schedules.cosine(0.01, total_steps=4),
        schedules.step(0.01, size=2),
        schedules.linear_warmup(0.01, 3, then=schedules.inverse_sqrt(0.01)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_schedule_is_read_at_the_states_step(plain, lr, other, same):
    by_schedule = run(plain.replace(lr=lr))
    params, state = PARAMS, plain.init(PARAMS)
    for k, g in enumerate(GRADS):
        params, state = plain.step(params, g, state, hyper={"lr": lr(k)})
    same(by_schedule, (params, state))
    elsewhere = run(plain.replace(lr=lr), other.array(PARAMS), [other.array(g) for g in GRADS])
    same((elsewhere[0], tuple(elsewhere[1])), (params, tuple(state)))


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


def test_decay_mask_keeps_decay_off_a_leaf(plain, same):
    params = {"weight": PARAMS, "bias": PARAMS}
    grads = {"weight": GRADS[0], "bias": GRADS[0]}
    state = plain.init(params)
    mask = {"bias": False, "weight": True}
    for masked in (
        plain.delta(params, grads, state, decay_mask=mask)[0],
        plain.delta(params, grads, state, decay_mask=mask, hyper={"weight_decay": np.asarray(0.1)})[0],
        plain.apply(params, grads, plain.message(params, grads, state)[0], state, decay_mask=mask)[0],
    ):
        same(masked["weight"], plain.delta(params, grads, state)[0]["weight"])
        same(masked["bias"], plain.replace(weight_decay=0.0).delta(params, grads, state)[0]["bias"])


def test_maximize_negates_the_gradients(plain, same):
    same(run(plain.replace(maximize=True)), run(plain, grads=-GRADS))


def test_decay_still_shrinks_when_maximizing(plain, same):
    zero = np.zeros_like(PARAMS)
    same(
        plain.replace(maximize=True).delta(PARAMS, zero, plain.init(PARAMS))[0],
        plain.delta(PARAMS, zero, plain.init(PARAMS))[0],
    )


def test_an_infinite_parameter_without_decay_gives_no_nan(plain):
    params = np.float32([np.inf, -np.inf, 1.0])
    for hyper in ({"weight_decay": 0.0}, {"weight_decay": np.asarray(0.0)}):
        with np.errstate(invalid="ignore"):  # of the product that is not taken
            delta, _ = plain.delta(params, np.ones(3, np.float32), plain.init(params), hyper=hyper)
        assert np.all(np.isfinite(delta))


def test_needs_params_says_whether_a_delta_reads_them(plain):
    assert plain.needs_params
    assert not plain.replace(weight_decay=0.0).needs_params
    assert plain.replace(weight_decay=np.asarray(0.0)).needs_params


# -- every option matters ----------------------------------------------------------------------------------


def options():
    for name, cls in sc.rule.__globals__["classes"]().items():
        for field in dataclasses.fields(cls):
            for choice in field.metadata.get("choices", ()):
                if choice != field.default:
                    yield name, field.name, choice
            if field.name == "seed":
                yield name, "seed", 1
            if "range" in field.metadata:
                yield name, field.name, (CHANGED | OTHERS)[field.name]


@pytest.mark.parametrize(("name", "option", "value"), list(options()))
def test_every_value_of_every_option_changes_a_word(name, option, value, differ):
    base = {"lr": 0.01, "weight_decay": 0.1}
    if option in {"nesterov", "dampening", "state_dtype"} and name == "sgd":
        base["momentum"] = 0.9
    if option == "seed":
        base["sign_zero"] = "random"
    if option == "state_dtype" and not any(mark.kind == "element" for mark in VARIANTS[name]._marks.values()):
        assert (
            VARIANTS[name].replace(state_dtype=value).init(PARAMS).step == 0
        )  # accepted, and there is nothing to store
        return
    params, grads = PARAMS.astype(np.float64), GRADS.astype(np.float64)  # so that state in float32 is narrower, too
    if option == "eps":
        grads = np.ones((60, 37))  # until the average is near one
    if option == "nonfinite":
        grads[2, 9] = np.nan
    default = sc.rule(name, **base)
    if option == "nonfinite" and value == "raise":
        with pytest.raises(FloatingPointError):
            run(default.replace(nonfinite="raise"), params, grads)
        return
    assert differ(run(default, params, grads), run(default.replace(**{option: value}), params, grads))


# -- sign(0) -----------------------------------------------------------------------------------------------


def draws(name):
    return "seed" in {field.name for field in dataclasses.fields(type(VARIANTS[name]))}


@pytest.fixture(params=[name for name in sc.rules() if draws(name)])
def random_rule(request):
    return VARIANTS[request.param].replace(sign_zero="random", seed=7)


DRAWING = [name for name in sc.rules() if draws(name)]
# the words are the same whatever the rule: one rule for JAX, where each costs seconds of compilation
NOISY = [(name, library) for name in DRAWING for library in ("numpy-readonly", "torch", "array-api-strict")]


@pytest.mark.parametrize(("name", "library"), [*NOISY, (DRAWING[-1], "jax")])
def test_given_noise_is_the_noise_that_is_drawn(name, library, libraries, same):
    random_rule, backend = VARIANTS[name].replace(sign_zero="random", seed=7), libraries[library]
    params = backend.tree({"a": PARAMS, "b": np.zeros((2, 3), np.float32), "c": np.asarray(np.float32(0.0))})
    grads = backend.tree({"a": GRADS[0], "b": np.zeros((2, 3), np.float32), "c": np.asarray(np.float32(0.0))})
    state = random_rule.init(params)
    draw, step = backend.compiled(random_rule.noise), backend.compiled(random_rule.step)
    step_with = backend.compiled(lambda p, g, s, noise: random_rule.step(p, g, s, noise=noise))
    for _ in range(2):
        noise = draw(params, state)
        given = step_with(params, grads, state, noise)
        params, state = step(params, grads, state)
        same((params, tuple(state)), (given[0], tuple(given[1])))
        assert tuple(noise["b"].shape) == (2, 3)
        assert "int32" in str(noise["b"].dtype)


def test_the_given_noise_is_used(random_rule, same):
    zero = np.zeros(4, np.float32)
    rule = random_rule.replace(lr=1.0, weight_decay=0.0)
    message, _ = rule.message(zero, zero, rule.init(zero), noise=np.asarray([0, 1, 2, 3], np.int32))
    same(message.sign, np.float32([1.0, -1.0, 1.0, -1.0]))


def test_every_backend_draws_the_same_coins(random_rule, other, same):
    grads = np.zeros_like(GRADS)
    here = run(random_rule, grads=grads)
    there = run(random_rule, other.array(PARAMS), [other.array(g) for g in grads])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


def test_rules_without_coins_have_no_noise(plain):
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
    both = backend.compiled(lambda p, g, s: (rule.step(p, g, s), rule.delta(p, g, s)))
    params = backend.tree({"w": PARAMS, "b": PARAMS})
    (params, state), _ = both(params, backend.tree({"w": GRADS[2], "b": GRADS[3]}), rule.init(params))
    params["b"] = backend.array(np.where(np.arange(37) < 3, np.float32(-0.0), PARAMS))
    stepped, (delta, after) = both(params, backend.tree(bad), state)
    same(stepped, (params, state))
    same(after, state)
    same(params["b"] + delta["b"], params["b"])  # whoever adds the delta, as optax does, keeps -0.0, too


def test_skip_leaves_parameters_state_and_step_as_they_are(rule, bad, libraries, same):
    check_skip(rule, bad, libraries["numpy"], same)


def test_skip_is_skip_in_every_library(cell, same):
    check_skip(cell[0], {"w": GRADS[0], "b": np.where(GRADS[0] == -3.0, np.float32(np.nan), GRADS[1])}, cell[1], same)


def test_training_goes_on_after_a_skipped_step(plain, bad, same):
    rule = plain.replace(nonfinite="skip")
    params, grads = {"w": PARAMS, "b": PARAMS}, [{"w": GRADS[i], "b": GRADS[i + 1]} for i in (0, 2)]
    same(run(rule, params, [grads[0], bad, grads[1]]), run(plain, params, grads))


def test_skip_does_nothing_to_finite_gradients(rule, same):
    same(run(rule.replace(nonfinite="skip")), run(rule))


def test_raise_names_the_leaf_and_changes_nothing(cell, bad):
    rule, backend = cell
    rule = rule.replace(nonfinite="raise")
    params = backend.tree({"w": PARAMS, "b": PARAMS})
    with pytest.raises(FloatingPointError, match=r"`grads` at 'b' holds inf or NaN; nothing was changed: .*'skip'"):
        rule.step(params, backend.tree(bad), rule.init(params))


def test_raise_does_nothing_to_finite_gradients(plain, same):
    same(run(plain.replace(nonfinite="raise")), run(plain))


@pytest.mark.parametrize("closed", [False, True])
def test_raise_under_a_trace_is_an_error_that_names_skip(plain, closed):
    rule = plain.replace(nonfinite="raise")
    p, g = jnp.asarray(PARAMS), jnp.asarray(GRADS[0])
    # closed over: gradients with values, inside a trace
    step = (lambda *_: rule.step(p, g, rule.init(p))) if closed else (lambda p, g: rule.step(p, g, rule.init(p)))
    with pytest.raises(ValueError, match=r"`nonfinite`='raise' cannot .* traced .*nonfinite='skip'"):
        jax.jit(step)(p, g)


def test_propagate_lets_nan_into_one_coordinate_only(plain, same):
    grads = GRADS.copy()
    grads[0, 9] = np.nan
    with np.errstate(invalid="ignore"):
        params, state = run(plain, grads=grads)
    rest = np.arange(37) != 9
    same(params[rest], run(plain)[0][rest])
    assert int(state.step) == len(GRADS)


# -- the step counter --------------------------------------------------------------------------------------


def test_the_counter_is_an_int32_that_grows_by_one_in_apply(plain, backend):
    params = backend.array(PARAMS)
    state = plain.init(params)
    assert "int32" in str(state.step.dtype)
    assert state.step.shape == ()
    message, sent = plain.message(params, backend.array(GRADS[0]), state)
    assert int(sent.step) == 0
    _, after = plain.apply(params, backend.array(GRADS[0]), message, sent)
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
            params, state = rule.step(params, array(g), state)
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


def test_rules_may_be_static_arguments_of_jit(plain, same):
    step = jax.jit(lambda rule, p, g, s: rule.step(p, g, s), static_argnums=0)
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
    same(rule.step(params, GRADS[0], thawed), rule.step(params, GRADS[0], state))


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
        assert type(rule).__name__.lower() == name
    assert sc.rules() == sorted(sc.rules())


def test_a_rule_by_name_and_by_class_are_the_same_rule():
    assert sc.rule("signum", lr=0.1, beta=0.5) == sc.Signum(lr=0.1, beta=0.5)


def test_wire_bits_count_a_vote_as_one_bit_only_where_no_sign_can_be_zero(plain):
    bits = plain.wire_bits()
    assert list(bits) == list(plain.Message._fields)
    for name, wire in plain._wires.items():
        assert bits[name] == (2.0 if wire.aggregate == "vote" else 32.0)
    if hasattr(plain, "sign_zero"):
        for policy in ("plus", "minus", "random"):
            assert set(plain.replace(sign_zero=policy).wire_bits().values()) == {1.0}


def test_marks_describe_the_state_that_init_makes(rule):
    params = {"a": PARAMS, "b": PARAMS[:2].reshape(1, 2)}
    state = rule.init(params)
    assert list(rule._marks) == list(state._fields)
    assert state._fields[0] == "step"
    for field, mark in rule._marks.items():
        value = getattr(state, field)
        if mark.kind == "shared":
            assert (value.dtype, value.shape) == (np.int32, ())
        elif mark.kind == "element":
            assert jax.tree.map(np.shape, value) == jax.tree.map(np.shape, params)
            assert not any(x.any() for x in value.values())
        elif mark.kind == "leaf":
            assert [(x.dtype, x.shape) for x in value.values()] == [(np.int32, ())] * 2
        elif rule.draws_noise:
            assert [(x.dtype, x.shape) for x in value.values()] == [(np.int32, (2,))] * 2
        else:
            assert value is None


def test_a_rule_without_its_boxes_says_so():
    class Hollow(sc.Rule):
        State, Message = SignSGD.State, SignSGD.Message

    rule = Hollow(lr=0.1)
    with pytest.raises(TypeError, match="Hollow defines no message_leaf"):
        rule.step(PARAMS, GRADS[0], rule.init(PARAMS))


def test_a_users_own_subclass_is_a_rule(same):
    class Twice(SignSGD):
        def apply_leaf(self, p, aggregate, s, h):
            return ops.descent(h.lr, 2.0 * aggregate.sign, h.weight_decay, p), s

    assert Twice.name == "Twice"
    assert "Twice" not in sc.rules()
    same(run(Twice(lr=0.01)), run(SignSGD(lr=0.02)))


# -- other libraries ---------------------------------------------------------------------------------------


def test_every_library_gives_the_words_of_numpy(cell, same):
    rule, other = cell
    with np.errstate(all="ignore"):
        here = run(rule, grads=HOSTILE)
        there = run(rule, other.array(PARAMS), [other.array(g) for g in HOSTILE])
    same((here[0], tuple(here[1])), (there[0], tuple(there[1])))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", [np.array, lambda x: torch.tensor(x.astype(np.float32)).to(TORCH[x.dtype.name])])
def test_a_processor_that_flushes_subnormals_gives_the_same_words(rule, kind, dtype, same):
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


TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("name", ["numpy-readonly", "torch", "jax"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_library_with_16_bits_gives_the_words_of_numpy(plain, name, dtype, same, libraries):
    other = libraries[name]
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


def test_a_run_may_change_its_library_in_the_middle(plain, same, libraries):
    params, state = PARAMS, plain.init(PARAMS)
    for g, name in zip(GRADS, ["torch", "jax", "numpy", "array-api-strict", "torch"], strict=True):
        to = libraries[name].tree
        params, state = plain.step(to(params), to(g), to(state))
        params, state = jax.tree.map(np.asarray, (params, state))
    expected = run(plain)
    same((params, tuple(state)), (expected[0], tuple(expected[1])))


def test_weakly_typed_arrays_of_jax_are_arrays(plain, same):
    p = jnp.asarray(1.5)
    assert p.weak_type
    carry = jax.lax.scan(lambda c, g: (plain.step(c[0], g, c[1]), None), (p, plain.init(p)), jnp.asarray(GRADS[:, 7]))[
        0
    ]
    expected = run(plain, np.asarray(1.5, np.float32), GRADS[:, 7])
    same((carry[0], tuple(carry[1])), (expected[0], tuple(expected[1])))
