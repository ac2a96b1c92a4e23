"""Sums that depend neither on order nor on sharding: the exact real number, rounded once.

``partial -> merge -> finish``: the partial of any piece of a vector or tree is a small int32 array that holds
the piece's sum exactly (limbs.py); partials of all pieces are merged by adding them, which an all-reduce can do; and
`finish` rounds. A whole sum is the same with one piece. No grid depends on the data, so one round is enough.

Numbers below the contract's threshold (2**-100 in float32, 2**-900 in float64) count as 0; float16 and bfloat16 are
widened. Products are exact before they are added; those of float64 numbers must lie in its range: below 2**-900 they
count as 0, and one that overflows makes the result infinite. NaN and infinities give what they give in any sum.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from . import checks, frameworks, limbs, opaque, windows
from .dtypes import format_of, name_of
from .tree import Leaf, flatten

__all__ = ["exact_dot", "exact_sum", "finish", "merge", "norm1", "norm2", "norm_inf", "partial"]

Kind = Literal["sum", "dot", "norm1", "norm2", "norm_inf"]
KINDS = ("sum", "dot", "norm1", "norm2", "norm_inf")
_SMALL = 2**16  # leaves below this are put together under a compiler, whose program grows with every leaf


def exact_sum(tree: Any) -> Any:
    """Sum of all elements of an array or of a tree of arrays.

    Parameters
    ----------
    tree : array or tree of arrays
        float16, bfloat16, float32 or float64, any shapes, of one library; None is no leaf. Up to 10**10 elements.

    Returns
    -------
    0-d array
        float32, or float64 where a leaf is float64: the exact real sum rounded once, 0.5 ulp; 0.0 for no elements.

    Raises
    ------
    TypeError
        A leaf is no array, or of integers or complex numbers, or two leaves are of different libraries.

    Examples
    --------
    >>> import numpy as np
    >>> float(exact_sum([np.float32([1e30, 1.0]), np.float32([-1e30])]))
    1.0
    """
    return finish("sum", partial("sum", tree))


def exact_dot(tree: Any, other: Any) -> Any:
    """Inner product of two arrays or of two trees of one structure: each product exact, their sum rounded once.

    Parameters
    ----------
    tree, other : array or tree of arrays
        As for `exact_sum`, of the same shapes and dtypes.

    Returns
    -------
    0-d array
        float32, or float64 where a leaf is float64: 0.5 ulp; below the smallest normal number 0.

    Raises
    ------
    TypeError, ValueError
        As `exact_sum`, or the trees' structures, shapes or dtypes differ.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.asarray([1.0 + 2.0**-23, -1.0], dtype=np.float32)
    >>> float(exact_dot(a, np.flip(a))) == -2.0 - 2.0**-22
    True
    """
    return finish("dot", partial("dot", tree, other))


def norm1(tree: Any) -> Any:
    """Sum of the magnitudes, the l1 norm.

    Parameters
    ----------
    tree : array or tree of arrays
        As for `exact_sum`.

    Returns
    -------
    0-d array
        float32, or float64 where a leaf is float64: 0.5 ulp.

    Examples
    --------
    >>> import numpy as np
    >>> float(norm1({"w": np.float32([3.0, -4.0])}))
    7.0
    """
    return finish("norm1", partial("norm1", tree))


def norm2(tree: Any) -> Any:
    """Root of the sum of squares, the Euclidean norm.

    Neither the squares nor their sum can overflow or vanish in float32.

    Parameters
    ----------
    tree : array or tree of arrays
        As for `exact_sum`.

    Returns
    -------
    0-d array
        float32: correctly rounded. float64 (where a leaf is float64): the root of the sum rounded to 53 bits,
        0.75 ulp; squares that overflow make it infinite, and those below 2**-900 count as 0.

    Examples
    --------
    >>> import numpy as np
    >>> float(norm2({"w": np.float32([3e30, -4e30])}) / np.float32(5e30))
    1.0
    """
    return finish("norm2", partial("norm2", tree))


def norm_inf(tree: Any) -> Any:
    """Largest magnitude.

    Parameters
    ----------
    tree : array or tree of arrays
        As for `exact_sum`.

    Returns
    -------
    0-d array
        float32, or float64 where a leaf is float64: exact; NaN if there is one.

    Examples
    --------
    >>> import numpy as np
    >>> float(norm_inf([np.float32([3.0, -4.0]), np.float32([])]))
    4.0
    """
    return finish("norm_inf", partial("norm_inf", tree))


def partial(kind: Kind, tree: Any, other: Any = None, *, compute: str | None = None) -> Any:
    """What a piece of a vector or tree adds to a whole.

    Parameters
    ----------
    kind : {"sum", "dot", "norm1", "norm2", "norm_inf"}
    tree : array or tree of arrays
    other : array or tree of arrays
        The second factor of ``"dot"``.
    compute : {"float32", "float64"}, optional
        Whose partial; default: float64 where a leaf is float64. ``"float64"`` makes a piece without such a leaf fit to
        pieces that have one.

    Returns
    -------
    int32 array, shape (51,) in float32 or (177,) in float64
        The exact sum in limbs, see limbs.py; an all-reduce may add up to 2**18 of them. Of ``"norm_inf"`` a 0-d int32
        (int64 in float64), the bits of the largest magnitude, for an all-reduce that takes the maximum.

    Raises
    ------
    TypeError, ValueError
        As `exact_sum` and `exact_dot`; an unknown `kind`, or `other` where there is none or too many.

    Examples
    --------
    >>> import numpy as np
    >>> pieces = [partial("sum", np.float32([1e30, 1.0])), partial("sum", np.float32([-1e30]))]
    >>> float(finish("sum", pieces[0] + pieces[1]))
    1.0
    """
    checks.choice("kind", kind, KINDS)
    if (kind == "dot") != (other is not None):
        raise TypeError(f'`other` is {other!r}; "dot" takes two trees, every other kind one')
    pairs = _pairs(tree, other)
    wide = any(x.dtype == frameworks.namespace(x).float64 for x, _ in pairs)
    if compute is None:
        compute = "float64" if wide else "float32"
    checks.choice("compute", compute, ("float64",) if wide else limbs.LAYOUTS)
    xp = frameworks.namespace(pairs[0][0]) if pairs else np
    if kind == "norm_inf":
        return _largest([x for x, _ in pairs], compute)
    layout = limbs.LAYOUTS[compute]
    found = [_partial(x, y, kind, compute) for x, y in _together([pair for pair in pairs if pair[0].shape[0]])]
    if not found:
        nothing = limbs.of_integer(0, [False] * 3, layout)
        return frameworks.constant(xp, nothing, xp.int32, pairs[0][0]) if pairs else nothing
    if len(found) == 1:
        return found[0]
    total = found[0]
    for k, each in enumerate(found[1:], start=1):
        total = total + each
        total = limbs.carried(total) if k % 2**17 == 0 else total
    return limbs.carried(total)


def merge(kind: Kind, first: Any, second: Any) -> Any:
    """The partial of two pieces together, which may be merged again, in any order and without limit.

    Parameters
    ----------
    kind : {"sum", "dot", "norm1", "norm2", "norm_inf"}
    first, second : array
        What `partial` or `merge` returned.

    Returns
    -------
    array of the same shape and dtype

    Raises
    ------
    TypeError, ValueError
        `first` or `second` is no partial of that kind, or they are of two compute dtypes or libraries.

    Examples
    --------
    >>> import numpy as np
    >>> whole = partial("norm2", np.float32([3.0, 4.0]))
    >>> halves = merge("norm2", partial("norm2", np.float32([3.0])), partial("norm2", np.float32([4.0])))
    >>> bool((whole == halves).all())
    True
    """
    if _check_partial(kind, "first", first) != _check_partial(kind, "second", second):
        raise ValueError(
            f"`first` is {_described(first)}, `second` {_described(second)}: one is of float32 and one of float64; "
            f"convert the leaves of one piece before its partial is formed"
        )
    checks.same_home("second", Leaf("", second), "first", Leaf("", first))
    return frameworks.namespace(first).maximum(first, second) if kind == "norm_inf" else limbs.carried(first + second)


def finish(kind: Kind, total: Any) -> Any:
    """The merged partial as a number, rounded once.

    Parameters
    ----------
    kind : {"sum", "dot", "norm1", "norm2", "norm_inf"}
    total : array
        What `partial` or `merge` returned, or the sum (of ``"norm_inf"`` the maximum) of up to 2**18 partials.

    Returns
    -------
    0-d array, float32 or float64

    Raises
    ------
    TypeError, ValueError
        `total` is no partial of that kind.

    Examples
    --------
    >>> import numpy as np
    >>> float(finish("norm1", sum(partial("norm1", np.float32([x])) for x in (1.0, -2.0, 3.0))))
    6.0
    """
    _check_partial(kind, "total", total)
    if kind == "norm_inf":
        return frameworks.from_bits(total)
    return limbs.rounded(total, root=kind == "norm2")


def _check_partial(kind: str, argument: str, value: Any) -> str:
    """The compute dtype of a partial of this kind."""
    checks.choice("kind", kind, KINDS)
    checks.is_array(argument, value)
    shapes = {"float32": (), "float64": ()} if kind == "norm_inf" else limbs.SHAPES
    for compute, shape in shapes.items():
        words = "int64" if (kind, compute) == ("norm_inf", "float64") else "int32"
        if tuple(value.shape) == shape and name_of(value.dtype) == words:
            return compute
    raise ValueError(f"`{argument}` is {_described(value)}; pass what partial({kind!r}, ...) returned")


def _described(value: Any) -> str:
    return f"an array of {name_of(value.dtype)} of shape {tuple(value.shape)}"


def _pairs(tree: Any, other: Any) -> list[tuple[Any, Any]]:
    leaves = [leaf for leaf in flatten(tree) if leaf.value is not None]
    for leaf in leaves:
        checks.array("tree", leaf)
        checks.same_home("tree", leaf, "tree", leaves[0])
    if other is None:
        return [(_widened(leaf.value), None) for leaf in leaves]
    others = [leaf for leaf in flatten(other) if leaf.value is not None]
    checks.same_structure("other", [leaf.path for leaf in others], "tree", [leaf.path for leaf in leaves])
    for leaf, twin in zip(leaves, others, strict=True):
        checks.array("other", twin)
        checks.same_home("other", twin, "tree", leaf)
        checks.same_shape("other", twin, "tree", leaf)
        checks.same_dtype("other", twin, "tree", leaf)
    return [(_widened(a.value), _widened(b.value)) for a, b in zip(leaves, others, strict=True)]


def _widened(x: Any) -> Any:
    """A leaf as a vector of its compute dtype."""
    xp = frameworks.namespace(x)
    fmt = format_of(x)
    assert fmt is not None
    return xp.reshape(x if fmt.name == fmt.compute else xp.astype(x, frameworks.dtype(xp, fmt.compute)), (-1,))


def _together(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Small leaves of one dtype put into one vector: a leaf costs a hundred operations, however small it is."""
    large = [pair for pair in pairs if pair[0].shape[0] >= _SMALL]
    small: dict[str, list[tuple[Any, Any]]] = {}
    for pair in pairs:
        if pair[0].shape[0] < _SMALL:
            small.setdefault(str(pair[0].dtype), []).append(pair)
    for group in small.values():
        columns = zip(*group, strict=True)
        large.append(tuple(None if each[0] is None else _joined(list(each)) for each in columns))  # type: ignore[arg-type]
    return large


