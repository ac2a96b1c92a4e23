"""What a step of several processes asks of an engine: four collectives over arrays of the params' library.

An adapter implements them with its framework's own (torch.distributed, `jax.lax`, MPI, NCCL); nothing here opens a
connection. Every rank calls the same collectives in the same order with arrays of the same shapes and dtypes.
"""

from __future__ import annotations

from typing import Any, Protocol


class Transport(Protocol):
    """The collectives of one group of ranks.

    Attributes
    ----------
    size : int
        Number of ranks.
    rank : int or traced value
        Which of them this is.
    eager : bool
        Whether values can be looked at between two collectives; not inside of a traced function, where ranks run one
        program and nothing is checked.
    """

    size: int
    rank: Any
    eager: bool

    def sum(self, x: Any) -> Any:
        """Elementwise sum over the ranks of an integer array, in its dtype."""

    def max(self, x: Any) -> Any:
        """Elementwise maximum over the ranks of an integer array."""

    def gather(self, x: Any) -> Any:
        """What every rank passed, stacked in the order of the ranks: shape (size, ...)."""

    def exchange(self, rows: Any) -> Any:
        """Row n goes to rank n; the rows that came, in the order of their senders: shape (size, n)."""

    def own(self, rows: Any) -> Any:
        """The row of this rank."""

    def at(self, step: int) -> None:
        """A step begins; whoever reports a failure says which."""


class TransportError(RuntimeError):
    """A collective failed; the group has to be made anew.

    Attributes
    ----------
    collective : str
        Which one.
    step : int
        Steps done before. Parameters and state are those before the step in which it failed.
    ranks : list of int
        Who is dead or stalled, as far as that is known.
    """

    def __init__(self, collective: str, step: int, ranks: list[int], why: str) -> None:
        who = f"rank {', '.join(map(str, ranks))}" if ranks else "a rank that could not be found out"
        super().__init__(
            f"`{collective}` failed in step {step} because of {who} ({why}); parameters and state are those before "
            f"this step: make the process group anew with the ranks that live, and go on from here or from a checkpoint"
        )
        self.collective, self.step, self.ranks = collective, step, ranks


class DisagreementError(ValueError):
    """Ranks were given different things; raised on every rank, and nothing was changed on any."""
