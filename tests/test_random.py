"""Random words: known answers, the same words on every library, and any slice of a leaf draws what the whole does."""

import functools
import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.random import threefry_2x32

from signcore import frameworks, random

# Random123, tests/kat_vectors, lines "threefry2x32 20": counter, key, answer; zeros, all ones, digits of pi.
# https://github.com/DEShawResearch/random123/blob/main/tests/kat_vectors
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
MANY = np.random.default_rng(0).integers(-(2**31), 2**31, (4, 300)).astype(np.int32)


def pair(values, array=np.asarray):
    return tuple(array(np.asarray([value], np.uint32).view(np.int32)) for value in values)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_known_answers_of_random123(counter, key, answer, backend, to_numpy):
    found = random.threefry(pair(key, backend.array), pair(counter, backend.array))
    assert tuple(int(to_numpy(word).view(np.uint32)[0]) for word in found) == answer


def test_the_words_of_jax_random():
    ours = random.threefry((MANY[0, 0], MANY[1, 0]), (MANY[2], MANY[3]))
    key = jnp.asarray(MANY[:2, 0].view(np.uint32))
    theirs = threefry_2x32(key, jnp.asarray(np.concatenate([MANY[2], MANY[3]]).view(np.uint32)))
    assert np.array_equal(np.concatenate(ours).view(np.uint32), np.asarray(theirs))


def jax_bits(key, step, size):
    """What a user of JAX draws with the same key words."""
    key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)
    return jax.random.bits(key, (size,), "uint32")


def test_words_are_those_of_jax_random_bits():
    keys, steps = MANY[:2].T.copy(), np.abs(MANY[2]) & 0x7FFFFFFF
    steps[:3] = 0, 1, 2**31 - 1
    theirs = np.asarray(jax.jit(jax.vmap(lambda k, s: jax_bits(k, s, 7)))(keys.view(np.uint32), steps))
    ours = jax.jit(jax.vmap(lambda k, s: random.words(k, s, 7)))(keys, steps)
    assert np.array_equal(np.asarray(ours).view(np.uint32), theirs)
    for key, step, expected in zip(keys[:40], steps, theirs, strict=False):
        assert np.array_equal(random.words(key, np.asarray(step), 7).view(np.uint32), expected)
    for size in (1, 2, 3, 1000, 200_001):
        expected = np.asarray(jax_bits(jnp.asarray(KEY.view(np.uint32)), STEP, size))
        assert np.array_equal(random.words(KEY, STEP, size).view(np.uint32), expected)


def test_every_library_gives_the_same_words(other, same):
    key, step = np.asarray([123, -7], np.int32), np.asarray(5, np.int32)
    compiled = other.compiled(lambda key, step: random.words(key, step, 33))
    same(compiled(other.array(key), other.array(step)), random.words(key, step, 33))


def test_overflow_of_int32_is_no_warning_and_no_difference(other, same):
    ours = random.threefry((MANY[0], MANY[1]), (MANY[2], MANY[3]))
    same(random.threefry(tuple(map(other.array, MANY[:2])), tuple(map(other.array, MANY[2:]))), ours)


KEY, STEP = random.stream_key(0, "w"), np.asarray(3, np.int32)
KEY_JAX = jnp.asarray(KEY)


@pytest.mark.parametrize("start", [0, 5, 2**31 - 7, 2**31, 2**32 - 7, 2**32, 2**33 + 2**31 - 3])
def test_a_slice_draws_what_the_whole_does(start, same):
    # The counter is the 64-bit global index: the seams are where its low half changes sign and wraps.
    whole = random.words(KEY, STEP, 20, start)
    parts = [random.words(KEY, STEP, size, start + at) for at, size in ((0, 3), (3, 1), (4, 9), (13, 7))]
    same(np.concatenate(parts), whole)
    folded = random.threefry((KEY[:1], KEY[1:]), (np.zeros(1, np.int32), STEP.reshape(1)))
    for i in range(20):
        low, high = struct.unpack("<2i", struct.pack("<q", start + i))
        x0, x1 = random.threefry(folded, (np.int32([high]), np.int32([low])))
        same(x0 ^ x1, whole[i : i + 1])