def _joined(vectors: list[Any]) -> Any:
    return vectors[0] if len(vectors) == 1 else frameworks.namespace(vectors[0]).concat(vectors)


@opaque.operation(
    "partial",
    "(Tensor x, Tensor? y, str kind, str compute) -> Tensor",
    lambda x, y, kind, compute: x.new_empty(limbs.SHAPES[compute], dtype=frameworks.namespace(x).int32),
)
def _partial(x: Any, y: Any, kind: str, compute: str) -> Any:
    xp, layout = frameworks.namespace(x), limbs.LAYOUTS[compute]
    here, there = frameworks.as_numpy(x), None if y is None else frameworks.as_numpy(y)
    if here is None or (y is not None and there is None):
        return windows.blindly(kind, x, y, layout)
    return frameworks.constant(xp, windows.by_looking(kind, here, there, layout), xp.int32, x)


def _largest(vectors: list[Any], compute: str) -> Any:
    """Bits of the largest magnitude: for what is not negative they are in the numbers' order, NaN above infinity."""
    if not vectors:
        return np.zeros((), np.int64 if compute == "float64" else np.int32)
    xp = frameworks.namespace(vectors[0])
    dtype = frameworks.dtype(xp, compute)
    found = []
    for x in vectors:
        fmt = format_of(x)
        assert fmt is not None
        size = xp.abs(x)
        size = xp.where(size < fmt.flush, 0.0, size)
        size = xp.where(size != size, math.nan, size)  # one NaN for all
        found.append(xp.max(frameworks.bits(xp.astype(size, dtype))) if x.shape[0] else None)
    found = [each for each in found if each is not None]
    if not found:
        return frameworks.bits(frameworks.constant(xp, 0.0, dtype, vectors[0]))
    return xp.max(xp.stack(found))
