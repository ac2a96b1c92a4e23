"""What rules ask for beside gradients, from the closure that torch's optimizers are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from signcore import Rule
from signcore.frameworks import without_history

from .sharded import local


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
    made: dict[str, Any] = {"value": without_history(loss)}
    if closure is not None:
        params = param_groups[i]["params"]
        others = [p for j, group in enumerate(param_groups) if j != i for p in group["params"]]
        made["value_fn"] = lambda values: _evaluated(closure, params, values, others)[0]
        made["grad_fn"] = lambda values: _evaluated(closure, params, values, others)[1]
    return {name: made.get(name) for name in rule.needs}


def _evaluated(
    closure: Callable[[], Any], params: list[torch.Tensor], values: list[Any], others: list[torch.Tensor]
) -> tuple[Any, list[Any]]:
    """Loss and gradients of the closure at other values of a group's parameters, which get back theirs.

    All parameters get back their gradients, the other groups' too: backward adds to those that it finds, in place.
    """
    with _moved(params, values, others), torch.enable_grad():
        loss = closure()
        # clones: DistributedDataParallel may write the next gradients into the same memory
        grads = [None if value is None else local(_copy(p.grad)) for p, value in zip(params, values, strict=True)]
    if loss is None:
        raise TypeError("`closure` returned None, and the rule needs the loss; return it")
    return without_history(loss), grads


@contextmanager
def _moved(params: list[torch.Tensor], values: list[Any], others: list[torch.Tensor]) -> Iterator[None]:
    kept = [(p, p.detach().clone()) for p in params]
    # Values too: where gradients are views of buckets, a second backward writes into those that were set aside.
    grads = [(p, p.grad, _copy(p.grad)) for p in (*params, *others)]
    try:
        with torch.no_grad():
            for p, _, _ in grads:
                p.grad = None  # new tensors will be made, so that the old gradients stay what they were
            for p, value in zip(params, values, strict=True):
                if value is not None:
                    local(p).copy_(value)
        yield
    finally:
        with torch.no_grad():
            for p, old in kept:
                p.copy_(old)
            for p, grad, words in grads:
                p.grad = grad
                if grad is not None and words is not None:
                    grad.copy_(words)


def _copy(grad: torch.Tensor | None) -> torch.Tensor | None:
    return None if grad is None else grad.detach().clone()
