"""Every rule through torch and the loop (optax has test_optax_points.py): the words of `rule.step` on NumPy; saving."""

import copy
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import signcore as sc
import signcore_cupy
import signcore_optax
import signcore_torch
from signcore_conformance import golden

STEPS = 4
SHAPES = {"a": (5, 3), "b": (), "c": (11,)}
CASES = [(name, i) for name in sc.rules() for i in range(len(golden.variants(name)))]
each_variant = pytest.mark.parametrize(("name", "i"), CASES, ids=[f"{name}-{i}" for name, i in CASES])
each_rule = pytest.mark.parametrize("name", sc.rules())


def tree(seed):
    draw = np.random.default_rng(seed)
    return {key: np.asarray(draw.standard_normal(shape), np.float32) for key, shape in SHAPES.items()}


GRADS = [tree(seed) for seed in range(1, STEPS + 1)]


def loss(params):
    """Exact on every library, whatever holds the leaves."""
    return sc.sums.norm1(params)


def half(params):
    return {key: p * 0.5 for key, p in params.items()}


def extras(rule, params):
    every = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: half}
    return {name: every[name]() for name in rule.needs}


def expected(rule):
    """(params, state) after every step, on NumPy."""
    params, found = tree(0), []
    state = rule.init(params)
    for grads in GRADS:
        params, state = rule.step(params, grads, state, **extras(rule, params))
        found.append((params, state))
    return found


class OnTorch:
    """A training of the torch adapter, with the closure that rules may need."""

    def __init__(self, rule):
        self.params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in tree(0).items()}
        self.rule, self.optimizer = rule, signcore_torch.from_rule(list(self.params.items()), rule)

    def step(self, k):
        calls = []

        def closure():
            for key, p in self.params.items():
                p.grad = p.detach() * 0.5 if calls else torch.tensor(GRADS[k][key])
            calls.append(1)
            return loss({key: p.detach() for key, p in self.params.items()})

        self.optimizer.step(closure)

    def words(self):
        fields = [self.optimizer.state[p][name] for p in self.params.values() for name in self.rule.kinds]
        return [x.detach().numpy().copy() for x in (*self.params.values(), *fields)]


def words_of(rule, params, state):
    """The same of a functional state."""
    whole = ("shared", "scalar")
    fields = [
        getattr(state, name) if kind in whole else getattr(state, name)[key]
        for key in SHAPES
        for name, kind in rule.kinds.items()
    ]
    return [np.asarray(x) for x in (*(params[key] for key in SHAPES), *fields)]


@each_variant
def test_the_torch_adapter_gives_the_words_of_the_rule(name, i, same):
    rule = golden.variants(name)[i]
    if rule.scope == "group":  # the leaves of one container are a group: in torch, the parameter group
        rule = rule.replace(scope="global")
    if rule.state_dtype == "bfloat16":
        rule = rule.replace(state_dtype="float16")  # NumPy's own
    training = OnTorch(rule)
    for k, (params, state) in enumerate(expected(rule)):
        training.step(k)
        same(training.words(), words_of(rule, params, state))


@each_rule
def test_a_torch_optimizer_goes_on_from_what_was_saved(name, same):
    rule = golden.variants(name)[0]
    first, second = OnTorch(rule), OnTorch(rule)
    for k in range(2):
        first.step(k)
    file = io.BytesIO()
    torch.save(first.optimizer.state_dict(), file)
    file.seek(0)
    second.optimizer.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for key, p in second.params.items():
            p.copy_(first.params[key])
    same(first.words(), second.words())
    for training in (first, second, copy.deepcopy(second)):
        for k in range(2, STEPS):
            training.step(k)
    same(first.words(), second.words())
    assert type(pickle.loads(pickle.dumps(second.optimizer))) is type(second.optimizer)


@each_rule
def test_the_loop_gives_the_words_of_the_rule(name, same):
    rule, now = golden.variants(name)[0], [tree(0)]

    def grad_fn(params, step):
        return GRADS[step] if params is now[-1] else half(params)

    params, state = signcore_cupy.run(
        rule,
        now[0],
        grad_fn,
        STEPS,
        value_fn=lambda params, step: loss(params),
        callback=lambda step, params, state: now.append(params),
        progress=False,
    )
    same((params, state), expected(rule)[-1])


