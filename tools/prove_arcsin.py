"""Proof by enumeration that arcsin4pi is correctly rounded for every float32 in [-1, 1].

``python tools/prove_arcsin.py [--binades] [--output docs/results/arcsin.json]``, three minutes on two cores.
By default every bit pattern from 0 to 1.0 is tried, and its negative. ``--binades`` starts at 2**-28: below 2**-27
the tail of the float64 sequence is ``s*c0`` exactly as rounded there, so scaling m by a power of two scales the
result, and the true value is within 2**-56 of ``m*4/pi``.

Reference: the x87 arcsine times 4/pi in 64-bit long double; glibc states 1 ulp for it, the constant and the product
add one: below 2**-61 relative. A point is hard if moving the reference by 2**-50 either way changes its rounding to
float32; each hard point is decided by mpmath at 200 bits. No point is an exact tie: by Niven's theorem
(4/pi) arcsin(m) is irrational for rational m, but for 0, 1/2 and 1, whose values 0, 2/3 and 2 are no midpoints.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

import array_api_compat.numpy as xp
import mpmath
import numpy as np
from rich.progress import track

from signcore import arcsin, ops

LONG = np.longdouble
SCALE = LONG(4) / LONG("3.14159265358979323846264338327950288")
ONE = 0x3F800000  # bits of 1.0
SPAN = 1 << 20


def with_sqrt(m, sqrt):
    """The float32 result with another sqrt in the sequence."""
    u = arcsin._for_float32(xp, np.abs(m).astype(np.float64), sqrt).astype(np.float32)
    return np.where(m < 0, -u, u)


def exact(m):
    """The float32 nearest to the true value, and log2 of its relative distance from a rounding boundary."""
    with mpmath.workprec(200):
        true = 4 / mpmath.pi * mpmath.asin(mpmath.mpf(float(m)))
        guess = np.float32(float(true))
        candidates = [np.nextafter(guess, np.float32(0)), guess, np.nextafter(guess, np.float32(4))]
        near, second = sorted(candidates, key=lambda c: abs(mpmath.mpf(float(c)) - true))[:2]
        boundary = (mpmath.mpf(float(near)) + mpmath.mpf(float(second))) / 2
        return near, float(mpmath.log(abs(true - boundary) / true, 2))


def same(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def chunk(start):
    """(points, hard points, their results, wrong points, side conditions hold, monotone, first and last result)."""
    m = np.arange(start, min(start + SPAN, ONE + 1), dtype=np.uint32).view(np.float32)
    y = arcsin._sequence(m)
    true = np.arcsin(m.astype(LONG)) * SCALE
    low = (true * (1 - LONG(2) ** -50)).astype(np.float32)
    high = (true * (1 + LONG(2) ** -50)).astype(np.float32)
    hard = low != high
    # where values can be looked at, the library's own arcsine is rounded; there is one right result
    holds = same(ops.arcsin4pi(m), y) and same(ops.arcsin4pi(-m)[m > 0], -y[m > 0])
    if m[-1] > 0.5:  # a sqrt that is one ulp off, as torch's is on the CPU, gives the same float32
        holds = holds and all(same(with_sqrt(m, lambda t, s=s: np.nextafter(np.sqrt(t), s)), y) for s in (0.0, 9.0))
    return len(m), m[hard], y[hard], m[~hard & (y != low)], holds, bool((np.diff(y) >= 0).all()), y[0], y[-1]


def float64_error(count=400_000):
    """Largest error seen of the float64 sequence, in ulps: long double for all points, mpmath for the worst."""
    rng = np.random.default_rng(1)
    edge, ulp = np.arange(2000), 2.0**-53
    parts = [rng.uniform(0, 1, 20 * count), rng.uniform(0.5, 0.7072, 10 * count), np.exp2(rng.uniform(-400, 0, count))]
    parts += [0.5 + edge * ulp, 0.5 - edge * ulp / 2, 1 - edge * ulp, np.sqrt(0.5) + (edge - 1000) * ulp]
    m = np.concatenate(parts)
    m = m[m <= 1]
    y, true = ops.arcsin4pi(m), np.arcsin(m.astype(LONG)) * SCALE
    ulps = np.abs((y - true) / np.spacing(true.astype(np.float64))).astype(np.float64)
    take = np.concatenate([np.argsort(ulps)[-2000:], rng.integers(0, len(m), 20_000)])
    worst = (0.0, 0.0)
    with mpmath.workprec(120):
        for i in take:
            error = abs(y[i] - 4 / mpmath.pi * mpmath.asin(mpmath.mpf(float(m[i]))))
            worst = max(worst, (float(error / np.spacing(np.float64(true[i]))), float(m[i])))
    return {"points": len(m), "max_ulp": worst[0], "at": worst[1], "points_by_mpmath": len(take)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--binades", action="store_true", help="only from 2**-28 on")
    parser.add_argument("--output", type=Path, default=Path("docs/results/arcsin.json"))
    options = parser.parse_args()
    first = int(np.float32(2.0**-28).view(np.uint32)) if options.binades else 0
    starts = range(first, ONE + 1, SPAN)
    began, points, hard, wrong, holds, monotone, last = time.time(), 0, [], [], True, True, np.float32(0)
    with multiprocessing.Pool(2) as pool:
        done = pool.imap(chunk, starts)
        for n, h, got, bad, held, rising, low, high in track(done, total=len(starts), disable=not sys.stderr.isatty()):
            points += n
            hard += list(zip(h, got, strict=True))
            wrong += bad.tolist()
            holds, monotone, last = holds and held, monotone and rising and bool(last <= low), high
    nearest = (0.0, 0.0)
    for m, got in hard:
        true, distance = exact(m)
        if got != true:
            wrong.append(float(m))
        nearest = min(nearest, (distance, float(m)))
    result = {
        "set": "binades" if options.binades else "all",
        "points": points,
        "hard_cases": len(hard),
        "mismatches": len(wrong),
        "wrong": wrong[:20],
        "odd_and_same_by_the_native_arcsine_and_with_any_faithful_sqrt": holds,
        "monotone": monotone,
        "nearest_boundary_log2": nearest[0],
        "nearest_boundary_at": nearest[1],
        "seconds": round(time.time() - began, 1),
        "float64": float64_error(),
        "numpy": np.__version__,
    }
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if not wrong and holds and monotone else 1


if __name__ == "__main__":
    sys.exit(main())
