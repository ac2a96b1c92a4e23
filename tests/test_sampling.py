"""Samples from random words: exact probabilities by enumeration, the same words everywhere, fits of many draws."""

import hashlib
import json
import math
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

from signcore import frameworks, random

F32 = np.float32
RESULT = json.loads((Path(__file__).parents[1] / "docs" / "results" / "normal.json").read_text())
KEY, STEP = random.stream_key(0, "test"), np.asarray(0, np.int32)
WORDS = random.words(KEY, STEP, 4001)
V = F32(np.random.default_rng(0).standard_normal(4001) * 2.0 ** np.random.default_rng(1).integers(-30, 20, 4001))
V[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 65520.0, 3.4e38, 1e-40]


def word(k):
    """Words whose upper 24 bits are k; the lower ones do not matter."""
    return ((np.asarray(k, np.int64) << 8 | 0x5A) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


@pytest.fixture(scope="module")
def every():
    """One word for each k."""
    return word(np.arange(1 << 24))


# -- uniform and bernoulli ---------------------------------------------------------------------------------


def test_uniform_numbers_are_a_grid_each_point_once(every):
    u = random.uniform(every)
    assert u.dtype == F32
    assert np.array_equal(u.astype(np.float64), np.arange(1 << 24) / 2.0**24)
    assert np.array_equal(random.uniform(every[::7], "float64"), u[::7].astype(np.float64))


P = [0.0, 2.0**-24, 2.0**-25, 1e-300, 0.1, 0.5, 0.5 + 2.0**-25, 1.0 - 2.0**-24, 1.0 - 2.0**-53, 1.0, 0, 1]


@pytest.mark.parametrize("p", P)
def test_a_coin_shows_true_with_probability_p_rounded_up(p, libraries, same):
    count = math.ceil(Fraction(p) * 2**24)
    k = [0, 1, 2**23, 2**24 - 1, *(x for x in (count - 1, count) if 0 <= x < 2**24)]
    expected = np.asarray(k) < count
    for library in libraries.values():
        same(random.bernoulli(library.array(word(k)), p), expected)
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        array = np.full(len(k), p, dtype)
        expected = np.asarray([x < math.ceil(Fraction(float(y)) * 2**24) for x, y in zip(k, array, strict=True)])
        if p != 1e-300:  # an array's flush threshold is 2**-900
            same(random.bernoulli(word(k), array), expected)
            same(random.bernoulli(word(k), array[:1]), expected)


def test_all_coins_are_counted(every):
    for p in (0.1, np.asarray(0.1, F32), 1 / 3, 2.0**-23):
        assert int(random.bernoulli(every, p).sum()) == math.ceil(Fraction(float(p)) * 2**24)


def test_probabilities_out_of_range_are_refused_where_their_values_are_at_hand(libraries):
    for p in (-0.1, 1.5, math.nan, math.inf, -(10**400)):
        with pytest.raises(ValueError, match=r"`p` is .* must be"):
            random.bernoulli(WORDS, p)
    for p in (True, "0.5", None, np.arange(3), [0.5], lambda step: 0.5):
        with pytest.raises(TypeError, match=r"`p` is .*pass a number in"):
            random.bernoulli(WORDS[:3], p)
    for library in libraries.values():
        for bad in (-0.1, 1.5):
            with pytest.raises(ValueError, match=r"`p` is an array with entries outside of \[0, 1\]"):
                random.bernoulli(library.array(WORDS[:2]), library.array(F32([0.5, bad])))
    found = jax.jit(random.bernoulli)(WORDS[:3], F32([-0.1, 1.5, np.nan]))
    assert np.asarray(found).tolist() == [False, True, False]
    assert random.bernoulli(WORDS[:1], F32([np.nan])).tolist() == [False]
    assert torch.vmap(random.bernoulli)(torch.tensor(WORDS[:2]), torch.tensor([1.5, 0.0])).tolist() == [True, False]


@pytest.mark.parametrize("sample", [random.uniform, random.normal, lambda w: random.bernoulli(w, 0.5)])
def test_words_must_be_int32(sample):
    for words in (WORDS.view(np.uint32), WORDS.astype(np.int64), torch.ones(3), 5, [1, 2]):
        with pytest.raises(TypeError, match="`words` is of "):
            sample(words)


@pytest.mark.parametrize("sample", [random.uniform, random.normal])
def test_numbers_are_float32_or_float64(sample):
    with pytest.raises(ValueError, match="`dtype` is 'float16'; choose one of 'float32', 'float64'"):
        sample(WORDS, "float16")


# -- stochastic_sign ---------------------------------------------------------------------------------------

# v/scale on the grid of multiples of 2**-23 with v a float: few bits in one of the two, or many in both
ON_GRID = [
    (0.3, 2**22, F32),
    (0.3, -(2**17), F32),
    (1.0, 2**23 - 1, F32),
    (2.0**-100, -(2**23) + 1, F32),
    (3.0 * 2.0**100, 0x2AAAAB, F32),
    (4097.0, 4095, F32),
    (2.0**-90, 1, F32),
    (F32(3.4028235e38), -(2**23), F32),
    (0.7, 0, F32),
    (0.3, -(2**19), np.float64),
    (0.75, 3 * 1234567, np.float64),
    (16777213.0, 1234567, np.float64),
    (1.5, 2**20, np.float16),
    (1.5, 2**20, ml_dtypes.bfloat16),
]


@pytest.mark.parametrize(("scale", "j", "dtype"), ON_GRID)
def test_the_mean_of_a_sign_is_exact_on_the_grid(scale, j, dtype, every):
    compute = np.float64 if dtype is np.float64 else F32
    scale = float(compute(scale))
    v = np.asarray(scale * j * 2.0**-23, dtype)
    assert Fraction(float(v)) == Fraction(scale) * Fraction(j, 2**23)
    s = random.stochastic_sign(np.broadcast_to(v, every.shape), scale, every)
    assert s.dtype == v.dtype
    up = np.count_nonzero(s == 1)
    assert np.count_nonzero(s == -1) == 2**24 - up
    assert Fraction(2 * up - 2**24, 2**24) == Fraction(j, 2**23)


@pytest.mark.parametrize(("v", "scale"), [(0.1, 0.3), (-0.2, 0.9), (1e-9, 1.0), (-1e-9, 1.0), (0.99999994, 1.0)])
def test_the_mean_of_a_sign_off_the_grid_is_within_a_step_of_it(v, scale, every):
    v, scale = F32(v), F32(scale)
    s = random.stochastic_sign(np.full(every.shape, v), scale, every)
    mean = Fraction(int(s.sum(dtype=np.float64)), 2**24)
    assert abs(mean - Fraction(float(v)) / Fraction(float(scale))) <= Fraction(1, 2**23)


def test_signs_saturate_and_are_zero_where_there_is_no_scale(libraries, same):
    nan, inf = np.nan, np.inf
    v = F32([2.0, -2.0, inf, -inf, 1.0, -1.0, nan, 1.0, 1.0, 1.0, 1.0, 0.0, 1e-40, -1e-40])
    scale = F32([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, nan, inf, 1e-40, 1.0, 1.0, 1.0])
    # a is -1 for the first words and 0 for the second: v = 1e-40 is not above 0
    low, middle = word(np.zeros(14, int)), word(np.full(14, 2**23))
    below = F32([1, -1, 1, -1, 1, -1, 0, 0, 0, 0, 0, 1, 1, 1])
    for library in libraries.values():
        run = library.compiled(random.stochastic_sign)
        same(run(*map(library.array, (v, scale, low))), below)
        same(run(*map(library.array, (v, scale, middle))), F32([1, -1, 1, -1, 1, -1, 0, 0, 0, 0, 0, -1, -1, -1]))
    for number in (0.0, nan, inf, 1e-40, 0):
        same(random.stochastic_sign(F32([1.0, -1.0]), number, low[:2]), np.zeros(2, F32))
    same(random.stochastic_sign(F32([1.0, -1.0]), 2, low[:2]), np.ones(2, F32))
    assert not np.signbit(random.stochastic_sign(F32([-1.0]), 0.0, low[:1]))


@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_numbers_scalars_and_arrays_are_one_scale(dtype, same):
    v, words = F32(V[100:200] / np.abs(V[100:200]).max()).astype(dtype), WORDS[:100]
    compute = np.float64 if dtype is np.float64 else F32
    expected = random.stochastic_sign(v, 0.5, words)
    assert 20 < np.count_nonzero(expected == 1) < 80
    for scale in (np.asarray(0.5, compute), np.full(100, 0.5, compute), np.full(1, 0.5, dtype), compute(0.5)):
        same(random.stochastic_sign(v, scale, words), expected)


def test_what_a_sign_cannot_be_made_of_is_refused():
    with pytest.raises(ValueError, match=r"`scale` is -1\.0; it must not be negative"):
        random.stochastic_sign(V, -1.0, WORDS)
    with pytest.raises(ValueError, match=r"`words` has shape \(3,\), `v` has \(4001,\)"):
        random.stochastic_sign(V, 1.0, WORDS[:3])
    with pytest.raises(TypeError, match=r"`words` is an array of torch, `v` of numpy"):
        random.stochastic_sign(V, 1.0, torch.tensor(WORDS))
    with pytest.raises(TypeError, match="`v` has dtype int32"):
        random.stochastic_sign(WORDS, 1.0, WORDS)


# -- stochastic_round --------------------------------------------------------------------------------------

TARGETS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def values(dtype):
    """All 2**16 words of a 16-bit dtype as numbers."""
    return np.arange(1 << 16, dtype=np.uint16).view(TARGETS[dtype])


def quietly(same, left, right):
    with np.errstate(invalid="ignore"):  # NumPy warns when signalling NaNs are compared
        same(left, right)


def reference(x, dtype, k, grid):
    """Rounding of one finite float32 in fractions; `grid` are the target's finite magnitudes in order."""
    size = Fraction(abs(float(x)))
    n = min(int(np.searchsorted(grid, abs(float(x)), side="right")) - 1, len(grid) - 2)
    low, high = Fraction(grid[n]), Fraction(grid[n + 1])
    size = min(size, high)
    up = Fraction(k, 2**24) < (size - low) / (high - low)
    return math.copysign(float(high if up else low), float(x))


@pytest.mark.parametrize("dtype", TARGETS)
def test_what_is_representable_never_changes(dtype, libraries, same):
    all_ = values(dtype)
    x = all_.astype(F32)
    same = partial(quietly, same)
    for k in (0, 1, 2**23, 2**24 - 1):
        words = word(np.full(1 << 16, k))
        same(random.stochastic_round(x, dtype, words), all_)
        same(random.stochastic_round(all_, dtype, words), all_)
        for name in ("torch", "jax"):
            array = libraries[name].array
            round_ = libraries[name].compiled(lambda x, w: random.stochastic_round(x, dtype, w))
            same(round_(array(x), array(words)), all_)


@pytest.mark.parametrize("dtype", TARGETS)
def test_rounding_goes_up_with_the_probability_of_the_distance(dtype, libraries, same):
    rng = np.random.default_rng(0)
    grid = values(dtype)[: 0x7C00 if dtype == "float16" else 0x7F80].astype(np.float64)
    assert (np.diff(grid) > 0).all()
    low, spacing = grid[:-1], np.diff(grid)
    x = []
    for share in (0.5, 2.0**-10, 1 - 2.0**-10, rng.integers(1, 2**10, len(low)) / 2.0**10):
        x.append(low + share * spacing)  # exact in float64, and in float32 where that has the bits
    if dtype == "float16":
        x.append(low + rng.integers(1, 2**13, len(low)) / 2.0**13 * spacing)
        x.append(2.0 ** rng.uniform(-60, -14, 5000))
    else:
        x.append(low + rng.integers(1, 2**16, len(low)) / 2.0**16 * spacing)
    x.append([grid[-1] * (1 + 2.0**-12), 3.4028234e38])
    x = np.concatenate(x).astype(F32)
    x = np.where(rng.integers(0, 2, len(x)) == 1, x, -x)
    near = np.searchsorted(grid, np.abs(x), side="right") - 1
    last = near >= len(grid) - 1
    near = np.minimum(near, len(grid) - 2)
    share = np.where(last, 1.0, (np.abs(x) - grid[near]) / (grid[near + 1] - grid[near]))  # exact, or nearly
    edge = np.ceil(share * 2.0**24).astype(np.int64)  # the number of k that go up
    for k in (edge - 1, edge):
        k = np.clip(k, 0, 2**24 - 1)
        found = random.stochastic_round(x, dtype, word(k))
        magnitude = np.where(k < edge, grid[near + 1], grid[near])
        same(found, np.copysign(magnitude, x).astype(TARGETS[dtype]))
        for at in range(0, len(x), 50):  # and `share` is what it should be
            assert float(found[at]) == reference(x[at], dtype, int(k[at]), grid)
        for name in ("torch", "jax"):
            array = libraries[name].array
            same(
                libraries[name].compiled(lambda x, w: random.stochastic_round(x, dtype, w))(array(x), array(word(k))),
                found,
            )


@pytest.mark.parametrize("dtype", TARGETS)
def test_rounding_has_no_bias(dtype, every):
    for x in F32([-math.pi, 3e-6, 1e-9]):
        found = random.stochastic_round(np.full(every.shape, x), dtype, every)
        order = found.view(np.int16)
        away, ups = order.max(), np.count_nonzero(order == order.max())
        assert np.count_nonzero(order == away - 1) == 2**24 - ups
        near, far = (Fraction(float(value)) for value in np.int16([away - 1, away]).view(TARGETS[dtype]))
        mean = near + (far - near) * Fraction(ups, 2**24)
        assert abs(mean - Fraction(float(x))) * 2**24 < abs(far - near)
        if abs(x) > 2.0**-14 or dtype == "bfloat16":
            assert mean == Fraction(float(x))


@pytest.mark.parametrize("dtype", TARGETS)
def test_finite_numbers_saturate_and_others_stay(dtype, libraries, same):
    largest = float(ml_dtypes.finfo(TARGETS[dtype]).max)
    nan = np.uint32([0x7F800001, 0xFFFFFFFF]).view(F32)  # payloads that the target's words would lose
    x = np.concatenate([F32([3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan]), nan])
    expected = np.asarray([largest, -largest, np.inf, -np.inf, np.nan, np.nan, np.nan]).astype(TARGETS[dtype])
    for name in ("numpy", "torch", "jax"):
        array = libraries[name].array
        for k in (0, 2**24 - 1):
            same(random.stochastic_round(array(x), dtype, array(word(np.full(7, k)))), expected)


def test_subnormals_are_zero_in_float16_and_themselves_in_bfloat16(libraries, same):
    x = np.uint32([1, 0x80000001, 0x00010000, 0x807F0000, 0x007FFFFF]).view(F32)
    words = word(np.full(5, 2**24 - 1))
    for name in ("numpy", "torch", "jax"):
        array = libraries[name].array
        same(random.stochastic_round(array(x), "float16", array(words)), np.float16([0.0, -0.0, 0.0, -0.0, 0.0]))
        expected = np.uint16([0, 0x8000, 1, 0x807F, 0x7F]).view(ml_dtypes.bfloat16)
        same(random.stochastic_round(array(x), "bfloat16", array(words)), expected)


def test_what_cannot_be_rounded_is_refused(libraries):
    with pytest.raises(ValueError, match="`dtype` is 'float32'; choose one of 'bfloat16', 'float16'"):
        random.stochastic_round(V, "float32", WORDS)
    with pytest.raises(TypeError, match="`x` has dtype float64; pass float32"):
        random.stochastic_round(V.astype(np.float64), "float16", WORDS)
    with pytest.raises(ValueError, match="`words` has shape"):
        random.stochastic_round(V, "float16", WORDS[:1])
    array = libraries["array-api-strict"].array
    with pytest.raises(ValueError, match="array_api_strict has no dtype float16"):
        random.stochastic_round(array(V), "float16", array(WORDS))


# -- normal ------------------------------------------------------------------------------------------------


def digest(z):
    return hashlib.sha256(np.asarray(z).astype("<f4").tobytes()).hexdigest()


@pytest.fixture(scope="module")
def magnitudes():
    """The word of each magnitude, and the numbers that are proven (tools/prove_normal.py)."""
    words = word(np.arange(1 << 23))
    z = random.normal(words)
    assert (RESULT["mismatches"], RESULT["changed_by_2**-48"], RESULT["odd_and_same_in_float64"]) == (0, 0, True)
    assert digest(z) == RESULT["sha256"]
    return words, z


def test_all_magnitudes_are_the_proven_ones_under_compilers(magnitudes):
    words, _ = magnitudes
    assert digest(jax.jit(random.normal)(words)) == RESULT["sha256"]
    assert digest(torch.compile(random.normal)(torch.tensor(words)).numpy()) == RESULT["sha256"]


def test_magnitudes_are_the_proven_ones_one_operation_at_a_time(magnitudes, libraries, same):
    words, z = (array[::61] for array in magnitudes)
    for library in libraries.values():
        same(random.normal(library.array(words)), z)
        same(random.normal(library.array(words | -(2**31))), -z)


def test_normal_numbers_fall_with_j_and_are_the_quantile(magnitudes):
    _, z = magnitudes
    assert (np.diff(z) <= 0).all()
    assert z[-1] > 0
    with mpmath.workprec(100):
        for j in [0, 1, 2**22, 2**23 - 1, *np.random.default_rng(0).integers(0, 2**23, 200).tolist()]:
            true = mpmath.sqrt(2) * mpmath.erfinv(1 - mpmath.mpf(2 * j + 1) / 2**24)
            assert abs(true - float(z[j])) <= np.spacing(z[j]) / 2


def test_float64_holds_the_float32_numbers(libraries, same):
    expected = random.normal(WORDS).astype(np.float64)
    for library in libraries.values():
        run = library.compiled(lambda w: (random.normal(w, "float64"), random.uniform(w, "float64")))
        same(run(library.array(WORDS)), (expected, random.uniform(WORDS).astype(np.float64)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 11, 5), (3, 50000)])
