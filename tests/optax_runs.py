"""Runs of every rule through signcore_optax and, for comparison, on NumPy; each is done once, whoever looks at it.

Compiling a rule that measures exact norms takes a second or two, so the points of the contract share what is compiled
where they ask about the same program. Run as a program, this prints what the runs are on all devices that it finds.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import signcore as sc
import signcore_optax
from signcore.fields import ranges
from signcore.rule import classes
from signcore_conformance import golden

STEPS = 6
RULES = sc.rules()


def tree(seed: int, dtype: str = "float32") -> Any:
    """Params (below 100) or gradients with zeros of both signs and a subnormal, beside a 0-d leaf and no leaf."""
    draw = np.random.default_rng(seed)
    w = draw.standard_normal((4, 8)).astype(dtype)
    w.ravel()[::8] = np.asarray([0.0, -0.0, 0.5 if seed < 100 else 1e-38, 1.0]).astype(dtype)
    return {"w": w, "b": [np.asarray(draw.standard_normal()).astype(dtype), None]}


START, OTHER_START = 0, 1
GRADS = [tree(100 + step) for step in range(STEPS)]


def on_jax(values: Any) -> Any:
    """The same tree of JAX's arrays."""
    return jax.tree.map(jnp.asarray, values)


def bits(values: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Every leaf as dtype, shape and bytes."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def types(values: Any) -> Any:
    """What decides whether a compiled function fits: shapes, dtypes, weak types, shardings."""
    return jax.tree.map(lambda x: (jax.typeof(x), x.weak_type, getattr(x, "sharding", None)), values)


def loss(params: Any) -> Any:
    """The largest magnitude: a maximum has no order and no rounding, so it is the same on every library."""
    leaves = jax.tree.leaves(params)
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
    return functools.reduce(xp.maximum, [xp.abs(leaf).max().astype(xp.float32) for leaf in leaves])


def half(params: Any) -> Any:
    """Exact gradients of something, for rules that ask for gradients elsewhere."""
    return jax.tree.map(lambda p: p * 0.5, params)


def decays(name: str) -> bool:
    """Whether the rule takes a decay other than zero."""
    return ranges(classes()[name])["weight_decay"].maximum != 0.0


def options_of(name: str, **changes: Any) -> dict[str, Any]:
    """The main hyperparameters of a rule's golden file, with a decay where it has one, so that params take part."""
    return golden.load(name)["variants"][0] | ({"weight_decay": 0.1} if decays(name) else {}) | changes


def rule_of(name: str, **changes: Any) -> sc.Rule:
    """The rule with these hyperparameters."""
    return sc.rule(name, **options_of(name, **changes))


def transform_of(name: str, *, mask: Any = None, **changes: Any) -> optax.GradientTransformationExtraArgs:
    """The factory's transformation with the same."""
    options = {"learning_rate" if key == "lr" else key: value for key, value in options_of(name, **changes).items()}
    return getattr(signcore_optax, name)(mask=mask, **options)


def extras(rule: sc.Rule, params: Any) -> dict[str, Any]:
    """What the rule needs beside gradients, as optax's line searches take it."""
    every = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: half}
    return {key: every[key]() for key in sorted(rule.needs)}


class After(NamedTuple):
    """What a step left: bytes of the params, the state and its types; and what it was made of, params and updates."""

    params: Any
    state: Any
    kinds: Any
    given: Any = None


@functools.cache
def on_numpy(name: str, start: int = START) -> list[Any]:
    """Bytes of params and state after each step of the rule itself."""
    return trajectory(rule_of(name), start)


def trajectory(rule: sc.Rule, start: int = START, **keywords: Any) -> list[Any]:
    """The same of any rule."""
    params, found = tree(start), []
    state = rule.init(params)
    for grads in GRADS:
        params, state = rule.step(params, grads, state, **extras(rule, params), **keywords)
        found.append(bits((params, state)))
    return found


def transformed(tx: Any, rule: sc.Rule, update: Any = None, init: Any = None) -> list[After]:
    """Steps of a transformation; `update` and `init` may be compiled forms of its own."""
    params = on_jax(tree(START))
    state, found = (init or tx.init)(params), []
    for grads in GRADS:
        updates, state = (update or tx.update)(on_jax(grads), state, params, **extras(rule, params))
        before, params = params, optax.apply_updates(params, updates)
        found.append(After(bits(params), state, types(state), (bits(before), bits(updates))))
    return found


@functools.cache
def eager(name: str) -> list[After]:
    """Steps of eager calls."""
    return transformed(transform_of(name), rule_of(name))


class Compiled(NamedTuple):
    """Steps of one compiled function, types of the first state, and how often it was compiled."""

    steps: list[After]
    kinds: Any
    compilations: int


@functools.cache
def compiled(name: str) -> Compiled:
    """A jitted step whose params and state are donated: the buffers are used again."""
    tx, rule = transform_of(name), rule_of(name)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extras(rule, params))
        return optax.apply_updates(params, updates), state

    params = on_jax(tree(START))
    state, found = tx.init(params), []
    kinds = types(state)
    for grads in GRADS:
        params, state = step(params, state, on_jax(grads))
        found.append(After(bits(params), bits(state), types(state)))
    return Compiled(found, kinds, step._cache_size())


@functools.cache
def scanned(name: str) -> list[list[Any]]:
    """Two runs at once: vmap over a scan over a conditional step, which is not taken last; with x64 switched on."""
    tx, rule = transform_of(name), rule_of(name)

    def step(carry: Any, given: Any) -> Any:
        (params, state), (grads, go) = carry, given

        def taken() -> Any:
            updates, after = tx.update(grads, state, params, **extras(rule, params))
            return optax.apply_updates(params, updates), after

        now = jax.lax.cond(go, taken, lambda: (params, state))
        return now, now

    def run(params: Any, grads: Any, go: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), (grads, go))[1]

    with jax.enable_x64(True):
        grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS, GRADS[0])
        starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(START), tree(OTHER_START))
        ran = jax.jit(jax.vmap(run, in_axes=(0, None, None)))(starts, grads, jnp.arange(STEPS + 1) < STEPS)
        return [[bits(jax.tree.map(lambda x: x[i, k], ran)) for k in range(STEPS + 1)] for i in range(2)]  # noqa: B023


def digest(words: Any) -> str:
    """A short name of a run's bytes."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


def sharded(name: str, mesh: Any) -> dict[str, Any]:
    """The jitted run with params and gradients spread over the devices of a mesh: its digest, and how it was run."""
    tx, rule = transform_of(name), rule_of(name)
    spread = {2: jax.NamedSharding(mesh, jax.P(None, "x"))}
    whole = jax.NamedSharding(mesh, jax.P())

    def place(values: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, spread.get(leaf.ndim, whole)), values)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extras(rule, params))
        return optax.apply_updates(params, updates), state

    params = place(tree(START))
    state, words = tx.init(params), []
    kinds = types(state)
    for grads in GRADS:
        params, state = step(params, state, place(grads))
        words.append(bits((params, state)))
    return {
        "digest": digest(words),
        "spread": len(params["w"].sharding.device_set),
        "shard": params["w"].addressable_shards[0].data.shape[1],
        "kept": types(state) == kinds,
        "compilations": step._cache_size(),
    }


if __name__ == "__main__":
    ring = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    print(json.dumps({name: sharded(name, ring) for name in RULES}))