@pytest.mark.parametrize("name", [name for name in sc.rules() if golden.variants(name)[0].needs])
def test_what_a_rule_needs_and_is_not_given_is_named(name):
    rule = golden.variants(name)[0]
    params, transform = tree(0), signcore_optax.from_rule(rule)
    with pytest.raises(TypeError, match=rf"`({'|'.join(rule.needs)})` is missing: {type(rule).__name__} needs it"):
        rule.step(params, GRADS[0], rule.init(params))
    training = OnTorch(rule)
    before = training.params["a"].detach().clone()
    for key, p in training.params.items():
        p.grad = torch.tensor(GRADS[0][key])
    with pytest.raises(TypeError, match="in torch a closure"):
        training.optimizer.step()
    assert torch.equal(before, training.params["a"])
    assert not training.optimizer.state
    params = jax.tree.map(jnp.asarray, params)
    with pytest.raises(TypeError, match="in optax update"):
        transform.update(jax.tree.map(jnp.asarray, GRADS[0]), transform.init(params), params)


def with_gradients_elsewhere():
    """A variant of each rule that asks for gradients at other parameters."""
    found = {name: rule for name, i in reversed(CASES) if "grad_fn" in (rule := golden.variants(name)[i]).needs}
    return [pytest.param(rule, id=name) for name, rule in sorted(found.items())]


@pytest.mark.parametrize("rule", with_gradients_elsewhere())
def test_a_closure_may_clear_gradients_as_it_likes_with_several_groups(rule, same):
    rule, ends = rule.replace(scope="global") if rule.scope == "group" else rule, []
    for clear in ("anew", "in place", "before the step"):
        params = [torch.nn.Parameter(torch.tensor(values)) for values in ([1.0, 2.0], [3.0, -4.0])]
        optimizer = signcore_torch.from_rule([{"params": [p]} for p in params], rule)
        first = []

        def closure(params=params, optimizer=optimizer, clear=clear, first=first):
            if clear != "before the step":
                optimizer.zero_grad(set_to_none=clear == "anew")
            value = 0.5 * params[0].square().sum() + 0.5 * (params[1] - params[0]).square().sum()
            value.backward()
            first.append([p.grad.clone() for p in params])
            return value

        for _ in range(3):
            first.clear()
            optimizer.zero_grad()
            optimizer.step(closure)
            assert len(first) > 1
            same([p.grad.numpy() for p in params], [g.numpy() for g in first[0]])  # those of this step's parameters
        ends.append([x.detach().numpy() for p in params for x in (p, *optimizer.state[p].values())])
    same(ends[0], ends[1])
    same(ends[0], ends[2])


@pytest.mark.parametrize("name", [name for name in sc.rules() if golden.variants(name)[0].needs])
def test_the_loop_evaluates_the_loss_where_the_rule_asks_for_it(name):
    rule, steps, now = golden.variants(name)[0], [], [tree(0)]

    def value_fn(params, step):
        steps.append(step)
        return loss(params)

    states = [rule.init(now[0])]
    signcore_cupy.run(
        rule,
        now[0],
        lambda params, step: GRADS[step] if params is now[-1] else half(params),
        STEPS,
        value_fn=value_fn,
        callback=lambda step, params, state: (now.append(params), states.append(state)),
        progress=False,
    )
    asked = [k for k, state in enumerate(states[:-1]) if "value" in rule.needs and rule.asks("value", state)]
    tried = [k for k in range(STEPS) if "value_fn" in rule.needs]
    assert steps == sorted(asked + tried)


@pytest.mark.parametrize("name", [name for name in sc.rules() if "value_fn" in golden.variants(name)[0].needs])
def test_a_loss_is_compared_where_the_params_will_be_and_nowhere_else(name):
    # bfloat16 params, float32 gradients: 99.7 is better than 100 for |p - 99.8|, and stored as 99.5 it is worse
    transform = getattr(signcore_optax, name)(0.3)

    def bowl(p):
        return jnp.sum(jnp.abs(p["w"].astype(jnp.float32) - 99.8))

    for ours, theirs in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.float16, jnp.bfloat16)):
        params, grads = {"w": jnp.asarray([100.0], ours)}, {"w": jnp.asarray([1.0], theirs)}
        state = transform.init(params)
        names = [tree["w"].dtype.name for tree in (grads, params)]
        message = "`grads` at 'w' has dtype {}, `params` at 'w' has {}, and .*by the loss .*cast".format(*names)
        with pytest.raises(ValueError, match=message):
            transform.update(grads, state, params, value=bowl(params), value_fn=bowl)
        cast = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        updates, _ = transform.update(cast, state, params, value=bowl(params), value_fn=bowl)
        assert bowl(optax.apply_updates(params, updates)) <= bowl(params)
