"""The Keras optimizers on the backend that KERAS_BACKEND names; test_keras.py runs this file once for each.

Keras has one backend a process, so this is no test file of the usual run.
"""

import inspect
import json
import re
from typing import get_args, get_type_hints

import keras
import numpy as np
import pytest

import signcore as sc
import signcore_keras
from signcore.marks import WHOLE, Mark
from signcore_conformance import golden

# Keras' own: its variables have the signature of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BACKEND = keras.config.backend()
STEPS = 3
SHAPES = ((5, 3), (), (11,)) if BACKEND == "torch" else ((5, 3), ())  # what JAX compiles grows with them
FLOATS = ("float32",) * len(SHAPES)


def without_callbacks(name):
    return [rule for rule in golden.variants(name) if not rule.needs]


NAMES = [name for name in sc.rules() if without_callbacks(name)]
# torch runs eagerly, so all options cost little; JAX compiles each.
CASES = [(name, i) for name in NAMES for i in range(len(without_callbacks(name)) if BACKEND == "torch" else 1)]
each_case = pytest.mark.parametrize(("name", "i"), CASES, ids=[f"{name}-{i}" for name, i in CASES])


def arrays(seed, dtypes=FLOATS):
    draw = np.random.default_rng(seed)
    return [np.asarray(draw.standard_normal(shape)).astype(d) for shape, d in zip(SHAPES, dtypes, strict=True)]


class Training:
    """Variables and an optimizer; one step is what `fit` makes of it on this backend."""

    def __init__(self, optimizer, values, jit=BACKEND == "jax"):
        self.optimizer = optimizer
        self.variables = [keras.Variable(value, dtype=value.dtype.name) for value in values]
        optimizer.build(self.variables)
        self.jit = None
        if jit:
            import jax

            self.jit = jax.jit(lambda own, grads, model: optimizer.stateless_apply(own, grads, model))

    def step(self, grads):
        grads = [None if g is None else keras.ops.convert_to_tensor(g) for g in grads]
        if self.jit is None:
            self.optimizer.apply(grads, self.variables)
            return
        own = [v.value for v in self.optimizer.variables]
        model, own = self.jit(own, grads, [v.value for v in self.variables])
        for v, value in zip([*self.variables, *self.optimizer.variables], [*model, *own], strict=True):
            v.assign(value)

    def words(self):
        return [keras.ops.convert_to_numpy(v.value) for v in self.variables], fields(
            self.optimizer.rule, self.optimizer.state
        )


def fields(rule, state):
    """The fields in use, as NumPy's arrays."""
    found = {}
    for name, kind in rule.kinds.items():
        value = getattr(state, name)
        found[name] = keras.ops.convert_to_numpy(value) if kind in WHOLE else [*map(keras.ops.convert_to_numpy, value)]
    return found


def follow(training, rule, same, dtypes=FLOATS, **extra):
    """Steps of the optimizer and of the rule on NumPy, compared after each."""
    params = arrays(0, dtypes)
    state = rule.init(params)
    for k in range(STEPS):
        grads = arrays(k + 1, dtypes)
        params, state = rule.step(params, grads, state, **extra)
        training.step(grads)
        same(training.words(), (params, fields(rule, state)))


@each_case
def test_the_words_of_the_rule(name, i, same):
    rule = without_callbacks(name)[i]
    follow(Training(signcore_keras.from_rule(rule), arrays(0)), rule, same)


def test_every_kind_of_field_is_met():
    met = {kind for name, i in CASES for kind in without_callbacks(name)[i].kinds.values()}
    assert met == {*get_args(get_type_hints(Mark)["kind"])}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_state_stays_in_float32_beside_narrow_variables(dtype, same):
    rule = sc.Signum(lr=0.01, weight_decay=0.1)
    dtypes = (dtype, *FLOATS[1:])
    training = Training(signcore_keras.from_rule(rule), arrays(0, dtypes))
    follow(training, rule, same, dtypes)
    assert {m.dtype.name for m in training.words()[1]["m"]} == {"float32"}
    assert training.words()[0][0].dtype.name == dtype


def test_eagerly_and_by_apply_gradients(same):
    rule = sc.Lion(lr=0.01)
    training = Training(signcore_keras.Lion(0.01), arrays(0), jit=False)
    follow(training, rule, same)
    optimizer, w = signcore_keras.Lion(0.01), keras.Variable(arrays(0)[0])
    assert int(optimizer.apply_gradients([(keras.ops.convert_to_tensor(arrays(1)[0]), w)])) == 1


