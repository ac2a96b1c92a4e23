"""Powers of a step counter. Oracle: mpmath."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

from signcore.powers import annealed, power

EVERY = np.arange(1, 100_001, dtype=np.int32)
LARGE = (2.0 ** np.random.default_rng(0).uniform(0.0, 31.0, 3000)).astype(np.int32)
LARGE[:2] = 2**31 - 1, 2**30
EXPONENTS = [0.275, 0.55, float(np.float32(0.55)), 1.0 / 3.0, 1.5]


def exactly(n, c):
    """The correctly rounded powers: float64's, and where those are near the middle of two float32, mpmath's."""
    wide = n.astype(np.float64) ** -c
    found = wide.astype(np.float32)
    low, high = ((wide * (1.0 + side * 2.0**-40)).astype(np.float32) for side in (-1.0, 1.0))
    with mpmath.workprec(300):
        for i in np.flatnonzero(low != high):
            exact = mpmath.mpf(int(n[i])) ** -mpmath.mpf(c)
            with mpmath.workprec(24):
                found[i] = float(+exact)
    return found


@pytest.mark.parametrize("c", EXPONENTS)
def test_every_power_up_to_100_000_is_correctly_rounded(c, same):
    same(power(EVERY, c), exactly(EVERY, c))
    same(power(LARGE, c), exactly(LARGE, c))


def test_powers_that_are_known_are_met(same):
    n = np.asarray([1, 2, 4, 1024, 2**30], np.int32)
    same(power(n, 1.0), (1.0 / n).astype(np.float32))
    same(power(n, 0.0), np.ones(5, np.float32))
    same(power(np.asarray([1, 7**2, 46340**2], np.int32), 0.5), np.float32([1.0, 1 / 7, 1 / 46340]))


def test_what_is_next_to_nothing_is_nothing(same):
    n = np.asarray([1, 2, 2**20, 2**31 - 1], np.int32)
    same(power(n, 100.0), np.float32([1.0, 2.0**-100, 0.0, 0.0]))
    same(power(n, 101.0), np.float32([1.0, 0.0, 0.0, 0.0]))
    same(power(n, 1e300), np.float32([1.0, 0.0, 0.0, 0.0]))
    assert np.isnan(power(n, np.asarray(np.nan))).all()


def test_every_library_gives_the_same_words(other, same):
    for c in (0.275, 2.9):
        same(other.compiled(lambda n, c=c: power(n, c))(other.array(LARGE)), power(LARGE, c))
    for n in (1, 99, 2**31 - 1):  # a counter whose value is at hand
        counter = np.asarray(n, np.int32)
        same(power(other.array(counter), 0.275), power(counter, 0.275))
        same(power(counter, 0.275), power(counter[None], 0.275)[0])


def test_an_exponent_may_be_an_array_or_traced(same):
    c = np.float32(0.275)
    wanted = power(LARGE, float(c))
    same(power(LARGE, np.asarray(c)), wanted)
    same(power(torch.asarray(LARGE), torch.tensor(c)), wanted)
    same(jax.jit(power)(jnp.asarray(LARGE), jnp.asarray(c)), wanted)


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_the_deviation_is_the_papers(compute):
    # the notes, section 9: sigma_k = sqrt(alpha), sqrt(alpha) 2**-.275, sqrt(alpha) 100**-.275 for k = 0, 1, 99.
    for k, root in ((0, 1.0), (1, 2.0**-0.275), (99, 100.0**-0.275)):
        sigma = annealed(0.1, 0.55, np.asarray(k, np.int32), compute)
        assert sigma.dtype == compute
        assert float(sigma) == pytest.approx(np.sqrt(0.1) * root, rel=2e-7)


def test_the_counter_may_be_at_its_end():
    end, before = (np.asarray(2**31 - k, np.int32) for k in (1, 2))
    assert annealed(1.0, 1.0, end, "float32") == annealed(1.0, 1.0, before, "float32") > 0.0
