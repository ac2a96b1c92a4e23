"""Ranks that are threads of one process: to try what a run of many does, and to test it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..frameworks import namespace


class Threads:
    """A `Transport` whose ranks are threads.

    Parameters
    ----------
    shared : Meeting
    rank : int

    Examples
    --------
    >>> import numpy as np
    >>> Threads.run(3, lambda transport: int(transport.sum(np.asarray(transport.rank))))
    [3, 3, 3]
    """

    eager = True

    def __init__(self, shared: _Meeting, rank: int) -> None:
        self.size, self.rank, self._shared = shared.size, rank, shared
        self.sent: list[tuple[str, str, int]] = []  # collective, dtype and bytes that left this rank

    @classmethod
    def run(cls, size: int, work: Callable[[Any], Any]) -> list[Any]:
        """``work(transport)`` of every rank at the same time; what they return, in order.

        Raises
        ------
        Exception
            That of the first rank that raised; the others are let go.
        """
        meeting = _Meeting(size)
        results: list[Any] = [None] * size
        errors: list[Any] = [None] * size

        def rank_of(n: int) -> None:
            try:
                results[n] = work(cls(meeting, n))
            except Exception as error:
                errors[n] = error
                meeting.barrier.abort()

        threads = [threading.Thread(target=rank_of, args=(n,)) for n in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(filter(None, errors), key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return results

    def at(self, step: int) -> None:
        """Nothing can fail here."""

    def sum(self, x: Any) -> Any:
        """Elementwise sum over the ranks."""
        every = self._all("sum", x)
        total = every[0]
        for each in every[1:]:
            total = total + each
        return namespace(x).astype(total, x.dtype)

    def max(self, x: Any) -> Any:
        """Elementwise maximum over the ranks."""
        xp = namespace(x)
        return xp.max(xp.stack(self._all("max", x)), axis=0)

    def gather(self, x: Any) -> Any:
        """What every rank passed, stacked."""
        return namespace(x).stack(self._all("gather", x))

    def exchange(self, rows: Any) -> Any:
        """Row n goes to rank n."""
        return namespace(rows).stack([each[self.rank, ...] for each in self._all("exchange", rows)])

    def own(self, rows: Any) -> Any:
        """The row of this rank."""
        return rows[self.rank, ...]

    def _all(self, name: str, x: Any) -> list[Any]:
        size = 1
        for extent in x.shape:
            size *= extent
        self.sent.append((name, str(x.dtype).removeprefix("torch."), size))
        return self._shared.told(self.rank, x)


class _Meeting:
    """Where the threads leave what they send."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size)
        self.places: list[Any] = [None] * size

    def told(self, rank: int, x: Any) -> list[Any]:
        self.places[rank] = x
        self.barrier.wait()
        found = list(self.places)
        self.barrier.wait()  # nobody writes before all have read
        return found
