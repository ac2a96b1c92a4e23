"""Coefficients of Q in (4/pi) arcsin(s) = HEAD*s + s*Q(s*s) on [0, 1/2], by Remez exchange in mpmath.

``python tools/arcsin_coefficients.py HEAD DEGREE``: signcore/arcsin.py has ``1 11`` for float32 results and ``1.25 13``
for float64. (``1 10`` rounds one float32 of all wrongly, 0.12465786.) The constant term is fixed to 4/pi - HEAD in
float64, so that tiny arguments are right; the others are rounded to float64 at the end.
"""

import sys

from mpmath import asin, cos, log, lu_solve, matrix, mp, mpf, pi, sqrt

mp.prec = 250
END = mpf(1) / 4


def ratio(t):
    """(4/pi) arcsin(sqrt t) / sqrt t."""
    return 4 / pi * (asin(sqrt(t)) / sqrt(t) if t else 1)


def chebyshev(count):
    """Nodes on [0, END], its right end among them."""
    return [END * (1 - cos(pi * (i + mpf(1) / 2) / count)) / 2 for i in range(count)] + [END]


def derive(head, degree):
    """(coefficients, log2 of the largest relative error)."""
    first = mpf(float(4 / pi - head))
    grid = [(t, ratio(t) - head - first, ratio(t)) for t in chebyshev(40 * degree)]
    nodes = chebyshev(degree)
    for _ in range(20):
        a, b = matrix(degree + 1, degree + 1), matrix(degree + 1, 1)
        for row, t in enumerate(nodes):
            for j in range(degree):
                a[row, j] = t ** (j + 1)
            a[row, degree], b[row] = (-1) ** row * ratio(t), ratio(t) - head - first
        x = lu_solve(a, b)
        peaks = []  # the largest error of each run of one sign
        for t, y, weight in grid:
            error = (sum(x[j] * t ** (j + 1) for j in range(degree)) - y) / weight
            if peaks and (peaks[-1][1] > 0) == (error > 0):
                peaks[-1] = max(peaks[-1], (t, error), key=lambda peak: abs(peak[1]))
            else:
                peaks.append((t, error))
        while len(peaks) > degree + 1:
            peaks.pop(0 if abs(peaks[0][1]) < abs(peaks[-1][1]) else -1)
        if len(peaks) < degree + 1:
            raise ArithmeticError("the exchange lost an extremum")
        nodes = [t for t, _ in peaks]
        if max(abs(error) for _, error in peaks) < abs(x[degree]) * mpf("1.0005"):
            break
    q = [float(first)] + [float(x[j]) for j in range(degree)]
    tried = [mpf(i) / 8000 for i in range(2001)]
    worst = max(abs((head + sum(mpf(c) * t**i for i, c in enumerate(q))) / ratio(t) - 1) for t in tried)
    return q, log(worst, 2)


if __name__ == "__main__":
    coefficients, worst = derive(mpf(sys.argv[1]), int(sys.argv[2]))
    print(f"relative error 2**{float(worst):.2f}")
    print(*map(repr, coefficients), sep=",\n")
