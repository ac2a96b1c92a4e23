"""Documentation of a Keras optimizer from the documentation of its rule's class."""

from __future__ import annotations

import dataclasses
import inspect
import re

from signcore import Rule

from .hyperparameters import RATE

_DOC = """clipnorm, clipvalue, global_clipnorm, loss_scale_factor, gradient_accumulation_steps
    As in `keras.optimizers.Optimizer`: gradients are unscaled, accumulated and clipped before the rule sees them.
use_ema, ema_momentum, ema_overwrite_frequency, name
    As there; the average is taken after the rule's step."""
_EXAMPLE = """Examples
--------
>>> import keras, signcore_keras
>>> w = keras.Variable([1.0, -2.0, 3.0])
>>> optimizer = signcore_keras.{name}({arguments})
>>> _ = optimizer.apply([keras.ops.convert_to_tensor([1.0, -1.0, 1.0])], [w])
>>> int(optimizer.iterations)
1"""


def document(rule_class: type[Rule]) -> str:
    """The rule's docstring with the rate's name, Keras' options, and an example of the optimizer for the rule's."""
    doc = re.sub(r"\blr\b", RATE, inspect.cleandoc(rule_class.__doc__ or ""))
    before, heading, after = doc.partition("Parameters\n----------\n")
    if not heading:
        return doc
    arguments, blank, rest = after.partition("\n\nExamples\n--------\n")[0].partition("\n\n")
    return f"{before}{heading}{arguments}\n{_DOC}{blank}{rest}\n{_last(rule_class)}\n"


def _last(rule_class: type[Rule]) -> str:
    """An example where the optimizer can be made without options, or what it raises, after a section on that."""
    required = [field.name for field in dataclasses.fields(rule_class) if field.default is dataclasses.MISSING]
    needs = rule_class(lr=0.1).needs if set(required) <= {"lr"} else ()
    if not needs:
        return "\n" + _EXAMPLE.format(name=rule_class.__name__, arguments=f"{RATE}=0.1")
    lacking = ", ".join(f"`{name}`" for name in sorted(needs))
    return (
        f"TypeError\n    A step needs more than gradients, which are all that Keras gives. With the defaults it needs "
        f"{lacking}."
    )
