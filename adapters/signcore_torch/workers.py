"""``process_group=``: an optimizer whose steps are those of one of several workers, who send each other signs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from signcore import Rule
from signcore.exchange import Group, agreement

from . import groups
from .collectives import Collectives


class Workers:
    """The workers of a process group, as an optimizer steps with them.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup
    **options
        Of `signcore.exchange.Group`.
    """

    def __init__(self, process_group: Any, **options: Any) -> None:
        self.transport = Collectives(process_group)
        self.group = Group(self.transport, **options)
        self.talking = False  # in a step of which all ranks hear when one of them raises

    @property
    def rank(self) -> int:
        """Which of the workers this is."""
        return self.transport.rank

    def agree(self, facts: Mapping[str, str], problem: BaseException | None, *numbers: int) -> list[list[int]]:
        """Raise on every rank what one raises, or what differs; returns every rank's numbers."""
        kind = "cuda" if dist.get_backend(self.transport.group) == "nccl" else "cpu"
        return agreement.agree(self.transport, torch.zeros((), device=kind), facts, problem, *numbers)

    def nothing(self, rule: Rule, group: dict[str, Any], numbers: Iterable[str]) -> None:
        """No parameter of a parameter group has a gradient here; raises where one has on another rank."""
        like = torch.zeros((), device=group["params"][0].device)
        self.talking = True
        self.group.nothing(rule, like, {name: groups.number(name, group[name]) for name in numbers})
        self.talking = False

    def delta(
        self,
        rule: Rule,
        names: list[str],
        params: list[Any],
        grads: list[Any],
        state: Any,
        hyper: Any,
        inputs: Mapping[str, Any],
    ) -> tuple[list[Any], Any]:
        """What `Rule.delta` gives for the lists, of all workers: as dicts, whose keys name the leaves on every rank."""

        def named(column: list[Any]) -> dict[str, Any]:
            return dict(zip(names, column, strict=True))

        def listed(tree: dict[str, Any]) -> list[Any]:
            return [tree[name] for name in names]

        fields = {name: value for name, value in state._asdict().items() if isinstance(value, list)}
        given = dict(inputs)
        for function in ("value_fn", "grad_fn"):
            if given.get(function) is not None:
                given[function] = _of_dicts(given[function], listed, named if function == "grad_fn" else None)
        self.talking = True
        found, new = self.group.delta(
            rule,
            named(params),
            named(grads),
            state._replace(**{name: named(value) for name, value in fields.items()}),
            hyper=hyper,
            **given,
        )
        self.talking = False
        return listed(found), new._replace(**{name: listed(getattr(new, name)) for name in fields})


def _of_dicts(function: Any, listed: Any, named: Any) -> Any:
    """A function of lists as one of dicts."""

    def call(tree: Any) -> Any:
        found = function(listed(tree))
        return found if named is None else named(found)

    return call
