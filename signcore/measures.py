"""What the papers measure: this module has all names; each is a pure function of arrays or trees of any library.

Here is what can be told from signs alone. norms.py has the norms and estimates from samples, success.py bounds of the
probability that a sign is right, drift.py what a vote makes of it, theory.py and momentum.py what theorems promise.

Signs are those of `signcore.ops.sign`: below the flush threshold there is none, and NaN has none. A share is an exact
count, divided once; so neither order nor number of threads nor backend can matter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import checks, frameworks, ops
from .drift import vote_drift, vote_success, vote_tie, vote_variance
from .dtypes import Format, format_of
from .frameworks import namespace
from .ieee import compute_format, quotient, where
from .leafwise import stack_size
from .momentum import ssdm_bound, ssdm_parameters, warmup_steps
from .norms import l12_norm, noise_scale, rho_m_norm, rho_norm, snr_stationarity, success_probability
from .success import gauss_bound, growth_bound, moment_batch, moment_bound, unimodal_bound
from .theory import (
    decaying_bound,
    large_batch_bound,
    large_batch_lr,
    monotone_bound,
    signsgd_bound,
    signsgd_lr,
    snr_bound,
    snr_l1_bound,
)
from .tree import Leaf, flatten, unflatten

__all__ = [
    "bits_at_risk",
    "decaying_bound",
    "flip_rate",
    "gauss_bound",
    "growth_bound",
    "l12_norm",
    "large_batch_bound",
    "large_batch_lr",
    "moment_batch",
    "moment_bound",
    "monotone_bound",
    "noise_scale",
    "rho_m_norm",
    "rho_norm",
    "signsgd_bound",
    "signsgd_lr",
    "snr_bound",
    "snr_l1_bound",
    "snr_stationarity",
    "ssdm_bound",
    "ssdm_parameters",
    "success_probability",
    "unimodal_bound",
    "vote_drift",
    "vote_margin",
    "vote_success",
    "vote_tie",
    "vote_variance",
    "warmup_steps",
    "zero_share",
]


def flip_rate(before: Any, after: Any, zeros: bool = False) -> Any:
    """Share of coordinates whose sign turned around.

    Parameters
    ----------
    before, after : array or tree of arrays
        Signs, or numbers whose signs are meant: float16, bfloat16, float32 or float64, any shapes; two trees alike.
    zeros : bool
        True: a change from or to zero counts, too. Default False: only +1 to -1 and back.

    Returns
    -------
    0-d float32 array
        In [0, 1], the exact share rounded once; 0 for no coordinates.

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, or the trees or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> float(flip_rate(np.float32([1, -1, 1, 0]), np.float32([1, 1, -1, -1])))
    0.5
    """
    checks.choice("zeros", zeros, (False, True))
    first, second = _leaves("before", before), _leaves("after", after)
    checks.same_structure("after", [leaf.path for leaf in second], "before", [leaf.path for leaf in first])
    counts = []
    for old, new in zip(first, second, strict=True):
        checks.same_home("after", new, "before", old)
        checks.same_shape("after", new, "before", old)
        (up, down), (rise, fall) = _signs(old.value), _signs(new.value)
        counts.append((up ^ rise) | (down ^ fall) if zeros else (up & fall) | (down & rise))
    return _share(counts, sum(_size(each) for each in counts))


def zero_share(signs: Any) -> Any:
    """Share of coordinates without a sign: zeros, what is below the flush threshold, NaN.

    Parameters
    ----------
    signs : array or tree of arrays
        Signs, or numbers whose signs are meant, as for `flip_rate`.

    Returns
    -------
    0-d float32 array
        In [0, 1], the exact share rounded once; 0 for no coordinates.

    Raises
    ------
    TypeError
        A leaf is no array of a float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> float(zero_share({"w": np.float32([1, 0, -1]), "b": np.float32([-0.0])}))
    0.5
    """
    counts = []
    for leaf in _leaves("signs", signs):
        up, down = _signs(leaf.value)
        counts.append(~(up | down))
    return _share(counts, sum(_size(each) for each in counts))


def vote_margin(stacked: Any, elementwise: bool = False) -> Any:
    """How clearly a vote was won: ``|sum of signs| / M``, its mean over all coordinates or one by one.

    Parameters
    ----------
    stacked : array of shape (M, ...), or tree of such arrays
        Signs of M workers, or numbers whose signs are meant, as for `flip_rate`; one M for all leaves, up to 2**24.
    elementwise : bool
        False, the default: the mean. True: the margin of each coordinate, an array or tree.

    Returns
    -------
    0-d float32 array, or array (...) or tree of them in the compute dtype
        In [0, 1], rounded once: 0 is a tie, 1 unanimous. The mean of no coordinates is 0.

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, there are no workers, or not the same number for all leaves.

    Examples
    --------
    >>> import numpy as np
    >>> float(vote_margin(np.float32([[1, 1], [1, -1]])))
    0.5
    >>> vote_margin(np.float32([[1, 1], [1, -1]]), elementwise=True)
    array([1., 0.], dtype=float32)
    """
    checks.choice("elementwise", elementwise, (False, True))
    leaves = _leaves("stacked", stacked)
    workers = stack_size("stacked", leaves)
    margins = []
    for leaf in leaves:
        xp = namespace(leaf.value)
        up, down = (xp.astype(each, xp.int32) for each in _signs(leaf.value))
        margins.append(xp.abs(xp.sum(up - down, axis=0, dtype=xp.int32)))
    if not elementwise:
        return _share(margins, workers * sum(_size(each) for each in margins))
    kinds = [frameworks.dtype(namespace(leaf.value), _format(leaf.value).compute) for leaf in leaves]
    each = iter([quotient(ops.cast(m, kind), float(workers)) for m, kind in zip(margins, kinds, strict=True)])
    return unflatten(stacked, [None if leaf.value is None else next(each) for leaf in flatten(stacked)])


def bits_at_risk(u: Any, ulps: float = 1, scale: Any = None, zeros: bool = True) -> Any:
    """Share of coordinates within `ulps` ulps of a sign change: where a rounding difference would change the step.

    Near 0 an ulp of u itself is as small as u; what counts is an ulp of the numbers that u was computed from, their
    `scale`. A coordinate is at risk where ``|u| <= ulps * ulp(scale)``.

    Parameters
    ----------
    u : array or tree of arrays
        The argument of the sign. An ulp is that of each leaf's own dtype: float16, bfloat16, float32 or float64.
    ulps : number
        At least 1/2, the rounding of one operation. Default 1, the most by which two roundings of one number differ.
    scale : number, 0-d array, array or tree like `u`, optional
        Magnitude of what u was summed from, such as ``abs(momentum)`` or that of the gradient's terms. Where it is 0
        nothing was rounded, so nothing is at risk. By default the largest magnitude in each leaf: what a rounding
        difference of the leaf's largest element would do. Shards have to pass the whole leaf's.
    zeros : bool
        False leaves out what has no sign, such as rows of an embedding without a gradient. Default True.

    Returns
    -------
    0-d float32 array
        In [0, 1], the exact share rounded once; 0 for no coordinates. NaN is not at risk, and everything else is where
        the scale is not finite.

    Raises
    ------
    TypeError, ValueError
        A leaf is no array of a float dtype, `scale` is of another structure or shape, or `ulps` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> u = np.float32([1.0, 2.0**-23, -(2.0**-22), 0.0])
    >>> float(bits_at_risk(u)), float(bits_at_risk(u, ulps=2)), float(bits_at_risk(u, zeros=False))
    (0.5, 0.75, 0.25)
    """
    checks.choice("zeros", zeros, (False, True))
    if not checks.is_number(ulps):
        raise TypeError(f"`ulps` is {ulps!r}; pass a number, at least 0.5")
    checks.number("ulps", ulps, checks.Range(0.5))
    if checks.is_number(scale):
        checks.number("scale", scale, checks.Range())
    leaves = _leaves("u", u)
    counts = []
    for leaf, size in zip(leaves, _scales(leaves, scale), strict=True):
        xp, x = namespace(leaf.value), ops.widen(leaf.value)
        reach = _ulp(size, _format(leaf.value)) * float(ulps)
        risk = (xp.abs(x) <= reach) & (reach > 0.0)
        if not zeros:
            up, down = _signs(leaf.value)
            risk = risk & (up | down)
        counts.append(risk)
    return _share(counts, sum(_size(each) for each in counts))


# -- the work ----------------------------------------------------------------------------------------------


def _leaves(argument: str, tree: Any) -> list[Leaf]:
    leaves = [leaf for leaf in flatten(tree) if leaf.value is not None]
    for leaf in leaves:
        checks.array(argument, leaf)
        checks.same_home(argument, leaf, argument, leaves[0])
    return leaves


def _format(x: Any) -> Format:
    fmt = format_of(x)
    assert fmt is not None  # checks.array has seen it
    return fmt


def _signs(x: Any) -> tuple[Any, Any]:
    """Where the sign is +1, and where it is -1."""
    x = ops.widen(x)
    least = compute_format(x).flush
    return x >= least, x <= -least


def _size(x: Any) -> int:
    return math.prod(x.shape)


def _share(counts: list[Any], size: int) -> Any:
    """The sum of boolean or integer arrays over `size`, in float32: in int64 a count is exact."""
    if not counts:
        return np.zeros((), np.float32)
    xp = namespace(counts[0])
    with frameworks.float64_scope(xp):
        total = sum(map(_count, counts))
        share = quotient(xp.astype(xp.asarray(total), xp.float64), float(max(size, 1)))
        return xp.asarray(ops.cast(share, xp.float32))


def _count(x: Any) -> Any:
    if frameworks.is_eager_numpy(x) and x.dtype == np.bool_:
        return np.int64(np.count_nonzero(x))  # 20 times faster than a sum
    xp = namespace(x)
    return xp.sum(xp.astype(x, xp.int32), dtype=xp.int64)


def _scales(leaves: list[Leaf], scale: Any) -> list[Any]:
    """The scale of each leaf, in its compute dtype and of its shape or none."""
    if scale is None:
        return [_largest(ops.widen(leaf.value)) for leaf in leaves]
    if checks.is_number(scale):
        wide = [ops.widen(leaf.value) for leaf in leaves]
        return [frameworks.constant(namespace(x), float(scale), x.dtype, x) for x in wide]
    if tuple(getattr(scale, "shape", (1,))) == ():
        checks.array("scale", Leaf("", scale))
        return [ops.cast(scale, ops.widen(leaf.value).dtype) for leaf in leaves]
    found = _leaves("scale", scale)
    checks.same_structure("scale", [leaf.path for leaf in found], "u", [leaf.path for leaf in leaves])
    for size, leaf in zip(found, leaves, strict=True):
        checks.same_home("scale", size, "u", leaf)
        checks.same_shape("scale", size, "u", leaf)
    return [ops.cast(size.value, ops.widen(leaf.value).dtype) for size, leaf in zip(found, leaves, strict=True)]


def _largest(x: Any) -> Any:
    xp = namespace(x)
    return xp.max(xp.abs(x)) if _size(x) else frameworks.constant(xp, 0.0, x.dtype, x)


def _ulp(size: Any, fmt: Format) -> Any:
    """Distance of neighbours in the format `fmt` at magnitudes `size`, which are of its compute dtype."""
    size = ops.flush(namespace(size).abs(size))
    exponent = 0x7FF0000000000000 if fmt.compute == "float64" else 0x7F800000
    power = frameworks.from_bits(frameworks.bits(size) & exponent)  # the power of two at or below
    ulp = power * 2.0 ** (1 - fmt.digits)
    if fmt.normal == 0.0:  # float16, whose subnormals have one distance
        ulp = where((power > 0.0) & (ulp < fmt.flush), fmt.flush, ulp)
    return ulp
