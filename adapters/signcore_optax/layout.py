"""What of a state every worker has of its own, and how it lies over a mesh."""

from __future__ import annotations

from typing import Any

import jax

from signcore import Rule


def own_fields(rule: Rule) -> list[str]:
    """Fields of the state of which every worker has its own."""
    shared = rule.shared_fields()
    return [name for name in rule.kinds if name not in shared]


def specs(rule: Rule, axis_name: str) -> Any:
    """How a transformation's state lies, for ``in_specs`` and ``out_specs`` of `jax.shard_map`.

    Parameters
    ----------
    rule : signcore.Rule
    axis_name : str
        The mesh axis along which the workers are.

    Returns
    -------
    The rule's state type
        `jax.sharding.PartitionSpec` for each field: what a worker has of its own lies along the axis, with an axis of
        workers in front of each leaf; everything else is the same on all.

    Examples
    --------
    >>> import signcore as sc
    >>> specs(sc.rule(sc.rules()[0], lr=0.1), "data").step
    P()
    """
    own = own_fields(rule)
    spec: Any = jax.sharding.PartitionSpec
    return rule.State(
        **{
            name: (spec(axis_name) if name in own else spec()) if name in rule.kinds else None
            for name in rule.State._fields
        }
    )
