"""Exact sums: the real sum rounded once, whatever the order, the pieces and the library."""

import functools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signcore import limbs, ops, sums, windows

ROOT = Path(__file__).resolve().parents[1]
F32, F64 = np.float32, np.float64
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
RNG = np.random.default_rng(3)
KINDS = ("sum", "norm1", "norm2", "dot", "norm_inf")
THRESHOLD = {"float16": 2.0**-100, "bfloat16": 2.0**-100, "float32": 2.0**-100, "float64": 2.0**-900}


def nearest(exact, dtype):
    """The float nearest to a fraction, ties to even, in Python's integers."""
    digits, least, most = (24, -126, 128) if dtype == F32 else (53, -1022, 1024)
    if exact == 0:
        return dtype(0.0)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent += 1 if size >= Fraction(2) ** exponent else 0  # 2**(exponent - 1) <= size < 2**exponent
    if exponent - 1 < least:
        return dtype(0.0)
    ulp = Fraction(2) ** (exponent - digits)
    rounded = round(size / ulp) * ulp  # round() of a Fraction is to even
    value = math.inf if rounded >= Fraction(2) ** most else float(rounded)
    return dtype(-value if exact < 0 else value)


def counted(x):
    """The elements as fractions, those below the threshold left out."""
    least = THRESHOLD[x.dtype.name]
    return [Fraction(float(v)) for v in x.ravel() if abs(float(v)) >= least]


def truth(kind, x, y=None):
    """What a reduction must give, from fractions."""
    dtype = F64 if x.dtype == F64 else F32
    if kind == "norm_inf":
        return dtype(max(map(abs, counted(x)), default=0))
    if kind in ("sum", "norm1"):
        return nearest(sum(map(abs, counted(x)) if kind == "norm1" else counted(x), Fraction(0)), dtype)
    least = THRESHOLD[x.dtype.name]
    other = y if kind == "dot" else x
    pairs = [(float(a), float(b)) for a, b in zip(x.ravel(), other.ravel(), strict=True)]
    products = [Fraction(a) * Fraction(b) for a, b in pairs if min(abs(a), abs(b)) >= least]
    if dtype == F64:
        products = [p for p in products if abs(p) >= Fraction(2) ** -900]
    exact = sum(products, Fraction(0))
    if kind == "dot":
        return nearest(exact, dtype)
    if dtype == F64:
        with mpmath.workprec(2000):
            rounded = nearest(exact, F64)
            return F64(mpmath.nstr(mpmath.sqrt(mpmath.mpf(float(rounded))), 40))
    return root(exact)


def root(exact):
    """The float32 nearest to a square root: compared exactly with the squares of the midpoints."""
    if exact == 0:
        return F32(0.0)
    with mpmath.workprec(200):
        guess = F32(min(float(mpmath.sqrt(mpmath.mpf(exact.numerator) / exact.denominator)), 3.4028234663852886e38))
    with np.errstate(over="ignore"):
        low, high = np.nextafter(guess, F32(0)), np.nextafter(guess, F32(np.inf))
    upper = Fraction(2) ** 128 if np.isinf(high) else Fraction(float(high))
    if exact > ((Fraction(float(guess)) + upper) / 2) ** 2:
        return high
    return low if exact < ((Fraction(float(guess)) + Fraction(float(low))) / 2) ** 2 else guess


def word(value):
    value = np.asarray(value)
    return value.dtype, value.shape, value.view(BITS[value.dtype.itemsize]).item()


def reduce(kind, *arrays):
    return sums.finish(kind, sums.partial(kind, *arrays))


def arguments(kind, x, y):
    return (x, y) if kind == "dot" else (x,)


def spread(size, exponents, dtype=F32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * np.exp2(rng.uniform(-exponents, exponents, size))).astype(dtype)


# -- the right number ----------------------------------------------------------------------------------------------

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
VECTORS = st.lists(FLOATS, min_size=0, max_size=40)


@settings(deadline=None, max_examples=400)
@given(VECTORS)
@example([2.0**-100, 1.0, -1.0])
@example([3.4e38, 3.4e38, -3.4e38])
@example([3.4e38, 3.4e38])
@example([1.0, 2.0**-24])  # a tie, to even
@example([1.0, 2.0**-24, 2.0**-90])  # a little more than a tie
@example([1.0, 2.0**-23, 2.0**-24, -(2.0**-100)])
def test_sums_and_norms_are_the_real_ones_rounded_once(numbers):
    x = np.asarray(numbers, dtype=F32)
    y = RNG.permutation(x)
    for kind in KINDS:
        assert word(reduce(kind, *arguments(kind, x, y))) == word(truth(kind, x, y)), kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, F32, F64])
