"""What rules ask for beside gradients, from the closure that torch's optimizers are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from signcore import Rule


def inputs(rule: Rule, param_groups: list[dict[str, Any]], i: int, closure: Any, loss: Any) -> Mapping[str, Any]:
    """`value`, `value_fn` and `grad_fn` of a step of group `i`, as far as its rule needs them.

    Raises
    ------
    ValueError
        The rule decides over all parameters at once, and there are several groups.
    """
    if not rule.needs:
        return {}
    if "value_fn" in rule.needs and len(param_groups) > 1:
        raise ValueError(
            f"`params` has {len(param_groups)} groups, and {type(rule).__name__} accepts or rejects one step of all "
            f"parameters together; pass one group"
        )
    made: dict[str, Any] = {"value": _plain(loss)}
    if closure is not None:
        params = param_groups[i]["params"]
        made["value_fn"] = lambda values: _evaluated(closure, params, values)[0]
        made["grad_fn"] = lambda values: _evaluated(closure, params, values)[1]
    return {name: made.get(name) for name in rule.needs}


def _evaluated(closure: Callable[[], Any], params: list[torch.Tensor], values: list[Any]) -> tuple[Any, list[Any]]:
    """Loss and gradients of the closure at other values of the parameters, which get back theirs."""
    with _moved(params, values), torch.enable_grad():
        loss = closure()
        grads = [None if value is None else p.grad for p, value in zip(params, values, strict=True)]
    if loss is None:
        raise TypeError("`closure` returned None, and the rule needs the loss; return it")
    return _plain(loss), grads


def _plain(loss: Any) -> Any:
    """A loss without its history, which no step needs."""
    return loss.detach() if isinstance(loss, torch.Tensor) else loss


@contextmanager
def _moved(params: list[torch.Tensor], values: list[Any]) -> Iterator[None]:
    kept = [(p, p.detach().clone(), p.grad) for p in params]
    try:
        with torch.no_grad():
            for p, value in zip(params, values, strict=True):
                p.grad = None  # a new tensor, so that the old gradients stay what they were
                if value is not None:
                    p.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for p, old, grad in kept:
                p.copy_(old)
                p.grad = grad
