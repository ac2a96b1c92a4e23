"""Exact means bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from signcore_conformance import words


def test_signed_zeros_differ() -> None:
    assert words.different(np.float32([0.0]), np.float32([-0.0])).tolist() == [0]


def test_nan_is_compared_by_class() -> None:
    payloads = np.asarray([0x7FC00001, 0xFFC00002], np.uint32).view(np.float32)
    assert words.different(payloads[:1], payloads[1:]).size == 0
    assert words.different(payloads[:1], np.float32([1.0])).tolist() == [0]


def test_ulps_count_the_floats_between() -> None:
    one = np.float32(1.0)
    assert words.ulps(one, np.nextafter(one, np.float32(2.0)), np.float32) == 1
    assert words.ulps(np.float32(-0.0), np.float32(0.0), np.float32) == 0
    assert words.ulps(-np.float32(2.0**-149), np.float32(2.0**-149), np.float32) == 2


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1))
def test_ordered_integers_go_back_to_the_same_floats(values: list[float]) -> None:
    x = np.asarray(values, np.float32) + np.float32(0.0)  # the order has one zero
    assert words.different(words.from_ordered(words.ordered(x), np.float32), x).size == 0


def test_digests_see_dtype_shape_and_every_bit() -> None:
    def of(array: np.ndarray) -> str:
        digest = words.Digest()
        digest.add(array)
        return digest.hex()

    x = np.zeros(4, np.float32)
    others = [np.zeros((2, 2), np.float32), np.zeros(4, np.int32), -x, np.zeros(3, np.float32)]
    assert len({of(array) for array in [x, *others]}) == 5
    assert of(x) == of(x.copy())