@pytest.mark.parametrize("exponents", [0, 6, 45, 300])
def test_every_dtype_and_range(kind, dtype, exponents):
    if exponents > 45 and dtype != F64:
        exponents = 60 if dtype != np.float16 else 8
    with np.errstate(over="ignore"):
        x, y = spread(700, exponents, dtype), spread(700, exponents, dtype, 1)
    x, y = np.nan_to_num(x, posinf=1, neginf=1).astype(dtype), np.nan_to_num(y, posinf=1, neginf=1).astype(dtype)
    assert word(reduce(kind, *arguments(kind, x, y))) == word(truth(kind, x, y))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_what_cancels_leaves_its_last_bit(dtype):
    x = spread(5000, 60, dtype)
    x = np.concatenate([x, -RNG.permutation(x), [dtype(2.0**-100)]]).astype(dtype)
    assert float(sums.exact_sum(RNG.permutation(x))) == 2.0**-100


def test_roots_next_to_the_middle_of_two_floats():
    # squares of 25-bit numbers, and what is a little more or less
    for middle in [2**24 + 1, 2**24 + 3, 2**25 - 1, 3 * 2**23 + 1]:
        square = middle * middle  # 50 bits: three floats hold it
        parts = [float(square >> 40 << 40), float(square >> 20 & 0xFFFFF) * 2**20, float(square & 0xFFFFF)]
        for rest in (0.0, 2.0**-60, -(2.0**-60)):
            x = np.asarray([*parts, rest], F32)
            # a sum of squares with the given value: dot with ones under the root
            found = limbs.rounded(sums.partial("dot", x, np.ones(4, F32)), root=True)
            assert word(found) == word(root(Fraction(square) + Fraction(rest))), (middle, rest)


def test_the_root_of_float64_is_that_of_the_rounded_sum():
    x = spread(1000, 200, F64)
    assert word(sums.norm2(x)) == word(truth("norm2", x))


def test_neither_squares_nor_their_sum_overflow_in_float32():
    x = np.full(100, 3e38, F32)
    assert word(sums.norm2(x / 100)) == word(truth("norm2", x / 100))
    assert np.isinf(sums.norm2(x))
    assert word(sums.norm2(np.full(7, 2.0**-99, F32))) == word(truth("norm2", np.full(7, 2.0**-99, F32)))


def test_small_numbers_count_as_nothing_and_say_so():
    tiny = np.full(1000, np.nextafter(F32(2.0**-100), F32(0)))
    assert float(sums.exact_sum(tiny)) == 0.0
    assert float(sums.exact_sum(np.full(1000, 2.0**-100, F32))) == 1000 * 2.0**-100
    assert float(sums.exact_sum(np.concatenate([tiny, F32([2.0**-90])]))) == 2.0**-90
    assert float(sums.norm_inf(tiny)) == 0.0


SPECIAL = [
    ([np.inf, 1.0, 0.0], np.inf),  # all of one length, for JAX compiles each
    ([-np.inf, 1.0, 0.0], -np.inf),
    ([np.inf, -np.inf, 0.0], np.nan),
    ([np.nan, np.inf, 0.0], np.nan),
    ([3e38, 3e38, 0.0], np.inf),
    ([-3e38, -3e38, 3e38], -3e38),
]


@pytest.mark.parametrize(("numbers", "expected"), SPECIAL)
def test_what_is_no_number_or_too_large_is_reported(numbers, expected, libraries):
    x = np.asarray(numbers, F32)
    for library in libraries.values():
        assert np.array_equal(np.asarray(sums.exact_sum(library.array(x))), F32(expected), equal_nan=True)
    blind = limbs.rounded(windows.blindly("sum", jnp.asarray(x), None, limbs.LAYOUTS["float32"]))
    assert np.array_equal(np.asarray(blind), F32(expected), equal_nan=True)
    assert np.array_equal(np.asarray(sums.norm_inf(x)), np.abs(x).max(), equal_nan=True)


