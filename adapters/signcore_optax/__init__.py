"""signcore's rules as optax gradient transformations, one factory per rule, named as the rule.

The factories are generated: each has the hyperparameters and the documentation of its rule, whose ``lr`` is
called ``learning_rate`` here, and a ``mask`` for weight decay. A rule that is already built goes through
`from_rule`.

Under optax.inject_hyperparams numbers and schedules keep full precision, whatever the params' dtype. What is assigned
later does not pass here: ``state.hyperparams["learning_rate"] = 0.05`` beside bfloat16 params is rounded by
optax itself, and ``jnp.float32(0.05)`` is not.
"""

from __future__ import annotations

from signcore.rule import classes

from .factory import factory
from .files import load, save
from .layout import specs
from .portable import export, restore
from .transform import from_rule

__all__ = ["export", "from_rule", "load", "restore", "save", "specs"]

for _name, _class in classes().items():
    globals()[_name] = factory(_name, _class)
    __all__.append(_name)
del _name, _class