@functools.cache
def pure_words(start):
    return np.asarray(jax.jit(lambda key, step: random.words(key, step, 90, start))(KEY, STEP))


@pytest.mark.parametrize("start", [0, 2**31 - 40, 2**32 - 40, 2**33 + 2**31 - 40])
def test_words_written_in_place_are_those_of_pure_operations(start, backend, monkeypatch, same):
    expected = pure_words(start)
    key, step = backend.array(KEY), backend.array(STEP)
    for block in (1, 7, 89, 90, 1000):
        monkeypatch.setattr(random, "_BLOCK", block)
        same(random.words(key, step, 90, start), expected)
    same((key, step), (KEY, STEP))
    monkeypatch.setattr(frameworks, "is_host", lambda array: False)
    same(backend.compiled(lambda key, step: random.words(key, step, 90, start))(key, step), expected)


def test_blocks_of_their_own_size_make_no_difference(same):
    size = 2 * random._BLOCK + 5
    expected = jax.jit(lambda key, step: random.words(key, step, size))(KEY, STEP)
    same(random.words(KEY, STEP, size), expected)
    same(random.words(torch.tensor(KEY), torch.tensor(STEP), size), expected)


def test_no_words_for_no_elements(backend):
    words = random.words(backend.array(KEY), backend.array(STEP), 0)
    assert tuple(words.shape) == (0,)
    assert "int32" in str(words.dtype)


def test_words_differ_between_steps_streams_and_elements():
    words = {
        tuple(random.words(random.stream_key(seed, name), np.asarray(step, np.int32), 8))
        for seed in (0, 1)
        for name in ("a", "b")
        for step in (0, 1, 2**31 - 1)
    }
    assert len(words) == 12
    assert len({word for row in words for word in row}) == 96


def test_every_bit_is_a_fair_coin():
    words = random.words(KEY, STEP, 20000).view(np.uint32)
    ones = [int(((words >> bit) & 1).sum()) for bit in range(32)]
    assert all(abs(n - 10000) < 5 * 20000**0.5 / 2 for n in ones)  # five standard deviations


@pytest.mark.parametrize(("seed", "name"), [(0, ""), (0, "w"), (7, "layers/0/weight"), (2**80, "é")])
def test_stream_keys_are_a_hash_of_seed_and_name(seed, name):
    digest = hashlib.blake2s(f"{seed}/{name}".encode(), digest_size=8).digest()
    key = random.stream_key(seed, name)
    assert (key.dtype, key.shape) == (np.int32, (2,))
    assert tuple(key) == struct.unpack("<2i", digest)


def test_stream_keys_never_change():
    # Written down once: a checkpoint's noise depends on them.
    assert random.stream_key(0, "").tolist() == [2004410582, -48158716]
    assert random.stream_key(0, "w").tolist() == [-1272160016, 814916390]


def test_words_may_be_drawn_under_jit_with_a_traced_step():
    draw = jax.jit(lambda key, step: random.words(key, step, 9))
    for step in (0, 1, 2**31 - 1):
        expected = random.words(KEY, np.asarray(step, np.int32), 9)
        assert np.array_equal(np.asarray(draw(jnp.asarray(KEY), jnp.int32(step))), expected)


def test_words_may_be_drawn_under_the_transforms_of_torch(same):
    size = 50
    keys, steps = MANY[:2, :3].T.copy(), np.int32([0, 7, 2**31 - 1])
    expected = np.stack([random.words(key, np.asarray(step), size, 5) for key, step in zip(keys, steps, strict=True)])
    key, step = torch.tensor(keys), torch.tensor(steps)
    same(torch.vmap(lambda k, s: random.words(k, s, size, 5))(key, step), expected)
    same(torch.vmap(lambda k: random.words(k, step[1], size, 5))(key)[1], expected[1])
    same(torch.vmap(lambda s: random.words(key[2], s, size, 5))(step)[2], expected[2])
    ones = torch.ones(size)
    slope = torch.func.grad(lambda y: (random.uniform(random.words(key[0], step[0], size, 5)) * y).sum())(ones)
    same(slope, random.uniform(expected[0]))
    with torch.inference_mode():
        same(random.words(key[0], step[0], size, 5), expected[0])


