"""A `torch.optim.Optimizer` class from a rule: its constructor's real signature and its documentation."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch.distributed import ProcessGroup
from torch.optim.optimizer import ParamsT

from signcore import Rule
from signcore.rule import classes

from . import groups, options
from .document import document
from .optimizer import SignOptimizer

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
    made = type(
        name, (SignOptimizer,), {"rule_class": rule_class, "__module__": module, "__doc__": document(rule_class)}
    )
    made.__init__ = _constructor(made, rule_class)  # type: ignore[misc]  # each class has a signature of its own
    _MADE[rule_class] = made
    return made


def from_rule(
    params: ParamsT,
    rule: Rule,
    *,
    foreach: bool | None = None,
    capturable: bool = False,
    compile: bool = False,
    process_group: ProcessGroup | None = None,
    check_every: int = 0,
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
    process_group, check_every
        With whom it steps, likewise.

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
    how |= {"process_group": process_group, "check_every": check_every}
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