def test_a_variable_without_a_gradient_is_left_alone(same):
    rule, training = sc.SGD(lr=0.1, momentum=0.9), Training(signcore_keras.SGD(0.1, momentum=0.9), arrays(0))
    grads, params = [arrays(1)[0], None, *arrays(1)[2:]], arrays(0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        training.step(grads)
    params, state = rule.step(params, grads, rule.init(params))
    same(training.words(), (params, fields(rule, state)))


def test_decay_is_the_rules_and_can_be_kept_off_variables(same):
    rule = sc.Lion(lr=0.1, weight_decay=0.5)
    optimizer = signcore_keras.Lion(0.1, weight_decay=0.5)
    assert optimizer.weight_decay == 0.5
    training = Training(optimizer, arrays(0))
    optimizer.exclude_from_weight_decay(var_list=[training.variables[1]])
    follow(training, rule, same, decay_mask=[True, False, *[True] * len(SHAPES[2:])])


def test_learning_rates_that_change(same):
    training = Training(signcore_keras.SignSGD(0.5), arrays(0))
    rule, params = sc.SignSGD(lr=0.5), arrays(0)
    state = rule.init(params)
    for k, lr in enumerate((0.5, 0.25, 0.0)):
        training.optimizer.learning_rate = lr
        training.step(arrays(k + 1))
        params, state = rule.step(params, arrays(k + 1), state, hyper={"lr": lr})
        same(training.words(), (params, fields(rule, state)))
    if BACKEND == "jax":
        assert training.jit._cache_size() == 1


def test_schedules_of_both(same):
    schedule = sc.schedules.linear_warmup(0.1, steps=2, then=sc.schedules.inverse_sqrt(0.1))
    follow(Training(signcore_keras.SignSGD(schedule), arrays(0)), sc.SignSGD(lr=schedule), same)
    foreign = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25])
    training, rule, params = Training(signcore_keras.SignSGD(foreign), arrays(0)), sc.SignSGD(lr=0.5), arrays(0)
    state = rule.init(params)
    for k, lr in enumerate((0.5, 0.5, 0.25)):
        training.step(arrays(k + 1))
        params, state = rule.step(params, arrays(k + 1), state, hyper={"lr": lr})
        same(training.words(), (params, fields(rule, state)))
    for lr in (schedule, foreign):
        again = copy_of(signcore_keras.SignSGD(lr))
        assert float(again.learning_rate) == float(signcore_keras.SignSGD(lr).learning_rate)


def copy_of(optimizer):
    """By way of the text that Keras writes."""
    return keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))


@pytest.mark.parametrize("name", NAMES)
def test_configs(name):
    for rule in without_callbacks(name):
        optimizer = signcore_keras.from_rule(rule, global_clipnorm=1.5, name="mine")
        again = copy_of(optimizer)
        assert type(again) is type(optimizer) is getattr(signcore_keras, type(rule).__name__)
        assert again.get_config() == optimizer.get_config()
        assert again.rule.replace(lr=0.5) == optimizer.rule.replace(lr=0.5) == rule.replace(lr=0.5)


def data():
    x = np.random.default_rng(0).standard_normal((64, 6)).astype("float32")
    return x, x @ np.arange(6, dtype="float32")[:, None]