def test_words_may_be_drawn_under_vmap_and_scan_of_jax(same):
    steps = np.arange(4, dtype=np.int32)
    expected = np.stack([random.words(KEY, np.asarray(step), 9) for step in steps])
    same(jax.jit(jax.vmap(lambda step: random.words(KEY_JAX, step, 9)))(steps), expected)
    same(jax.lax.scan(lambda carry, step: (carry, random.words(KEY_JAX, step, 9)), 0, steps)[1], expected)


def test_words_may_be_drawn_under_torch_compile(same):
    # inductor takes a minute for the rounds written out; the adapter's operation (signcore_torch/noise.py) does without
    draw = torch.compile(lambda key, step: random.words(key, step, 33, 2**31 - 8), backend="aot_eager", fullgraph=True)
    same(draw(torch.tensor(KEY), torch.tensor(STEP)), random.words(KEY, STEP, 33, 2**31 - 8))


def test_the_words_of_any_elements_in_any_order(other, same):
    shape = (6, 50)
    whole = random.words(KEY, STEP, 300, 2**32 - 100).reshape(shape)
    index = (2**32 - 100 + np.arange(300)).reshape(shape)[::-1, 3::7]  # a slice with strides, in another order
    low, high = (index & 0xFFFFFFFF).astype(np.uint32).view(np.int32), (index >> 32).astype(np.int32)
    same(random.words_at(KEY, STEP, low, high), np.ascontiguousarray(whole[::-1, 3::7]))
    theirs = other.compiled(random.words_at)(*map(other.array, (KEY, STEP, low, high)))
    same(theirs, np.ascontiguousarray(whole[::-1, 3::7]))


def test_a_traced_shard_draws_its_words():
    draw = jax.jit(
        lambda first: random.words_at(jnp.asarray(KEY), jnp.asarray(STEP), first + jnp.arange(7, dtype=jnp.int32))
    )
    assert np.array_equal(np.asarray(draw(jnp.int32(20))), random.words(KEY, STEP, 7, 20))


@pytest.mark.parametrize("step", [3, np.int64(3), np.int32(3), np.asarray(3, np.int64), np.asarray([3], np.int32)])
def test_a_step_may_be_any_integer(step, same):
    same(random.words(KEY, step, 5), random.words(KEY, STEP, 5))
    same(random.words(KEY, step, np.int32(5), np.int32(0)), random.words(KEY, STEP, 5))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: random.words(KEY, STEP, -3), ValueError, "`size` is -3"),
        (lambda: random.words(KEY, STEP, 3, -5), ValueError, "`start` is -5"),
        (lambda: random.words(KEY, STEP, 3, 2**63), ValueError, "`start` is 9223372036854775808"),
        (lambda: random.words(KEY, STEP, 3.5), ValueError, "`size` is 3.5"),
        (lambda: random.words(np.zeros(3, np.int32), STEP, 3), ValueError, "`key` has shape (3,)"),
        (lambda: random.words(KEY.astype(np.int64), STEP, 3), TypeError, "`key` has dtype int64"),
        (lambda: random.words([1, 2], STEP, 3), TypeError, "`key` is [1, 2]"),
        (lambda: random.words(KEY, 2**31, 3), ValueError, "`step` is 2147483648"),
        (lambda: random.words(KEY, 0.5, 3), TypeError, "`step` is 0.5"),
        (lambda: random.words(KEY, np.float32([1]), 3), TypeError, "`step` is an array of float32"),
        (lambda: random.words_at(KEY, STEP, np.arange(3)), TypeError, "`low` has dtype int64"),
        (lambda: jax.jit(lambda s: random.words(jnp.asarray(KEY), 0, 3, s))(1), TypeError, "words_at"),
    ],
)
def test_what_words_cannot_be_drawn_for(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
