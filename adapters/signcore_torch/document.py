"""Documentation of an optimizer class from the documentation of its rule's class."""

from __future__ import annotations

import inspect

from signcore import Rule

from . import options

_PARAMS = """params : iterable
    Tensors, dicts that define parameter groups, or (name, tensor) tuples. A group's dict may set any of
    the hyperparameters below."""
_PER_GROUP = """
    What this rule measures "over all parameters", it measures over those of each group by itself: over all their
    shards, where they are DTensors."""
_EXAMPLE = """Examples
--------
>>> import torch, signcore_torch
>>> w = torch.nn.Parameter(torch.ones(3))
>>> optimizer = signcore_torch.{name}([w], lr=0.1)
>>> def closure():
...     optimizer.zero_grad()
...     loss = w.square().sum()
...     loss.backward()
...     return loss
>>> optimizer.step(closure)  # after a backward of your own, optimizer.step() will do where no loss is needed
tensor(3., grad_fn=<SumBackward0>)"""


def document(rule_class: type[Rule]) -> str:
    """The rule's docstring with the parameter `params`, and an example of the optimizer for the rule's."""
    doc = inspect.cleandoc(rule_class.__doc__ or "")
    before, heading, after = doc.partition("Parameters\n----------\n")
    if not heading:
        return doc
    after = after.partition("\n\nExamples\n--------\n")[0]
    params = _PARAMS + _PER_GROUP if _measures(rule_class) else _PARAMS
    arguments, blank, rest = after.partition("\n\n")
    after = f"{arguments}\n{options.DOC}{blank}{rest}"
    return f"{before}{heading}{params}\n{after}\n\n{_EXAMPLE.format(name=rule_class.__name__)}\n"


def _measures(rule_class: type[Rule]) -> bool:
    """Whether a rule may measure numbers of the whole tree: of the gradients, or of the aggregate."""
    measured = any(partial.kind is not None for name, partial in rule_class.PARTIALS.items() if name != "nonfinite")
    return measured or rule_class.settlements is not Rule.settlements
