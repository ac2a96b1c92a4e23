"""What a majority vote of independent workers makes of the probability that one of them is right.

SR is Safaryan and Richtarik, arXiv 1905.12938. For numbers, arrays of any Array API library and trees, under jit too:
computed in float64 by operations with one rounding each, and rounded once. Every second worker costs a term.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from . import checks
from .ieee import compute_format, product, where
from .leafwise import in_range, over_leaves
from .ops import clamp
from .tree import Leaf

__all__ = ["vote_drift", "vote_success", "vote_tie", "vote_variance"]


def vote_success(rho: Any, workers: int, method: str = "series") -> Any:
    """``I(rho; l, l)`` with l = floor((M+1)/2): probability that a majority vote of M workers is right (SR, def. 2).

    For odd M exactly that; for even M ties count half.

    Parameters
    ----------
    rho : number, array or tree of arrays
        Probability that one worker's sign is right, in [0, 1]; the workers are independent.
    workers : int
        M, at least 1.
    method : {"series", "scipy"}
        The series of `vote_drift`, with the same words on every backend whatever is installed; or SciPy's regularised
        incomplete beta function, for numbers and NumPy arrays.

    Returns
    -------
    float, array or tree of arrays
        In [0, 1], absolute error below M 1e-16 and the rounding to the compute dtype.

    Raises
    ------
    TypeError, ValueError
        As `unimodal_bound`; `workers` is no positive int; an unknown `method`.
    ImportError
        `method` is "scipy" and SciPy is not installed.

    Examples
    --------
    >>> vote_success(0.75, 3)
    0.84375
    """
    checks.choice("method", method, ("series", "scipy"))
    half = half_of(rho, workers)
    if method == "series":
        return over_leaves(lambda p: 0.5 + 0.5 * series(p, half), {"rho": rho})
    try:
        special = importlib.import_module("scipy.special")
    except ImportError:
        raise ImportError(
            "`method` is 'scipy', which is not installed: pip install scipy, or choose 'series'"
        ) from None
    if checks.is_number(rho):
        return float(special.betainc(half, half, float(rho)))
    checks.array("rho", Leaf("", rho))
    if not isinstance(rho, np.ndarray):
        raise TypeError(
            f"`rho` is a {type(rho).__name__}, and `method` 'scipy' takes numbers and NumPy arrays; choose 'series'"
        )
    return special.betainc(half, half, rho.astype(np.float64)).astype(compute_format(rho).compute)


def vote_drift(rho: Any, workers: int) -> Any:
    """``2 I(rho; l, l) - 1``, the mean of a majority vote where the right sign is +1 and ties are 0 (SR, def. 2).

    Parameters
    ----------
    rho, workers
        As for `vote_success`.

    Returns
    -------
    float, array or tree of arrays
        In [-1, 1]; M = 2l - 1 and M = 2l have the same.

    Raises
    ------
    TypeError, ValueError
        As `vote_success`.

    Notes
    -----
    With x = 2 rho - 1 it is ``x sum_{j<l} C(2j, j)/4^j (1 - x^2)^j``: two more workers change a vote of 2j - 1 only
    where it was won by one, so the drift grows by 2 C(2j-1, j) (rho (1 - rho))^j (rho - (1 - rho)). All terms have
    one sign, so nothing cancels [our derivation; tested against SciPy and mpmath].

    Examples
    --------
    >>> round(vote_drift(0.6, 4), 12)
    0.296
    """
    half = half_of(rho, workers)
    return over_leaves(lambda p: series(p, half), {"rho": rho})


def vote_tie(rho: Any, workers: int) -> Any:
    """Probability that M workers without zeros are tied: ``C(M, M/2) (rho (1 - rho))^(M/2)``, 0 for odd M.

    Parameters
    ----------
    rho, workers
        As for `vote_success`.

    Returns
    -------
    float, array or tree of arrays
        In [0, 1]. With ties="plus" a vote's drift is `vote_drift` plus this where +1 is right, and minus this where -1
        is: a bias.

    Raises
    ------
    TypeError, ValueError
        As `vote_success`.

    Examples
    --------
    >>> vote_tie(0.5, 2)
    0.5
    """
    half = half_of(rho, workers)
    return over_leaves(lambda p: _tie(p, half, workers), {"rho": rho})


def vote_variance(rho: Any, workers: int) -> Any:
    """Variance of a majority vote with ties 0: ``1 - P(tie) - drift^2``.

    Parameters
    ----------
    rho, workers
        As for `vote_success`.

    Returns
    -------
    float, array or tree of arrays
        In [0, 1]. M = 2l has the drift of 2l - 1 and less variance, so it settles lower at a constant step size.

    Raises
    ------
    TypeError, ValueError
        As `vote_success`.

    Examples
    --------
    >>> round(vote_variance(0.6, 3), 6), round(vote_variance(0.6, 4), 6)
    (0.912384, 0.566784)
    """
    half = half_of(rho, workers)

    def variance(p: Any) -> Any:
        drift = series(p, half)
        rest = (1.0 - _tie(p, half, workers)) - product(drift, drift)
        return where(rest > 0.0, rest, 0.0)  # at rho = 1 an ulp may be missing

    return over_leaves(variance, {"rho": rho})


# -- the work ----------------------------------------------------------------------------------------------


def series(p: Any, half: int) -> Any:
    """The drift of float64 probabilities, by half - 1 more terms than one worker's."""
    both = 4.0 * product(p, 1.0 - p)  # 1 - x^2
    term = total = 2.0 * p - 1.0
    for j in range(1, half):
        term = product(product(term, both), (2 * j - 1) / (2 * j))
        total = total + term
    return clamp(total, 1.0)


def _tie(p: Any, half: int, workers: int) -> Any:
    if workers % 2:
        return p * 0.0
    both = 4.0 * product(p, 1.0 - p)
    term = both * 0.5
    for j in range(2, half + 1):
        term = product(product(term, both), (2 * j - 1) / (2 * j))
    return term


def half_of(rho: Any, workers: int) -> int:
    """The l = floor((M+1)/2) of M workers, after the checks."""
    in_range(checks.Range(0.0, 1.0), rho=rho)
    checks.integer("workers", workers)
    if workers < 1:
        raise ValueError(f"`workers` is {workers}; a vote needs at least one")
    return (int(workers) + 1) // 2
