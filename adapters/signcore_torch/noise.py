"""Random words while torch.compile traces: one opaque operation per leaf.

The words are the same either way, but the generator is 20 rounds of integer arithmetic, and a compiler that
sees them unrolled takes minutes. As an operation of its own it runs as it does without a compiler.
"""

from __future__ import annotations

from typing import Any

import torch

from signcore import random


def _words(key: torch.Tensor, step: torch.Tensor, size: int) -> torch.Tensor:
    drawn: torch.Tensor = random.words(key, step, size)
    return drawn


def _shape_of_words(key: torch.Tensor, step: torch.Tensor, size: int) -> torch.Tensor:
    return key.new_empty(size)


words = torch.library.custom_op(
    "signcore::words", _words, mutates_args=(), schema="(Tensor key, Tensor step, int size) -> Tensor"
)
words.register_fake(_shape_of_words)


def drawn(params: list[Any], streams: list[Any], step: torch.Tensor) -> list[Any]:
    """The words of a group's parameters for one step, None for a parameter without a gradient."""
    return [
        None if p is None else words(key, step, p.numel()).reshape(p.shape)
        for p, key in zip(params, streams, strict=True)
    ]
