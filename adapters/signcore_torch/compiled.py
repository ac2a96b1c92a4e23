"""``compile=True``: the arithmetic of all groups and what it writes as one compiled function, made once."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

from signcore import Rule, checks
from signcore.frameworks import without_history
from signcore.walk import check_hyper

from . import groups, sharded, steps

# inductor inlines every value that is used twice into each use, up to 30 operations: without the lower limit a long
# chain like an arcsine's takes minutes to compile. The option moves no rounding.
_OPTIONS = {"realize_opcount_threshold": 8}
_COUNT = itertools.count()


class Compiled:
    """What compiles an optimizer's step when it is first called; another one after loading or copying."""

    def __init__(self) -> None:
        self._function: Callable[..., None] | None = None
        self._numbers: dict[tuple[int, str], torch.Tensor] = {}

    def step(
        self, rules: list[Rule], param_groups: list[dict[str, Any]], names: Iterable[str], jobs: list[Any], loss: Any
    ) -> None:
        """Step all groups and write what comes out into parameters and states.

        Raises
        ------
        TypeError, ValueError
            A number is out of range, or a rule evaluates the closure itself.
        """
        hypers, values = [], []
        for i, (rule, group) in enumerate(zip(rules, param_groups, strict=True)):
            refuse_closures(rule)
            sharded.refuse(group["params"], "compile=True")
            device = next((p.device for p in group["params"]), torch.device("cpu"))
            hypers.append(self._filled(i, rule, group, names, device))
            if "value" in rule.needs:
                checks.given(rule, "value", loss)
                checks.loss("value", loss)
            values.append({"value": torch.as_tensor(without_history(loss))} if "value" in rule.needs else {})
        if self._function is None:
            self._function = _function()
        self._function(list(rules), jobs, hypers, values)

    def _filled(
        self, i: int, rule: Rule, group: dict[str, Any], names: Iterable[str], device: torch.device
    ) -> dict[str, Any]:
        """A group's numbers as 0-d tensors, the same in every step, so that no new value compiles anything."""
        values = {name: groups.number(name, group[name]) for name in names}
        check_hyper(rule, values)
        found: dict[str, Any] = {}
        for name, value in values.items():
            if callable(value) and not isinstance(value, torch.Tensor):
                found[name] = value  # a schedule of signcore, which is part of what is compiled
                continue
            held = self._numbers.get((i, name))
            if held is None or held.device != device:
                held = self._numbers[i, name] = torch.zeros((), dtype=torch.float64, device=device)
            found[name] = held.copy_(value) if isinstance(value, torch.Tensor) else held.fill_(value)
        return found


def refuse_closures(rule: Rule) -> None:
    """Raise when a step would call back: what a closure does cannot be compiled into it."""
    if rule.needs & {"value_fn", "grad_fn"}:
        raise ValueError(
            f"`compile` is True, and {type(rule).__name__} evaluates the closure at other parameters, which cannot be "
            f"compiled; leave `compile` out"
        )


def _function() -> Callable[..., None]:
    """A step of all groups: ``(rules, jobs, hypers, values)``; it writes into the tensors that it is given."""

    def step(rules: Any, jobs: Any, hypers: Any, values: Any) -> None:
        results: list[Any] = []
        for rule, (params, grads, columns), hyper, inputs in zip(rules, jobs, hypers, values, strict=True):
            if all(p is None for p in params):
                results.append(([], None))
                continue
            results.append(rule.step(params, grads, steps.state_of(rule, columns), hyper=hyper, **inputs))
        for rule, (params, _, columns), (new, after) in zip(rules, jobs, results, strict=True):
            steps.write(rule, params, columns, new, after)

    # A code object of its own: torch keeps at most eight compiled versions of one, over all optimizers.
    code = step.__code__.replace(co_name=f"step_{next(_COUNT)}")
    own = types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, options=dict(_OPTIONS))