def test_products_with_what_is_no_number():
    x, y = F32([np.inf, 1.0, np.inf, -2.0, np.nan, 1e-35]), F32([0.0, np.inf, -1.0, np.inf, 1.0, np.inf])
    expected = F32([np.nan, np.inf, -np.inf, -np.inf, np.nan, np.nan])  # 1e-35 counts as 0
    for a, b, e in zip(x, y, expected, strict=True):
        for both in (lambda v: np.asarray([v, 1.0], F32), lambda v: jnp.asarray([v, 1.0], jnp.float32)):
            found = np.asarray(jax.jit(sums.exact_dot)(both(a), both(b)) if both(a) is not x else 0)
            assert np.array_equal(found, e, equal_nan=True), (a, b)
            assert np.array_equal(np.asarray(sums.exact_dot(both(a), both(b))), e, equal_nan=True), (a, b)


def test_products_of_float64_beyond_its_range():
    large, small = np.asarray([1e300, 1.0]), np.asarray([1e-250, 0.0])
    assert float(sums.exact_dot(large, small)) == float(nearest(Fraction(1e300) * Fraction(1e-250), F64))
    assert np.isinf(sums.exact_dot(large, large))
    assert np.isinf(sums.norm2(large))
    assert float(sums.exact_dot(small, small)) == 0.0  # below 2**-900


NEAR = 2.0**512 * (1 - 2.0**-40)  # its square is just below the largest float64, and so are the parts of the square


@pytest.mark.parametrize("route", ["numpy", "blind", "torch"])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([NEAR], [NEAR]),
        ([NEAR, NEAR], [NEAR, -NEAR]),
        ([NEAR, NEAR, 3.0], [NEAR, -NEAR, 1.0]),
        ([2.0**1000, 1.0], [2.0**23 * (1 - 2.0**-50), -5.0]),
        ([2.0**-500, 2.0**900], [2.0**-399, 2.0**100]),
        ([1e300, -1e200, 1e-200], [1e8, 1e100, 1e-71]),
    ],
)
def test_products_of_float64_just_below_overflow(x, y, route):
    x, y = np.asarray(x), np.asarray(y)
    expected = word(nearest(sum((Fraction(a) * Fraction(b) for a, b in zip(x, y, strict=True)), Fraction(0)), F64))
    if route == "numpy":
        assert word(sums.exact_dot(x, y)) == expected
    elif route == "torch":
        found = sums.exact_dot(torch.tensor(x, requires_grad=True), torch.tensor(y)).detach().numpy()
        assert word(found) == expected
    else:
        with np.errstate(all="ignore"):
            assert word(limbs.rounded(windows.blindly("dot", x, y, limbs.LAYOUTS["float64"]))) == expected


def test_norms_of_float64_near_their_end():
    assert float(sums.norm2(np.asarray([NEAR]))) == NEAR
    assert float(sums.norm2(np.full(9, 2.0**511))) == 3 * 2.0**511
    assert np.isinf(sums.norm2(np.asarray([2.0**512])))


def test_pieces_of_a_large_tree_are_carried_before_they_are_added():
    piece = limbs.LAYOUTS["float32"]
    found = windows.blindly("sum", np.full(windows.ROW * 8, -1.0, F32), None, piece)
    assert all(0 <= limb < 4096 for limb in found[: piece.limbs - 1])


# -- order, pieces, merges -----------------------------------------------------------------------------------------


@functools.cache
def million():
    """10**6 numbers from below the threshold to 1e38, with their exact sum."""
    rng = np.random.default_rng(11)
    x = (np.exp2(rng.uniform(-104, 126, 10**6)) * rng.choice([-1.0, 1.0], 10**6)).astype(F32)
    x[::2] = -x[1::2] * (1 + rng.integers(-1, 2, 5 * 10**5) * F32(2.0**-23))
    return x, math.fsum(v for v in x.tolist() if abs(v) >= 2.0**-100)


