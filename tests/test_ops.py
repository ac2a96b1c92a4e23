"""The primitives: each has one result, defined to the bit, on every library, eagerly and under jit."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signcore import frameworks, ops

F32 = np.float32
LARGEST = float(np.finfo(F32).max)
RNG = np.random.default_rng(0)
SPECIAL = F32([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0**-100, -(2.0**-100), 3e38, -3e38, 1e-45, -1e-40])
X = np.concatenate([RNG.standard_normal(400), 10.0 ** RNG.uniform(-38, 38, 100)]).astype(F32)
Y = RNG.permutation(X)


@pytest.fixture(autouse=True)
def _no_warnings_of_overflow():
    with np.errstate(all="ignore"):
        yield


def check_everywhere(function, *arrays, libraries, same):
    """`function` gives NumPy's words in every library and under jit."""
    expected = function(*arrays)
    for library in libraries.values():
        same(function(*map(library.array, arrays)), expected)
    same(jax.jit(function)(*map(jnp.asarray, arrays)), expected)
    return expected


# -- rounded -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=500)
@given(st.floats())
@example(0.9)
@example(LARGEST)
@example(float(2**128 - 2**103))  # the tie that rounds to infinity
@example(float(np.nextafter(2.0**128 - 2.0**103, 0)))
@example(1.0 + 2.0**-24)  # a tie
@example(-1.0 - 3 * 2.0**-24)
@example(1e300)
@example(2.0**-126)
@example(-0.0)
def test_rounded_is_one_rounding_to_float32(value):
    expected = float(F32(value))
    if abs(value) < 2.0**-126:
        expected = 0.0
    found = ops.rounded(value, "float32")
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize("value", [0.1, 1e300, -1e-320, math.inf, 3])
def test_rounded_to_float64_is_the_number_itself(value):
    assert ops.rounded(value, "float64") == value
    assert type(ops.rounded(value, "float64")) is float


# -- product -----------------------------------------------------------------------------------------------

SUMS = {
    "a*b + c": (lambda a, b: ops.product(a, b) + b, lambda a, b: a * b + b),
    "c - a*b": (lambda a, b: b - ops.product(a, b), lambda a, b: b - a * b),
    # LLVM knows that a square is not negative, and drops a guard that asks only for -inf
    "1 - a*a": (lambda a, b: 1.0 - ops.product(a, a), lambda a, b: F32(1.0) - a * a),
    "1 + (-a)*a": (lambda a, b: 1.0 + ops.product(-a, a), lambda a, b: F32(1.0) + (-a) * a),
    "|a|*|b| - b": (lambda a, b: ops.product(abs(a), abs(b)) - b, lambda a, b: abs(a) * abs(b) - b),
    "k*a + (1 - k)*b": (
        lambda a, b: ops.product(ops.rounded(0.9, "float32"), a) + ops.product(ops.rounded(0.1, "float32"), b),
        lambda a, b: F32(0.9) * a + F32(0.1) * b,
    ),
    "(a*b)*b + a": (lambda a, b: ops.product(ops.product(a, b), b) + a, lambda a, b: (a * b) * b + a),
    "0.9*(0.9*a)": (
        lambda a, b: ops.product(ops.rounded(0.9, "float32"), ops.product(ops.rounded(0.9, "float32"), a)),
        lambda a, b: F32(0.9) * (F32(0.9) * a),
    ),
}
NORMAL_X, NORMAL_Y = RNG.standard_normal((2, 4096)).astype(F32)


@pytest.mark.parametrize("name", SUMS)
def test_a_product_that_feeds_a_sum_is_rounded_first(name, libraries, same):
    guarded, plain = SUMS[name]
    same(check_everywhere(guarded, NORMAL_X, NORMAL_Y, libraries=libraries, same=same), plain(NORMAL_X, NORMAL_Y))


@pytest.mark.parametrize("name", ["a*b + c", "1 - a*a", "1 + (-a)*a", "k*a + (1 - k)*b"])
def test_without_the_guard_jit_rounds_once_too_few(name, monkeypatch, same):
    # The negative control: these inputs do tell a fused multiply-add from two roundings.
    guarded, plain = SUMS[name]
    monkeypatch.setattr(frameworks, "contracts", lambda array: False)
    with pytest.raises(AssertionError, match="words differ"):
        same(jax.jit(lambda a, b: guarded(a, b))(NORMAL_X, NORMAL_Y), plain(NORMAL_X, NORMAL_Y))


