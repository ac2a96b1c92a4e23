"""Optimizers and optax states as checkpoints: to a file, from a file of any backend; an error changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import signcore as sc
import signcore_optax
import signcore_torch
from signcore import checkpoint
from signcore.tree import flatten
from signcore_conformance import golden

STEPS = 6
SHAPES = {"a": (5, 3), "b": (), "c": (11,)}
RULES = {name: golden.variants(name)[0] for name in sc.rules()}
each_rule = pytest.mark.parametrize("name", sc.rules())


def tree(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {key: np.asarray(draw.standard_normal(shape), np.float32) for key, shape in SHAPES.items()}


GRADS = [tree(seed) for seed in range(1, STEPS + 1)]


def loss(params: Any) -> Any:
    return sc.sums.norm1(params)


def extras(rule: sc.Rule, params: Any) -> dict[str, Any]:
    def half(params: Any) -> Any:
        return {key: p * 0.5 for key, p in params.items()}

    every = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: half}
    return {name: every[name]() for name in rule.needs}


def by_numpy(rule: sc.Rule, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for k in steps:
        params, state = rule.step(params, GRADS[k], state, **extras(rule, params))
    return params, state


class Torch:
    """A training of the torch adapter, its parameters all zeros unless they are given."""

    def __init__(self, rule: sc.Rule, values: Any = None) -> None:
        values = values or {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
        self.params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in values.items()}
        self.optimizer = signcore_torch.from_rule(list(self.params.items()), rule)

    def step(self, steps: range) -> None:
        for k in steps:
            calls: list[int] = []

            def closure(k: int = k, calls: list[int] = calls) -> Any:
                for key, p in self.params.items():
                    p.grad = p.detach() * 0.5 if calls else torch.tensor(GRADS[k][key])
                calls.append(1)
                return loss({key: p.detach() for key, p in self.params.items()})

            self.optimizer.step(closure)

    def words(self) -> Any:
        return signcore_torch.export(self.optimizer)[1:]


# -- torch ---------------------------------------------------------------------------------------------------------


@each_rule
def test_a_run_goes_from_torch_to_numpy_and_back(name: str, tmp_path: Path, same: Any) -> None:
    rule = RULES[name]
    whole = by_numpy(rule, tree(0), rule.init(tree(0)), range(STEPS))
    first = Torch(rule, tree(0))
    first.step(range(2))
    signcore_torch.save(tmp_path / "a", first.optimizer)
    found = checkpoint.load(tmp_path / "a")
    assert repr(found.rule) == repr(rule)
    params, state = by_numpy(found.rule, found.params, found.state, range(2, 4))
    checkpoint.save(tmp_path / "b", found.rule, params, state)
    last = Torch(rule)
    signcore_torch.load(tmp_path / "b", last.optimizer)
    same(last.words(), (params, state))
    last.step(range(4, STEPS))
    same(last.words(), whole)


def test_what_is_exported_before_the_first_step_is_the_first_state(same: Any) -> None:
    for rule in RULES.values():
        same(Torch(rule, tree(0)).words(), (tree(0), rule.init(tree(0))))


def test_a_parameter_that_has_not_joined_joins_after_loading_as_it_would_have(tmp_path: Path, same: Any) -> None:
    rule = sc.SSDM(lr=0.1)
    trainings = [Torch(rule, tree(0)), Torch(rule)]
    first, second = trainings
    first.params["c"].grad = None
    for key in "ab":
        first.params[key].grad = torch.tensor(GRADS[0][key])
    first.optimizer.step()
    signcore_torch.save(tmp_path / "a", first.optimizer)
    signcore_torch.load(tmp_path / "a", second.optimizer)
    for training in trainings:
        training.step(range(1, 4))
    same(second.words(), first.words())


def test_hyperparameters_and_groups_come_along(tmp_path: Path, same: Any) -> None:
    def made(lr: float, tensors: bool) -> Any:
        groups = [{"params": [torch.nn.Parameter(torch.ones(k))], "lr": lr * k} for k in (1, 2)]
        optimizer = signcore_torch.Lion(groups, lr=1.0, beta1=0.5)
        if tensors:
            optimizer.param_groups[0]["lr"] = torch.tensor(7.0)
        return optimizer

    first, second = made(0.1, False), made(0.3, True)
    signcore_torch.save(tmp_path / "a", first)
    assert [rule.lr for rule in checkpoint.load(tmp_path / "a").rule] == [0.1, 0.2]
    signcore_torch.load(tmp_path / "a", second)
    assert [float(group["lr"]) for group in second.param_groups] == [float(np.float32(0.1)), 0.2]
    assert isinstance(second.param_groups[0]["lr"], torch.Tensor)
    third = signcore_torch.Lion([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"`like` has a dict and the checkpoint 2 groups"):
        signcore_torch.load(tmp_path / "a", third)
    with pytest.raises(ValueError, match="`saved` has 2 groups and the optimizer 1; nothing was loaded"):
        signcore_torch.restore(third, signcore_torch.export(first))


@pytest.mark.parametrize(
    ("saved", "kind", "message"),
    [
        (lambda own: sc.Signum(lr=0.1), ValueError, "holds the state of 'signum', this optimizer is 'lion'"),
        (lambda own: {"a": own["a"], "b": own["b"]}, ValueError, "'c' is in `params` and not in `saved`"),
        (
            lambda own: {**own, "c": own["c"][:3]},
            ValueError,
            r"`saved` at 'c' has shape \(3,\), `params` at 'c' has \(11,\)",
        ),
        (lambda own: {**own, "c": own["c"].double()}, ValueError, "`saved` at 'c' has dtype float64"),
        (lambda own: {**own, "c": own["c"].numpy()}, TypeError, "is an array of numpy, `params` at 'c' of torch"),
    ],
)
def test_what_does_not_fit_changes_nothing_in_torch(saved: Any, kind: type, message: str, same: Any) -> None:
    training = Torch(sc.Lion(lr=0.1), tree(0))
    training.step(range(2))
    before = jax.tree.map(lambda x: x.numpy().copy(), training.words()[0])
    held = signcore_torch.export(training.optimizer)
    other = saved({name: p.clone() for name, p in held.params.items()})
    if isinstance(other, sc.Rule):
        held = checkpoint.Checkpoint(other, held.params, other.init(held.params))
    else:
        held = held._replace(params=other)
    with pytest.raises(kind, match=message):
        signcore_torch.restore(training.optimizer, held)
    same(training.words()[0], before)


# -- optax ---------------------------------------------------------------------------------------------------------


def update(transform: Any, rule: sc.Rule, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for k in steps:
        grads = jax.tree.map(jnp.asarray, GRADS[k])
        updates, state = transform.update(grads, state, params, **extras(rule, params))
        params = optax.apply_updates(params, updates)
    return params, state


@each_rule
def test_a_run_goes_from_optax_to_numpy_and_back(name: str, tmp_path: Path, same: Any) -> None:
    rule = RULES[name]
    whole = by_numpy(rule, tree(0), rule.init(tree(0)), range(3))
    transform = optax.chain(optax.identity(), signcore_optax.from_rule(rule))
    params = jax.tree.map(jnp.asarray, tree(0))
    params, state = update(transform, rule, params, transform.init(params), range(1))
    signcore_optax.save(tmp_path / "a", rule, params, state)
    found = checkpoint.load(tmp_path / "a")
    checkpoint.save(tmp_path / "b", rule, *by_numpy(rule, found.params, found.state, range(1, 2)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    params, state = signcore_optax.load(tmp_path / "b", rule, zeros, transform.init(zeros))
    assert jax.tree.structure(state) == jax.tree.structure(transform.init(zeros))
    params, state = update(transform, rule, params, state, range(2, 3))
    same(signcore_optax.export(rule, params, state)[1:], whole)


def test_injected_hyperparameters_stay_the_state_s_own(tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": jnp.ones(3)}
    transform = optax.inject_hyperparams(signcore_optax.lion)(learning_rate=0.5)
    state = transform.init(params)
    _, state = transform.update({"w": jnp.ones(3)}, state, params)
    signcore_optax.save(tmp_path / "a", rule, params, state)
    _, loaded = signcore_optax.load(tmp_path / "a", rule, params, transform.init(params))
    assert float(loaded.hyperparams["learning_rate"]) == 0.5
    assert int(loaded.inner_state.step) == 1
    assert int(loaded.count) == 0


def test_a_state_that_is_not_there_or_twice(tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": jnp.ones(3)}
    own = signcore_optax.from_rule(rule)
    for transform, count in ((optax.sgd(0.1), 0), (optax.chain(own, own), 2)):
        with pytest.raises(TypeError, match=f"`state` holds {count} states of Lion, a LionState; pass the state of an"):
            signcore_optax.save(tmp_path / "a", rule, params, transform.init(params))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        ({"v": np.ones(3, np.float32)}, ValueError, "'w' is in `params` and not in `saved`"),
        ({"w": jnp.ones(4)}, ValueError, r"`saved` at 'w' has shape \(4,\), `params` at 'w' has \(3,\)"),
        ({"w": jnp.ones(3, jnp.bfloat16)}, ValueError, "`saved` at 'w' has dtype bfloat16"),
        ({"w": np.ones(3, np.float32)}, TypeError, "`saved` at 'w' is an array of numpy, `params` at 'w' of jax"),
    ],
)
def test_what_does_not_fit_in_optax(other: Any, kind: type, message: str) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": jnp.ones(3)}
    state = signcore_optax.from_rule(rule).init(params)
    saved = signcore_optax.export(rule, params, state)._replace(params=other)
    with pytest.raises(kind, match=message):
        signcore_optax.restore(saved, params, state)


def test_modules_and_leaves_without_arrays(tmp_path: Path, same: Any) -> None:
    rule = sc.Lion(lr=0.1)
    params: Any = {"layers": [{"w": jnp.ones(3)}, None], "b": (jnp.zeros(2),)}
    state = signcore_optax.from_rule(rule).init(params)
    signcore_optax.save(tmp_path / "a", rule, params, state)
    same(signcore_optax.load(tmp_path / "a", rule, params, state), (params, state))
    nested = checkpoint.load(tmp_path / "a", jax.tree.map(np.asarray, params)).params
    assert [leaf.path for leaf in flatten(nested)] == ["b/0", "layers/0/w", "layers/1"]


def test_arrays_go_to_the_places_of_their_own(tmp_path: Path) -> None:
    device = jax.devices()[0]
    rule, params = sc.Lion(lr=0.1), {"w": jax.device_put(jnp.ones(3), device)}
    transform = signcore_optax.from_rule(rule)
    signcore_optax.save(tmp_path / "a", rule, params, transform.init(params))
    new, state = signcore_optax.load(tmp_path / "a", rule, params, transform.init(params))
    assert new["w"].committed
    assert new["w"].sharding == state.m["w"].sharding == params["w"].sharding
    assert state.step.committed
