"""signcore: sign-based optimizers whose trajectories are the same bits on every backend.

Each rule is a class of this module (``sc.Lion``), found by name with `rule`.
"""

from __future__ import annotations

from . import bits, checkpoint, measures, random, schedules, sums, tally, vote
from .rule import Rule, classes
from .simulation import simulate

__version__ = "0.1.0"
__all__ = [
    "Rule",
    "bits",
    "cautious",
    "cautious_decay",
    "checkpoint",
    "measures",
    "random",
    "rule",
    "rules",
    "schedules",
    "simulate",
    "sos",
    "sums",
    "tally",
    "vote",
]

for _class in classes().values():
    globals()[_class.__name__] = _class
    __all__.append(_class.__name__)
del _class

# After the loop: importing the modules signcore.rule and signcore.rules binds their names here, to themselves.
from .cautious import cautious, cautious_decay  # noqa: E402
from .rule import rule, rules  # noqa: E402
from .sos import sos  # noqa: E402