def model_with(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def fit(model, epochs=1):
    history = model.fit(*data(), batch_size=16, epochs=epochs, verbose=0, shuffle=False)
    return history.history["loss"]


def everything(model):
    return [keras.ops.convert_to_numpy(v.value) for v in (*model.trainable_variables, *model.optimizer.variables)]


def saved(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def test_fit_lowers_the_loss_and_goes_on_from_a_file(representative, tmp_path, same):
    if representative not in NAMES:
        pytest.skip("needs what Keras does not give; the error is tested")
    rule = without_callbacks(representative)[0]
    model = model_with(signcore_keras.from_rule(rule.replace(lr=0.02)))
    losses = fit(model, epochs=6)
    assert losses[-1] < losses[0]
    again = saved(model, tmp_path)
    assert type(again.optimizer) is type(model.optimizer)
    same(everything(again), everything(model))
    fit(model), fit(again)
    same(everything(again), everything(model))


OPTIONS = [
    {"global_clipnorm": 0.5},
    {"use_ema": True, "ema_overwrite_frequency": 3},
    {"gradient_accumulation_steps": 2},
    {"loss_scale_factor": 4.0},
]
if BACKEND == "torch":  # one way of clipping is as good as another
    OPTIONS += [{"clipnorm": 0.5}, {"clipvalue": 0.5}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_keras_own_options(options, tmp_path, same):
    model = model_with(signcore_keras.Lion(0.02, state_dtype="bfloat16", **options))
    losses = fit(model, epochs=4)
    assert losses[-1] < losses[0]
    accumulated = options.get("gradient_accumulation_steps", 1)
    assert int(model.optimizer.state.step) == 16 // accumulated
    same(everything(saved(model, tmp_path)), everything(model))


def test_clipped_gradients_are_what_the_rule_sees(same):
    rule, training = sc.SGD(lr=0.1), Training(signcore_keras.SGD(0.1, clipvalue=0.25), arrays(0))
    training.step(arrays(1))
    params, state = rule.step(arrays(0), [np.clip(g, -0.25, 0.25) for g in arrays(1)], rule.init(arrays(0)))
    same(training.words(), (params, fields(rule, state)))


def test_under_a_loss_scale_and_with_a_callback(same):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_with(signcore_keras.Signum(0.02))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2)
        model.fit(*data(), batch_size=16, epochs=2, verbose=0, callbacks=[halve])
    finally:
        keras.config.set_dtype_policy("float32")
    inner = model.optimizer.inner_optimizer
    assert int(inner.state.step) == int(inner.iterations) > 0
    assert float(inner.learning_rate) == np.float32(0.005)


def test_a_rule_of_the_users_own(same):
    class Halved(type(sc.SignSGD())):
        pass

    rule = Halved(lr=0.5)
    optimizer = signcore_keras.from_rule(rule)
    assert isinstance(copy_of(optimizer), signcore_keras.optimizer_class(Halved))
    follow(Training(optimizer, arrays(0)), rule, same)


@pytest.mark.parametrize("name", sc.rules())
def test_every_argument_is_documented(name):
    made = getattr(signcore_keras, type(sc.rule(name, lr=0.5)).__name__)
    assert made.__doc__.count("Examples\n--------") == (not sc.rule(name, lr=0.5).needs)
    documented = made.__doc__.partition("Parameters\n---")[2].partition("\n\n")[0]
    for argument in inspect.signature(made).parameters:
        assert re.search(rf"^(\w+, )*{argument}\b", documented, re.MULTILINE), argument


@pytest.mark.parametrize("name", [name for name in sc.rules() if golden.variants(name)[0].needs])
def test_what_needs_a_loss_is_refused(name):
    rule = golden.variants(name)[0]
    with pytest.raises(TypeError, match=rf"{type(rule).__name__} .*needs `.*signcore_torch or signcore_optax"):
        signcore_keras.from_rule(rule)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match=r"`learning_rate` is missing.*SGD\(learning_rate=...\)"):
        signcore_keras.SGD()
    with pytest.raises(TypeError, match="beta3"):
        signcore_keras.Lion(beta3=0.5)
    with pytest.raises(ValueError, match=r"`beta1` is 1\.5"):
        signcore_keras.Lion(beta1=1.5)
    with pytest.raises(TypeError, match=r"`learning_rate` is array.*pass a number, a schedule"):
        signcore_keras.Lion(np.ones(()))
    with pytest.raises(TypeError, match=r"`beta1` is constant.*pass a number"):
        signcore_keras.Lion(beta1=sc.schedules.constant(0.5))
    with pytest.raises(TypeError, match="`rule` is 'lion'"):
        signcore_keras.from_rule("lion")
    with pytest.raises(TypeError, match=r"`schedule` is 0\.5"):
        signcore_keras.FromSchedule(0.5)
    with pytest.raises(ValueError, match="`schedule` is 'cosin'; did you mean 'cosine'"):
        signcore_keras.FromSchedule({"name": "cosin", "fields": {}})
    with pytest.raises(NotImplementedError, match="apply"):
        signcore_keras.Lion().update_step(None, None, 0.1)
    with pytest.raises(ValueError, match="Only one of `clipnorm`"):
        signcore_keras.Lion(clipnorm=1.0, clipvalue=1.0)


def test_bad_gradients_change_nothing(same):
    training = Training(signcore_keras.Lion(nonfinite="skip"), arrays(0))
    before = training.words()
    training.step([np.full_like(g, np.nan) for g in arrays(1)])
    same(training.words(), before)
    training = Training(signcore_keras.Lion(nonfinite="raise"), arrays(0), jit=False)
    before = training.words()
    with pytest.raises(FloatingPointError, match="holds inf or NaN"):
        training.step([np.full_like(g, np.nan) for g in arrays(1)])
    same(training.words(), before)


def test_a_schedule_of_signcore_can_be_set_later():
    model = model_with(signcore_keras.Lion(0.02))
    schedule = sc.schedules.cosine(0.02, total_steps=8)
    model.optimizer.learning_rate = schedule
    fit(model)
    assert float(model.optimizer.learning_rate) == schedule(4)
    assert float(copy_of(model.optimizer).learning_rate) == schedule(0)


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf"), np.float32(-1.0)])
def test_a_bad_rate_of_a_callback_raises_and_changes_nothing(bad, same):
    model = model_with(signcore_keras.Lion(0.02))
    model.optimizer.build(model.trainable_variables)
    before = everything(model)
    with pytest.raises(ValueError, match=r"`learning_rate` is .*; it must be finite and in"):
        model.fit(*data(), verbose=0, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, lr: bad)])
    same(everything(model), before)
    with pytest.raises(ValueError, match="`learning_rate` is"):
        model.optimizer.learning_rate = keras.ops.convert_to_tensor(bad)
    with pytest.raises(TypeError, match="`learning_rate` is 'fast'"):
        model.optimizer.learning_rate = "fast"
    same(everything(model), before)


