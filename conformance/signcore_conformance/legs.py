"""The legs of a relay: a backend loads a checkpoint file, does some steps, and writes another.

As a user of that backend would: arrays through `signcore.checkpoint`, optimizers through their adapter's converters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import signcore as sc
from signcore import checkpoint
from signcore.tree import flatten

from .backends import (
    Backend,
    closure_of,
    compiled,
    extras,
    given,
    gradient_elsewhere,
    loss,
    optax_update,
    stacked,
    tree_map,
)

Leg = Callable[[Backend, Path, sc.Rule, Any, Sequence[Any]], None]  # the last: params' likes, gradients by step


def functional(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """The rule's own step, compiled as the backend does."""
    _, params, state = checkpoint.load(path, tree_map(backend.to, like), rule=rule)
    step = compiled(backend, ("relay", rule, _dtype(like)), given(rule, rule.step))
    checkpoint.save(path, rule, *_stepped(backend, rule, step, params, state, grads))


def _stepped(backend: Backend, rule: sc.Rule, step: Any, params: Any, state: Any, grads: Sequence[Any]) -> Any:
    for each in grads:
        values = {"value": loss(params)} if "value" in rule.needs else {}
        params, state = step(params, tree_map(backend.to, each), state, **values)
    return params, state


def readonly(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """NumPy, with every array that was loaded made unwriteable."""
    _, params, state = checkpoint.load(path, like, rule=rule)
    for _, array in flatten((params, state)):
        if array is not None:
            array.flags.writeable = False
    for each in grads:
        params, state = rule.step(params, each, state, **extras(rule, params))
    checkpoint.save(path, rule, params, state)


def cupy_loop(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """The loop, which resumes from the file and writes it by itself."""
    import signcore_cupy

    with checkpoint.Saved(path) as saved:
        first = int(saved["state/step"])
    asked: set[int] = set()

    def grad_fn(params: Any, step: int) -> Any:
        if step in asked:  # the second time for gradients elsewhere
            return gradient_elsewhere(params)
        asked.add(step)
        return tree_map(backend.to, grads[step - first])

    signcore_cupy.run(
        rule,
        tree_map(backend.to, like),
        grad_fn,
        first + len(grads),
        value_fn=lambda params, step: loss(params),
        checkpoint=path,
        save_every=len(grads),
        progress=False,
    )


def torch_adapter(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """The torch optimizer."""
    import torch

    import signcore_torch

    named = [(name, torch.nn.Parameter(backend.to(a))) for name, a in flatten(like) if a is not None]
    optimizer = signcore_torch.from_rule(named, rule)
    signcore_torch.load(path, optimizer, rule=rule)
    for each in grads:
        now = {name: backend.to(g) for name, g in flatten(each) if g is not None}
        optimizer.step(closure_of(named, now))
    signcore_torch.save(path, optimizer)


def scan(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """All steps in one jitted `lax.scan`."""
    import jax

    def body(carry: Any, each: Any) -> Any:
        params, state = carry
        return rule.step(params, each, state, **extras(rule, params)), None

    _, params, state = checkpoint.load(path, tree_map(backend.to, like), rule=rule)
    run = compiled(backend, ("relay", rule, _dtype(like)), lambda *args: jax.lax.scan(body, *args)[0])
    checkpoint.save(path, rule, *run((params, state), tree_map(backend.to, stacked(grads))))


def optax_adapter(backend: Backend, path: Path, rule: sc.Rule, like: Any, grads: Sequence[Any]) -> None:
    """The optax transformation under jit, applied by optax itself."""
    import signcore_optax

    transform = signcore_optax.from_rule(rule)
    params = tree_map(backend.to, like)
    params, state = signcore_optax.load(path, rule, params, transform.init(params))
    step = compiled(backend, ("relay", rule, _dtype(like)), optax_update(rule, transform))
    signcore_optax.save(path, rule, *_stepped(backend, rule, step, params, state, grads))


def _dtype(tree: Any) -> str:
    return str(next(leaf.value.dtype.name for leaf in flatten(tree) if leaf.value is not None))


# Backends that are no plain loop over `rule.step`, by name; each leg is its `drive` as somebody who resumes writes it.
OWN: dict[str, Leg] = {
    "numpy-readonly": readonly,
    "cupy-loop": cupy_loop,
    "torch-adapter": torch_adapter,
    "jax-scan": scan,
    "optax-adapter": optax_adapter,
}


def leg_of(backend: Backend) -> Leg:
    """How a backend runs its part of a relay."""
    return OWN[backend.name] if backend.drive is not None else functional
