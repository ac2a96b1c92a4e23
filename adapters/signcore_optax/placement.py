"""Where the 0-d values of a state live: beside the params, as a compiled step will leave them.

A counter on one device beside params on eight makes the second call of a jitted update compile again, because
the first one returned it on eight.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding


def _home(leaf: Any, rank: int) -> Any:
    """Sharding that puts a whole value on every device of a leaf; None where JAX should choose."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.committed:
        return None
    if isinstance(leaf.sharding, NamedSharding):
        mesh = leaf.sharding.mesh
        # A jitted step spells "replicated" with one None per axis where shardings are part of the types.
        spelled = rank if AxisType.Explicit in mesh.axis_types else 0
        return NamedSharding(mesh, PartitionSpec(*[None] * spelled))  # type: ignore[no-untyped-call]
    return leaf.sharding if isinstance(leaf.sharding, SingleDeviceSharding) else None


def beside(value: Any, leaves: list[Any]) -> Any:
    """`value` on all devices of the leaves; as it is when they have no devices in common."""
    homes = {_home(leaf, value.ndim) for leaf in leaves if leaf is not None}
    home = homes.pop() if len(homes) == 1 else None
    return value if home is None or isinstance(value, jax.core.Tracer) else jax.device_put(value, home)
