"""Schedules: the same words from a Python int, an array of every library, and a traced step."""

import math
import pickle

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

from signcore import schedules
from signcore.schedules import constant, cosine, inverse_sqrt, linear_warmup, step

LAST = 2**31 - 1
ALL = {
    "constant": constant(0.1),
    "inverse_sqrt": inverse_sqrt(0.1),
    "cosine": cosine(0.1, total_steps=7, final=0.1),
    "cosine-long": cosine(0.3, total_steps=10_000),
    "step": step(0.1, size=3, factor=0.3),
    "step-flat": step(0.1, size=3, factor=1.0),
    "step-off": step(0.1, size=3, factor=0.0),
    "linear_warmup": linear_warmup(0.1, 5),
    "linear_warmup-cosine": linear_warmup(0.1, 3, then=cosine(0.1, total_steps=7)),
    "linear_warmup-inverse_sqrt": linear_warmup(0.1, 3, then=inverse_sqrt(0.1)),
}
STEPS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 30, 999, 2**24 + 1, LAST - 1, LAST]


@pytest.fixture(params=ALL)
def schedule(request):
    return ALL[request.param]


def test_an_int_gives_the_float_of_the_array(schedule, same):
    for k in STEPS:
        value = schedule(k)
        assert type(value) is float
        array = schedule(np.asarray(k, np.int32))
        assert (array.dtype, array.shape) == (np.float32, ())
        same(np.asarray(array), np.asarray(value, np.float32))
        assert schedule(np.int32(k)) == schedule(np.int64(k)) == value


def test_every_library_gives_the_same_words(schedule, other, same):
    compiled = other.compiled(lambda k: schedule(k))
    for k in STEPS:
        value = compiled(other.array(np.asarray(k, np.int32)))
        assert value.shape == ()
        same(value, np.asarray(schedule(k), np.float32))


def test_under_jit_constants_and_traced_steps_give_the_same_words(schedule, same):
    steps = np.asarray(STEPS, np.int32)
    expected = np.asarray([schedule(k) for k in STEPS], np.float32)
    same(jax.jit(jax.vmap(schedule))(steps), expected)
    same(jax.lax.map(schedule, jnp.asarray(steps)), expected)
    same(jax.jit(lambda: jnp.stack([schedule(jnp.int32(k)) for k in STEPS]))(), expected)


def test_in_float64_the_digits_of_float64(schedule, same):
    for k in STEPS:
        value = schedule(k, "float64")
        same(np.asarray(schedule(np.asarray(k, np.int32), "float64")), np.asarray(value))
        same(schedule(torch.tensor(k, dtype=torch.int32), "float64"), np.asarray(value))
        assert math.isclose(value, schedule(k), rel_tol=2.0**-22)


def test_no_value_is_negative_or_infinite_and_none_warns(schedule):
    for k in STEPS:
        for dtype in ("float32", "float64"):
            assert 0.0 <= schedule(k, dtype) < math.inf


def test_the_last_step_stays_the_last(schedule):
    # A state's counter stays at the largest int32; a longer run has Python ints beyond it.
    assert schedule(LAST + 1) == schedule(10**12) == schedule(LAST)


def test_constant_is_the_rounded_value():
    assert constant(0.1)(5) == float(np.float32(0.1))
    assert constant(0.1)(5, "float64") == 0.1
    assert constant(3)(0) == 3.0


def test_inverse_sqrt_is_a_quotient_of_a_root(same):
    # Safaryan and Richtarik 2019, theorem 1: gamma_k = gamma_0 / sqrt(k + 1); root and quotient rounded once each.
    k = np.arange(2000, dtype=np.int32)
    expected = np.float32(0.1) / np.sqrt((k + 1).astype(np.float32))
    same(np.asarray([inverse_sqrt(0.1)(int(i)) for i in k], np.float32), expected)
    assert inverse_sqrt(1.0)(LAST) == float(np.float32(1.0) / np.sqrt(np.float32(2.0**31)))


def test_cosine_is_the_rounded_cosine():
    schedule = cosine(0.3, total_steps=1000, final=0.1)
    with mpmath.workdps(40):
        exact = [
            mpmath.mpf(0.3) * (mpmath.mpf(0.1) + (1 - mpmath.mpf(0.1)) * (1 + mpmath.cos(mpmath.pi * k / 1000)) / 2)
            for k in range(1001)
        ]
        assert [schedule(k) for k in range(1001)] == [float(np.float32(float(x))) for x in exact]
        for k, x in enumerate(exact):
            assert abs(schedule(k, "float64") - x) <= 2.0**-50 * x