def test_weights_of_another_rule_or_shape_are_refused(tmp_path, same):
    model, path = model_with(signcore_keras.Lion(0.02)), tmp_path / "lion.weights.h5"
    fit(model)
    model.save_weights(path)
    for optimizer in (signcore_keras.Signum(0.02), keras.optimizers.SGD(0.02, momentum=0.9)):
        other = model_with(optimizer)
        fit(other)
        before = everything(other)[-len(optimizer.variables) :]
        if isinstance(optimizer, signcore_keras.SignOptimizer):
            with pytest.raises(ValueError, match=r"variables are those of lion .*this one's rule is signum"):
                other.load_weights(path)
            same(everything(other)[-len(optimizer.variables) :], before)
        else:
            other.save_weights(tmp_path / "keras.weights.h5")
    with pytest.raises(ValueError, match="variables are those of no rule of signcore"):
        model.load_weights(tmp_path / "keras.weights.h5")
    again = model_with(signcore_keras.Lion(0.02))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path)
    wanted = model_with(signcore_keras.Lion(0.02))
    fit(wanted)
    same(everything(again), everything(wanted))


def test_shapes_are_checked_before_the_first_assignment(same):
    store, saved = {}, Training(signcore_keras.Lion(0.02), arrays(0))
    saved.optimizer.save_own_variables(store)
    assert len(store) == len(saved.optimizer.variables) + 1
    store[max((key for key in store if key.isdigit()), key=int)] = np.ones((7, 7), np.float32)
    training = Training(signcore_keras.Lion(0.5), arrays(0))
    before = [keras.ops.convert_to_numpy(v.value) for v in training.optimizer.variables]
    with pytest.raises(ValueError, match=r"of lion .*has the shape \(7, 7\) in the file"):
        training.optimizer.load_own_variables(store)
    del store["0"]
    with pytest.raises(ValueError, match=f"the file has {len(before) - 1} variables"):
        training.optimizer.load_own_variables(store)
    same([keras.ops.convert_to_numpy(v.value) for v in training.optimizer.variables], before)


def test_weight_decay_is_fixed():
    optimizer = signcore_keras.Lion(0.1, weight_decay=0.25)
    with pytest.raises(AttributeError, match=r"`weight_decay` is set to 0\.5, .*Lion\(\.\.\., weight_decay=0\.5\)"):
        optimizer.weight_decay = 0.5
    assert optimizer.weight_decay == optimizer.rule.weight_decay == optimizer.get_config()["weight_decay"] == 0.25


def test_exclusion_from_decay_is_called_again_after_loading(tmp_path, same):
    model = model_with(signcore_keras.Lion(0.02, weight_decay=0.5))
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    fit(model)
    again = saved(model, tmp_path)
    again.optimizer.exclude_from_weight_decay(var_names=["bias"])
    fit(model), fit(again)
    same(everything(again), everything(model))
