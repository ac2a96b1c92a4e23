"""The collectives of MPI, as `signcore.exchange` asks for them; arrays of a GPU go through the host."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import numpy as np

from signcore import checks, frameworks
from signcore.exchange import TransportError

TIMEOUT = 60.0  # seconds


class Collectives:
    """A `signcore.exchange.Transport` over an MPI communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Default: all ranks.
    timeout : float, default 60.0
        Seconds that a collective may take.

    Attributes
    ----------
    sent : dict
        Name of a collective to the bytes that this rank passed to it.
    calls : int
        Collectives so far.
    """

    eager = True

    def __init__(self, comm: Any = None, *, timeout: float = TIMEOUT) -> None:
        MPI = _mpi()
        if comm is None:
            comm = MPI.COMM_WORLD
        if not isinstance(comm, MPI.Comm):
            raise TypeError(f"`comm` is {comm!r}; pass a communicator of mpi4py, or leave it out for all ranks")
        if comm == MPI.COMM_NULL:
            raise ValueError("`comm` does not hold this rank; call group on the ranks of the communicator alone")
        if not checks.is_number(timeout) or not 0.0 < timeout < math.inf:
            raise ValueError(f"`timeout` is {timeout!r}; pass seconds, above 0 and finite")
        self.comm, self.timeout = comm.Dup(), float(timeout)  # messages of the caller's stay the caller's
        self.size, self.rank = comm.Get_size(), comm.Get_rank()
        self.sent: dict[str, int] = {}
        self.calls, self._step = 0, 0

    def at(self, step: int) -> None:
        """A step begins."""
        self._step = step

    def sum(self, x: Any) -> Any:
        """Elementwise sum over the ranks."""
        return self._reduced("sum", x, _mpi().SUM)

    def max(self, x: Any) -> Any:
        """Elementwise maximum over the ranks."""
        return self._reduced("max", x, _mpi().MAX)

    def gather(self, x: Any) -> Any:
        """What every rank passed, stacked."""
        mine = _contiguous(x)
        out = np.empty((self.size, *mine.shape), mine.dtype)
        self._wait("gather", mine, lambda: self.comm.Iallgather(_bytes(mine), _bytes(out)))
        return frameworks.from_numpy(out, x)

    def exchange(self, rows: Any) -> Any:
        """Row n goes to rank n."""
        mine = _contiguous(rows)
        out = np.empty_like(mine)
        self._wait("exchange", mine, lambda: self.comm.Ialltoall(_bytes(mine), _bytes(out)))
        return frameworks.from_numpy(out, rows)

    def own(self, rows: Any) -> Any:
        """The row of this rank."""
        return rows[self.rank, ...]

    def _reduced(self, name: str, x: Any, operation: Any) -> Any:
        mine = _contiguous(x)
        out = np.empty_like(mine)
        self._wait(name, mine, lambda: self.comm.Iallreduce(mine, out, operation))
        return frameworks.from_numpy(out, x)

    def _wait(self, name: str, mine: np.ndarray, start: Any) -> None:
        """Until a collective is done; MPI has no error for a rank that stalls, so past the deadline all are ended."""
        self.calls += 1
        self.sent[name] = self.sent.get(name, 0) + mine.nbytes
        request, deadline, pause = start(), time.monotonic() + self.timeout, 0.0
        while not request.Test():
            if time.monotonic() > deadline:
                error = TransportError(name, self._step, [], f"nothing came for {self.timeout:g} seconds")
                print(f"rank {self.rank}: {error}; MPI ends all ranks", file=sys.stderr, flush=True)
                self.comm.Abort(1)
            time.sleep(pause)  # other processes may need this core to answer
            pause = min(1e-3, pause + 1e-6)


def _contiguous(x: Any) -> np.ndarray:
    return np.ascontiguousarray(frameworks.to_numpy(x)).reshape(tuple(x.shape))


def _bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as bytes: MPI has no name for some dtypes."""
    return array.reshape(-1).view(np.uint8)


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            "signcore_mpi needs mpi4py and an MPI library; install both by pip install 'signcore[mpi]'"
        ) from error
    return MPI