# Products and factors of the overflow threshold itself: 1801 * 18631 = 2^25 - 1, so the exact product of the last pair
# is 2^128 - 2^103, the tie that rounds to infinity.
EDGE_A = F32([3e38, -3e38, 2.0**64, 2.0**64, LARGEST, LARGEST, np.inf, np.inf, np.nan, 0.0, 1801 * 2.0**60])
EDGE_B = F32([2.0, 2.0, 2.0**64, -(2.0**64), 1.0, -1.0, 0.0, -1.0, 1.0, -5.0, 31 * 601 * 2.0**43])


def test_a_product_that_overflows_or_is_no_number_stays_what_it_is(libraries, same):
    for name in ("a*b + c", "1 - a*a", "1 + (-a)*a"):
        guarded, plain = SUMS[name]
        same(check_everywhere(guarded, EDGE_A, EDGE_B, libraries=libraries, same=same), plain(EDGE_A, EDGE_B))
    same(check_everywhere(ops.product, EDGE_A, EDGE_B, libraries=libraries, same=same), EDGE_A * EDGE_B)


def test_a_product_takes_numbers_and_arrays_of_no_dimensions(libraries, same):
    for scalar in (0.5, np.asarray(0.5, F32)):
        same(ops.product(scalar, NORMAL_X), F32(0.5) * NORMAL_X)
    same(jax.jit(lambda k, x: 1.0 - ops.product(k, x))(0.9, NORMAL_X), F32(1.0) - F32(0.9) * NORMAL_X)


# -- flush, sign, where, clamp, cast -----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "threshold"), [(np.float32, 2.0**-100), (np.float64, 2.0**-900)])
def test_flush_keeps_what_is_at_least_the_threshold(dtype, threshold, libraries, same):
    below = float(np.nextafter(dtype(threshold), dtype(0)))
    kept = np.asarray([threshold, -threshold, 1.0, np.inf, -np.inf, np.nan], dtype)
    gone = np.asarray([below, -below, 0.0, -0.0, float(np.finfo(dtype).tiny), 5e-324], dtype)
    for name, library in libraries.items():
        if dtype is np.float32 or name != "jax":
            same(ops.flush(library.array(kept)), kept)
            same(ops.flush(library.array(gone)), np.zeros(6, dtype))
    if dtype is np.float32:
        same(jax.jit(ops.flush)(np.concatenate([kept, gone])), np.concatenate([kept, np.zeros(6, dtype)]))


@pytest.mark.parametrize(("policy", "zero"), [("zero", 0.0), ("plus", 1.0), ("minus", -1.0)])
def test_sign_is_plus_or_minus_one_but_for_zeros_and_nan(policy, zero, libraries, same):
    tiny = np.abs(SPECIAL) < 2.0**-100
    expected = np.where(tiny, F32(zero), np.sign(SPECIAL))
    expected = np.where(np.isnan(SPECIAL), F32(0.0), expected)
    same(check_everywhere(lambda x: ops.sign(x, policy), SPECIAL, libraries=libraries, same=same), expected)


def test_random_signs_of_zero_are_the_lowest_bit_of_the_noise(libraries, same):
    noise = np.arange(-6, 7, dtype=np.int32)
    tiny = np.abs(SPECIAL) < 2.0**-100
    expected = np.where(tiny, np.where(noise & 1, F32(-1.0), F32(1.0)), ops.sign(SPECIAL))
    same(
        check_everywhere(lambda x, n: ops.sign(x, "random", n), SPECIAL, noise, libraries=libraries, same=same),
        expected,
    )


def test_where_takes_scalars_in_the_dtype_of_the_arrays(libraries, same):
    for dtype in (np.float32, np.float64):
        for name, library in libraries.items():
            if dtype is np.float32 or name != "jax":
                x = library.array(np.asarray([1.0, -1.0], dtype))
                same(ops.where(x > 0.0, x, 0.5), np.asarray([1.0, 0.5], dtype))
                same(ops.where(x > 0.0, 0.5, x), np.asarray([0.5, -1.0], dtype))


