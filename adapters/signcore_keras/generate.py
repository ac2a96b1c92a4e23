"""A Keras optimizer class from a rule: its constructor's real signature and its documentation."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras

from signcore import Rule, checks
from signcore.fields import ranges
from signcore.rule import classes

from .document import document
from .hyperparameters import RATE
from .optimizer import SignOptimizer

# Keras' own, with its defaults; `weight_decay` is the rule's.
OPTIONS: dict[str, tuple[str, Any]] = {
    "clipnorm": ("float | None", None),
    "clipvalue": ("float | None", None),
    "global_clipnorm": ("float | None", None),
    "use_ema": ("bool", False),
    "ema_momentum": ("float", 0.99),
    "ema_overwrite_frequency": ("int | None", None),
    "loss_scale_factor": ("float | None", None),
    "gradient_accumulation_steps": ("int | None", None),
    "name": ("str | None", None),
}
_MADE: dict[type[Rule], type[SignOptimizer]] = {}


def optimizer_class(rule_class: type[Rule]) -> type[SignOptimizer]:
    """The optimizer class of a rule's class, made once and registered with Keras, so that it can be loaded.

    Parameters
    ----------
    rule_class : subclass of `signcore.Rule`
        One of signcore's or the user's own.

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
        name,
        (SignOptimizer,),
        {"rule_class": rule_class, "__module__": module, "__doc__": document(rule_class)},
    )
    made.__init__ = _constructor(made, rule_class)  # type: ignore[misc]  # each class has a signature of its own
    keras.saving.register_keras_serializable(package="signcore" if known else module)(made)
    _MADE[rule_class] = made
    return made


def from_rule(rule: Rule, **options: Any) -> SignOptimizer:
    """The Keras optimizer of a rule.

    Parameters
    ----------
    rule : signcore.Rule
        Its class decides the optimizer's class; its ``lr`` may be a schedule of signcore or of Keras.
    **options
        Keras' own, such as ``clipnorm`` and ``name``; see any of the classes.

    Returns
    -------
    SignOptimizer

    Raises
    ------
    TypeError
        `rule` is no rule, needs more than gradients, or holds an array.

    Examples
    --------
    >>> import signcore as sc, signcore_keras
    >>> rule = sc.rule(sc.rules()[0], lr=0.5)
    >>> float(signcore_keras.from_rule(rule).learning_rate)
    0.5
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"`rule` is {rule!r}; pass a rule, for example signcore.rule(name, lr=...)")
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    return optimizer_class(type(rule))(**{RATE: values.pop("lr")}, **values, **options)


def _constructor(owner: type[SignOptimizer], rule_class: type[Rule]) -> Any:
    """``__init__`` with the learning rate, the rule's own fields, those of every rule, and Keras' options."""
    common = [field.name for field in dataclasses.fields(Rule)]
    fields = sorted(dataclasses.fields(rule_class), key=lambda field: (field.name != "lr", field.name in common))
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in fields:
        parameters.append(
            inspect.Parameter(
                RATE if field.name == "lr" else field.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if field.name == "lr" else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
                annotation="float" if field.name in ranges(rule_class) and field.name != "lr" else field.type,
            )
        )
    for name, (annotation, default) in OPTIONS.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    signature = inspect.Signature(parameters, return_annotation=None)

    def __init__(self: SignOptimizer, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            checks.keyword(owner.__name__, "keyword", name, [name for name in signature.parameters if name != "self"])
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        del values["self"]
        if RATE not in values:
            raise TypeError(f"`{RATE}` is missing and has no default; pass {owner.__name__}({RATE}=...)")
        options = {name: values.pop(name) for name in OPTIONS}
        SignOptimizer.__init__(self, {"lr": values.pop(RATE), **values}, options)

    __init__.__signature__ = signature  # type: ignore[attr-defined]  # inspect.signature looks for it
    __init__.__qualname__ = f"{owner.__name__}.__init__"
    __init__.__module__ = owner.__module__
    return __init__
