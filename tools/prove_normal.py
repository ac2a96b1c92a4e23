"""Proof by enumeration that random.normal is the correctly rounded quantile for each of its 2**23 magnitudes.

``python tools/prove_normal.py [--draws 100000000] [--output docs/results/normal.json]``, a minute or two on two cores.

A float32 z is right if the quantile lies between the midpoints to its neighbours. With t = (2*j + 1) * 2**-25 the
probability above it, that is asked of glibc's erf and erfc at each midpoint m, in float64: is the probability above m
larger or smaller than t? (erf where m is small, compared with 1 - 2*t, which is exact.) glibc states an ulp or two for
them, the argument's rounding adds m*m/2 ulps, and both count for 1/(m*m) or so in m: the distance in m is known within
2**-49, relatively. Where it is below 2**-40, mpmath decides at 200 bits.

Then the float64 value before rounding, moved by 2**-48 either way, must give the same words; that covers contraction
and other libraries' log and sqrt, as `variants` shows. ``--draws`` adds a goodness of fit of that many numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import array_api_compat.numpy as xp
import mpmath
import numpy as np
from rich.progress import track

from signcore import normal, random

COUNT, SPAN = 1 << 23, 1 << 18
ROOT2 = math.sqrt(2.0)


def each(function, x):
    return np.fromiter(map(function, x.tolist()), np.float64, len(x))


def distance(m, n):
    """How far the quantile of probability n * 2**-25 lies above m, relatively: positive where it does."""
    density = np.exp(-m * m / 2.0) * m / math.sqrt(2.0 * math.pi)  # d(probability above m) / d(log m)
    small = m < 0.7
    gap = np.empty_like(m)
    gap[small] = ((1.0 - n[small] * 2.0**-24) - each(math.erf, m[small] / ROOT2)) / 2.0
    gap[~small] = each(math.erfc, m[~small] / ROOT2) / 2.0 - n[~small] * 2.0**-25
    return gap / density


def exact(n):
    """The quantile of probability n * 2**-25 above it, to about 150 bits."""
    x = 1 - mpmath.mpf(n) / 2**24
    return mpmath.sqrt(2) * mpmath.erfinv(x)


def boundaries(z):
    wide = z.astype(np.float64)
    below, above = (np.nextafter(z, np.float32(to)).astype(np.float64) for to in (0, 9))
    return (below + wide) / 2.0, (wide + above) / 2.0


def variants(n):
    """The float64 value as other libraries may have it: log and sqrt two ulps off, and long double for contraction."""

    def off(function, ulps):
        return lambda x: function(x) * (1.0 + ulps * 2.0**-52)

    for log, sqrt in itertools.product((-2, 2), repeat=2):
        yield normal._magnitude(SimpleNamespace(log=off(np.log, log), sqrt=off(np.sqrt, sqrt)), n)
    yield normal._magnitude(np, n.astype(np.longdouble)).astype(np.float64)


def chunk(start):
    """(magnitudes, hard points, their results, wrong ones, changed by 2**-48, worst deviation of a variant, holds)."""
    j = np.arange(start, start + SPAN, dtype=np.int32)
    n = 2.0 * j + 1.0
    z = random.normal(j << 8)
    low, high = boundaries(z)
    over, under = distance(low, n), distance(high, n)
    hard = np.minimum(np.abs(over), np.abs(under)) < 2.0**-40
    wrong = ~hard & ((over < 0.0) | (under > 0.0))
    value = normal._magnitude(xp, n)
    moved = [(value * (1.0 + e)).astype(np.float32) != z for e in (0.0, 2.0**-48, -(2.0**-48))]
    worst = max(float(np.max(np.abs(other / value - 1.0))) for other in variants(n))
    odd = np.array_equal(random.normal((j << 8) | -(2**31)), -z)
    widened = np.array_equal(random.normal(j << 8, "float64"), z.astype(np.float64))
    return z.tobytes(), n[hard], z[hard], n[wrong].tolist(), int(sum(m.sum() for m in moved)), worst, odd and widened


def decide(n, z):
    """Whether z is the rounded quantile, log2 of the distance from the nearest boundary, the float64 value's error."""
    with mpmath.workprec(200):
        true = exact(n)
        low, high = (mpmath.mpf(float(b)) for b in boundaries(z))
        near = min(abs(true - low), abs(true - high)) / true
        error = abs(mpmath.mpf(float(normal._magnitude(xp, np.float64([n]))[0])) / true - 1)
        return bool(low < true < high), float(mpmath.log(near, 2)), float(error)


