"""A progress bar on stderr, for people who watch: off where nobody does, or where rich is missing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

# Seconds between two updates; a step may take microseconds, so the bar is not told of each.
_INTERVAL = 0.1


@contextmanager
def bar(total: int, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of steps done, while the context lasts.

    Parameters
    ----------
    total : int
    wanted : bool or None
        None asks whether stderr is a terminal. True without rich is no bar either.
    """
    watched = sys.stderr is not None and sys.stderr.isatty() if wanted is None else wanted
    display = _display() if watched else None
    if display is None:
        yield lambda done: None
        return
    with display:
        task = display.add_task("steps", total=total)
        due = 0.0

        def advance(done: int) -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due or done == total:
                display.update(task, completed=done)
                due = now + _INTERVAL

        yield advance


def _display() -> Progress | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed beside a bar, rich writes above it, to stderr; what stdout sends to a file must stay there.
    shared = sys.stdout is not None and sys.stdout.isatty()
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=shared)