def test_clamp_moves_into_the_interval(libraries, same):
    x = F32([-3.0, -1.0, -0.5, -0.0, 0.5, 1.0, 3.0, np.inf, -np.inf])
    same(check_everywhere(lambda x: ops.clamp(x, 1.0), x, libraries=libraries, same=same), np.clip(x, -1, 1))
    bound = np.asarray(0.75, F32)
    same(check_everywhere(ops.clamp, x, bound, libraries=libraries, same=same), np.clip(x, -bound, bound))


def test_widening_is_exact_and_does_nothing_twice(libraries):
    for library in libraries.values():
        x = library.array(X)
        assert ops.widen(x) is x
        assert ops.cast(x, x.dtype) is x


# -- the averages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1e-30, 1e-3, 0.3, 0.5, 0.9, 0.99, 1.0 - 2.0**-24])
def test_ema_is_two_products_and_a_sum_flushed(beta, libraries, same):
    b = F32(beta)
    expected = ops.flush(b * X + (F32(1.0) - b) * Y)
    number = ops.rounded(beta, "float32")
    same(check_everywhere(lambda m, g: ops.ema(number, m, g), X, Y, libraries=libraries, same=same), expected)
    for library in libraries.values():  # and with a beta that is known only when the step runs
        same(ops.ema(library.array(np.asarray(b)), library.array(X), library.array(Y)), expected)
    same(jax.jit(ops.ema)(b, X, Y), expected)


@settings(deadline=None, max_examples=300)
@given(st.floats(0.0, 1.0, exclude_max=True, width=32))
@example(2.0**-25)
@example(2.0**-30)
@example(1.0 - 2.0**-24)
def test_complement_is_formed_in_the_compute_dtype(beta):
    assert ops.complement(beta, F32([1.0])) == float(F32(1.0) - F32(beta))
    assert ops.complement(float(beta), np.ones(1)) == 1.0 - beta


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_descent_is_minus_the_rounded_step_flushed(decay, libraries, same):
    lr, wd = F32(0.01), F32(decay)
    expected = ops.flush(-(lr * (X + wd * Y)))
    numbers = ops.rounded(0.01, "float32"), ops.rounded(decay, "float32")
    same(
        check_everywhere(lambda u, p: ops.descent(numbers[0], u, numbers[1], p), X, Y, libraries=libraries, same=same),
        expected,
    )
    same(jax.jit(ops.descent)(lr, X, wd, Y), expected)
    same(ops.descent(np.asarray(lr), X, np.asarray(wd), Y), expected)


def test_descent_without_decay_does_not_see_the_parameter(libraries, same):
    p = F32([np.inf, -np.inf, np.nan])
    one = np.ones(3, F32)
    same(check_everywhere(lambda u, p: ops.descent(0.5, u, 0.0, p), one, p, libraries=libraries, same=same), -0.5 * one)
    wd = np.asarray(0.0, F32)
    same(
        check_everywhere(lambda u, p, wd: ops.descent(0.5, u, wd, p), one, p, wd, libraries=libraries, same=same),
        -0.5 * one,
    )


# -- square roots and quotients ----------------------------------------------------------------------------

POSITIVE = np.concatenate([np.abs(X), F32([0.0, 1.0, 4.0, 2.0**-100, LARGEST]), RNG.uniform(0, 4, 2000).astype(F32)])


def nearest(exact, dtype):
    """The float nearest to an mpmath number, which is no midpoint."""
    guess = dtype(float(exact))
    around = [np.nextafter(guess, dtype(0)), guess, np.nextafter(guess, dtype(np.inf))]
    return min(around, key=lambda x: abs(mpmath.mpf(float(x)) - exact))


def test_sqrt_is_correctly_rounded(libraries, same):
    same(check_everywhere(ops.sqrt, POSITIVE, libraries=libraries, same=same), np.sqrt(POSITIVE))
    with mpmath.workdps(60):
        some = POSITIVE[::20]
        assert [nearest(mpmath.sqrt(float(x)), F32) for x in some] == list(ops.sqrt(some))


@pytest.mark.parametrize("name", ["numpy", "array-api-strict", "torch"])
def test_sqrt_of_float64_is_correctly_rounded(name, libraries, to_numpy):
    x = np.concatenate([RNG.uniform(0, 4, 3000), 10.0 ** RNG.uniform(-200, 200, 500), [0.0, 1.0, 2.0]])
    found = to_numpy(ops.sqrt(libraries[name].array(x)))
    with mpmath.workdps(60):
        assert [nearest(mpmath.sqrt(v), np.float64) for v in x[::3]] == list(found[::3])