def test_numbers_have_the_shape_of_their_words(shape, backend, same):
    words = random.words(KEY, STEP, math.prod(shape)).reshape(shape)
    for sample in (random.normal, random.uniform, lambda w: random.bernoulli(w, 0.3)):
        flat = np.asarray(sample(words.reshape(-1)))
        same(backend.compiled(sample)(backend.array(words)), flat.reshape(shape))


# -- everywhere --------------------------------------------------------------------------------------------


def samples(v, scale, p, words):
    wide = (
        random.uniform(words),
        random.bernoulli(words, 0.3),
        random.bernoulli(words, p),
        random.stochastic_sign(v, scale, words),
        random.stochastic_sign(v, 0.7, words),
        random.normal(words),
    )
    return wide, [random.stochastic_round(v, dtype, words) for dtype in TARGETS]


PROBABILITIES = np.abs(np.sin(np.arange(4001))).astype(F32)
SCALES = F32(np.exp2(np.arange(4001) % 40 - 20.0))


@pytest.fixture(scope="module")
def expected():
    return samples(V, SCALES, PROBABILITIES, WORDS)


def test_every_library_gives_the_same_samples(other, expected, same):
    arrays = [other.array(x) for x in (V, SCALES, PROBABILITIES, WORDS)]
    if other.name == "array-api-strict":  # it has no 16-bit dtypes
        same(
            [random.normal(arrays[3]), random.stochastic_sign(*arrays[:2], arrays[3])], [expected[0][5], expected[0][3]]
        )
    else:
        same(samples(*arrays), expected)


