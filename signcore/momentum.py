"""What the theorems promise of methods with momentum: SSDM's parameters and bound, Signum's warm-up.

SR is Safaryan and Richtarik, arXiv 1905.12938; Bernstein et al. is arXiv 1802.04434. As in theory.py, numbers and NumPy
arrays broadcast, and numbers give a number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import checks
from .theory import checked, plain

__all__ = ["ssdm_bound", "ssdm_parameters", "warmup_steps"]


def ssdm_parameters(steps: Any) -> tuple[Any, Any]:
    """``(beta, lr) = (1 - 1/sqrt(K), K^(-3/4))`` of SSDM for K steps (SR, theorem of SSDM).

    Parameters
    ----------
    steps : number or array
        K, at least 1.

    Returns
    -------
    tuple of two floats or arrays of float64

    Raises
    ------
    TypeError, ValueError
        An argument is no number or NumPy array, or not in its range.

    Examples
    --------
    >>> ssdm_parameters(10_000)
    (0.99, 0.001)
    """
    (steps,) = checked(steps=steps)
    return plain(1.0 - 1.0 / np.sqrt(steps)), plain(1.0 / np.sqrt(steps * np.sqrt(steps)))


def ssdm_bound(gap: Any, sigma: Any, smoothness: Any, size: Any, steps: Any) -> Any:
    """``16 K^(-1/4) (gap + sigma + L sqrt(d) + L d/sqrt(K))``, which bounds the mean of E |grad f(x_k)|_2 (SR, SSDM).

    With the parameters of `ssdm_parameters`. All workers must have one objective: since its version 6 the paper says
    that the proof needs every worker's gradients to be unbiased for the common f.

    Parameters
    ----------
    gap : number or array
        f(x_0) - f*, at least 0.
    sigma : number or array
        Root of the mean squared norm of a worker's noise, the mean over the workers; at least 0.
    smoothness : number or array
        Here L, the Lipschitz constant of the whole gradient in the Euclidean norm; at least 0.
    size : number or array
        d, the number of coordinates, at least 1.
    steps : number or array
        K, at least 1.

    Returns
    -------
    float or array of float64

    Raises
    ------
    TypeError, ValueError
        An argument is no number or NumPy array, or not in its range.

    Examples
    --------
    >>> ssdm_bound(gap=2.0, sigma=1.0, smoothness=1.0, size=4, steps=10_000)
    8.064
    """
    gap, sigma, smoothness, size, steps = checked(gap=gap, sigma=sigma, smoothness=smoothness, size=size, steps=steps)
    root = np.sqrt(steps)
    return plain(16.0 / np.sqrt(root) * (gap + sigma + smoothness * np.sqrt(size) + smoothness * size / root))


def warmup_steps(beta: float) -> int:
    """C(beta): so many steps Signum's theory takes sign(g) while the average builds up (Bernstein et al., theorem 3).

    Parameters
    ----------
    beta : float
        In [0, 1).

    Returns
    -------
    int
        The smallest C >= 0 with ``C/2 beta^C <= 1/((1 - beta^2)(C + 1))`` and ``beta^(C + 1) <= 1/2``.

    Raises
    ------
    TypeError, ValueError
        `beta` is no number, or not in its range.

    Examples
    --------
    >>> warmup_steps(0.9)
    54
    """
    if not checks.is_number(beta):
        raise TypeError(f"`beta` is {beta!r}; pass a number in [0, 1)")
    checks.number("beta", beta, checks.Range(0.0, below=1.0))
    if beta == 0.0:
        return 0
    decay = -math.log(beta)
    low = max(math.ceil(math.log(2.0) / decay) - 1, 0)  # the second inequality holds from here on

    def enough(count: int) -> bool:
        growth = 0.5 * count * (count + 1) * (1.0 - beta) * (1.0 + beta)
        return growth * math.exp(-count * decay) <= 1.0

    if enough(low):
        return low
    high = 2 * low
    while not enough(high):  # the left side rises once and falls once, so it is too large up to the answer
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
