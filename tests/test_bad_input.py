"""Bad input: each error names the argument in backticks, the value received and the way out, and changes nothing."""

import math
import pickle
import re
from typing import NamedTuple

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import signcore as sc
import signcore_torch
from signcore import schedules
from signcore.rules.signsgd import SignSGDMessage
from signcore_conformance import golden

P = np.float32([1.0, -2.0, 3.0])
G = np.float32([0.5, 0.25, -1.0])
# Rules of gradients alone: what any rule checks of its inputs is checked before anything is measured. What is special
# to the others (a missing loss, a lower bound) is in their own tests. Rprop's numbers have other ranges: tests/rules.
RULES = [name for name in golden.plain() if name != "rprop"]
BETAS = [
    (name, number) for name in sc.rules() for number in sc.rule(name, lr=0.1).numbers() if number.startswith("beta")
]


@pytest.fixture(params=RULES)
def rule(request):
    return sc.rule(request.param, lr=0.1)


def refuses(kind, call, *parts):
    """The message of the error that `call` raises; it holds each of `parts`."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    return message


def refuses_step(kind, rule, params, grads, state, *parts, **options):
    """The same of a step, a delta and the boxes; what was passed in is untouched."""
    before = pickle.dumps((params, grads, state, options))
    message = refuses(kind, lambda: rule.step(params, grads, state, **options), *parts)
    assert refuses(kind, lambda: rule.delta(params, grads, state, **options)) == message
    assert pickle.dumps((params, grads, state, options)) == before
    return message


# -- when the rule is built --------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [-1e-3, -1, np.float32(-0.5), float("nan"), float("inf"), np.float64("nan"), -np.inf])
@pytest.mark.parametrize("name", sc.rules())
def test_a_learning_rate_that_is_negative_or_not_finite(name, lr):
    refuses(ValueError, lambda: sc.rule(name, lr=lr), f"`lr` is {lr!r}; it must be finite and in [0, inf)")


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1, 1.5, float("nan"), float("inf"), np.float32(1.0)])
@pytest.mark.parametrize(("name", "argument"), BETAS)
def test_a_beta_outside_zero_to_one(name, argument, beta):
    message = f"`{argument}` is {beta!r}; it must be finite and in [0, 1)"
    refuses(ValueError, lambda: sc.rule(name, **{"lr": 0.1, argument: beta}), message)


def test_betas_at_the_ends_of_their_range():
    for name, argument in BETAS:
        sc.rule(name, **{"lr": 0.1, argument: 0.0})
        sc.rule(name, **{"lr": 0.1, argument: 1.0 - 2.0**-24})


@pytest.mark.parametrize("decay", [-1e-9, float("nan"), float("inf")])
def test_a_weight_decay_that_is_negative_or_not_finite(rule, decay):
    refuses(ValueError, lambda: rule.replace(weight_decay=decay), f"`weight_decay` is {decay!r}; it must be finite")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("signgd", "signsgd"), ("Signum", "signum"), ("ass", "aass"), ("lio", "lion"), ("lion2", "lion")],
)
def test_an_unknown_rule_suggests_the_nearest(name, nearest):
    message = refuses(ValueError, lambda: sc.rule(name), f"`name` is {name!r}; did you mean {nearest!r}?")
    assert message.endswith(f"known: {', '.join(sc.rules())}")


@pytest.mark.parametrize("name", ["zzzzzz", "", 3])
def test_an_unknown_rule_that_resembles_none(name):
    message = refuses(ValueError, lambda: sc.rule(name), f"`name` is {name!r}; ", f"known: {', '.join(sc.rules())}")
    assert "did you mean" not in message


@pytest.mark.parametrize(
    "value",
    [True, False, "0.1", None, 1j, [0.1], {}, np.True_, np.str_("0.1"), np.complex64(1), np.asarray(True), b"1"],
    ids=repr,
)
def test_a_number_that_is_none(rule, value):
    for argument in rule.numbers():
        parts = f"`{argument}` is {value!r}; pass a number in [0", "a 0-d array or a schedule"
        refuses(TypeError, lambda name=argument: rule.replace(**{name: value}), *parts)
        refuses_step(TypeError, rule, P, G, rule.init(P), *parts, hyper={argument: value})


@pytest.mark.parametrize("value", [np.float32([0.1, 0.2]), torch.ones(3), np.zeros(0), np.asarray([1, 2])], ids=repr)
def test_an_array_of_several_numbers_is_no_number(rule, value):
    refuses(TypeError, lambda: rule.replace(lr=value), f"`lr` is {value!r}", "a 0-d array")
    with pytest.raises(TypeError, match="`lr` is "):
        rule.step(P, G, rule.init(P), hyper={"lr": value})


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_int_beyond_every_float(rule, value):
    refuses(ValueError, lambda: rule.replace(lr=value), "`lr` is an int of 1329 bits; it must be in [0, inf)")
    refuses_step(ValueError, rule, P, G, rule.init(P), "`lr` is an int of 1329 bits", hyper={"lr": value})


def test_arrays_and_schedules_are_accepted_unchecked(rule):
    for value in (np.asarray(-1.0), torch.tensor(2.0), jnp.asarray(1), np.asarray([0.5]), schedules.constant(1.0), abs):
        assert rule.replace(lr=value).lr is value


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        ("nonfinite", "ignore", "'propagate', 'skip', 'raise'"),
        ("nonfinite", None, "'propagate', 'skip', 'raise'"),
        ("maximize", 1, "False, True"),
        ("maximize", "yes", "False, True"),
        ("state_dtype", "float64", "None, 'float16', 'bfloat16', 'float32'"),
        ("state_dtype", np.float32, "None, 'float16', 'bfloat16', 'float32'"),
    ],
)
def test_an_option_that_is_none_of_its_choices(rule, option, value, choices):
    refuses(ValueError, lambda: rule.replace(**{option: value}), f"`{option}` is {value!r}; choose one of {choices}")


@pytest.mark.parametrize("value", ["one", 0, True, np.asarray(0)])
def test_a_sign_of_zero_that_is_no_policy(value):
    refuses(ValueError, lambda: sc.SignSGD(sign_zero=value), f"`sign_zero` is {value!r}; choose one of 'zero', 'plus'")


@pytest.mark.parametrize("value", [1.5, "0", True, None, np.asarray(1)])
def test_a_seed_that_is_no_int(value):
    refuses(TypeError, lambda: sc.SignSGD(seed=value), f"`seed` is {value!r}; pass an int")


def test_a_hyperparameter_that_does_not_exist():
    with pytest.raises(TypeError, match="lrr"):
        sc.rule("signum", lrr=0.1)


# -- hyper= ------------------------------------------------------------------------------------------------


def test_an_unknown_name_in_hyper_suggests_the_nearest(rule):
    parts = "`hyper` is 'weight_decy'; did you mean 'weight_decay'?", f"known: {', '.join(sorted(rule.numbers()))}"
    refuses_step(ValueError, rule, P, G, rule.init(P), *parts, hyper={"weight_decy": 0.1})


@pytest.mark.parametrize(("option", "value"), [("maximize", True), ("nonfinite", "skip"), ("state_dtype", "float16")])
def test_a_static_option_in_hyper_says_how_to_change_it(rule, option, value):
    parts = f"`hyper` holds '{option}', a static option", f"rule.replace({option}={value!r})"
    refuses_step(ValueError, rule, P, G, rule.init(P), *parts, hyper={option: value})


@pytest.mark.parametrize("hyper", [0.1, "lr", ["lr"], ("lr", 0.1)])
def test_hyper_that_is_no_dict(rule, hyper):
    parts = f"`hyper` is {hyper!r}; pass a dict"
    refuses_step(TypeError, rule, P, G, rule.init(P), parts, hyper=hyper)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), np.float32(-1)])
def test_a_number_in_hyper_out_of_range(rule, value):
    for name in rule.numbers():
        parts = f"`{name}` is {value!r}; it must be finite and in [0"
        refuses_step(ValueError, rule, P, G, rule.init(P), parts, hyper={name: value})


# -- trees -------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    weight: object
    bias: object


@pytest.mark.parametrize(
    ("params", "grads", "path", "holder", "lacking"),
    [
        ({"a": P, "b": P}, {"a": G}, "b", "params", "grads"),
        ({"a": P}, {"a": G, "b": G}, "b", "grads", "params"),
        ({"a": P}, {"b": G}, "a", "params", "grads"),
        ({"a": [P, {"c": P}]}, {"a": [G, {"d": G}]}, "a/1/c", "params", "grads"),
        ([P, P], [G], "1", "params", "grads"),
        (Pair(P, P), (G, G), "weight", "params", "grads"),
        ({"a": P}, {"a": {"b": G}}, "a", "params", "grads"),
        ({"a": P}, G, "a", "params", "grads"),
        ({"a": P}, None, "a", "params", "grads"),
        ({"a": P, "b": None}, {"a": G, "b": G}, "b", "grads", "params"),
        (None, G, "(root)", "grads", "params"),
        ({}, {"a": G}, "a", "grads", "params"),
    ],
)
def test_trees_that_differ(rule, params, grads, path, holder, lacking):
    parts = "`grads` and `params` are different trees", f"{path!r} is in `{holder}` and not in `{lacking}`"
    refuses_step(ValueError, rule, params, grads, rule.init(params), *parts)


def test_shapes_that_differ(rule):
    params, state = {"a": [P, P]}, rule.init({"a": [P, P]})
    parts = "`grads` at 'a/1' has shape (1, 3), `params` at 'a/1' has (3,)"
    refuses_step(ValueError, rule, params, {"a": [G, G[None]]}, state, parts)
    refuses_step(ValueError, rule, P, G[:2], rule.init(P), "`grads` has shape (2,), `params` has (3,)")
    refuses_step(ValueError, rule, P, np.asarray(G[0]), rule.init(P), "`grads` has shape (), `params` has (3,)")


def test_dtypes_that_differ(rule):
    parts = "`grads` at 'a' has dtype float64, `params` at 'a' has float32", "cast one"
    refuses_step(ValueError, rule, {"a": P}, {"a": G.astype(np.float64)}, rule.init({"a": P}), *parts)
    p, g = torch.tensor(P), torch.tensor(G).bfloat16()
    with pytest.raises(ValueError, match="`grads` has dtype bfloat16, `params` has float32"):
        rule.step(p, g, rule.init(p))


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.arange(3), "int64"),
        (np.ones(3, bool), "bool"),
        (np.ones(3, complex), "complex128"),
        (P.astype(">f4"), ">f4"),
        (P.astype(object), "object"),
        (P.astype(np.longdouble), str(np.dtype(np.longdouble))),
        (torch.arange(3), "int64"),
        (torch.ones(3, dtype=torch.complex64), "complex64"),
        (jnp.arange(3), "int32"),
        (array_api_strict.asarray([1, 2, 3]), "int64"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__module__,
)
def test_leaves_that_are_no_floats(rule, array, name):
    parts = f"`params` at 'n' has dtype {name}; signcore computes with float16, bfloat16, float32, float64", "None"
    refuses(TypeError, lambda: rule.init({"n": array}), *parts)
    refuses(TypeError, lambda: rule.step({"n": array}, {"n": array}, rule.init({"n": P})), *parts)


def test_gradients_that_are_no_floats(rule):
    for kind in (np.int32, np.complex64):
        parts = f"`grads` at 'a' has dtype {kind.__name__}; signcore computes with"
        refuses_step(TypeError, rule, {"a": P}, {"a": G.astype(kind)}, rule.init({"a": P}), parts)


@pytest.mark.parametrize(
    "leaf",
    [1.0, 3, "w", True, {1, 2}, range(3), np.ma.masked_array(P, [True, False, False])],
    ids=lambda leaf: type(leaf).__name__,
)
def test_leaves_that_are_no_arrays(rule, leaf):
    parts = f"`params` at 'a/0' is a {type(leaf).__name__}, not an array of an Array API library", "wrap numbers"
    refuses(TypeError, lambda: rule.init({"a": [leaf]}), *parts)
    parts = f"`grads` at 'a' is a {type(leaf).__name__}, not an array"
    refuses_step(TypeError, rule, {"a": P}, {"a": leaf}, rule.init({"a": P}), parts)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_refused_because_its_product_is_another(rule):
    refuses(TypeError, lambda: rule.init(np.matrix(P)), "`params` is a matrix, not an array")


def test_a_sparse_gradient(rule):
    params, g = {"a": torch.tensor(P)}, {"a": torch.tensor(G).to_sparse()}
    with pytest.raises(TypeError, match=r"`grads` at 'a' is sparse, .*; pass \.to_dense\(\)"):
        rule.step(params, g, rule.init(params))


def test_two_keys_of_one_name(rule):
    refuses(
        ValueError,
        lambda: rule.init({1: P, "1": P}),
        "two keys of a dict of a tree have the same name as text: '1', 1; rename",
    )


def test_two_leaves_of_one_path_would_draw_the_same_noise(rule):
    refuses(ValueError, lambda: rule.init({"a/b": P, "a": {"b": P}}), "two leaves are called 'a/b'", "`names`")
    rule.init({"a/b": P, "a": {"b": P}}, names=["one", "two"])


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"]])
def test_names_that_do_not_fit_the_leaves(rule, names):
    refuses(ValueError, lambda: rule.init([P, P], names=names), f"`names` has {len(names)} entries for 2 leaves")


# -- libraries and devices ---------------------------------------------------------------------------------


def test_libraries_that_are_mixed(rule):
    state = rule.init(P)
    for grads, name in (
        (torch.tensor(G), "torch"),
        (jnp.asarray(G), "jax"),
        (array_api_strict.asarray(G), "array_api"),
    ):
        with pytest.raises(TypeError, match=rf"`grads` is an array of {name}\w*, `params` of numpy; convert one"):
            rule.step(P, grads, state)
    with pytest.raises(TypeError, match=r"`params` at 'b' is an array of torch, `params` at 'a' of numpy"):
        rule.init({"a": P, "b": torch.tensor(P)})
    params = torch.tensor(P)
    refuses_step(TypeError, rule, params, G, rule.init(params), "`grads` is an array of numpy, `params` of torch")


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (lambda x: array_api_strict.asarray(x), lambda x: array_api_strict.asarray(x, device=DEVICE)),
        (torch.tensor, lambda x: torch.tensor(x, device="meta")),
    ],
    ids=["array-api-strict", "torch"],
)
def test_devices_that_are_mixed(rule, here, there):
    with pytest.raises(ValueError, match=r"`grads` at 'a' is on device .*, `params` at 'a' on .*; move one of them"):
        rule.step({"a": here(P)}, {"a": there(G)}, rule.init({"a": here(P)}))
    with pytest.raises(ValueError, match=r"`params` at 'b' is on device .*, `params` at 'a' on .*; move one of them"):
        rule.init({"a": here(P), "b": there(P)})
    with pytest.raises(ValueError, match=r"`state\.step` is on device .*, `params` on .*; move one of them"):
        rule.step(there(P), there(G), rule.init(here(P)))


DEVICE = array_api_strict.Device("device1")


def test_a_second_device_is_as_good_as_the_first(rule, same):
    p, g = (array_api_strict.asarray(x, device=DEVICE) for x in (P, G))
    for each in (
        rule,
        rule.replace(lr=schedules.linear_warmup(0.1, 3), nonfinite="skip"),
        rule.replace(lr=np.asarray(0.01), weight_decay=torch.tensor(0.1)),
    ):
        params, state = each.step(p, g, each.init(p))
        assert {leaf.device for leaf in (params, *(x for x in state if x is not None))} == {DEVICE}
        same(np.asarray(array_api_strict.asarray(params, device=CPU)), each.step(P, G, each.init(P))[0])


CPU = array_api_strict.Device("CPU_DEVICE")


# -- state -------------------------------------------------------------------------------------------------


def test_a_state_of_another_rule(rule):
    for name in sc.rules():
        stranger = sc.rule(name, lr=0.1)
        if type(stranger) is not type(rule):
            kinds = f"`state` is a {stranger.State.__name__}, {type(rule).__name__} needs a {rule.State.__name__}"
            refuses_step(TypeError, rule, P, G, stranger.init(P), kinds, "rule.init(params)")


@pytest.mark.parametrize("state", [None, (), {}, 0, P])
def test_a_state_that_is_none(rule, state):
    kinds = f"`state` is a {type(state).__name__}, {type(rule).__name__} needs a {rule.State.__name__}"
    refuses_step(TypeError, rule, P, G, state, kinds, "rule.init(params)")


MOMENTA = [
    (name, field)
    for name in RULES
    for field, mark in sc.rule(name, lr=0.1)._marks.items()
    if mark.kind == "element" and field in sc.rule(name, lr=0.1).kinds
]


@pytest.mark.parametrize(("name", "field"), MOMENTA)
def test_a_state_of_other_params(name, field):
    rule = sc.rule(name, lr=0.1)
    params, grads = {"a": P, "b": P}, {"a": G, "b": G}
    for others, kind, parts in (
        ({"a": P}, ValueError, (f"`state.{field}` and `params` are different trees", "'b' is in `params`")),
        ({"a": P, "b": P, "c": P}, ValueError, ("are different trees", "'c' is in `state.", "and not in `params`")),
        ({"a": P, "b": P[:2]}, ValueError, (f"`state.{field}` at 'b' has shape (2,), `params` at 'b' has (3,)",)),
        ({"a": P, "b": None}, ValueError, (f"`state.{field}` at 'b' is None", "rule.init(params)")),
        (
            {"a": P, "b": P.astype(np.float64)},
            ValueError,
            (f"`state.{field}` at 'b' has dtype float64, this rule keeps it in float32", "rule.init(params)"),
        ),
    ):
        refuses_step(kind, rule, params, grads, rule.init(others), *parts)
    narrow = rule.replace(state_dtype="bfloat16")
    parts = f"`state.{field}` at 'a' has dtype float32, this rule keeps it in bfloat16 for `params` of float32"
    refuses_step(ValueError, narrow, params, grads, rule.init(params), parts)


def test_a_state_of_params_of_another_library(rule):
    with pytest.raises(TypeError, match=r"`state\.step` is an array of numpy, `params` of torch"):
        rule.step(torch.tensor(P), torch.tensor(G), rule.init(P))


@pytest.mark.parametrize(
    ("step", "kind", "parts"),
    [
        (0, TypeError, "`state.step` is 0, `params` an array"),
        (None, TypeError, "`state.step` is None, `params` an array"),
        (np.float32(0), ValueError, "`state.step` is an array of float32 of shape (), it must be int32 of ()"),
        (np.zeros(1, np.int32), ValueError, "`state.step` is an array of int32 of shape (1,), it must be int32 of ()"),
        (np.int64(3), ValueError, "`state.step` is an array of int64 of shape (), it must be int32 of ()"),
    ],
)
def test_a_counter_that_is_none(rule, step, kind, parts):
    refuses_step(kind, rule, P, G, rule.init(P)._replace(step=step), parts)


def test_a_stream_that_is_missing_or_no_key():
    drawing, plain = sc.SignSGD(sign_zero="random"), sc.SignSGD()
    parts = "`state.stream` and `params` are different trees"
    refuses_step(ValueError, drawing, {"a": P}, {"a": G}, plain.init({"a": P}), parts)
    refuses_step(
        ValueError, drawing, P, G, plain.init(P), "`state.stream` is None; make the state with rule.init(params)"
    )
    state = drawing.init(P)
    for stream in (state.stream[:1], state.stream.astype(np.int64)):
        refuses_step(ValueError, drawing, P, G, state._replace(stream=stream), "`state.stream` is an array of", "(2,)")


# -- the other trees ---------------------------------------------------------------------------------------


def test_a_decay_mask_of_another_tree(rule):
    params, grads = {"a": P, "b": P}, {"a": G, "b": G}
    state = rule.init(params)
    for mask, path in (({"x": True, "y": True}, "a"), ({"a": True}, "b"), (True, "a")):
        parts = "`decay_mask` and `params` are different trees", f"{path!r} is in `params`"
        refuses_step(ValueError, rule, params, grads, state, *parts, decay_mask=mask)


@pytest.mark.parametrize("value", [None, "no", 1, 0.0])
def test_a_decay_mask_that_is_no_bool(rule, value):
    parts = f"`decay_mask` at 'a' is {value!r}; pass True, or False to keep weight decay off the leaf"
    refuses_step(TypeError, rule, {"a": P}, {"a": G}, rule.init({"a": P}), parts, decay_mask={"a": value})


def test_noise_of_another_tree_or_shape():
    rule = sc.SignSGD(sign_zero="random")
    params, grads = {"a": P, "b": P}, {"a": G, "b": G}
    state = rule.init(params)
    word = np.zeros(3, np.int32)
    parts = "`noise` and `params` are different trees", "'b' is in `params`"
    refuses_step(ValueError, rule, params, grads, state, *parts, noise={"a": word})
    parts = "`noise` at 'b' has shape (2,), `params` at 'b' has (3,)"
    refuses_step(ValueError, rule, params, grads, state, parts, noise={"a": word, "b": word[:2]})
    parts = "`noise` at 'b' is None, `params` at 'b' an array"
    refuses_step(TypeError, rule, params, grads, state, parts, noise={"a": word, "b": None})


@pytest.mark.parametrize("aggregate", [P, None, (P,), {"sign": P}])
def test_an_aggregate_that_is_no_message(rule, aggregate):
    parts = f"`aggregate` is a {type(aggregate).__name__}; pass a {rule.Message.__name__}"
    refuses(TypeError, lambda: rule.apply(P, G, aggregate, rule.init(P)), parts)


@pytest.mark.parametrize("scalars", [None, {}, {"other": 1}])
def test_boxes_of_a_rule_that_skips_are_told_whether_to_skip(rule, scalars):
    rule = rule.replace(nonfinite="skip")
    state = rule.init(P)
    message, _ = rule.message(P, G, state, {"finite": np.asarray(True)})
    parts = f"`scalars` is {scalars!r}, and nonfinite='skip' needs", "rule.measure(params, grads, state)"
    refuses(ValueError, lambda: rule.message(P, G, state, scalars), *parts)
    refuses(ValueError, lambda: rule.apply(P, G, message, state, scalars), *parts)


def test_an_aggregate_of_another_tree_or_shape():
    rule = sc.SignSGD()
    state = rule.init({"a": P})
    parts = "`aggregate` and `params` are different trees", "'a' is in `params`"
    refuses(ValueError, lambda: rule.apply({"a": P}, {"a": G}, SignSGDMessage({"b": G}), state), *parts)
    parts = "`aggregate` at 'a' has shape (1, 3), `params` at 'a' has (3,)"
    refuses(ValueError, lambda: rule.apply({"a": P}, {"a": G}, SignSGDMessage({"a": G[None]}), state), parts)


# -- under a trace, and what is only a warning -------------------------------------------------------------


def test_errors_are_the_same_while_a_function_is_traced(rule):
    p, g = jnp.asarray(P), jnp.asarray(G)
    step = jax.jit(lambda p, g, s: rule.step(p, g, s))
    with pytest.raises(ValueError, match=re.escape("`grads` has shape (2,), `params` has (3,)")):
        step(p, g[:2], rule.init(p))
    with pytest.raises(ValueError, match="`grads` and `params` are different trees"):
        step({"a": p}, {"b": g}, rule.init({"a": p}))


@pytest.mark.parametrize("name", ["numpy", "array-api-strict", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subnormal_parameters_are_warned_of_with_their_path(rule, name, dtype, libraries):
    import ml_dtypes

    if (name, dtype) == ("array-api-strict", "bfloat16"):
        return
    p = np.asarray([1.0, 1e-39]).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with pytest.warns(
        UserWarning, match=r"`params` at 'w' holds subnormal numbers.*below 1\.17549e-38 to zero"
    ) as found:
        rule.init({"w": libraries[name].array(p)})
    assert found[0].filename == __file__


def test_numbers_that_are_normal_are_not_warned_of(rule):
    rule.init(np.float32([0.0, -0.0, 2.0**-126, np.inf, np.nan, 1e-30]))
    rule.init(np.float16([2.0**-24, 0.0]))  # computed with in float32, where they are normal
    rule.init(np.float64([1e-300]))
    jax.jit(rule.init)(jnp.asarray(np.float32([1e-39])))  # no values to look at


def test_a_name_in_other_letters_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'lion'"):
        sc.rule("LION")


def test_a_decay_that_float32_rounds_to_one():
    with pytest.raises(ValueError, match=r"`beta1` is 0\.999999999, which is 1 in float32"):
        sc.Lion(beta1=1 - 1e-9)


@pytest.mark.parametrize(
    ("params", "grads", "path"),
    [
        ({"a": ["x"]}, {"a": {"0": "x"}}, "'a'"),
        ({"a/b": "x"}, {"a": {"b": "x"}}, "'.root.'"),
        ({"a": {}, "b": "x"}, {"b": "x"}, "'.root.'"),
    ],
)
def test_trees_of_the_same_paths_that_nest_differently(params, grads, path):
    def arrays(node):
        if isinstance(node, dict):
            return {key: arrays(child) for key, child in node.items()}
        return [arrays(child) for child in node] if isinstance(node, list) else np.ones(2, np.float32)

    params, grads = arrays(params), arrays(grads)
    with pytest.raises(ValueError, match=f"`grads` and `params` are different trees at {path}"):
        sc.SignSGD().step(params, grads, sc.SignSGD().init(params))


def test_a_tuple_of_gradients_serves_a_list_of_parameters():
    params = [np.ones(2, np.float32), np.ones(3, np.float32)]
    new, _ = sc.SignSGD(lr=0.5).step(params, tuple(params), sc.SignSGD().init(params))
    assert type(new) is list
    assert new[1].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("stacked", "error", "words"),
    [
        (np.ones((3, 2), np.int8), TypeError, "`stacked` has dtype int8"),
        ([[1.0, -1.0]], TypeError, "`stacked` is a list"),
        (np.ones((0, 2), np.float32), ValueError, r"`stacked` has shape \(0, 2\)"),
        (np.float32(1.0) * np.ones((), np.float32), (ValueError, TypeError), "`stacked`"),
    ],
)
@pytest.mark.parametrize("vote", [sc.vote.majority, sc.vote.mean])
def test_votes_of_no_signs(vote, stacked, error, words):
    with pytest.raises(error, match=words):
        vote(stacked)


@pytest.mark.parametrize("made", [None, "0.1", [0.1]])
def test_a_foreign_schedule_that_returns_no_number(made):
    rule, p = sc.SignSGD(lr=lambda step: made), np.ones(2, np.float32)
    with pytest.raises(TypeError, match=r"the schedule .* returned"):
        rule.step(p, p, rule.init(p))


# -- losses and gradients elsewhere ------------------------------------------------------------------------


ONE_NUMBER = "one real number, Python's or a 0-d array"
NO_LOSS = [
    (P, TypeError, "is an array of float32 of shape (3,)"),
    ("low", TypeError, "is 'low'"),
    (abs, TypeError, "is <built-in function abs>"),
    (1j, TypeError, "is 1j"),
    ([1.0], TypeError, "is [1.0]"),
    (True, TypeError, "is True"),
    (np.complex64(1.0), TypeError, "is an array of complex64 of shape ()"),
    (10**400, ValueError, "is an int of 1329 bits"),
]


def asking(name):
    """The first variant of any rule that needs an input."""
    rules = [rule for each in sc.rules() for rule in golden.variants(each) if name in rule.needs]
    return rules[0].replace(nonfinite="propagate")


@pytest.mark.parametrize(("value", "kind", "shown"), NO_LOSS, ids=[shown for *_, shown in NO_LOSS])
def test_a_loss_that_is_no_number(value, kind, shown):
    for name in ("value", "value_fn"):
        rule = asking(name)
        given = {each: {"value": 4.0, "value_fn": lambda p: 4.0, "grad_fn": lambda p: p}[each] for each in rule.needs}
        given[name] = value if name == "value" else lambda p: value
        what, way_out = {
            "value": ("`value`", "pass the loss"),
            "value_fn": ("`value_fn(params)`", "return the loss"),
        }[name]
        parts = (f"{what} {shown}; {way_out}", ONE_NUMBER if kind is TypeError else "as a float")
        state = rule.init(P)
        for call in (rule.step, rule.delta):
            refuses(kind, lambda call=call, rule=rule, state=state, given=given: call(P, G, state, **given), *parts)


def test_a_forgotten_return_of_a_loss():
    rule = asking("value_fn")
    parts = ("`value_fn(params)` is None; return the loss", ONE_NUMBER, "a `return` is missing")
    refuses(TypeError, lambda: rule.step(P, G, rule.init(P), value=4.0, value_fn=lambda p: None), *parts)

    def traced(p):
        return rule.step(p, p, rule.init(p), value=4.0, value_fn=lambda p: None)

    refuses(TypeError, lambda: jax.jit(traced)(jnp.asarray(P)), *parts)


@pytest.mark.parametrize("value", [3, np.float64(3.0), np.asarray(3.0), jnp.asarray(3), torch.tensor([3.0])])
def test_numbers_that_are_losses(value, same):
    rule = asking("value_fn")
    same(
        rule.step(P, G, rule.init(P), value=value, value_fn=lambda p: value)[0],
        rule.step(P, G, rule.init(P), value=3.0, value_fn=lambda p: 3.0)[0],
    )


PAIR = {"a": P, "b": P}


@pytest.mark.parametrize(
    ("params", "made", "kind", "parts"),
    [
        (P, None, TypeError, ["`grad_fn(params)` is None; return gradients", "a `return` is missing"]),
        (PAIR, None, TypeError, ["`grad_fn(params)` is None; return gradients"]),
        (PAIR, {"a": P, "b": None}, ValueError, ["`grad_fn(params)` at 'b' is None, and `grads` at 'b' is an array"]),
        (PAIR, {"a": P}, ValueError, ["`grad_fn(params)` and `params` are different trees: 'b'"]),
        (P, 1.0, TypeError, ["`grad_fn(params)` is a float, not an array"]),
        (P, torch.ones(3), TypeError, ["`grad_fn(params)` is an array of torch, `params` of numpy"]),
        (P, P.astype(np.float64), ValueError, ["`grad_fn(params)` has dtype float64, `params` has float32"]),
        (P, P[:2], ValueError, ["`grad_fn(params)` has shape (2,), `params` has (3,)"]),
    ],
)
def test_gradients_elsewhere_that_are_none(params, made, kind, parts):
    rule, given = asking("grad_fn"), {"value": 4.0, "grad_fn": Returning(made)}
    inputs = {name: given[name] for name in rule.needs}
    refuses_step(kind, rule, params, params, rule.init(params), *parts, **inputs)


class Returning:
    """A function that can be pickled."""

    def __init__(self, made):
        self.made = made

    def __call__(self, params):
        return self.made


def test_a_leaf_without_a_gradient_needs_none_elsewhere(same):
    rule = asking("grad_fn")
    given = {"value": 4.0, "grad_fn": Returning({"a": G, "b": None})}
    inputs = {name: given[name] for name in rule.needs}
    same(rule.step(PAIR, {"a": G, "b": None}, rule.init(PAIR), **inputs)[0]["b"], P)


# -- numbers that contradict each other --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        (sc.Rprop(), {"size_min": 100.0}),
        (sc.Rprop(), {"size_min": np.float32(2.0), "size_max": 1}),
        (sc.Rprop(), {"eta_minus": 0.0}),
        (sc.SGD(lr=0.1, nesterov=True, momentum=0.9), {"dampening": 0.5}),
        (sc.SGD(lr=0.1, nesterov=True, momentum=0.9), {"momentum": 0.0}),
        (sc.Signum(), {"dampening": 0.5}),
    ],
    ids=str,
)
def test_numbers_in_hyper_contradict_each_other_as_in_the_constructor(rule, hyper):
    message = refuses(ValueError, lambda: rule.replace(**hyper))
    assert refuses_step(ValueError, rule, P, G, rule.init(P), hyper=hyper) == message
    p = torch.nn.Parameter(torch.tensor(P))
    p.grad = torch.tensor(G)
    optimizer = signcore_torch.from_rule([p], rule)
    optimizer.param_groups[0].update(hyper)
    refuses(ValueError, optimizer.step, message)
    assert torch.equal(p.detach(), torch.tensor(P))


def test_numbers_in_hyper_may_agree_only_together(same):
    rule, both = sc.Rprop(size_max=1.0), {"size_min": 2.0, "size_max": 4.0}
    same(rule.step(P, G, rule.init(P), hyper=both)[0], rule.replace(**both).step(P, G, rule.init(P))[0])


@pytest.mark.parametrize("made", [-1.0, math.nan, np.float32(-0.5)])
def test_a_number_that_leaves_its_range_is_an_error_at_the_step(made):
    """What a schedule returns or an array holds; inside of jit there is nothing to look at."""
    params = np.zeros(2, np.float32)
    rule = sc.SignSGD(lr=lambda step: made)
    with pytest.raises(ValueError, match=r"`lr` is .*it must be finite and in \[0"):
        rule.step(params, params, rule.init(params))
    for library in (np.asarray, torch.tensor, jnp.asarray):
        rule, p = sc.Signum(lr=0.1), library(params)
        with pytest.raises(ValueError, match=r"`beta` is .*it must be finite and in \[0"):
            rule.step(p, p, rule.init(p), hyper={"beta": library(made)})
