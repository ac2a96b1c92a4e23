"""Donated arrays: a jitted step overwrites them in place, without a copy (`signcore.frameworks.after`)."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signcore as sc

SIZE = 200_000
# Those in which something reads an old value beside what overwrites it; the dicts are what makes it so.
RULES: list[tuple[str, dict[str, Any]]] = [
    ("lion", {}),
    ("rprop", {}),
    ("hybrid", {}),
    ("alias", {}),
    ("alias", {"update_gap": 10}),
    ("alias_momentum", {}),
    ("alias_adam", {}),
]


def _compiled(rule: sc.Rule) -> tuple[Any, Any]:
    params = jnp.asarray(np.random.default_rng(0).standard_normal(SIZE, np.float32))
    values = {"value": jnp.float32(10.0)} if "value" in rule.needs else {}
    step = jax.jit(lambda p, s, g: rule.step(p, g, s, **values), donate_argnums=(0, 1))
    return params, step


@pytest.mark.parametrize(("name", "options"), RULES)
def test_nothing_that_is_donated_is_copied(name: str, options: dict[str, Any]) -> None:
    rule = sc.rule(name, lr=1e-3, **options)
    params, step = _compiled(rule)
    text = step.lower(params, rule.init(params), params).compile().as_text()
    assert not re.findall(rf"= f32\[{SIZE}\]\S* copy\(", text)


def test_the_copies_would_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sc.frameworks, "after", lambda earlier, later: later)
    rule = sc.Lion(lr=1e-3)
    params, step = _compiled(rule)
    text = step.lower(params, rule.init(params), params).compile().as_text()
    assert re.findall(rf"= f32\[{SIZE}\]\S* copy\(", text)


@pytest.mark.parametrize("name", ["lion", "rprop"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_any_shape_and_dtype(name: str, shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sc.frameworks, "WORTH_ORDERING", 0)
    rule = sc.rule(name, lr=1e-3)
    p = jnp.ones(shape, dtype)
    got, _ = jax.jit(lambda p: rule.step(p, p, rule.init(p)))(p)
    expected, _ = rule.step(p, p, rule.init(p))
    assert got.dtype == p.dtype
    assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_under_transformations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sc.frameworks, "WORTH_ORDERING", 0)
    rule = sc.Lion(lr=0.5)

    def moved(p: Any) -> Any:
        return rule.step(p, p, rule.init(p))[0]

    p = jnp.asarray([[1.0, -2.0], [0.0, 3.0]])
    assert np.array_equal(jax.jit(jax.vmap(moved))(p), moved(p))
    assert np.array_equal(jax.jit(jax.grad(lambda p: moved(p).sum()))(p), jnp.ones((2, 2)))
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(p, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
        assert np.array_equal(jax.jit(moved)(spread), moved(p))
    by_hand = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    assert np.array_equal(jax.jit(jax.shard_map(moved, mesh=by_hand, in_specs=spec, out_specs=spec))(p), moved(p))
