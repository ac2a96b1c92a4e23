"""The collectives of torch.distributed, as `signcore.exchange` asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from signcore.exchange import TransportError

from .heartbeat import Heartbeat

# the name of later versions, which warn of the other
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Collectives:
    """A `signcore.exchange.Transport` over a process group.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        Of gloo for tensors on the CPU, of NCCL for those on GPUs; its timeout is how long a stalled rank is waited for.

    Attributes
    ----------
    sent : dict
        Name of a collective to the bytes that this rank passed to it.
    calls : int
        Collectives so far.

    Raises
    ------
    ValueError
        This process is not in the group.
    """

    eager = True

    def __init__(self, group: Any) -> None:
        self.group = dist.group.WORLD if group is None else group
        if self.group is None or self.group == dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "`process_group` does not hold this process; build the optimizer on the ranks of the group alone, "
                "after dist.init_process_group()"
            )
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.sent: dict[str, int] = {}
        self.payloads: set[tuple[str, str]] = set()
        self.calls, self._step = 0, 0
        self._heartbeat: Heartbeat | None = None

    def at(self, step: int) -> None:
        """A step begins."""
        self._step = step
        if self._heartbeat is None and self.size > 1:
            self._heartbeat = Heartbeat(self.group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the ranks."""
        return self._reduced("sum", dist.ReduceOp.SUM, x)

    def max(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over the ranks."""
        return self._reduced("max", dist.ReduceOp.MAX, x)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """What every rank passed, stacked."""
        out = x.new_empty((self.size, *x.shape))
        if x.numel():
            flat = (out.view(-1), x.contiguous().view(-1))
            self._call("gather", x, lambda: _all_gather(*flat, group=self.group))
        return out

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Row n goes to rank n."""
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        if rows.numel():
            flat = (out.view(-1), rows.contiguous().view(-1))
            self._call("exchange", rows, lambda: dist.all_to_all_single(*flat, group=self.group))
        return out

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """The row of this rank."""
        return rows[self.rank]

    def _reduced(self, name: str, operation: Any, x: torch.Tensor) -> torch.Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        self._call(name, x, lambda: dist.all_reduce(out, operation, group=self.group))
        return out

    def _call(self, name: str, x: torch.Tensor, collective: Callable[[], Any]) -> None:
        self.calls += 1
        self.sent[name] = self.sent.get(name, 0) + x.numel() * x.element_size()
        if self._heartbeat is not None:
            self._heartbeat.progress = self.calls
        try:
            collective()
        except RuntimeError as error:  # gloo's own, NCCL's are subclasses
            blamed = [] if self._heartbeat is None else self._heartbeat.blamed()
            raise TransportError(name, self._step, blamed, str(error).splitlines()[0]) from error
