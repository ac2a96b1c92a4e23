"""Documentation of a factory from the documentation of its rule's class."""

from __future__ import annotations

import inspect
import re

from signcore import Rule

_MASK = """\
mask : tree of bool, or function of params that returns one, optional
    False keeps weight decay off a leaf; a prefix of the params' tree will do.
axis_name : str, optional
    Step together with the devices along this axis of a `jax.shard_map`, each with its own gradients.
weights : sequence of float, optional
    What each of them counts, with ``aggregation="weighted"``.
"""
_RETURNS = """\
Returns
-------
optax.GradientTransformationExtraArgs
    See `signcore_optax.from_rule`.
"""


def document(cls: type[Rule], renamed: dict[str, str]) -> str:
    """The class's docstring with its arguments' new names, a `mask`, and no examples (they show the class)."""
    text = inspect.getdoc(cls) or ""
    for old, new in renamed.items():
        text = re.sub(rf"\b{old}\b", new, text)
    sections = re.split(r"\n(?=[A-Z][a-z]+\n-+\n)", text)
    kept = []
    for section in sections:
        if section.startswith("Parameters\n"):
            section = f"{section.rstrip()}\n{_MASK}\n{_RETURNS}"
        if not section.startswith("Examples\n"):
            kept.append(section.rstrip())
    return "\n\n".join(kept) + "\n"