def fit(draws):
    """Chi-square over 1000 bins of equal probability, Kolmogorov and Smirnov's distance at their edges, moments."""
    bins = 1000
    edges = np.float64([mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(i) / bins - 1) for i in range(1, bins)])
    counts, moments = np.zeros(bins, np.int64), np.zeros(4)
    key, step, block = random.stream_key(0, "fit"), np.asarray(0, np.int32), 1 << 20
    for start in track(range(0, draws, block), disable=not sys.stderr.isatty()):
        z = random.normal(random.words(key, step, min(block, draws - start), start), "float64")
        counts += np.bincount(np.searchsorted(edges, z, side="right"), minlength=bins)
        moments += [float((z**power).sum()) for power in (1, 2, 3, 4)]
    expected = draws / bins
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    ks = float(np.abs(np.cumsum(counts) / draws - np.arange(1, bins + 1) / bins).max())
    return {
        "draws": draws,
        "bins": bins,
        "chi_square": round(chi2, 2),
        "p_chi_square": float(mpmath.gammainc((bins - 1) / 2, chi2 / 2, mpmath.inf, regularized=True)),
        "ks": ks,
        "ks_times_root_n": ks * math.sqrt(draws),  # above 1.36 in 5 % of all samples
        "moments": (moments / draws).tolist(),
        "moments_in_standard_deviations": [
            float((m / draws - e) / math.sqrt(v / draws))
            for m, e, v in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True)
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=0, help="also test the fit of this many numbers")
    parser.add_argument("--output", type=Path, default=Path("docs/results/normal.json"))
    options = parser.parse_args()
    began, digest, hard, wrong, moved, spread, holds = time.time(), hashlib.sha256(), [], [], 0, 0.0, True
    starts = range(0, COUNT, SPAN)
    with multiprocessing.Pool(2) as pool:
        done = pool.imap(chunk, starts)
        for found, n, z, bad, changed, worst, held in track(done, total=len(starts), disable=not sys.stderr.isatty()):
            digest.update(found)
            hard += list(zip(n.tolist(), z, strict=True))
            wrong += bad
            moved, spread, holds = moved + changed, max(spread, worst), holds and held
        j = np.unique(np.concatenate([np.random.default_rng(0).integers(0, COUNT, 20_000), np.arange(500)]))
        j = np.concatenate([j, np.arange(COUNT - 500, COUNT)]).astype(np.int32)
        sample = list(zip((2.0 * j + 1.0).tolist(), random.normal(j << 8), strict=True))
        decided = pool.starmap(decide, hard + sample, chunksize=200)
    wrong += [n for (n, _), (right, _, _) in zip(hard + sample, decided, strict=True) if not right]
    nearest = min((near, n) for (n, _), (_, near, _) in zip(hard, decided[: len(hard)], strict=True))
    result = {
        "magnitudes": COUNT,
        "hard_cases": len(hard),
        "mismatches": len(wrong),
        "wrong": wrong[:20],
        "nearest_boundary_log2": nearest[0],
        "nearest_boundary_at": nearest[1],
        "points_by_mpmath": len(decided),
        "max_relative_error_log2": math.log2(max(error for _, _, error in decided)),
        "changed_by_2**-48": moved,
        "max_difference_of_variants_log2": math.log2(spread),
        "odd_and_same_in_float64": holds,
        "sha256": digest.hexdigest(),  # of the magnitudes as little-endian float32, j = 0 ... 2**23 - 1
        "seconds": round(time.time() - began, 1),
        "numpy": np.__version__,
    }
    if options.draws:
        result["fit"] = fit(options.draws)
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if not wrong and not moved and holds else 1


if __name__ == "__main__":
    sys.exit(main())
