"""signcore for PyTorch: a `torch.optim.Optimizer` class per rule, the same bits as the core on NumPy.

Each rule is a class of this module with the rule's own hyperparameters; `from_rule` makes the optimizer of
a rule that exists already. Use them as any torch optimizer: parameter groups, closures, hooks, learning-rate
schedulers, GradScaler, `torch.compile` of ``step``, checkpoints.
"""

from __future__ import annotations

import torch

import signcore
from signcore.rule import classes

from .files import load, save
from .generate import from_rule, optimizer_class
from .optimizer import SignOptimizer
from .portable import export, restore

__all__ = ["SignOptimizer", "export", "from_rule", "load", "restore", "save"]

for _rule_class in classes().values():
    globals()[_rule_class.__name__] = optimizer_class(_rule_class)
    __all__.append(_rule_class.__name__)
del _rule_class

# A rule's schedule may stand in a parameter group as its learning rate. These are frozen dataclasses of
# numbers, so a state_dict with one of them loads with weights_only=True like any other.
torch.serialization.add_safe_globals(
    [item for item in vars(signcore.schedules).values() if isinstance(item, type) and hasattr(item, "at")]
)