def test_jit_vmap_and_torch_compile_give_the_same_samples(expected, same):
    arrays = (V, SCALES, PROBABILITIES, WORDS)
    same(jax.jit(samples)(*arrays), expected)
    rows = jax.jit(jax.vmap(samples))(*(x[:4000].reshape(8, 500) for x in arrays))
    same(jax.tree.map(lambda x: np.asarray(x).reshape(-1), rows), jax.tree.map(lambda x: x[:4000], expected))
    same(torch.compile(samples, fullgraph=True)(*map(torch.tensor, arrays)), expected)
    rows = torch.vmap(samples)(*(torch.tensor(x[:4000].reshape(8, 500)) for x in arrays))
    flat = [x.reshape(-1) for group in rows for x in group]
    same(flat, [x[:4000] for group in expected for x in group])


def test_a_cast_after_rounding_changes_nothing(same):
    def widened(x, words):
        return [frameworks.namespace(x).astype(random.stochastic_round(x, d, words), x.dtype) for d in TARGETS]

    expected = widened(V, WORDS)
    same(jax.jit(widened)(V, WORDS), expected)
    same(torch.compile(widened, fullgraph=True)(torch.tensor(V), torch.tensor(WORDS)), expected)


# -- many draws --------------------------------------------------------------------------------------------

