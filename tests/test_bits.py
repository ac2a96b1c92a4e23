"""Packed signs: the layout to the bit, round trips, and votes on bits that equal the votes on signs."""

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signcore import bits, blocks, ops, tally, vote

F32 = np.float32
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
LACKING = {"array-api-strict": {"float16", "bfloat16"}, "jax": {"float64"}}  # JAX without x64
WORKERS = [*range(1, 10), 16, 17, 127]
SIZES = [*range(71), 1000003]
FEW_SIZES = [0, 1, 7, 8, 9, 17, 65, 1000003]  # for JAX, which compiles each


def planar(holds):
    """The layout as docs and docstrings state it, one coordinate after the other."""
    nb = -(-len(holds) // 8)
    packed = [0] * nb
    for c, held in enumerate(holds):
        packed[c % nb] |= int(held) << (c // nb)
    return np.asarray(packed, np.uint8)


def planar_of_many(holds):
    """The same with NumPy's packing, of the k-th bits of all bytes in row k."""
    rows = np.pad(holds, (0, -len(holds) % 8)).reshape(8, -1)
    return np.packbits(rows, axis=0, bitorder="little")[0]


def planar2(signs, planar=planar):
    return np.concatenate([planar(signs > 0), planar(signs < 0)])


def draw(seed, *shape, values=(-1, 0, 1)):
    return np.random.default_rng(seed).choice(np.asarray(values, F32), shape)


def stack(pack, signs):
    """Rows of signs, each packed."""
    return np.stack([pack(row) for row in signs])


# -- the layout ----------------------------------------------------------------------------------------------

EXAMPLE = F32([1, -1, -1, 1, 1, 1, -1, -1, 1, -1, 1])


def test_the_documented_example(backend, same):
    s = backend.array(EXAMPLE)
    same(bits.pack(s), np.asarray([0b00110101, 0b00000110], np.uint8))
    same(bits.pack_ternary(s), np.asarray([0b00110101, 0b00000110, 0b00001010, 0b00011001], np.uint8))
    zeros = EXAMPLE * F32([1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1])
    same(
        bits.pack_ternary(backend.array(zeros)), np.asarray([0b00100101, 0b00000110, 0b00001010, 0b00001000], np.uint8)
    )


def test_it_is_not_numpys_layout():
    for order in ("big", "little"):
        assert bits.pack(EXAMPLE).tolist() != np.packbits(EXAMPLE > 0, bitorder=order).tolist()


@pytest.mark.parametrize("c", range(11))
def test_a_coordinate_is_its_bit_and_no_other(c):
    one = -np.ones(11, F32)
    one[c] = 1.0
    packed = bits.pack(one)
    assert packed[c % 2] == 1 << c // 2
    assert packed[1 - c % 2] == 0


# -- round trips -----------------------------------------------------------------------------------------------


def there_and_back(s):
    one, two = bits.pack(s), bits.pack_ternary(s)
    size = s.shape[0]
    return one, bits.unpack(one, size, "float32"), two, bits.unpack_ternary(two, size, "float32")


def test_any_size_there_and_back(backend, same):
    run = backend.compiled(there_and_back)
    for size in FEW_SIZES if backend.name == "jax" else SIZES:
        s = draw(size, size)
        layout = planar if size < 100 else planar_of_many
        expected = layout(s > 0), np.where(s > 0, F32(1), F32(-1)), planar2(s, layout), s
        same(run(backend.array(s)), expected)


def test_leaves_larger_than_a_block(same):
    s = draw(0, 2**20 + 2**17 + 5)
    expected = planar_of_many(s > 0), np.where(s > 0, F32(1), F32(-1)), planar2(s, planar_of_many), s
    assert expected[0].size > blocks.SIZE
    same(there_and_back(s), expected)


def test_blocks_change_nothing(monkeypatch, same):
    signs = draw(1, 6, 70)
    one, two = stack(bits.pack, signs), stack(bits.pack_ternary, signs)

    def everything():
        return [there_and_back(row[:size]) for row in signs for size in range(71)], votes(one, two, one[0])

    whole = everything()
    monkeypatch.setattr(bits, "_FEW_ROWS", 3)
    monkeypatch.setattr(tally, "MANY_ROWS", 2)
    same(everything(), whole)


def unpack_to_what_lacks(packed, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of float64 without x64, and goes on with float32
        bits.unpack(packed, packed.shape[0] * 8, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype_there_and_back(dtype, backend, same):
    s = draw(2, 29).astype(DTYPES[dtype])
    if dtype in LACKING.get(backend.name, ()):
        with pytest.raises(ValueError, match=dtype):
            unpack_to_what_lacks(backend.array(bits.pack(s)), dtype)
        return
    packed, packed2 = bits.pack(backend.array(s)), bits.pack_ternary(backend.array(s))
    same((packed, packed2), (planar(s > 0), planar2(s)))
    same(bits.unpack_ternary(packed2, 29, dtype), s)
    same(bits.unpack(packed, 29, dtype), np.where(s > 0, 1, -1).astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_counts_by_its_sign_and_nan_as_zero(dtype, backend, same):
    if dtype in LACKING.get(backend.name, ()):
        return
    least = {"float16": 2.0**-24, "float64": 2.0**-900}.get(dtype, 2.0**-100)
    above = [least, 3 * least, 1e-3, 1.0, 65504.0, np.inf]
    neither = [0.0, -0.0, np.nan] + ([] if dtype == "float16" else [least / 2, -least / 2])
    x = np.asarray([*above, *neither, *(-v for v in above)], DTYPES[dtype])
    expected = F32([1] * 6 + [0] * len(neither) + [-1] * 6)
    same(ops.sign(x.astype(F32) if dtype in ("float16", "bfloat16") else x).astype(F32), expected)
    for run in (bits.pack_ternary, backend.compiled(bits.pack_ternary)):
        same(run(backend.array(x)), planar2(expected))
    same(bits.pack(backend.array(x)), planar(expected > 0))


def test_a_subnormal_float32_has_no_sign_anywhere(backend, same):
    # Libraries disagree on whether it is above zero.
    tiny = F32([1e-40, -1e-40, 1e-45, 1.0, -1.0])
    for run in (bits.pack_ternary, backend.compiled(bits.pack_ternary)):
        same(run(backend.array(tiny)), planar2(F32([0, 0, 0, 1, -1])))


def test_any_shape_is_packed_in_c_order(backend, same):
    s = draw(3, 3, 5, 2)
    for view in (s, s[1:, ::2], s[..., 0], s.T, np.asfortranarray(s), s[0, 0, 0], s[:0]):
        flat = planar2(np.ascontiguousarray(view).reshape(-1))
        same(bits.pack_ternary(backend.array(np.asarray(view))), flat)
        if backend.name == "numpy":
            same(bits.pack_ternary(view), flat)


def test_a_zero_in_one_bit_is_read_back_as_minus_one(backend, same):
    packed = bits.pack(backend.array(F32([1, 0, np.nan, -1])))
    same(bits.unpack(packed, 4, "float32"), F32([1, -1, -1, -1]))


@pytest.mark.parametrize("size", [8, 11, 64, 70])
def test_a_flipped_bit_changes_its_coordinate_or_padding_alone(size):
    s = draw(4, size, values=(-1, 1))
    packed = bits.pack(s)
    for i in range(packed.size):
        for k in range(8):
            flipped = packed.copy()
            flipped[i] ^= 1 << k
            changed = np.flatnonzero(bits.unpack(flipped, size, "float32") != s).tolist()
            c = k * packed.size + i
            assert changed == ([c] if c < size else [])


# -- counts ----------------------------------------------------------------------------------------------------


def test_the_number_of_set_bits_of_each_byte(backend, same):
    every = np.arange(256, dtype=np.uint8).reshape(4, 64)
    expected = np.asarray([byte.bit_count() for byte in range(256)], np.uint8).reshape(4, 64)
    same(bits.popcount(backend.array(every)), expected)
    same(backend.compiled(bits.popcount)(backend.array(every)), expected)


def ladder(workers):
    """Votes of which coordinate c has c in favour, for every number from none to all."""
    return np.where(np.arange(workers)[:, None] < np.arange(workers + 1), F32(1), F32(-1))


@pytest.mark.parametrize("workers", [*WORKERS, 15, 32, 128, 300])
def test_every_count_of_every_number_of_workers(workers, same):
    signs = np.random.default_rng(0).permutation(ladder(workers), axis=0)
    planes = tally.count(stack(bits.pack, signs))
    assert planes.shape[0] == workers.bit_length()
    counts = [bits.unpack(plane, workers + 1, "float32") > 0 for plane in planes]
    assert sum(held.astype(int) << b for b, held in enumerate(counts)).tolist() == list(range(workers + 1))


# -- votes -----------------------------------------------------------------------------------------------------


def votes(one, two, coins):
    """All votes on one and on two bits, and the counts."""
    return (
        tally.count(one),
        tally.majority(one),
        tally.majority(one, ties="minus"),
        tally.majority(one, ties="random", coins=coins),
        tally.majority_ternary(two),
    )


VOTES = jax.jit(votes)


def expected_votes(signs, coins):
    """The same from `vote.majority` of numbers, for signs in {-1, 0, 1}; for one bit a zero is a minus."""
    one = np.where(signs > 0, F32(1), F32(-1))
    counts = (signs > 0).sum(axis=0)
    undecided = vote.majority(one) == 0
    random = np.where(undecided, coins, vote.majority(one))
    return (
        np.stack([planar(counts >> b & 1) for b in range(len(signs).bit_length())]),
        planar(vote.majority(one, ties="plus") > 0),
        planar(vote.majority(one, ties="minus") > 0),
        planar(random > 0),
        planar2(vote.majority(signs)),
    )


def packed_votes(signs):
    return stack(lambda row: planar(row > 0), signs), stack(planar2, signs)


@pytest.mark.parametrize("workers", WORKERS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_votes_on_bits_are_votes_on_signs(workers, data, libraries, same):
    size = data.draw(st.integers(0, 70))
    signs, coins = np.split(draw(data.draw(st.integers(0, 2**32)), workers + 1, size), [workers])
    arrays = *packed_votes(signs), planar(coins[0] > 0)
    for name in ("numpy", "numpy-readonly", "array-api-strict", "torch"):
        same(votes(*map(libraries[name].array, arrays)), expected_votes(signs, coins[0]))


@pytest.mark.parametrize("workers", [1, 2, 3, 6, 9, 17])  # of all lengths of a count from one bit to five
def test_votes_under_jit(workers, same):
    # one size, because each compiles; many draws, because they do not
    for seed in range(20):
        signs, coins = np.split(draw(seed, workers + 1, 13), [workers])
        arrays = *packed_votes(signs), planar(coins[0] > 0)
        same(VOTES(*arrays), expected_votes(signs, coins[0]))


def test_votes_of_jax_outside_of_jit(same):
    signs, coins = np.split(draw(5, 7, 13), [6])
    arrays = map(jnp.asarray, (*packed_votes(signs), planar(coins[0] > 0)))
    same(votes(*arrays), expected_votes(signs, coins[0]))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_majority_is_more_than_half(workers, same):
    signs = ladder(workers)
    packed = stack(bits.pack, signs)
    in_favour = np.arange(workers + 1)
    same(tally.majority(packed, ties="plus"), planar(2 * in_favour >= workers))
    same(tally.majority(packed, ties="minus"), planar(2 * in_favour > workers))
    # the controls: one vote more or less decides, so each of them counts
    half = workers // 2
    for ties, c in (("plus", -(-workers // 2)), ("minus", half + 1)):
        assert bits.unpack(tally.majority(packed, ties=ties), workers + 1, "float32")[c] == 1.0
        other = signs.copy()
        other[0, c] = -1.0
        assert bits.unpack(tally.majority(stack(bits.pack, other), ties=ties), workers + 1, "float32")[c] == -1.0


def test_a_majority_of_signs_with_zeros_for_every_pair_of_counts(same):
    for workers in range(1, 10):
        pairs = [(p, m) for p in range(workers + 1) for m in range(workers + 1 - p)]
        signs = F32([[1] * p + [-1] * m + [0] * (workers - p - m) for p, m in pairs]).T
        expected = np.sign(F32([p - m for p, m in pairs]))
        same(tally.majority_ternary(stack(bits.pack_ternary, signs)), planar2(expected))


def test_a_coordinate_with_both_bits_is_zero(backend, same):
    both = np.asarray([0b011, 0b110], np.uint8)
    same(bits.unpack_ternary(backend.array(both), 3, "float32"), F32([1, 0, -1]))
    same(tally.majority_ternary(backend.array(np.stack([both]))), np.asarray([0b001, 0b100], np.uint8))


@pytest.mark.parametrize("size", [1, 9, 11, 57])
def test_padding_stays_zero(size):
    packed = bits.pack(np.ones(size, F32))
    nobody = np.zeros_like(packed)
    coins = np.full_like(packed, 255)
    tied = np.stack([packed, nobody])
    results = [tally.majority(tied, "plus"), tally.majority(tied, "random", coins)]
    results += [tally.majority_ternary(np.stack([np.concatenate([packed, nobody])] * 2))[: packed.size]]
    for result in results:
        assert result.tolist() == packed.tolist()


def test_the_coins_decide_ties_alone(same):
    plus, minus = bits.pack(np.ones(16, F32)), bits.pack(-np.ones(16, F32))
    coins = np.asarray([0b10110001, 0b00001111], np.uint8)
    same(tally.majority(np.stack([plus, minus]), "random", coins), coins)
    same(tally.majority(np.stack([plus, plus]), "random", coins), plus)
    same(tally.majority(np.stack([minus, minus]), "random", coins), minus)
    same(tally.majority(np.stack([plus, minus, plus]), "random", coins), plus)


def test_coins_may_be_the_noise_of_a_rule(same):
    # `ops.sign` takes the lowest bit of a word for its coin
    noise = np.random.default_rng(6).integers(-(2**31), 2**31, 29).astype(np.int32)
    signs = draw(7, 4, 29, values=(-1, 1))
    coins = bits.pack(ops.sign(np.zeros(29, F32), "random", noise))
    result = tally.majority(stack(bits.pack, signs), "random", coins)
    same(bits.unpack(result, 29, "float32"), ops.sign(signs.sum(axis=0), "random", noise))


def test_the_order_of_the_workers_does_not_matter(same):
    one, two = packed_votes(draw(8, 17, 30))
    same(votes(one[::-1], two[::-1], one[0]), votes(one, two, one[0]))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_results_share_no_memory_with_the_votes(name, libraries):
    one, two = packed_votes(draw(9, 1, 30))
    arrays = list(map(libraries[name].array, (one, two, one[0])))
    results = votes(*arrays)
    before = [result.tolist() for result in results]
    for array in arrays:
        array[...] = 255
    assert [result.tolist() for result in results] == before


# -- transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vmap", [jax.vmap, torch.vmap])
def test_under_vmap(vmap, same):
    to = jnp.asarray if vmap is jax.vmap else torch.tensor
    signs = draw(10, 4, 6, 13)
    same(
        vmap(there_and_back)(to(signs[:, 0])),
        tuple(np.stack(part) for part in zip(*map(there_and_back, signs[:, 0]), strict=True)),
    )
    one = np.stack([packed_votes(each)[0] for each in signs])
    two = np.stack([packed_votes(each)[1] for each in signs])
    each = [votes(*arrays) for arrays in zip(one, two, one[:, 0], strict=True)]
    same(vmap(votes)(to(one), to(two), to(one[:, 0])), tuple(np.stack(part) for part in zip(*each, strict=True)))
    counts = vmap(bits.popcount)(to(one))
    same(counts, bits.popcount(one))


# inductor expands what is used twice until it has this many operations: the default of 30 makes long chains slow.
QUICKLY = {"realize_opcount_threshold": 8}


def test_under_torch_compile(same):
    signs, coins = np.split(draw(11, 7, 29), [6])
    arrays = *packed_votes(signs), planar(coins[0] > 0)
    compiled = torch.compile(votes, fullgraph=True, options=QUICKLY)
    same(compiled(*map(torch.tensor, arrays)), expected_votes(signs, coins[0]))


def test_under_torch_compile_with_a_size_that_is_no_constant(same):
    def everything(leaf):
        packed = bits.pack_ternary(leaf)
        back = bits.unpack_ternary(packed, leaf.shape[0], "float16")
        return packed, back, bits.unpack(bits.pack(leaf), leaf.shape[0], "float32"), bits.popcount(packed)

    leaf = draw(12, 70)
    compiled = torch.compile(everything, fullgraph=True, options=QUICKLY)
    for s in (leaf, leaf[:41]):  # after the second size the compiler takes it for a variable
        packed, back = planar2(s), s.astype(np.float16)
        expected = packed, back, np.where(s > 0, F32(1), F32(-1)), bits.popcount(packed)
        same(compiled(torch.tensor(s).bfloat16()), expected)


# -- messages ----------------------------------------------------------------------------------------------------

BYTES = np.zeros(2, np.uint8)
FLOATS = np.zeros(2, F32)
REFUSED = [
    (lambda: bits.pack([1.0]), TypeError, "`s` is a list, not an array"),
    (lambda: bits.pack(BYTES), TypeError, "`s` has dtype uint8; signcore computes with float16"),
    (lambda: bits.pack_ternary(BYTES), TypeError, "`s` has dtype uint8"),
    (lambda: bits.unpack(FLOATS, 9, "float32"), TypeError, "`packed` has dtype float32; pass packed bytes, uint8"),
    (lambda: bits.unpack(BYTES.astype(np.int8), 9, "float32"), TypeError, "`packed` has dtype int8"),
    (lambda: bits.unpack(b"ab", 9, "float32"), TypeError, "`packed` is a bytes, not an array"),
    (lambda: bits.unpack(BYTES, 9.0, "float32"), TypeError, "`size` is 9.0; pass an int"),
    (lambda: bits.unpack(BYTES, -1, "float32"), ValueError, "`size` is -1; pass the number of coordinates"),
    (lambda: bits.unpack(BYTES, 8, "float32"), ValueError, r"shape \(2,\), and `size` 8 takes \(1,\)"),
    (lambda: bits.unpack(BYTES, 17, "float32"), ValueError, r"shape \(2,\), and `size` 17 takes \(3,\)"),
    (lambda: bits.unpack(BYTES[None], 9, "float32"), ValueError, r"shape \(1, 2\), and `size` 9 takes \(2,\)"),
    (lambda: bits.unpack_ternary(BYTES, 9, "float32"), ValueError, r"shape \(2,\), and `size` 9 takes \(4,\)"),
    (lambda: bits.unpack(BYTES, 9, "int8"), ValueError, "`dtype` is 'int8'; choose one of 'float16', 'bfloat16'"),
    (lambda: bits.unpack(BYTES, 9, np.float32), ValueError, "`dtype` is <class 'numpy.float32'>; choose one of"),
    (
        lambda: unpack_to_what_lacks(jnp.asarray(BYTES), "float64"),
        ValueError,
        "`dtype` is 'float64', which jax has switched off",
    ),
    (lambda: bits.popcount(FLOATS), TypeError, "`packed` has dtype float32"),
    (lambda: bits.popcount(7), TypeError, "`packed` is a int, not an array"),
    (lambda: tally.count(FLOATS[None]), TypeError, "`stacked` has dtype float32"),
    (lambda: tally.count(BYTES), ValueError, r"`stacked` has shape \(2,\); stack the packed bytes of at least one"),
    (lambda: tally.count(BYTES[None][:0]), ValueError, r"`stacked` has shape \(0, 2\)"),
    (lambda: tally.majority(BYTES[None][:0]), ValueError, r"`stacked` has shape \(0, 2\)"),
    (lambda: tally.majority(FLOATS[None]), TypeError, "`stacked` has dtype float32"),
    (
        lambda: tally.majority(BYTES[None], "zero"),
        ValueError,
        "`ties` is 'zero'; choose one of 'plus', 'minus', 'random'",
    ),
    (lambda: tally.majority(BYTES[None], "random"), ValueError, "`coins` are not given and `ties` is 'random'"),
    (lambda: tally.majority(BYTES[None], "plus", BYTES), ValueError, "`coins` are given and `ties` is 'plus'"),
    (lambda: tally.majority(BYTES[None], "random", FLOATS), TypeError, "`coins` has dtype float32"),
    (lambda: tally.majority(BYTES[None], "random", BYTES[:1]), ValueError, r"`coins` has shape \(1,\), and `stacked`"),
    (lambda: tally.majority(BYTES[None], "random", jnp.asarray(BYTES)), TypeError, "`coins` is an array of jax"),
    (lambda: tally.majority_ternary(BYTES), ValueError, r"`stacked` has shape \(2,\)"),
    (lambda: tally.majority_ternary(BYTES[None, :1]), ValueError, r"shape \(1, 1\); pass what pack_ternary made"),
    (lambda: tally.majority_ternary(BYTES[None][:0]), ValueError, r"`stacked` has shape \(0, 2\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