def test_a_million_numbers_in_twenty_orders_and_any_pieces():
    x, exact = million()
    whole = {kind: sums.partial(kind, *arguments(kind, x, x[::-1].copy())) for kind in KINDS}
    # fsum is the exact sum rounded to float64; rounding that again is right unless it is at the middle of two
    assert word(sums.finish("sum", whole["sum"])) == word(F32(exact))
    scaled = sum(int(math.ldexp(v, 130)) for v in x.tolist() if abs(v) >= 2.0**-100)  # as `truth`, in less time
    assert word(sums.finish("sum", whole["sum"])) == word(nearest(Fraction(scaled, 2**130), F32))
    rng = np.random.default_rng(5)
    for k in range(20):
        order = rng.permutation(x.size)
        for kind in KINDS if k < 4 else KINDS[k % 5 : k % 5 + 1]:  # every kind in seven orders or more
            shuffled = sums.partial(kind, *arguments(kind, x[order], x[::-1][order]))
            assert np.array_equal(shuffled, whole[kind]), kind
    for pieces in (1, 2, 3, 7, 64):
        cuts = np.sort(rng.integers(0, x.size + 1, pieces - 1))
        for kind in KINDS:
            columns = zip(*(np.split(a, cuts) for a in arguments(kind, x, x[::-1])), strict=True)
            parts = [sums.partial(kind, *piece) for piece in columns]
            rng.shuffle(parts)
            assert np.array_equal(functools.reduce(functools.partial(sums.merge, kind), parts), whole[kind]), kind
            if kind != "norm_inf":
                assert word(sums.finish(kind, np.sum(parts, axis=0, dtype=np.int32))) == word(
                    sums.finish(kind, whole[kind])
                )


def test_a_native_sum_does_depend_on_its_order():
    x, _ = million()
    with np.errstate(all="ignore"):
        assert len({float(np.sum(np.random.default_rng(k).permutation(x))) for k in range(5)}) > 1


def test_a_hundred_million_elements():
    pattern = spread(10**6, 30)
    x = np.tile(pattern, 100)
    exact = 100 * sum(counted(pattern), Fraction(0))
    assert word(sums.exact_sum(x)) == word(nearest(exact, F32))


def test_a_tree_is_its_elements_and_no_leaf_is_nothing():
    x = spread(3000, 20)
    tree = {"b": [x[:10].reshape(2, 5), None, x[10:11].reshape(())], "a": (x[11:], np.zeros((0, 3), F32))}
    for kind in KINDS:
        if kind != "dot":
            assert word(reduce(kind, tree)) == word(reduce(kind, x)), kind
    assert word(sums.exact_dot(tree, tree)) == word(sums.exact_dot(x, x))
    for empty in ([], None, [np.zeros(0, F32)]):
        assert [float(f(empty)) for f in (sums.exact_sum, sums.norm1, sums.norm2, sums.norm_inf)] == [0.0] * 4


def test_a_leaf_of_float64_makes_the_sum_float64():
    x = [F32([0.1, 2.0**-101]), F64([0.1])]
    assert word(sums.exact_sum(x)) == word(F64(float(F32(0.1)) + 0.1))


def test_as_many_partials_as_an_all_reduce_may_add():
    one = sums.partial("sum", F32([-3.0e38]))
    assert word(sums.finish("sum", one * np.int32(2**18))) == word(F32(-np.inf))
    small = sums.partial("norm2", F32([1.5]))
    assert word(sums.finish("norm2", small * np.int32(2**18))) == word(F32(1.5 * 512))


LIMBS = st.lists(st.integers(-(2**29), 2**29), min_size=48, max_size=48)


@settings(deadline=None, max_examples=300)
@given(LIMBS)
@example([4095] * 47 + [0])
@example([1] + [4095] * 46 + [0])
@example([4096] + [4095] * 46 + [7])
@example([-1] + [0] * 47)
@example([4095 * 2**18] * 47 + [0])
@example([-(2**29)] * 48)
def test_carries_keep_the_number(numbers):
    numbers[-1] %= 2**20
    value = sum(limb << (12 * i) for i, limb in enumerate(numbers))
    found = limbs.carried(np.asarray([*numbers, 0, 3, 0], np.int32))
    assert all(0 <= limb < 4096 for limb in found[:47])
    assert sum(int(limb) << (12 * i) for i, limb in enumerate(found[:48])) == value
    assert found[48:].tolist() == [0, 1, 0]
    assert np.array_equal(limbs.of_integer(value, [False, True, False], limbs.LAYOUTS["float32"]), found)


# -- every library -------------------------------------------------------------------------------------------------

SIZES = (1, 1000, windows.ROW, windows.ROW + 1, 3 * windows.ROW - 1)


# How a vector is cut does not depend on the kind, so all sizes are cut for the one that takes two vectors.
CUT = [("dot", size) for size in SIZES] + [
    (kind, SIZES[k % 2 * 3 + 1]) for k, kind in enumerate(KINDS) if kind != "dot"
]


