"""The two sets of tensors that everything is timed on, and the rounding of their sizes for `--quick`."""

from __future__ import annotations

import math

Shape = tuple[int, ...]

# Twelve layers of width 256 with a vocabulary of 1024: 150 tensors, 10,000,896 parameters.
_WIDTH, _LAYERS, _VOCABULARY, _POSITIONS = 256, 12, 1024, 40
_LAYER: list[Shape] = [
    *[(_WIDTH, _WIDTH)] * 4,  # query, key, value, output
    (_WIDTH, 4 * _WIDTH),
    (4 * _WIDTH,),
    (4 * _WIDTH, _WIDTH),
    (_WIDTH,),
    *[(_WIDTH,)] * 4,  # two layer norms
]
_TRANSFORMER: list[Shape] = [
    (_VOCABULARY, _WIDTH),
    (_POSITIONS, _WIDTH),
    *_LAYER * _LAYERS,
    (_WIDTH,),
    (_WIDTH,),
    (_WIDTH, _VOCABULARY),
    (_VOCABULARY,),
]

SETS: dict[str, list[Shape]] = {"one tensor": [(4_000_000,)], "150 tensors": _TRANSFORMER}
QUICK: dict[str, list[Shape]] = {"one tensor": [(40_000,)], "few tensors": [(100, 80), (80,), (80, 10), (10,)]}


def count(shapes: list[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def describe(shapes: list[Shape]) -> str:
    tensors = "1 tensor" if len(shapes) == 1 else f"{len(shapes)} tensors"
    return f"{tensors}, {count(shapes):,} parameters"
