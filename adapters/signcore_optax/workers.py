"""``axis_name=``: a transformation whose updates are those of one of several workers, the devices along a mesh axis.

Inside of `jax.shard_map` or `jax.pmap` over that axis, with gradients that are not averaged. JAX sums those at
replicated parameters, so they are taken at ``jax.lax.pcast(params, axis_name, to="varying")``. Every worker has some
state of its own, see `specs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from signcore import Rule, random
from signcore.exchange import Group

from .layout import own_fields
from .leaves import Shape

_LAX: Any = jax.lax  # whose collectives have no types


class Collectives:
    """A `signcore.exchange.Transport` over a mesh axis, inside of a function that is mapped over it.

    Parameters
    ----------
    axis_name : str
    """

    eager = False

    def __init__(self, axis_name: str) -> None:
        self.axis_name = axis_name
        try:
            self.size = jax.lax.axis_size(axis_name)
        except NameError:
            raise ValueError(
                f"`axis_name` is {axis_name!r}, which is no axis here; call init and update inside of jax.shard_map "
                f"over a mesh that has it"
            ) from None
        self.rank = jax.lax.axis_index(axis_name)

    def at(self, step: int) -> None:
        """Nothing is said of a step that is traced."""

    def sum(self, x: Any) -> Any:
        """Elementwise sum over the ranks."""
        return _LAX.psum(x, self.axis_name)

    def max(self, x: Any) -> Any:
        """Elementwise maximum over the ranks."""
        return _LAX.pmax(x, self.axis_name)

    def gather(self, x: Any) -> Any:
        """What every rank passed, stacked."""
        # of the same type on every device, so that what follows from it may leave a shard_map as replicated
        return jax.lax.all_gather(x, self.axis_name, to="invarying")

    def exchange(self, rows: Any) -> Any:
        """Row n goes to rank n."""
        return _LAX.all_to_all(rows, self.axis_name, split_axis=0, concat_axis=0, tiled=True)

    def own(self, rows: Any) -> Any:
        """The row of this rank."""
        return jax.lax.dynamic_index_in_dim(rows, self.rank, keepdims=False)


class Workers:
    """How the steps of a transformation are computed: of one worker, or of all along an axis.

    Parameters
    ----------
    rule : signcore.Rule
    axis_name : str or None
        None is one worker.
    weights : sequence of float or None
    """

    def __init__(self, rule: Rule, axis_name: str | None, weights: Sequence[float] | None) -> None:
        if weights is not None and axis_name is None:
            raise TypeError(f"`weights` is {weights!r} and `axis_name` is None; pass the axis whose devices vote")
        self.rule, self.axis_name, self.weights = rule, axis_name, weights

    def begun(self, state: Any, shape: Shape) -> Any:
        """A first state as it leaves `init`: with the keys of this worker's noise."""
        if self.axis_name is None:
            return state
        if "stream" in own_fields(self.rule):
            keys = self._keys(shape.names, Collectives(self.axis_name))
            held = jax.tree.leaves(state.stream, is_leaf=lambda leaf: leaf is None)
            column = [None if old is None else key for key, old in zip(keys, held, strict=True)]
            state = state._replace(stream=shape.treedef.unflatten(column))
        return self.left(state)

    def _keys(self, names: list[str], transport: Collectives) -> list[Any]:
        """Out of a table of all workers', because this one's place is not known while it is traced."""
        seed, size = getattr(self.rule, "seed", 0), transport.size
        return [transport.own(jnp.stack([random.stream_key(seed, name, n) for n in range(size)])) for name in names]

    def entered(self, state: Any) -> Any:
        """A state as the rule takes it: without the axis of workers in front of what each has of its own."""
        return state if self.axis_name is None else self._mapped(state, lambda leaf: leaf[0])

    def left(self, state: Any) -> Any:
        """The inverse of `entered`."""
        return state if self.axis_name is None else self._mapped(state, lambda leaf: leaf[None])

    def _mapped(self, state: Any, function: Any) -> Any:
        return state._replace(**{name: jax.tree.map(function, getattr(state, name)) for name in own_fields(self.rule)})

    def delta(self, *trees: Any, **inputs: Any) -> tuple[Any, Any]:
        """`Rule.delta` of one worker, or of all."""
        if self.axis_name is None:
            return self.rule.delta(*trees, **inputs)
        return Group(Collectives(self.axis_name), weights=self.weights).delta(self.rule, *trees, **inputs)
