"""Lower bounds of the probability that a sign is right, and the mini-batches that raise it above one half.

SR is Safaryan and Richtarik, arXiv 1905.12938. rho_i is the probability that the sign of coordinate i of a stochastic
gradient is that of the gradient g_i; sigma_i is the noise's standard deviation. Everything here takes numbers, arrays
of any Array API library or trees of them, works under jit, is computed in float64 by operations with one rounding
each, and rounded once to the arrays' compute dtype; so the words are the same on every backend. Each bound is proven
in its notes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import checks
from .frameworks import namespace
from .ieee import product, where
from .leafwise import in_range, over_leaves, ratio

__all__ = [
    "gauss_bound",
    "growth_bound",
    "moment_batch",
    "moment_bound",
    "unimodal_bound",
]

_SQRT3 = math.sqrt(3.0)
_POSITIVE = checks.Range()


def unimodal_bound(gradient: Any, sigma: Any) -> Any:
    """``1/2 + 1/2 |g|/(|g| + sqrt(3) sigma)``, a lower bound of rho for unimodal symmetric noise (SR, lemma 1).

    Parameters
    ----------
    gradient : number, array or tree of arrays
        g: float16, bfloat16, float32 or float64.
    sigma : number, 0-d array, or array or tree like `gradient`
        Standard deviation of the noise of each coordinate, at least 0.

    Returns
    -------
    float, array or tree of arrays
        In [1/2, 1], in the compute dtype (float32, or float64 of float64), 0.5 ulp and a trace; 1/2 where g is 0.

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, the trees, shapes or dtypes differ, or a number is negative.

    Notes
    -----
    It follows from `gauss_bound`, with S = |g|/sigma: S/sqrt(3) >= S/(S + sqrt(3)) for every S, and for S > 2/sqrt(3)
    also 1 - 4/(9 S^2) >= S/(S + sqrt(3)), because 9 sqrt(3) S^2 >= 4 S + 4 sqrt(3) there.

    Examples
    --------
    >>> unimodal_bound(3.0**0.5, 1.0)
    0.75
    """
    in_range(_POSITIVE, sigma=sigma)
    return over_leaves(lambda g, s: 0.5 + 0.5 * unimodal_weight(g, s), {"gradient": gradient, "sigma": sigma})


def gauss_bound(gradient: Any, sigma: Any) -> Any:
    """The sharpest lower bound of rho for unimodal symmetric noise (Gauss 1823; Bernstein et al. 2018, lemma D.1).

    With S = |g|/sigma: ``1/2 + S/(2 sqrt(3))`` for S <= 2/sqrt(3), else ``1 - 2/(9 S^2)``.

    Parameters
    ----------
    gradient, sigma : number, array or tree of arrays
        As for `unimodal_bound`.

    Returns
    -------
    float, array or tree of arrays
        In [1/2, 1], never below `unimodal_bound`; 1/2 where g is 0.

    Raises
    ------
    TypeError, ValueError
        As `unimodal_bound`.

    Notes
    -----
    Gauss bounds P(|X - mode| >= k) of a unimodal X; by symmetry half of it is the probability of a wrong sign.
    Uniform noise of half-width sqrt(3) sigma meets the first branch with equality.

    Examples
    --------
    >>> gauss_bound(3.0, 1.0) == 1 - 2 / 81
    True
    """
    in_range(_POSITIVE, sigma=sigma)

    def bound(g: Any, s: Any) -> Any:
        size = namespace(g).abs(g)
        near = size <= (2.0 / _SQRT3) * s
        low = 0.5 + ratio(size, (2.0 * _SQRT3) * s, 0.0)
        inverse = ratio(s, size, 0.0)
        return where(near, low, 1.0 - product(2.0 / 9.0, product(inverse, inverse)))

    return over_leaves(bound, {"gradient": gradient, "sigma": sigma})


def growth_bound(c: Any, batch: Any) -> Any:
    """``1 - c/tau``, a lower bound of rho with mini-batches of tau samples under strong growth (SR, lemma 2).

    Parameters
    ----------
    c : number or array
        The noise obeys sigma_i^2 <= c g_i^2, of whatever distribution; at least 0.
    batch : number, or array like `c`
        tau, the number of samples; the bound is above 1/2 for tau > 2c, which is the lemma's threshold.

    Returns
    -------
    float or array
        At most 1; below 0 it says nothing.

    Raises
    ------
    TypeError, ValueError
        As `unimodal_bound`; a number is negative.

    Notes
    -----
    Chebyshev: P(wrong) <= P(|mean - g| >= |g|) <= sigma^2/(tau g^2) <= c/tau.

    Examples
    --------
    >>> growth_bound(2.0, 8)
    0.75
    """
    in_range(_POSITIVE, c=c, batch=batch)
    return over_leaves(lambda c, tau: 1.0 - ratio(c, tau, math.inf), {"c": c, "batch": batch})


def moment_batch(gradient: Any, sigma: Any, nu: Any) -> Any:
    """``2 min(sigma^2/g^2, nu^3/(|g| sigma^2))``: mini-batches above it have rho > 1/2 (SR, lemma 3).

    For i.i.d. samples of any noise with three moments.

    Parameters
    ----------
    gradient, sigma : number, array or tree of arrays
        As for `unimodal_bound`.
    nu : number, 0-d array, or array or tree like `gradient`
        Cube root of the third absolute central moment E|noise|^3; never below sigma.

    Returns
    -------
    float, array or tree of arrays
        A real number: the batch must be larger. Infinite where g is 0, 0 where sigma is 0 and g is not.

    Raises
    ------
    TypeError, ValueError
        As `unimodal_bound`.

    Notes
    -----
    Above twice sigma^2/g^2, Chebyshev does it. Else, with a = |g|/sigma, r = (nu/sigma)^3 and z = a sqrt(tau), the
    first term of `moment_bound` is above 1/2 where z erf(z/sqrt(2)) > a r. The left side grows with z, z^2 > 2 a r by
    the threshold, and a r < 1 because the second term of the minimum was the smaller; at z^2 = 2 a r < 2 the left side
    is above z^2/2, because erf(z/sqrt(2)) > z/2 up to there.

    Examples
    --------
    >>> moment_batch(0.5, 1.0, 1.0)  # at |g| = sigma/2 a fair coin of +-sigma: 2 min(4, 2)
    4.0
    """
    in_range(_POSITIVE, sigma=sigma, nu=nu)

    def threshold(g: Any, s: Any, v: Any) -> Any:
        size = namespace(g).abs(g)
        inverse, third = ratio(s, size, math.inf), ratio(v, s, 1.0)
        by_variance, by_third = inverse * inverse, ((third * third) * third) * inverse
        least = 2.0 * where(by_third < by_variance, by_third, by_variance)
        return where(size > 0.0, least, math.inf)

    return over_leaves(threshold, {"gradient": gradient, "sigma": sigma, "nu": nu})


def moment_bound(gradient: Any, sigma: Any, nu: Any, batch: Any) -> Any:
    """A lower bound of rho with mini-batches of tau i.i.d. samples of any noise with three moments (SR, lemma 3).

    The larger of ``1/2 (1 + erf(|g| sqrt(tau)/(sqrt(2) sigma)) - nu^3/(sigma^3 sqrt(tau)))`` and Chebyshev's
    ``1 - sigma^2/(tau g^2)``; above 1/2 whenever `batch` is above `moment_batch`.

    Parameters
    ----------
    gradient, sigma, nu : float or NumPy array
        As for `moment_batch`; broadcast. Of another library convert them, the error function is Python's.
    batch : float or NumPy array
        tau, the number of samples, above 0.

    Returns
    -------
    float or NumPy array of float64
        In [0, 1]; 1/2 where g is 0, 1 where sigma is 0 and g is not.

    Raises
    ------
    TypeError, ValueError
        A number is not in its range.

    Notes
    -----
    The first term is the theorem of Berry and Esseen, whose constant is below 0.4748 for i.i.d. samples (Shevtsova
    2011), so below the 1/2 that stands here. It is applied at 0, so a sample mean of 0 counts as wrong.

    Examples
    --------
    >>> round(moment_bound(0.5, 1.0, 1.0, 25), 6)
    0.89379
    """
    in_range(_POSITIVE, sigma=sigma, nu=nu, batch=batch)
    size, s, v, tau = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (np.abs(gradient), sigma, nu, batch)))
    with np.errstate(all="ignore"):
        z = size / s * np.sqrt(tau)
        normal = 0.5 * (
            1.0 + np.vectorize(math.erf, otypes=[np.float64])(z / math.sqrt(2.0)) - (v / s) ** 3 / np.sqrt(tau)
        )
        best = np.maximum(np.maximum(normal, 1.0 - 1.0 / (z * z)), 0.0)
    best = np.where(size > 0.0, np.where(s > 0.0, best, 1.0), 0.5)
    return best if best.shape else float(best)


def unimodal_weight(g: Any, s: Any) -> Any:
    """``|g|/(|g| + sqrt(3) sigma)`` of float64 arrays, 0 where both are: the weight of SR's l1,2 norm."""
    size = namespace(g).abs(g)
    return ratio(size, size + product(_SQRT3, s), 0.0)
