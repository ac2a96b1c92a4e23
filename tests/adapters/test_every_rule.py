"""Every rule through every adapter: the words of `rule.step` on NumPy, and a state that can be saved and loaded."""

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
def test_the_optax_transformation_gives_the_words_of_the_rule(name, same):
    rule = golden.variants(name)[0]
    transform = signcore_optax.from_rule(rule)

    @jax.jit
    def update(params, grads, state):
        updates, state = transform.update(grads, state, params, **extras(rule, params))
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, tree(0))
    state = transform.init(params)
    for grads, (p, s) in zip(GRADS, expected(rule), strict=True):
        shapes = jax.tree.map(jnp.shape, state)
        params, state = update(params, jax.tree.map(jnp.asarray, grads), state)
        same(words_of(rule, params, state), words_of(rule, p, s))
        assert jax.tree.map(jnp.shape, state) == shapes
    assert update._cache_size() == 1


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
