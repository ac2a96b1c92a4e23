"""Where a run starts to count."""

from __future__ import annotations

from typing import Any


def steps_done(state: Any, start: int | None) -> int:
    """Steps done before a run: `start`, or what a state says, or 0 without either."""
    if start is not None:
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"`start` is {start!r}; pass the number of steps done before, an int of at least 0")
        return start
    if state is None:
        return 0
    try:
        return int(state.step)
    except Exception as error:
        raise ValueError(
            f"`state` is a {type(state).__name__} whose step cannot be read ({error}); pass what rule.init or an "
            f"earlier run returned, and the number of steps done as `start`"
        ) from error