@pytest.mark.parametrize(("kind", "size"), CUT)
def test_every_library_gives_the_same_partial_and_the_same_number(kind, size, libraries, same):
    given = arguments(kind, spread(size, 40), spread(size, 40, seed=1))
    partial = sums.partial(kind, *given)
    number = sums.finish(kind, partial)
    for name, library in libraries.items():
        if name == "array-api-strict" and size > 1000:
            continue  # the route through NumPy, which the small size has shown
        theirs = [library.array(array) for array in given]
        same(sums.partial(kind, *theirs), partial)
        same(reduce(kind, *theirs), number)

    @jax.jit
    def both(*given):
        partial = sums.partial(kind, *given)
        return partial, sums.finish(kind, partial)

    same(both(*given), (partial, number))


@pytest.mark.parametrize("kind", ["sum", "norm1", "norm2", "dot"])  # a maximum has one route
def test_the_route_without_looking_on_libraries_that_could_look(kind, libraries, same):
    x, y = spread(windows.ROW + 7, 40), spread(windows.ROW + 7, 40, seed=1)
    route = "dot" if kind == "norm2" else kind
    given = (x, {"dot": y, "norm2": x}.get(kind))
    expected = sums.partial(kind, *arguments(kind, x, y))
    for name in ("numpy", "torch", "jax"):
        theirs = [None if array is None else libraries[name].array(array) for array in given]
        same(limbs.carried(windows.blindly(route, *theirs, limbs.LAYOUTS["float32"])), expected)


@pytest.mark.parametrize("kind", ["sum", "norm2"])
def test_torch_compile_gives_the_same(kind, same):
    x = spread(windows.ROW + 5, 30)
    compiled = torch.compile(functools.partial(sums.partial, kind), fullgraph=True, dynamic=False)
    partial = compiled(torch.tensor(x))
    same(partial, sums.partial(kind, x))
    finish = torch.compile(functools.partial(sums.finish, kind), fullgraph=True, dynamic=False)
    same(finish(partial), reduce(kind, x))


def test_under_vmap_scan_cond_and_an_outer_trace(same):
    x = spread(6 * 500, 40).reshape(6, 500)
    expected = np.stack([sums.norm2(row) for row in x])
    same(jax.jit(jax.vmap(sums.norm2))(x), expected)
    same(jax.vmap(sums.norm2)(jnp.asarray(x)), expected)
    same(jax.jit(lambda x: jax.lax.scan(lambda c, row: (c, sums.norm2(row)), 0, x)[1])(x), expected)
    same(jax.jit(lambda x: jax.lax.cond(x[0, 0] < 1e9, sums.norm2, lambda y: y[0, 0], x))(x), sums.norm2(x))
    same(jax.jit(lambda x: sums.exact_sum(jnp.asarray(x[0] * 2)) + 0)(x), sums.exact_sum(x[0] * 2))
    closed = jnp.asarray(x)
    same(jax.jit(lambda: sums.norm1(closed))(), sums.norm1(x))
    same(jax.checkpoint(sums.norm2)(jnp.asarray(x)), sums.norm2(x))


APART = """
import functools, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from signcore import limbs, sums, windows

rng = np.random.default_rng(0)
wrong = {}

def spread(size, dtype, exponents):
    return (rng.standard_normal(size) * np.exp2(rng.uniform(-exponents, exponents, size))).astype(dtype)

def check(name, a, b):
    a, b = np.asarray(a), np.asarray(b)
    wrong[name] = int(a.dtype != b.dtype or a.tobytes() != b.tobytes())

if jax.config.jax_enable_x64:
    for dtype, size in (("float64", 2 * windows.ROW + 3), ("float32", 300)):
        x, y = (spread(size, dtype, 300 if dtype == "float64" else 40) for _ in range(2))
        x[:3] = (2.0**120, -(2.0**-99), 3.0) if dtype == "float32" else (1.7e308, -(2.0**-899), 1e-200)
        for kind in ("sum", "norm1", "norm2", "dot", "norm_inf"):
            given = (x, y) if kind == "dot" else (x / 2.0**600 if kind == "norm2" and dtype == "float64" else x,)
            partial = sums.partial(kind, *given)
            check(f"{kind} {dtype} {size} jit", jax.jit(functools.partial(sums.partial, kind))(*given), partial)
            check(f"{kind} {dtype} {size} eager", sums.partial(kind, *map(jnp.asarray, given)), partial)
            finish = functools.partial(sums.finish, kind)
            check(f"{kind} {dtype} {size} finish", jax.jit(finish)(partial), finish(partial))
else:
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    spec = PartitionSpec("data")
    for size in (800, 8 * windows.ROW + 8):
        x = spread(size, "float32", 40)
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        for kind in ("sum", "norm2", "norm_inf")[: 3 if size == 800 else 1]:
            whole = sums.partial(kind, x)
            check(f"{kind} {size} jit", jax.jit(functools.partial(sums.partial, kind))(placed), whole)
            check(f"{kind} {size} eager", sums.partial(kind, placed), whole)
            join = jax.lax.pmax if kind == "norm_inf" else jax.lax.psum
            shard = lambda x, kind=kind, join=join: join(sums.partial(kind, x), "data")
            added = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=PartitionSpec()))(placed)
            check(f"{kind} {size} shard_map", sums.finish(kind, added), sums.finish(kind, whole))
    assert len(jax.devices()) == 8
print(json.dumps(wrong))
"""


