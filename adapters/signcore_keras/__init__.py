"""signcore for Keras 3: a `keras.optimizers.Optimizer` class per rule, the same bits as the core on NumPy.

Each rule is a class of this module with the rule's own hyperparameters, whose ``lr`` is called ``learning_rate`` as in
Keras; `from_rule` makes the optimizer of a rule that exists already. They run on Keras' backends torch and jax, in
``compile`` and ``fit`` and in loops of one's own. Import this package before a model that was saved with one of its
optimizers is loaded.
"""

from __future__ import annotations

from signcore.rule import classes

from . import backend as backend  # first: it says what to do when Keras has another backend
from .generate import from_rule, optimizer_class
from .optimizer import SignOptimizer
from .schedules import FromSchedule

__all__ = ["FromSchedule", "SignOptimizer", "from_rule", "optimizer_class"]

for _rule_class in classes().values():
    globals()[_rule_class.__name__] = optimizer_class(_rule_class)
    __all__.append(_rule_class.__name__)
del _rule_class