DRAWS = 2_000_000


@pytest.fixture(scope="module")
def many():
    return random.words(KEY, STEP, DRAWS)


def test_moments_of_normal_numbers(many):
    z = random.normal(many, "float64")
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 4 * math.sqrt(variance / DRAWS), power  # four standard deviations
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(DRAWS)


def test_the_fit_of_normal_numbers(many):
    bins = 500
    edges = np.float64([mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(i) / bins - 1) for i in range(1, bins)])
    counts = np.bincount(np.searchsorted(edges, random.normal(many)), minlength=bins)
    chi2 = float(((counts - DRAWS / bins) ** 2).sum() / (DRAWS / bins))
    assert abs(chi2 - (bins - 1)) < 4 * math.sqrt(2 * (bins - 1))
    gaps = np.cumsum(counts) / DRAWS - np.arange(1, bins + 1) / bins
    assert np.abs(gaps).max() < 1.95 / math.sqrt(DRAWS)  # Kolmogorov's 0.1 % point


def test_the_committed_fit_of_many_draws_is_good():
    fit = RESULT["fit"]
    assert fit["draws"] >= 10**8
    assert 0.001 < fit["p_chi_square"] < 0.999
    assert fit["ks_times_root_n"] < 1.95
    assert max(map(abs, fit["moments_in_standard_deviations"])) < 4


@pytest.mark.parametrize("p", [1e-3, 0.25, 0.9])
def test_frequencies_of_coins_and_uniform_numbers(p, many):
    bound = 4 * math.sqrt(p * (1 - p) / DRAWS)
    assert abs(random.bernoulli(many, p).mean() - p) < bound
    assert abs((random.uniform(many) < p).mean() - p) < bound
    assert abs(random.uniform(many, "float64").mean() - 0.5) < 4 * math.sqrt(1 / 12 / DRAWS)


def test_signs_of_many_draws_have_the_mean_of_their_vector(many):
    v = np.resize(V[100:110] / np.abs(V[100:110]).max(), DRAWS).astype(F32)
    norm = np.asarray(np.sqrt((v[:10].astype(np.float64) ** 2).sum()), F32)
    means = random.stochastic_sign(v, norm, many).reshape(-1, 10).mean(axis=0, dtype=np.float64)
    assert (np.abs(means - v[:10] / norm) < 4 / math.sqrt(DRAWS / 10)).all()
