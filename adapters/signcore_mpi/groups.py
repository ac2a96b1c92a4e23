"""The workers of a communicator."""

from __future__ import annotations

from typing import Any

from signcore.exchange import Group

from .collectives import TIMEOUT, Collectives


def group(comm: Any = None, *, timeout: float = TIMEOUT, **options: Any) -> Group:
    """The ranks of an MPI communicator as the workers of a run.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Default: all ranks, ``MPI.COMM_WORLD``.
    timeout : float, default 60.0
        Seconds that a collective may take, above 0. Then all ranks are ended, for MPI cannot go on without one.
    **options
        Of `signcore.exchange.Group`: ``bucket``, ``check_every``, ``weights``.

    Returns
    -------
    signcore.exchange.Group

    Raises
    ------
    ImportError
        mpi4py or an MPI library is missing.
    TypeError, ValueError
        `comm` is no communicator, or does not hold this rank; a number is out of range.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> from signcore_mpi import group
    >>> rule, p = sc.rule(sc.rules()[0], lr=1.0), np.zeros(2, np.float32)
    >>> p, state = group().step(rule, p, np.ones(2, np.float32), rule.init(p))  # doctest: +SKIP
    """
    return Group(Collectives(comm, timeout=timeout), **options)
