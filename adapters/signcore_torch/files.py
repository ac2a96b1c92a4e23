"""An optimizer with its parameters in a file that every backend reads, and back."""

from __future__ import annotations

import os
from typing import Any

from signcore import checkpoint

from .optimizer import SignOptimizer
from .portable import export, restore


def save(path: str | os.PathLike[str], optimizer: SignOptimizer) -> None:
    """Write an optimizer and its parameters to a file that every backend reads (`signcore.checkpoint.save`).

    Examples
    --------
    >>> import signcore as sc, signcore_torch, tempfile, torch
    >>> rule = sc.rule(sc.rules()[0], lr=0.1)
    >>> optimizer = signcore_torch.from_rule([torch.nn.Parameter(torch.ones(3))], rule)
    >>> path = tempfile.mkdtemp() + "/run.safetensors"
    >>> save(path, optimizer)
    >>> load(path, optimizer)
    """
    checkpoint.save(path, *export(optimizer))


def load(path: str | os.PathLike[str], optimizer: SignOptimizer, *, rule: Any = None) -> None:
    """Load a file into an optimizer and its parameters; see `restore` and `signcore.checkpoint.load`.

    Parameters
    ----------
    path : str or path
    optimizer : SignOptimizer
    rule : Rule or list of rules, optional
        What to go on with instead of the saved hyperparameters, one per group.

    Raises
    ------
    CheckpointError
        The file is no checkpoint, is damaged or truncated, or has a newer format. Nothing is changed.
    TypeError, ValueError
        It is of another rule, or its groups, names, shapes or dtypes are others. Nothing is changed.
    """
    own = export(optimizer)
    restore(optimizer, checkpoint.load(path, own.params, rule=rule))
