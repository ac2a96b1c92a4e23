"""What a step takes from the parameter groups: rules, shards of parameters, gradients and states."""

from __future__ import annotations

from typing import Any

import torch

from signcore import Rule
from signcore.marks import WHOLE

from . import groups, meshes, options, sharded, state, together
from .saving import Restorable


class Collecting(Restorable):
    """The part of an optimizer that gathers a group's tensors, and makes the states of those that join."""

    def _init_group(
        self, group: dict[str, Any], i: int, params: list[Any], grads: list[Any], *columns: list[Any]
    ) -> None:
        """Append what the step of a group needs, None for parameters without a gradient; of a DTensor its shard.

        torch.compile knows this name: it runs the method as it is, outside of the graph that it traces, and
        takes what was appended as the graph's inputs.
        """
        names = groups.names_of(self.param_groups, i)
        options.check_capture(group)
        groups.check_grads(group["params"], names)
        sharded.check_grads(group["params"], names)
        rule = self._rule_of(group, i)
        rank = 0 if self._workers is None else self._workers.rank
        self._joining += state.join(rule, group["params"], names, self.state, rank)
        for p in group["params"]:
            saved = self.state.get(p)
            active = p.grad is not None
            params.append(sharded.local(p) if active else None)
            grads.append(sharded.local(p.grad))
            for name, column in zip(self.kinds, columns, strict=True):
                kind = rule.kinds.get(name)
                if kind not in WHOLE:
                    column.append(sharded.held(saved.get(name), p, kind) if saved and active and kind else None)
                elif saved:
                    column.append(saved[name])

    def _rule_of(self, group: dict[str, Any], i: int) -> Rule:
        """The rule of a group, made anew when one of its static options has changed."""
        if i >= len(self._rules) or not groups.describes(self._rules[i], group, self.options):
            self._rules[i:] = [groups.rule_of(self.rule_class, group)]
            self._recast += state.recast(self._rules[i], group["params"], self.state)
        return self._rules[i]

    def _only_makes_states(self) -> bool:
        """Whether a step is how torch.distributed.checkpoint makes states: the first, of a rate and gradients of 0."""
        if self.state or torch.compiler.is_compiling():
            return False
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        rates = [groups.number("lr", group["lr"]) for group in self.param_groups]
        if not all(isinstance(rate, (int, float, torch.Tensor)) and float(rate) == 0.0 for rate in rates):
            return together.all_do(self._workers, False)
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        cut = [p for p in params if sharded.is_sharded(p)]
        if cut:
            meshes.check_presence(cut, [str(k) for k in range(len(cut))])  # before a rank goes another way alone
        so = bool(params) and all(p.grad is not None and not _any(sharded.local(p.grad)) for p in params)
        return together.all_do(self._workers, meshes.all_say([meshes.layout_of(p) for p in cut], so, params))


def _any(grad: Any) -> bool:
    """Whether a gradient has an element that is not 0 on this rank."""
    return bool((grad != 0).any()) if grad.layout is torch.strided else True