def test_cosine_begins_at_its_value_ends_at_its_fraction_and_stays_there():
    schedule = cosine(2.0, total_steps=10, final=0.25)
    assert [schedule(k) for k in (0, 5, 10, 11, 10_000)] == [2.0, 1.25, 0.5, 0.5, 0.5]
    values = [schedule(k) for k in range(11)]
    assert values == sorted(values, reverse=True)
    assert cosine(1.0, total_steps=1)(1) == 0.0


def test_step_is_a_staircase(same):
    schedule = step(0.1, size=3, factor=0.3)
    expected = [0.1]
    for _ in range(3):
        expected.append(expected[-1] * 0.3)
    assert [schedule(k) for k in range(12)] == [float(np.float32(x)) for x in expected for _ in range(3)]
    assert [step(8.0, size=1, factor=0.5)(k) for k in range(4)] == [8.0, 4.0, 2.0, 1.0]
    assert step(1.0, size=1, factor=1.0)(LAST) == 1.0
    assert [step(1.0, size=2, factor=0.0)(k) for k in (1, 2, LAST)] == [1.0, 0.0, 0.0]
    assert step(1.0, size=1)(LAST) < 2.0**-100  # what a step flushes to zero anyway


def test_step_is_torchs_up_to_rounding():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    schedule = step(0.5, size=3, factor=0.1)
    for k in range(12):
        assert schedule(k, "float64") == pytest.approx(scheduler.get_last_lr()[0], rel=1e-14)
        optimizer.step()
        scheduler.step()


def test_linear_warmup_rises_to_its_value_and_then_counts_from_zero():
    seen = []

    class Recorded(schedules.Schedule):
        def at(self, step, dtype):
            seen.append(int(step))
            return np.asarray(0.5, dtype)

    schedule = linear_warmup(1.0, 4, then=Recorded())
    assert [schedule(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5]
    assert seen == [0, 0, 0, 0, 0, 1]
    assert [linear_warmup(0.1, 1)(k) for k in (0, 1, LAST)] == [float(np.float32(0.1))] * 3


def test_linear_warmup_is_a_product_and_a_quotient_rounded_once_each(same):
    expected = [np.float32(np.float32(0.1) * np.float32(k + 1)) / np.float32(7) for k in range(7)]
    same(np.asarray([linear_warmup(0.1, 7)(k) for k in range(7)], np.float32), np.asarray(expected))


def test_schedules_are_values(schedule):
    for twin in (pickle.loads(pickle.dumps(schedule)), eval(repr(schedule), vars(schedules))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(5) == schedule(5)
    assert schedule != constant(0.123)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "0.1", None, True])
@pytest.mark.parametrize(
    "build",
    [constant, inverse_sqrt, lambda v: cosine(v, 5), lambda v: linear_warmup(v, 5), lambda v: step(v, 5)],
    ids=["constant", "inverse_sqrt", "cosine", "linear_warmup", "step"],
)
def test_a_value_that_is_no_learning_rate(build, value):
    with pytest.raises((ValueError, TypeError), match=rf"`value` is {value!r}; "):
        build(value)


@pytest.mark.parametrize("count", [0, -1, 2.5, 3.0, "3", None, True])
@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("total_steps", lambda n: cosine(0.1, total_steps=n)),
        ("steps", lambda n: linear_warmup(0.1, n)),
        ("size", lambda n: step(0.1, size=n)),
    ],
)
def test_a_number_of_steps_that_is_none(argument, build, count):
    with pytest.raises((ValueError, TypeError), match=rf"`{argument}` is {count!r}; "):
        build(count)


@pytest.mark.parametrize(
    ("argument", "build"),
    [("final", lambda x: cosine(0.1, 5, final=x)), ("factor", lambda x: step(0.1, 5, factor=x))],
)
def test_a_fraction_outside_zero_to_one(argument, build):
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"`{argument}` is {value!r}; it must be finite and in \[0, 1\]"):
            build(value)


@pytest.mark.parametrize("then", [0.5, abs, "cosine"])
def test_a_successor_that_is_no_schedule(then):
    with pytest.raises(TypeError, match=r"`then` is .*; pass a schedule of signcore\.schedules, or None"):
        linear_warmup(0.1, 3, then=then)


def test_the_base_has_no_value():
    with pytest.raises(NotImplementedError, match="Schedule defines no value"):
        schedules.Schedule()(0)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: schedules.cosine(0.1, total_steps=n),
        lambda n: schedules.linear_warmup(0.1, steps=n),
        lambda n: schedules.step(0.1, size=n, factor=0.5),
    ],
)
@pytest.mark.parametrize("count", [0, 2**31])
def test_counts_that_no_step_counter_reaches(build, count):
    with pytest.raises(ValueError, match=f"is {count}; it must be finite and in"):
        build(count)