def test_quotient_is_correctly_rounded(libraries, same):
    a, b = X[:400], np.where(X[50:450] == 0.0, F32(1.0), X[50:450])
    same(check_everywhere(ops.quotient, a, b, libraries=libraries, same=same), a / b)
    same(check_everywhere(lambda b: ops.quotient(0.3, b), b, libraries=libraries, same=same), F32(0.3) / b)
    same(check_everywhere(lambda a: ops.quotient(a, 3.0), a, libraries=libraries, same=same), a / F32(3.0))
    same(jax.jit(lambda a, b: ops.quotient(a, ops.sqrt(b)))(a, np.abs(b)), a / np.sqrt(np.abs(b)))  # no rsqrt


@pytest.mark.parametrize("name", ["array-api-strict", "torch"])
def test_quotient_of_float64_is_correctly_rounded(name, libraries, same):
    a, b = RNG.standard_normal((2, 2000))
    to = libraries[name].array
    same(ops.quotient(to(a), to(b)), a / b)
    same(ops.quotient(0.3, to(b)), 0.3 / b)


def test_sqrt_and_quotient_work_under_every_transform_of_jax(same):
    # float32 goes through a scoped x64 region.
    def f(x):
        return ops.quotient(x, ops.sqrt(x + 1.0))

    x = np.abs(NORMAL_X[:64])
    expected = x / np.sqrt(x + F32(1.0))
    same(jax.jit(f)(x), expected)
    same(jax.vmap(f)(jnp.asarray(x)), expected)
    same(jax.jit(jax.vmap(lambda v: jax.lax.cond(v > 0.0, f, lambda v: v, v)))(x), expected)
    same(jax.lax.map(f, jnp.asarray(x)), expected)
    same(jax.jit(lambda x: jax.vjp(f, x)[0])(x), expected)
    assert f(jnp.asarray(x)).dtype == jnp.float32
    assert jax.eval_shape(f, x).dtype == jnp.float32
    assert jnp.asarray(1.0).dtype == jnp.float32  # the scope is closed again


# -- the arcsine -------------------------------------------------------------------------------------------

ANGLES = np.concatenate(
    [
        F32([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0**-100, 0.1, 1.0 - 2.0**-24, 0.5 + 2.0**-24]),
        RNG.uniform(-1, 1, 800).astype(F32),
        (2.0 ** RNG.uniform(-40, 0, 200)).astype(F32),
        (1.0 - 2.0 ** RNG.uniform(-24, -2, 200)).astype(F32),
    ]
)


def test_the_arcsine_is_correctly_rounded_everywhere(libraries, same):
    found = check_everywhere(ops.arcsin4pi, ANGLES, libraries=libraries, same=same)
    with mpmath.workdps(40):
        assert [nearest(4 / mpmath.pi * mpmath.asin(float(m)), F32) for m in ANGLES] == list(found)


@pytest.mark.parametrize("name", ["array-api-strict", "torch"])
def test_the_arcsine_of_float64_is_within_an_ulp_and_the_same_everywhere(name, libraries, same):
    m = np.concatenate([ANGLES.astype(np.float64), RNG.uniform(-1, 1, 400)])
    found = ops.arcsin4pi(m)
    same(ops.arcsin4pi(libraries[name].array(m)), found)
    with mpmath.workdps(40):
        for x, u in zip(m, found, strict=True):
            assert abs(mpmath.mpf(float(u)) - 4 / mpmath.pi * mpmath.asin(float(x))) <= np.spacing(abs(u))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_arcsine_is_odd_monotone_and_ends_at_two(dtype, same):
    m = np.sort(np.concatenate([np.linspace(0, 1, 20001), 0.5 + np.linspace(-1e-6, 1e-6, 2001)]).astype(dtype))
    u = ops.arcsin4pi(m)
    assert np.all(np.diff(u) >= 0.0)
    assert (u[0], u[-1]) == (0.0, 2.0)
    same(ops.arcsin4pi(-m[1:]), -u[1:])


def test_every_primitive_is_listed():
    for name in ops.__all__:
        assert callable(getattr(ops, name)), name
