"""Coefficients of P in z = x * P(u), the normal quantile of (1 + x)/2, by a Chebyshev series in mpmath.

``python tools/normal_coefficients.py DEGREE SHIFT``: signcore/normal.py has ``33 4``. With w = -log(1 - x*x), the
ratio z/x is smooth in sqrt(w + SHIFT), and u is that root moved linearly from its range to [-1, 1]. (The shift takes
the root's branch point away from w = 0; among 2.5 ... 5 it is worth two bits.) A truncated series is within a bit of
the minimax polynomial here.
"""

import sys

from mpmath import cos, erfinv, expm1, log, mp, mpf, pi, sqrt

mp.prec = 250
T = mpf(2) ** -25  # the smallest probability
LARGEST = -log(4 * T * (1 - T))  # w there, where x = 1 - 2*T


def ratio(w):
    """Quantile of (1 + x)/2 over x."""
    x = sqrt(-expm1(-w))
    return sqrt(mpf(2)) * erfinv(x) / x if w else sqrt(pi / 2)


def derive(degree, shift):
    """(coefficients in u, u = root*scale - offset, log2 of the largest relative error)."""
    low, high = sqrt(shift), sqrt(LARGEST + shift)
    scale, offset = 2 / (high - low), (high + low) / (high - low)
    count = degree + 15
    angles = [pi * (i + mpf(1) / 2) / count for i in range(count)]
    values = [ratio(((cos(t) + offset) / scale) ** 2 - shift) for t in angles]
    total = [mpf(0)] * (degree + 1)
    chebyshev, following = [1], [0, 1]  # T_k and T_(k+1) in powers of u
    for k in range(degree + 1):
        c = 2 * sum(y * cos(k * t) for y, t in zip(values, angles, strict=True)) / count / (1 if k else 2)
        for i, power in enumerate(chebyshev):
            total[i] += c * power
        after = [-c for c in chebyshev] + [0, 0]
        for i, power in enumerate(following):
            after[i + 1] += 2 * power
        chebyshev, following = following, after
    p = [float(c) for c in total]
    tried = [mpf(i) / 1000 - 1 for i in range(2001)]
    trues = [ratio(max((u + offset) ** 2 / scale**2 - shift, mpf(0))) for u in tried]
    worst = max(abs(sum(mpf(c) * u**i for i, c in enumerate(p)) / y - 1) for u, y in zip(tried, trues, strict=True))
    return p, float(scale), float(offset), log(worst, 2)


if __name__ == "__main__":
    coefficients, scale, offset, worst = derive(int(sys.argv[1]), mpf(sys.argv[2]))
    print(f"scale {scale!r}, offset {offset!r}, relative error 2**{float(worst):.2f}")
    print(*map(repr, coefficients), sep=",\n")
