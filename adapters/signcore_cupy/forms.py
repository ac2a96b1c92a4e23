"""What a run holds between two steps: params and state leaf by leaf, or joined in few long vectors."""

from __future__ import annotations

from typing import Any

from signcore import Rule, frameworks
from signcore.joined import Joined, join
from signcore.tree import flatten


class Apart:
    """Params and state leaf by leaf; a step gives another."""

    def __init__(self, rule: Rule, params: Any, state: Any) -> None:
        self.rule, self.params, self.state = rule, params, state

    def step(self, grads: Any, **given: Any) -> Apart:
        """What ``rule.step`` makes of it."""
        return Apart(self.rule, *self.rule.step(self.params, grads, self.state, **given))


Form = Apart | Joined

# Mean elements of a leaf up to which joining pays on the host: there it saves Python's work for each leaf and costs a
# copy of the gradients, and vectors that no longer stay in the cache between gradient and step.
_SMALL = 32768


def begin(rule: Rule, params: Any, state: Any, foreach: bool | None, may_read: bool) -> Form:
    """The form in which a run starts.

    Parameters
    ----------
    foreach : bool or None
        Whether to join what can be joined; None where it is faster: where an operation is a kernel to launch, that is
        on a device, and on the host where leaves are small.
    may_read : bool
        Whether flags of `state` may be read.
    """
    if foreach is not None and not isinstance(foreach, bool):
        raise TypeError(f"`foreach` is {foreach!r}; pass True, False, or None for what is faster")
    fresh = state is None
    state = rule.init(params) if fresh else state
    if foreach is False or (foreach is None and not _pays(params)):
        return Apart(rule, params, state)
    alike = True if fresh else None if may_read else False
    return join(rule, params, state, alike=alike) or Apart(rule, params, state)


def _pays(params: Any) -> bool:
    """Whether a step of joined leaves is faster; not tried on JAX's, each of which may be laid out over devices."""
    arrays = [leaf.value for leaf in flatten(params) if leaf.value is not None]
    try:
        if not arrays or frameworks.device(arrays[0]) is None:
            return False
        return not frameworks.is_host(arrays[0]) or sum(array.size for array in arrays) <= _SMALL * len(arrays)
    except (AttributeError, TypeError):  # no array: the first step says so
        return False
