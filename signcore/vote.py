"""Aggregation of the workers' messages, stacked on a leading axis."""

from __future__ import annotations

from typing import Any

from . import checks, ops
from .frameworks import namespace
from .tree import Leaf

__all__ = ["majority", "mean"]


def _check(stacked: Any) -> None:
    checks.array("stacked", Leaf("", stacked))
    if not stacked.shape or stacked.shape[0] == 0:
        raise ValueError(
            f"`stacked` has shape {tuple(stacked.shape)}; stack the signs of at least one worker: (M, ...)"
        )


def majority(stacked: Any, ties: str = "zero") -> Any:
    """Sign of the sum of signs: the majority vote (Bernstein et al. 2018, algorithm 3).

    Parameters
    ----------
    stacked : array, shape (M, ...)
        Signs of M workers, in {-1, 0, 1}, float32 or float64. Their sum is exact for M up to 2**24.
    ties : {"zero", "plus", "minus"}
        What an undecided coordinate becomes; 0 is the definition of Safaryan and Richtarik 2019, +1 what
        one-bit packing does.

    Returns
    -------
    array, shape (...)

    Raises
    ------
    TypeError
        `stacked` is no array of a float dtype.
    ValueError
        Unknown `ties`, or no workers.

    Examples
    --------
    >>> import numpy as np
    >>> majority(np.asarray([[1.0, -1.0], [1.0, 1.0]], dtype=np.float32))
    array([1., 0.], dtype=float32)
    """
    checks.choice("ties", ties, ("zero", "plus", "minus"))
    _check(stacked)
    return ops.sign(namespace(stacked).sum(stacked, axis=0, dtype=stacked.dtype), ties)


def mean(stacked: Any) -> Any:
    """Mean of the workers' signs, correctly rounded.

    Parameters
    ----------
    stacked : array, shape (M, ...)
        Signs of M workers, in {-1, 0, 1}, float32 or float64: their sum is exact whatever the order.

    Returns
    -------
    array, shape (...)

    Raises
    ------
    TypeError
        `stacked` is no array of a float dtype.
    ValueError
        No workers.

    Examples
    --------
    >>> import numpy as np
    >>> mean(np.asarray([[1.0, -1.0], [1.0, 1.0]], dtype=np.float32))
    array([1., 0.], dtype=float32)
    """
    _check(stacked)
    total = namespace(stacked).sum(stacked, axis=0, dtype=stacked.dtype)
    return ops.quotient(total, float(stacked.shape[0]))
