"""Norms of a gradient that the theorems bound, and what they are made of, estimated from samples.

SR is Safaryan and Richtarik, arXiv 1905.12938; CW is Chen and Wang, arXiv 2604.25550. A norm is the exact sum of its
weighted coordinates, rounded once: the order, the number of threads, the shards and the backend cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import checks, ops
from .drift import half_of, series
from .frameworks import namespace
from .ieee import product, quotient, sqrt, where
from .leafwise import in_range, over_leaves, stack_size
from .success import unimodal_weight
from .sums import exact_dot
from .tree import flatten, unflatten

__all__ = [
    "l12_norm",
    "noise_scale",
    "rho_m_norm",
    "rho_norm",
    "snr_stationarity",
    "success_probability",
]


# -- estimates from samples --------------------------------------------------------------------------------


def success_probability(
    samples: Any, gradient: Any, oracle: Callable[[Any, int], Any] | None = None, ties: str = "wrong"
) -> Any:
    """Share of samples whose sign is that of the gradient: an estimate of rho_i, per coordinate (SR, assumption 1).

    Parameters
    ----------
    samples : array of shape (N, ...), or tree of such arrays
        N stochastic gradients, at least one, at one point; or their signs.
    gradient : array of shape (...), or tree of such arrays
        The gradient there, or its signs.
    oracle : callable, optional
        ``oracle(sample, k)`` gives signs in {-1, 0, 1} for the k-th sample, an array or tree like `gradient`, in place
        of the sign: a stochastic sign, say, which takes k as its step. It is called N times.
    ties : {"wrong", "half"}
        What a sample's zero counts where the gradient is not zero. "wrong" is the definition, and "half" makes
        2 rho - 1 the mean of the sign in the right direction, which is what a step does.

    Returns
    -------
    array (...) or tree of them
        In [0, 1], in the compute dtype, the exact share rounded once; 1/2 where the gradient is 0. The estimate's
        standard deviation is sqrt(rho (1 - rho)/N).

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, the trees, shapes or dtypes differ, there are no samples; unknown `ties`.

    Examples
    --------
    >>> import numpy as np
    >>> samples = np.float32([[1, 3], [-2, 1], [1, 2], [3, 1]])
    >>> success_probability(samples, np.float32([1, 2]))
    array([0.75, 1.  ], dtype=float32)
    """
    checks.choice("ties", ties, ("wrong", "half"))
    if oracle is not None:
        if not callable(oracle):
            raise TypeError(f"`oracle` is {oracle!r}; pass a function of a sample and its number that gives signs")
        samples = _answers(oracle, samples, gradient)
    worth = 1.0 if ties == "half" else 0.0

    def share(g: Any, all_of_them: Any) -> Any:
        xp = namespace(g)
        # Twice the count, exact whatever the order: these are small integers.
        points = 2.0 * xp.astype(all_of_them * g > 0.0, xp.float64) + worth * xp.astype(all_of_them == 0.0, xp.float64)
        return where(g == 0.0, 0.5, quotient(xp.sum(points, axis=0), 2.0 * all_of_them.shape[0]))

    signs = {"gradient": _signs("gradient", gradient), "samples": _signs("samples", samples)}
    return over_leaves(share, signs, stacked="samples")


def noise_scale(samples: Any, gradient: Any) -> Any:
    """Root mean square of ``sample - gradient`` per coordinate: an estimate of sigma_i.

    Parameters
    ----------
    samples, gradient
        As for `success_probability`, but numbers and not signs.

    Returns
    -------
    array (...) or tree of them
        In the compute dtype; the squares are added in pairs, in one order for every backend.

    Raises
    ------
    TypeError, ValueError
        As `success_probability`.

    Examples
    --------
    >>> import numpy as np
    >>> noise_scale(np.float32([[1, 5], [3, 5]]), np.float32([2, 2]))
    array([1., 3.], dtype=float32)
    """

    def scale(g: Any, all_of_them: Any) -> Any:
        apart = all_of_them - g
        squares = product(apart, apart)
        while squares.shape[0] > 1:
            half = squares.shape[0] // 2
            pairs = squares[:half, ...] + squares[half : 2 * half, ...]
            odd = squares[2 * half :, ...]
            squares = namespace(g).concat([pairs, odd]) if odd.shape[0] else pairs
        return sqrt(quotient(squares[0, ...], float(all_of_them.shape[0])))

    return over_leaves(scale, {"gradient": gradient, "samples": samples}, stacked="samples")


# -- norms -------------------------------------------------------------------------------------------------


def rho_norm(gradient: Any, rho: Any) -> Any:
    """``sum (2 rho_i - 1) |g_i|``, what a step of signSGD gains per unit of step size (SR, definition 1).

    Parameters
    ----------
    gradient : array or tree of arrays
        float16, bfloat16, float32 or float64.
    rho : number, 0-d array, or array or tree like `gradient`
        Probabilities in [0, 1] that the sign is right: of `success_probability`, or a bound of success.py. Below 1/2
        a coordinate counts negative, and the "norm" may be.

    Returns
    -------
    0-d array
        float32, or float64 where a leaf is float64: weights rounded once, the sum of their exact products with |g|
        rounded once.

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, the trees, shapes or dtypes differ, or a number is not in its range.

    Examples
    --------
    >>> import numpy as np
    >>> float(rho_norm(np.float32([2, -4]), np.float32([1.0, 0.75])))
    4.0
    """
    in_range(checks.Range(0.0, 1.0), rho=rho)
    return _weighted(lambda g, p: 2.0 * p - 1.0, gradient, {"rho": rho})


def rho_m_norm(gradient: Any, rho: Any, workers: int) -> Any:
    """``sum (2 I(rho_i; l, l) - 1) |g_i|``, l = floor((M+1)/2): the same for a majority vote (SR, definition 2).

    Parameters
    ----------
    gradient, rho
        As for `rho_norm`; rho is that of one worker.
    workers : int
        M, at least 1.

    Returns
    -------
    0-d array
        As `rho_norm`, whose value it has for M = 1 and 2.

    Raises
    ------
    TypeError, ValueError
        As `rho_norm`; `workers` is no positive int.

    Examples
    --------
    >>> import numpy as np
    >>> float(rho_m_norm(np.float32([2, -4]), 0.75, workers=3))
    4.125
    """
    half = half_of(rho, workers)
    return _weighted(lambda g, p: series(p, half), gradient, {"rho": rho})


def l12_norm(gradient: Any, sigma: Any) -> Any:
    """``sum g_i^2 / (|g_i| + sqrt(3) sigma_i)``, the mixed l1,2 norm (SR, lemma 4).

    It is the rho-norm with the bound of SR's lemma 1 for rho, so for unimodal symmetric noise it is at most the
    rho-norm: the l1 norm without noise, the squared l2 norm over sqrt(3) sigma where noise prevails.

    Parameters
    ----------
    gradient : array or tree of arrays
        As for `rho_norm`.
    sigma : number, 0-d array, or array or tree like `gradient`
        Standard deviation of the noise, at least 0; `noise_scale` estimates it.

    Returns
    -------
    0-d array
        As `rho_norm`; a coordinate without gradient and noise adds 0.

    Raises
    ------
    TypeError, ValueError
        As `rho_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> float(l12_norm(np.float32([3, -4]), 0.0))
    7.0
    """
    in_range(checks.Range(), sigma=sigma)
    return _weighted(unimodal_weight, gradient, {"sigma": sigma})


def snr_stationarity(gradient: Any, sigma: Any) -> Any:
    """``Phi = sum |g_i| min(1, |g_i|/sigma_i)``, the stationarity weighted by the signal-to-noise ratio (CW).

    Parameters
    ----------
    gradient, sigma
        As for `l12_norm`.

    Returns
    -------
    0-d array
        As `rho_norm`; a coordinate without noise adds |g|.

    Raises
    ------
    TypeError, ValueError
        As `rho_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> float(snr_stationarity(np.float32([3, -4]), np.float32([6, 1])))
    5.5
    """
    in_range(checks.Range(), sigma=sigma)

    def weight(g: Any, s: Any) -> Any:
        size = namespace(g).abs(g)
        noisy = size < s
        return where(noisy, quotient(size, where(noisy, s, 1.0)), 1.0)

    return _weighted(weight, gradient, {"sigma": sigma})


# -- the work ----------------------------------------------------------------------------------------------


def _weighted(weight: Callable[..., Any], gradient: Any, given: dict[str, Any]) -> Any:
    """The exact sum of ``|g|`` times its weight."""
    weights = over_leaves(weight, {"gradient": gradient, **given})
    sizes = [
        leaf.value if leaf.value is None else namespace(leaf.value).abs(ops.widen(leaf.value))
        for leaf in flatten(gradient)
    ]
    return exact_dot(unflatten(gradient, sizes), weights)


def _signs(argument: str, tree: Any) -> Any:
    """The signs of all leaves, taken in their compute dtype, whose threshold decides what is zero."""
    leaves = flatten(tree)
    for leaf in leaves:
        if leaf.value is not None:
            checks.array(argument, leaf)
    return unflatten(tree, [leaf.value if leaf.value is None else ops.sign(ops.widen(leaf.value)) for leaf in leaves])


def _answers(oracle: Callable[[Any, int], Any], samples: Any, gradient: Any) -> Any:
    """The oracle's signs for each sample, stacked."""
    leaves = [leaf for leaf in flatten(samples) if leaf.value is not None]
    for leaf in leaves:
        checks.array("samples", leaf)
    places = flatten(gradient)
    rows: list[list[Any]] = []
    for k in range(stack_size("samples", leaves)):
        one = [None if leaf.value is None else leaf.value[k, ...] for leaf in flatten(samples)]
        signs = flatten(oracle(unflatten(samples, one), k))
        checks.same_structure(
            "oracle(sample, k)", [leaf.path for leaf in signs], "gradient", [leaf.path for leaf in places]
        )
        for leaf in signs:
            if leaf.value is not None:
                checks.array("oracle(sample, k)", leaf)
        rows.append([leaf.value for leaf in signs])
    stacked = [
        None if column[0] is None else namespace(column[0]).stack(list(column)) for column in zip(*rows, strict=True)
    ]
    return unflatten(gradient, stacked)
