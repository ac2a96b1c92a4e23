"""A run's params and optax state in a file that every backend reads, and back."""

from __future__ import annotations

import os
from typing import Any

from signcore import Rule, checkpoint

from .portable import export, restore


def save(path: str | os.PathLike[str], rule: Rule, params: Any, state: Any) -> None:
    """Write params and the rule's state to a file that every backend reads (`signcore.checkpoint.save`, `export`).

    Examples
    --------
    >>> import jax.numpy as jnp, signcore as sc, signcore_optax, tempfile
    >>> rule, params = sc.rule(sc.rules()[0], lr=0.1), {"w": jnp.ones(2)}
    >>> state = signcore_optax.from_rule(rule).init(params)
    >>> path = tempfile.mkdtemp() + "/run.safetensors"
    >>> save(path, rule, params, state)
    >>> params, state = load(path, rule, params, state)
    """
    checkpoint.save(path, *export(rule, params, state))


def load(path: str | os.PathLike[str], rule: Rule, params: Any, state: Any) -> tuple[Any, Any]:
    """Params and optax state with what a file holds, in the structures and places of the given ones.

    Parameters
    ----------
    path : str or path
    rule : signcore.Rule
        Of the saved name, with the options that it was saved with.
    params, state : trees
        Of ``tx.init(params)``. Variables of Flax NNX are new ones, for ``nnx.update(model, params)`` and
        ``nnx.update(optimizer.opt_state, nnx.state(state))``; the file has no ``optimizer.step``.

    Raises
    ------
    CheckpointError
        The file is no checkpoint, is damaged or truncated, or has a newer format.
    TypeError, ValueError
        It is of another rule, or of other paths, shapes or dtypes.
    """
    return restore(checkpoint.load(path, export(rule, params, state).params, rule=rule), params, state)
