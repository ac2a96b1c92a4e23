"""Low precision: one rounding, to nearest even, wherever a leaf is stored; also where compilers would delete it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import signcore as sc
from signcore import dtypes, ops

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def neighbourhood(dtype):
    """For each of the 2^16 words: its value, the midpoint to the next, and the float32 on both sides of each."""
    words = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(dtype).astype(np.float32)
    values = np.unique(words[np.isfinite(words)])
    with np.errstate(over="ignore"):
        ends = np.concatenate([values, [values[-1] + (values[-1] - values[-2])]])  # the first that is no longer finite
        middles = ends[:-1] / 2 + ends[1:] / 2
        points = np.concatenate([values, middles, -middles[-1:], [np.inf, -np.inf, np.nan, 1e38, -1e38]])
        points = points.astype(np.float32)
        around = [np.nextafter(points, np.float32(toward)) for toward in (-np.inf, np.inf)]
    return np.concatenate([points, *around])


@pytest.fixture(scope="module", params=TYPES)
def narrow(request):
    """(name, dtype, float32 inputs without subnormals, their casts)."""
    dtype = TYPES[request.param]
    x = neighbourhood(dtype)
    x = x[~((np.abs(x) < 2.0**-126) & (x != 0.0))]  # the contract has no subnormal float32
    with np.errstate(over="ignore"):
        return request.param, dtype, x, x.astype(dtype)


def unsigned_zeros(x):
    """-0.0 as 0.0: rounding float16 by arithmetic loses the sign of what rounds to zero, which p + delta never does."""
    return np.where(x == 0, np.zeros((), x.dtype), x)


def narrowed(array, name, stored):
    like = {"float16": (jnp.float16, torch.float16), "bfloat16": (jnp.bfloat16, torch.bfloat16)}[name]
    dtype = TYPES[name] if isinstance(array, np.ndarray) else like[isinstance(array, torch.Tensor)]
    return ops.narrow(array, dtype, dtypes.FORMATS[name], stored=stored)


def test_numpy_casts(narrow, same):
    name, _, x, expected = narrow
    assert x.size > 3e5 or name == "float16"
    with np.errstate(over="ignore"):
        same(narrowed(x, name, False), expected)


def test_torch_casts(narrow, same):
    name, _, x, expected = narrow
    same(narrowed(torch.tensor(x), name, False), expected)


def test_jit_rounds_without_the_cast(narrow, same):
    name, _, x, expected = narrow
    same(unsigned_zeros(np.asarray(narrowed(jnp.asarray(x), name, False))), unsigned_zeros(expected))
    back = jax.jit(lambda v: ops.widen(narrowed(v, name, False)))(x)  # the pair of casts that a compiler may delete
    same(unsigned_zeros(np.asarray(back)), unsigned_zeros(expected.astype(np.float32)))


def test_what_is_stored_is_flushed_first(narrow, same):
    name, dtype, x, expected = narrow
    flushed = np.where(np.abs(x) < dtypes.FORMATS[name].flush, dtype(0), expected)
    with np.errstate(over="ignore"):
        deltas = ops.flush(x)
        same(narrowed(deltas, name, True), flushed)
        same(narrowed(torch.tensor(deltas), name, True), flushed)
        same(jax.jit(lambda v: narrowed(v, name, True))(deltas), flushed)


def test_torch_compile_rounds_without_the_cast(same):
    # One compilation for both types, and three steps in one graph, whose rounding casts inductor would delete.
    inputs = {name: torch.tensor(neighbourhood(dtype)) for name, dtype in TYPES.items()}
    rule = sc.Signum(lr=0.01, weight_decay=0.1, state_dtype="bfloat16")
    rng = np.random.default_rng(0)
    start = torch.tensor(rng.standard_normal(200).astype(np.float32)).bfloat16()
    grads = torch.tensor(rng.standard_normal((3, 200)).astype(np.float32)).bfloat16()

    def both(f16, bf16, p, gs):
        state = rule.init(p)
        for g in gs.unbind():
            p, state = rule.step(p, g, state)
        return ops.widen(narrowed(f16, "float16", False)), ops.widen(narrowed(bf16, "bfloat16", False)), p, state.m

    compiled = torch.compile(both, fullgraph=True)(inputs["float16"], inputs["bfloat16"], start, grads)
    for name, found in zip(TYPES, compiled, strict=False):
        x = inputs[name].numpy()
        fine = ~((np.abs(x) < 2.0**-126) & (x != 0.0))
        with np.errstate(over="ignore"):
            expected = x.astype(TYPES[name]).astype(np.float32)
        same(unsigned_zeros(found.numpy()[fine]), unsigned_zeros(expected[fine]))
    eager = both(inputs["float16"], inputs["bfloat16"], start, grads)
    same(compiled[2:], eager[2:])


@pytest.mark.parametrize("name", TYPES)
def test_step_adds_the_rounded_delta_in_float32_and_rounds_again(name, libraries, same):
    # Every pair of a value and a delta of the type would be 2^32; a million pairs of words drawn at random.
    dtype = TYPES[name]
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**16, (2, 2**17)).astype(np.uint16).view(dtype)
    words = np.where(np.isfinite(words.astype(np.float32)), words, dtype(1))
    p = words[0]
    wide = p.astype(np.float32)
    p = np.where((np.abs(wide) < 2.0**-126) & (wide != 0), dtype(0), p)
    rule = sc.SGD(lr=1.0)  # the delta is minus the gradient
    with np.errstate(over="ignore"):
        delta = np.where(np.abs(words[1].astype(np.float32)) < dtypes.FORMATS[name].flush, dtype(0), -words[1])
        expected = (p.astype(np.float32) + delta.astype(np.float32)).astype(dtype)
        for library in (libraries["numpy"], libraries["torch"]):
            params = library.array(p)
            same(rule.step(params, library.array(words[1]), rule.init(params))[0], expected)
        step = jax.jit(lambda p, g: rule.step(p, g, rule.init(p))[0])
        same(step(p, words[1]), expected)


def test_float16_keeps_its_subnormals(libraries, same):
    tiny = np.float16(2.0**-24)
    p = np.asarray([tiny, -tiny, 3 * tiny, 0.0], np.float16)
    g = np.asarray([tiny, tiny, -tiny, tiny], np.float16)
    rule = sc.SGD(lr=1.0)
    expected = np.asarray([0.0, -2 * tiny, 4 * tiny, -tiny], np.float16)
    for name in ("numpy", "torch", "jax"):
        params = libraries[name].array(p)
        same(rule.step(params, libraries[name].array(g), rule.init(params))[0], expected)
    # a sign of the smallest gradient is a sign, and half of a smallest step is none
    assert sc.SignSGD(lr=1.0).delta(p, g, sc.SignSGD().init(p))[0].tolist() == [-1.0, -1.0, 1.0, -1.0]
    assert sc.SignSGD(lr=2.0**-25).delta(p, g, sc.SignSGD().init(p))[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrow_state_of_float64_goes_through_float32_everywhere(name, libraries, same):
    rule = sc.Signum(lr=0.01, state_dtype=name)
    rng = np.random.default_rng(2)
    p, grads = rng.standard_normal(3000), rng.standard_normal((3, 3000))
    ends = []
    for library in (libraries["numpy"], libraries["torch"]):
        params = library.array(p)
        state = rule.init(params)
        for g in grads:
            params, state = rule.step(params, library.array(g), state)
        ends.append((params, state.m))
    same(*ends)


def test_names_of_dtypes_are_those_of_numpy():
    for dtype in (np.dtype("float32"), torch.float32, jnp.float32(0).dtype, np.float32(0).dtype):
        assert dtypes.name_of(dtype) == "float32"
    assert dtypes.name_of(np.dtype(ml_dtypes.bfloat16)) == dtypes.name_of(torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize("name", dtypes.FORMATS)
def test_the_table_of_formats_agrees_with_the_libraries(name):
    fmt = dtypes.FORMATS[name]
    info = ml_dtypes.finfo(TYPES.get(name, name))
    assert (fmt.name, fmt.digits) == (name, info.nmant + 1)
    assert fmt.largest == float(info.max)
    assert fmt.normal == (0.0 if name == "float16" else float(info.smallest_normal))
    assert fmt.compute == ("float64" if name == "float64" else "float32")
    torch_info = torch.finfo(getattr(torch, name))
    assert fmt.largest == torch_info.max


def test_what_is_no_float_of_ours_has_no_format():
    for array in (np.arange(3), np.ones(2, complex), np.ones(2, bool), torch.arange(2), torch.ones(2).bool()):
        assert dtypes.format_of(array) is None
    assert dtypes.format_of(np.ones(2, ml_dtypes.float8_e4m3fn)) is None