@pytest.mark.parametrize(
    "environment",
    [{"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, {"JAX_ENABLE_X64": "1"}],
    ids=["eight devices", "x64"],
)
def test_in_a_process_of_its_own(environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", APART],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = json.loads(done.stdout)
    assert wrong == dict.fromkeys(wrong, 0)
    assert len(wrong) >= 12


def test_torch_tensors_with_gradients_and_under_vmap(same):
    x = spread(300, 20)
    wanted = sums.norm2(x)
    tensor = torch.tensor(x, requires_grad=True)
    same(sums.norm2(tensor).detach(), wanted)
    with torch.no_grad():
        same(sums.norm2(torch.nn.Parameter(torch.tensor(x))), wanted)
    same(torch.func.vmap(sums.norm2)(torch.tensor(np.stack([x, x]))), np.stack([wanted, wanted]))


def test_inputs_are_not_written_to(backend, same):
    x = spread(1000, 20)
    theirs = backend.array(x)
    sums.norm2(theirs)
    same(theirs, x)


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sums.exact_sum(np.arange(3)), TypeError, "`tree` has dtype int64"),
        (lambda: sums.exact_sum([1.0]), TypeError, "`tree"),
        (lambda: sums.exact_sum([F32([1.0]), torch.ones(1)]), TypeError, "nothing is converted"),
        (lambda: sums.exact_dot(F32([1.0]), F32([1.0, 2.0])), ValueError, "`other` has shape (2,)"),
        (lambda: sums.exact_dot(F32([1.0]), F64([1.0])), ValueError, "`other` has dtype float64"),
        (lambda: sums.exact_dot([F32([1.0])], []), ValueError, "different trees"),
        (lambda: sums.partial("dot", F32([1.0])), TypeError, "`other` is None"),
        (lambda: sums.partial("sum", F32([1.0]), F32([1.0])), TypeError, "`other`"),
        (lambda: sums.partial("norm3", F32([1.0])), ValueError, "`kind` is 'norm3'"),
        (lambda: sums.finish("sum", np.zeros(50, np.int32)), ValueError, "`total` is an array of int32 of shape (50,)"),
        (lambda: sums.finish("sum", np.zeros(51)), ValueError, "`total` is an array of float64"),
        (lambda: sums.finish("sum", [1, 2]), TypeError, "`total` is [1, 2]"),
        (lambda: sums.finish("norm_inf", sums.partial("sum", F32([1.0]))), ValueError, "`total` is"),
        (
            lambda: sums.merge("norm_inf", sums.partial("norm_inf", F32([3.0])), sums.partial("norm_inf", F64([2.0]))),
            ValueError,
            "one is of float32 and one of float64",
        ),
        (lambda: sums.merge("norm_inf", 3, 4), TypeError, "`first` is 3"),
        (
            lambda: sums.merge("sum", sums.partial("sum", F32([1.0])), sums.partial("sum", F64([1.0]))),
            ValueError,
            "one is of float32 and one of float64",
        ),
    ],
)
def test_what_cannot_be_summed_is_refused(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_the_primitives_are_in_ops():
    assert (ops.exact_sum, ops.norm2) == (sums.exact_sum, sums.norm2)
