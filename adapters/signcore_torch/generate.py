"""A `torch.optim.Optimizer` class from a rule: its constructor's real signature and its documentation."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch.optim.optimizer import ParamsT

from signcore import Rule
from signcore.rule import classes

from . import groups, options
from .optimizer import SignOptimizer

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


_MADE: dict[type[Rule], type[SignOptimizer]] = {}


def optimizer_class(rule_class: type[Rule]) -> type[SignOptimizer]:
    """The optimizer class of a rule's class, made once.

    Parameters
    ----------
    rule_class : subclass of `signcore.Rule`
        One of signcore's or the user's own; instances of the former can also be pickled.

    Returns
    -------
    subclass of `SignOptimizer`
    """
    if rule_class in _MADE:
        return _MADE[rule_class]
    name = rule_class.__name__
    known = rule_class in classes().values()
    module = __name__.rpartition(".")[0] if known else rule_class.__module__
    made = type(name, (SignOptimizer,), {"rule_class": rule_class, "__module__": module, "__doc__": _doc(rule_class)})
    made.__init__ = _constructor(made, rule_class)  # type: ignore[misc]  # each class has a signature of its own
    _MADE[rule_class] = made
    return made


def from_rule(
    params: ParamsT, rule: Rule, *, foreach: bool | None = None, capturable: bool = False, compile: bool = False
) -> SignOptimizer:
    """The optimizer of a rule, with the rule's hyperparameters as its defaults.

    Parameters
    ----------
    params : iterable
        As every torch optimizer takes them.
    rule : signcore.Rule
        Its class decides the optimizer's class, its fields the defaults of all parameter groups.
    foreach, capturable, compile : bool
        How the step is run, see any of the classes.

    Returns
    -------
    SignOptimizer

    Raises
    ------
    TypeError
        `rule` is no rule.

    Examples
    --------
    >>> import signcore as sc, torch, signcore_torch
    >>> rule = sc.rule(sc.rules()[0], lr=0.5)
    >>> signcore_torch.from_rule([torch.nn.Parameter(torch.ones(3))], rule).defaults["lr"]
    0.5
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"`rule` is {rule!r}; pass a rule, for example signcore.rule(name, lr=...)")
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    how: dict[str, Any] = {"foreach": foreach, "capturable": capturable, "compile": compile}
    return optimizer_class(type(rule))(params, **values, **how)


def _constructor(owner: type[SignOptimizer], rule_class: type[Rule]) -> Any:
    """``__init__`` with `params` and then the rule's own signature."""
    common = [field.name for field in dataclasses.fields(Rule)]
    fields = list(inspect.signature(rule_class).parameters.values())
    # The learning rate, which as in torch may follow `params` by position; the rule's own; those of every rule.
    fields.sort(key=lambda field: (field.name != common[0], field.name in common))
    fields[:1] = [fields[0].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    leading = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="ParamsT"),
    ]
    signature = inspect.Signature([*leading, *fields, *options.parameters()], return_annotation=None)

    def __init__(self: SignOptimizer, *args: Any, **kwargs: Any) -> None:
        kwargs = groups.known_keywords(owner.__name__, signature.parameters, kwargs)
        bound = signature.bind_partial(self, *args, **kwargs)
        for name, parameter in signature.parameters.items():
            if name not in bound.arguments and parameter.default is parameter.empty:
                raise TypeError(f"`{name}` is missing and has no default; pass {owner.__name__}({name}=...)")
        bound.apply_defaults()
        values = dict(bound.arguments)
        SignOptimizer.__init__(values.pop("self"), values.pop("params"), values)

    __init__.__signature__ = signature  # type: ignore[attr-defined]  # inspect.signature looks for it
    __init__.__qualname__ = f"{owner.__name__}.__init__"
    __init__.__module__ = owner.__module__
    return __init__


def _doc(rule_class: type[Rule]) -> str:
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
