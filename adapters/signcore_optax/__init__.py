"""signcore's rules as optax gradient transformations, one factory per rule, named as the rule.

The factories are generated: each has the hyperparameters and the documentation of its rule, whose ``lr`` is
called ``learning_rate`` here, and a ``mask`` for weight decay. A rule that is already built goes through
`from_rule`.
"""

from __future__ import annotations

from signcore.rule import classes

from .factory import factory
from .files import load, save
from .portable import export, restore
from .transform import from_rule

__all__ = ["export", "from_rule", "load", "restore", "save"]

for _name, _class in classes().items():
    globals()[_name] = factory(_name, _class)
    __all__.append(_name)
del _name, _class
