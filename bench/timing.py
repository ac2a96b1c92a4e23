"""Interleaved timing: every round runs each contestant once, and ratios are formed inside a round.

On a shared machine the speed of the next second is not that of the last, so a ratio of two times that were
taken apart means little. Two steps of one round lie milliseconds apart; the median over the rounds is stable
to a few percent even where the times themselves wander by half.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Contestant:
    """One way to take an optimizer step."""

    label: str  # what the tables call it
    mode: str  # ours are compared with the peers of the same mode: "eager", "compiled", ...
    ours: bool
    step: Callable[[Any], object]  # takes one step with these gradients and returns when it is done
    traffic: Callable[[Any], float] | None = None  # bytes that a step reads and writes; asked after the race
    extra: Callable[[Any], float] | None = None  # bytes that a step holds at most beside what it found; likewise
    first: float = 0.0  # seconds of the first call, compilation included
    times: list[float] = field(default_factory=list)


def _timed(step: Callable[[Any], object], gradients: Any) -> float:
    start = time.perf_counter()
    step(gradients)
    return time.perf_counter() - start


class OutOfPatience(BaseException):
    """Not an Exception, so that no compiler takes it for a failure of its own that it can work around."""


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Raise OutOfPatience when the body takes longer (compilers work in Python, so a signal reaches them)."""

    def stop(number: int, frame: object) -> None:
        raise OutOfPatience

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def start(contestants: list[Contestant], gradients: Any, patience: float) -> list[Contestant]:
    """Take everybody's first step and fill in `first`; returns those that finished it within `patience`."""
    ready = []
    for contestant in contestants:
        try:
            with _patience(patience):
                contestant.first = _timed(contestant.step, gradients)
        except OutOfPatience:
            continue
        ready.append(contestant)
    return ready


def race(
    contestants: list[Contestant], gradients: list[Any], seconds: float, rounds: int = 101, least: int = 7
) -> None:
    """Fill in `times`: as many rounds as fit into `seconds`, at least `least`.

    The gradients take turns, because an average of one and the same gradient comes to rest, and branches that
    always go the same way are cheap.
    """
    for given in gradients:  # warm-up: allocators, frequency, lazily built state
        for contestant in contestants:
            contestant.step(given)
    end = time.perf_counter() + seconds
    for done in range(rounds):
        for contestant in contestants:
            contestant.times.append(_timed(contestant.step, gradients[done % len(gradients)]))
        if done + 1 >= least and time.perf_counter() > end:
            break


def ratio(ours: Contestant, peer: Contestant) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios of the rounds."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(ours.times, peer.times, strict=True)], n=4, method="inclusive"
    )
    return low, middle, high
