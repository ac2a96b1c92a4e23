"""What the theorems promise: step sizes, and bounds to plot beside what was measured.

SR is Safaryan and Richtarik, arXiv 1905.12938 (equations by their numbers there); Bernstein et al. is arXiv 1802.04434;
CW is Chen and Wang, arXiv 2604.25550. Everywhere ``gap`` is f(x_0) - f*, ``steps`` the number K of steps, and
``smoothness`` the sum of the coordinates' Lipschitz constants L_i of the gradient: SR's d Lbar, |L|_1 of Bernstein et
al., and CW's L_1. All are numbers or NumPy arrays, which broadcast, so that one call gives a curve over K; numbers give
a number. Each proof takes a few lines and stands in the notes. Momentum is in momentum.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import checks

__all__ = [
    "decaying_bound",
    "large_batch_bound",
    "large_batch_lr",
    "monotone_bound",
    "signsgd_bound",
    "signsgd_lr",
    "snr_bound",
    "snr_l1_bound",
]


# -- signSGD and majority vote, by success probabilities ---------------------------------------------------


def signsgd_bound(gap: Any, smoothness: Any, steps: Any, lr: Any) -> Any:
    """``gap/(lr K) + lr d Lbar/2``, which bounds the mean of E rho_norm(g_k) over K steps of one size (SR, eq. 10).

    With the rho_M-norm in place of the rho-norm it is the bound of signSGD with majority vote.

    Parameters
    ----------
    gap, smoothness : number or array
        f(x_0) - f* and the sum of the L_i, at least 0.
    steps : number or array
        K, at least 1.
    lr : number or array
        The step size gamma, above 0.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        An argument is no number or NumPy array, or not in its range.

    Notes
    -----
    By smoothness E f(x_{k+1}) <= E f(x_k) - lr E rho_norm(g_k) + lr^2/2 sum L_i; summed over k and divided.

    Examples
    --------
    >>> signsgd_bound(gap=2.0, smoothness=1.0, steps=100, lr=0.2)
    0.2
    """
    gap, smoothness, steps, lr = checked(gap=gap, smoothness=smoothness, steps=steps, lr=lr)
    return plain(gap / (lr * steps) + lr * smoothness / 2.0)


def signsgd_lr(gap: Any, smoothness: Any, steps: Any) -> Any:
    """``sqrt(2 gap/(K d Lbar))``, the step size at which `signsgd_bound` is least [our derivation].

    Parameters
    ----------
    gap, smoothness, steps
        As for `signsgd_bound`, `smoothness` above 0.

    Returns
    -------
    float or array of float64
        The bound is ``sqrt(2 gap d Lbar/K)`` there.

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Examples
    --------
    >>> signsgd_lr(gap=2.0, smoothness=1.0, steps=100)
    0.2
    """
    gap, smoothness, steps = checked("smoothness", gap=gap, smoothness=smoothness, steps=steps)
    return plain(np.sqrt(2.0 * gap / (steps * smoothness)))


def decaying_bound(gap: Any, smoothness: Any, steps: Any, lr: Any) -> Any:
    """``(gap/lr + 3/2 lr d Lbar log K)/sqrt(K)``, which bounds the least E rho_norm(g_k), k < K (SR, eq. 9).

    For steps of size lr/sqrt(k + 1); for majority vote with the rho_M-norm.

    Parameters
    ----------
    gap, smoothness, lr
        As for `signsgd_bound`; `lr` is gamma_0.
    steps : number or array
        K, at least 2: at 1 the logarithm is 0 and the inequality fails.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Notes
    -----
    As `signsgd_bound`, with sum 1/sqrt(k+1) >= sqrt(K) and sum 1/(k+1) <= 1 + log K <= 3 log K for K >= 2.

    Examples
    --------
    >>> round(decaying_bound(gap=2.0, smoothness=1.0, steps=100, lr=1.0), 6)
    0.890776
    """
    gap, smoothness, steps, lr = checked(gap=gap, smoothness=smoothness, steps=steps, lr=lr)
    if np.any(steps < 2.0):
        raise ValueError(f"`steps` is {_shown(steps)}; equation 9 needs at least 2")
    return plain((gap / lr + 1.5 * lr * smoothness * np.log(steps)) / np.sqrt(steps))


def monotone_bound(gap: Any, smoothness: Any, steps: Any, lr: Any) -> Any:
    """``(gap/lr + lr d Lbar)/sqrt(K)``, which bounds the mean of E rho_norm(g_k) of option 2 (SR, theorem of option 2).

    Option 2 makes the step of size lr/sqrt(k + 1) only where it lowers f.

    Parameters
    ----------
    gap, smoothness, steps, lr
        As for `signsgd_bound`; `lr` is gamma_0.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Notes
    -----
    Divide each step's inequality by its step size. As f never grows, sum (f_k - f_{k+1}) sqrt(k+1) <= gap sqrt(K) by
    parts, and sum 1/sqrt(k+1) <= 2 sqrt(K).

    Examples
    --------
    >>> monotone_bound(gap=2.0, smoothness=1.0, steps=100, lr=1.0)
    0.3
    """
    gap, smoothness, steps, lr = checked(gap=gap, smoothness=smoothness, steps=steps, lr=lr)
    return plain((gap / lr + lr * smoothness) / np.sqrt(steps))


# -- by the signal-to-noise ratio --------------------------------------------------------------------------


def large_batch_lr(smoothness: Any, steps: Any) -> Any:
    """``1/sqrt(|L|_1 K)``, the step size of `large_batch_bound` and of `snr_bound` (Bernstein et al., theorem 1; CW).

    Parameters
    ----------
    smoothness, steps
        As for `signsgd_bound`, `smoothness` above 0.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Examples
    --------
    >>> large_batch_lr(smoothness=4.0, steps=100)
    0.05
    """
    smoothness, steps = checked("smoothness", smoothness=smoothness, steps=steps)
    return plain(1.0 / np.sqrt(smoothness * steps))


def large_batch_bound(gap: Any, smoothness: Any, sigma: Any, steps: Any) -> Any:
    """``(sqrt(|L|_1) (gap + 1/2) + 2 |sigma|_1)/sqrt(K)``, bounding the mean of E |g_k|_1 (Bernstein et al., thm 1).

    With steps of `large_batch_lr` and mini-batches of K samples.

    Parameters
    ----------
    gap, smoothness, steps
        As for `signsgd_bound`.
    sigma : number or array
        |sigma|_1, the sum over coordinates of one sample's standard deviations; at least 0.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Notes
    -----
    A wrong sign costs 2 lr |g_i|, and has a probability of at most sigma_i/(sqrt(K) |g_i|) by Markov's inequality.

    Examples
    --------
    >>> large_batch_bound(gap=2.0, smoothness=4.0, sigma=1.0, steps=100)
    0.7
    """
    gap, smoothness, sigma, steps = checked(gap=gap, smoothness=smoothness, sigma=sigma, steps=steps)
    return plain((np.sqrt(smoothness) * (gap + 0.5) + 2.0 * sigma) / np.sqrt(steps))


def snr_bound(gap: Any, smoothness: Any, steps: Any) -> Any:
    """``3 sqrt(L_1/K) (gap + 1/2)``, which bounds the mean of E Phi(x_k) for any batch (CW).

    With steps of `large_batch_lr` and unimodal symmetric noise; Phi is `snr_stationarity` with the batch's sigma.

    Parameters
    ----------
    gap, smoothness, steps
        As for `signsgd_bound`.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Notes
    -----
    2 rho - 1 >= min(1, S)/3 by `gauss_bound`; in fact min(1, S)/sqrt(3), so sqrt(3) would do [our derivation].

    Examples
    --------
    >>> snr_bound(gap=2.0, smoothness=4.0, steps=64)
    1.875
    """
    gap, smoothness, steps = checked(gap=gap, smoothness=smoothness, steps=steps)
    return plain(3.0 * np.sqrt(smoothness / steps) * (gap + 0.5))


def snr_l1_bound(gap: Any, smoothness: Any, sigma: Any, batch: Any, steps: Any) -> Any:
    """``snr_bound + |sigma|_1/sqrt(n)``, which bounds the mean of E |g_k|_1 with batches of n (CW).

    Parameters
    ----------
    gap, smoothness, sigma, steps
        As for `large_batch_bound`.
    batch : number or array
        n, at least 1.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        As `signsgd_bound`.

    Notes
    -----
    |g| - |g| min(1, |g| sqrt(n)/sigma) is at most sigma/(4 sqrt(n)): a quarter of the term would do [our derivation].

    Examples
    --------
    >>> snr_l1_bound(gap=2.0, smoothness=4.0, sigma=1.0, batch=4, steps=100)
    2.0
    """
    sigma, batch = checked(sigma=sigma, batch=batch)
    return plain(snr_bound(gap, smoothness, steps) + sigma / np.sqrt(batch))


# -- checks ------------------------------------------------------------------------------------------------


def checked(*positive: str, **given: Any) -> list[Any]:
    """The arguments in float64: counts at least 1, step sizes and what is named above 0, the others at least 0."""
    found = []
    for name, value in given.items():
        if not checks.is_number(value) and not isinstance(value, np.ndarray):
            raise TypeError(f"`{name}` is {value!r}; pass a number or a NumPy array")
        x = np.asarray(value, np.float64)
        least = 1.0 if name in {"steps", "size", "batch"} else 0.0
        above = name == "lr" or name in positive
        if not np.all(np.isfinite(x)) or np.any(x < least) or (above and np.any(x == 0.0)):
            raise ValueError(
                f"`{name}` is {_shown(value)}; it must be finite and {'above' if above else 'at least'} {least:g}"
            )
        found.append(x)
    return found


def _shown(value: Any) -> str:
    return repr(value if np.ndim(value) else float(value))


def plain(x: Any) -> Any:
    """A result, as a float where it is one number."""
    return x if np.ndim(x) else float(x)
