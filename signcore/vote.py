"""Aggregation of the workers' messages, stacked on a leading axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import checks, ops
from .frameworks import namespace
from .marks import Wire
from .tree import Leaf, flatten, unflatten

__all__ = ["majority", "mean", "total", "weighted", "weighted_mean"]


def _check(stacked: Any) -> None:
    checks.array("stacked", Leaf("", stacked))
    if not stacked.shape or stacked.shape[0] == 0:
        raise ValueError(
            f"`stacked` has shape {tuple(stacked.shape)}; stack the signs of at least one worker: (M, ...)"
        )


def majority(stacked: Any, ties: str = "zero", words: Any = None) -> Any:
    """Sign of the sum of signs: the majority vote (Bernstein et al. 2018, algorithm 3).

    Parameters
    ----------
    stacked : array, shape (M, ...)
        Signs of M workers, in {-1, 0, 1}, float32 or float64. Their sum is exact for M up to 2**24.
    ties : {"zero", "plus", "minus", "random"}
        What an undecided coordinate becomes; 0 is the definition of Safaryan and Richtarik 2019, +1 what
        one-bit packing does; "random" is a fair coin, unbiased with one bit.
    words : int32 array, shape (...), optional
        Random words, whose lowest bit is the coin of ``"random"``.

    Returns
    -------
    array, shape (...)

    Raises
    ------
    TypeError
        `stacked` is no array of a float dtype, or ties="random" without `words`.
    ValueError
        Unknown `ties`, or no workers.

    Examples
    --------
    >>> import numpy as np
    >>> majority(np.asarray([[1.0, -1.0], [1.0, 1.0]], dtype=np.float32))
    array([1., 0.], dtype=float32)
    """
    checks.choice("ties", ties, ("zero", "plus", "minus", "random"))
    _check(stacked)
    if ties == "random" and words is None:
        raise TypeError("`words` is None, and ties='random' tosses coins; pass int32 words of the shape of a vote")
    return ops.sign(namespace(stacked).sum(stacked, axis=0, dtype=stacked.dtype), ties, words)


def mean(stacked: Any) -> Any:
    """Mean of what the workers sent, correctly rounded for signs.

    Parameters
    ----------
    stacked : array, shape (M, ...)
        Signs of M workers, in {-1, 0, 1}, float32 or float64: their sum is exact whatever the order. Other numbers
        are added one after the other in the order of the workers, a rounding each.

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
    return ops.quotient(_in_order(stacked), float(stacked.shape[0]))


def total(stacked: Any) -> Any:
    """Sum of what the workers sent.

    Parameters
    ----------
    stacked : array, shape (M, ...)
        As for `mean`.

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
    >>> total(np.asarray([[1.0, -1.0], [1.0, 1.0]], dtype=np.float32))
    array([2., 0.], dtype=float32)
    """
    _check(stacked)
    return _in_order(stacked)


def weighted(stacked: Any, weights: Any, ties: str = "zero", words: Any = None) -> Any:
    """Sign of the weighted sum of signs: a vote in which workers count differently.

    Parameters
    ----------
    stacked : array, shape (M, ...)
        As for `majority`.
    weights : array, shape (M,), of `stacked`'s dtype
        Products and sums are rounded, in the order of the workers.
    ties, words
        As for `majority`.

    Returns
    -------
    array, shape (...)

    Raises
    ------
    TypeError, ValueError
        As `majority`; or `weights` is not one number per worker.

    Examples
    --------
    >>> import numpy as np
    >>> signs = np.asarray([[1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]], dtype=np.float32)
    >>> weighted(signs, np.asarray([3.0, 1.0, 1.0], dtype=np.float32))
    array([ 1., -1.], dtype=float32)
    """
    checks.choice("ties", ties, ("zero", "plus", "minus", "random"))
    return ops.sign(_in_order(_times(stacked, weights)), ties, words)


def weighted_mean(stacked: Any, weights: Any) -> Any:
    """Mean of signs times their workers' weights.

    Parameters
    ----------
    stacked : array, shape (M, ...)
        As for `majority`.
    weights : array, shape (M,), of `stacked`'s dtype

    Returns
    -------
    array, shape (...)
        A rounding for each product, each addition in the order of the workers, and the division.

    Raises
    ------
    TypeError, ValueError
        As `mean`; or `weights` is not one number per worker.

    Examples
    --------
    >>> import numpy as np
    >>> signs = np.asarray([[1.0, -1.0], [-1.0, -1.0]], dtype=np.float32)
    >>> weighted_mean(signs, np.asarray([3.0, 1.0], dtype=np.float32))
    array([ 1., -2.], dtype=float32)
    """
    return ops.quotient(_in_order(_times(stacked, weights)), float(stacked.shape[0]))


def _times(stacked: Any, weights: Any) -> Any:
    _check(stacked)
    checks.array("weights", Leaf("", weights))
    if tuple(weights.shape) != (stacked.shape[0],):
        raise ValueError(f"`weights` has shape {tuple(weights.shape)}; pass one number for each of {stacked.shape[0]}")
    shape = (stacked.shape[0],) + (1,) * (len(stacked.shape) - 1)
    return ops.product(stacked, namespace(stacked).reshape(weights, shape))


def _in_order(stacked: Any) -> Any:
    """The sum over workers, one after the other."""
    total = stacked[0, ...]
    for n in range(1, stacked.shape[0]):
        total = total + stacked[n, ...]
    return total


def alone(wires: Mapping[str, Wire], message: Any) -> Any:
    """The aggregate of one worker's message, of one leaf: what it sent, signs times their scale.

    Examples
    --------
    >>> from signcore.rules.signsgd import SignSGD
    >>> message = SignSGD.Message(1.0)
    >>> alone(SignSGD._wires, message) is message
    True
    """
    fields = {
        name: ops.product(getattr(message, name), message.scale)
        for name, wire in wires.items()
        if wire.aggregate == "scaled"
    }
    return message._replace(**fields) if fields else message


def alone_in_trees(wires: Mapping[str, Wire], message: Any, params: Any) -> Any:
    """The same of the trees of a whole message.

    Examples
    --------
    >>> from signcore.rules.signsgd import SignSGD
    >>> alone_in_trees(SignSGD._wires, SignSGD.Message({"w": 1.0}), {"w": 0.0})
    SignSGDMessage(sign={'w': 1.0})
    """
    fields: dict[str, Any] = {}
    for name, wire in wires.items():
        if wire.aggregate == "scaled":
            column = [
                None if s.value is None else ops.product(s.value, scale.value)
                for s, scale in zip(flatten(getattr(message, name)), flatten(message.scale), strict=True)
            ]
            fields[name] = unflatten(params, column)
    return message._replace(**fields)
