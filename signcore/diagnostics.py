"""What a step looked like from inside: made only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import checks, measures
from .fields import Hyper
from .tree import unflatten

if TYPE_CHECKING:
    from .rule import Rule
    from .walk import Work


def observe(rule: Rule, work: Work, previous: Any) -> dict[str, Any]:
    """The diagnostics of a step whose inputs and scalars `work` holds; see `Rule.step`.

    Returns
    -------
    dict
        ``signs``, what was sent, a tree; ``zero_share`` of them; ``bits_at_risk`` of what the signs were taken of, for
        a rule that takes them of one number per coordinate (a rule that draws its signs takes them of what was drawn,
        +1 or -1, which is never at risk); and with the dict of a step before, ``flip_rate``.

    Raises
    ------
    TypeError, ValueError
        The rule sends no signs, or `previous` is not what a step of the same params returned.
    """
    name = next((name for name, wire in rule._wires.items() if wire.bits is None), None)
    if name is None:
        raise ValueError(f"`diagnostics` is set, and {type(rule).__name__} sends no signs; leave it out")
    if previous is not True and not (isinstance(previous, dict) and "signs" in previous):
        raise TypeError(f"`diagnostics` is {type(previous).__name__}; pass True, or what the step before returned")
    argument = getattr(rule, "argument_leaf", None)

    def kernel(p: Any, g: Any, s: Any, h: Hyper, words: Any) -> tuple[tuple[Any, ...], Any]:
        message, _ = rule.message_leaf(p, g, s, h, words)
        sent = getattr(message, name)
        return (sent, sent if argument is None else argument(p, g, s, h, words)[0]), s

    (signs, arguments), _ = work.run(kernel, 2)
    tree = unflatten(work.params, signs)
    found = {"signs": tree, "zero_share": measures.zero_share(tree)}
    if argument is not None:
        found["bits_at_risk"] = measures.bits_at_risk(unflatten(work.params, arguments))
    if previous is not True:
        checks.same_containers("diagnostics", previous["signs"], "params", work.params)
        found["flip_rate"] = measures.flip_rate(previous["signs"], tree)
    return found
