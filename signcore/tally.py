"""Votes on packed signs, without unpacking them: counters made of bits.

Each bit of a byte is a coordinate of its own, and full adders on bytes count eight coordinates at once. The layout
of the bytes does not matter here; see bits.py.
"""

from __future__ import annotations

from typing import Any

from . import blocks, checks
from .frameworks import namespace
from .tree import Leaf

__all__ = ["count", "majority", "majority_ternary"]

MANY_ROWS = (
    blocks.SIZE // 4
)  # bytes of each row worked on at a time, on NumPy: there are many rows to keep in the cache


def count(stacked: Any) -> Any:
    """Number of set bits per coordinate over all workers, itself in planes: vertical counters.

    Parameters
    ----------
    stacked : uint8 array, shape (M, nb)
        Packed bits of M workers.

    Returns
    -------
    uint8 array, shape (M.bit_length(), nb)
        Row b holds, in the layout of the votes, bit b of each coordinate's count.

    Raises
    ------
    TypeError
        `stacked` is no array of uint8.
    ValueError
        No workers.

    Examples
    --------
    Three workers; both votes of three, two, one and none of them:

    >>> import numpy as np
    >>> [f"{byte:04b}" for byte in count(np.asarray([[0b0111], [0b0011], [0b0001]], dtype=np.uint8))[:, 0]]
    ['0101', '0011']
    """
    _check_votes(stacked)
    xp = namespace(stacked)
    return blocks.by_columns(lambda a, b: xp.stack(_counts(stacked[:, a:b])), stacked, stacked.shape[1], MANY_ROWS)


def majority(stacked: Any, ties: str = "plus", coins: Any = None) -> Any:
    """Majority vote on one-bit signs: `signcore.vote.majority` of the unpacked signs, packed.

    Padding stays 0 without knowing the size: nobody votes for it, and none of at least one worker is no tie.

    Parameters
    ----------
    stacked : uint8 array, shape (M, nb)
        What `pack` made of the signs of M workers.
    ties : {"plus", "minus", "random"}
        What an undecided coordinate becomes, which only an even M can have; one bit has no zero.
    coins : uint8 array, shape (nb,), optional
        For ``"random"``, and only then: the bits that undecided coordinates take, 1 for +1.

    Returns
    -------
    uint8 array, shape (nb,)

    Raises
    ------
    TypeError
        `stacked` or `coins` is no array of uint8.
    ValueError
        Unknown `ties`, no workers, or `coins` missing, superfluous or of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> votes = np.asarray([[0b011], [0b001]], dtype=np.uint8)
    >>> [f"{majority(votes, ties)[0]:03b}" for ties in ("plus", "minus")]
    ['011', '001']
    """
    checks.choice("ties", ties, ("plus", "minus", "random"))
    _check_votes(stacked)
    _check_coins(coins, ties, stacked)
    workers, nb = stacked.shape

    def body(start: int, stop: int) -> Any:
        *low, highest = _counts(stacked[:, start:stop])  # the highest bit alone is more than half of the workers
        undecided = ~highest
        more = ~undecided  # not `highest`, which is the caller's memory when there is one worker
        for b, bit in reversed(list(enumerate(low))):  # from the highest on: is the count above M // 2, or equal?
            if workers // 2 // 2**b % 2:
                undecided = undecided & bit
            else:
                more = more | (undecided & bit)  # these may stay undecided, too: more they are
        if ties == "minus" or workers % 2:
            return more
        return more | (undecided if coins is None else undecided & coins[start:stop])

    return blocks.by_columns(body, stacked, nb, MANY_ROWS)


def majority_ternary(stacked: Any) -> Any:
    """Majority vote on signs with zeros: `signcore.vote.majority` of the unpacked signs, packed.

    Parameters
    ----------
    stacked : uint8 array, shape (M, 2 * nb)
        What `pack_ternary` made of the signs of M workers.

    Returns
    -------
    uint8 array, shape (2 * nb,)
        As from `pack_ternary`; a tie is 0, and so is a coordinate on which everybody votes 0.

    Raises
    ------
    TypeError
        `stacked` is no array of uint8.
    ValueError
        No workers, or an odd number of bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from signcore.bits import pack_ternary, unpack_ternary
    >>> first, second = [1.0, 0.0, 1.0], [0.0, -1.0, -1.0]
    >>> votes = np.stack([pack_ternary(np.asarray(s, dtype=np.float32)) for s in (first, second)])
    >>> unpack_ternary(majority_ternary(votes), 3, "float32")
    array([ 1., -1.,  0.], dtype=float32)
    """
    _check_votes(stacked)
    workers, width = stacked.shape
    if width % 2:
        raise ValueError(f"`stacked` has shape {tuple(stacked.shape)}; pass what pack_ternary made: (M, 2 * nb)")
    xp = namespace(stacked)
    planes = xp.reshape(stacked, (workers, 2, width // 2))

    def body(start: int, stop: int) -> Any:
        first, *higher = _counts(planes[:, :, start:stop])
        plus, minus = first[0, :] & ~first[1, :], first[1, :] & ~first[0, :]
        for bit in higher:  # a higher bit overrules where the counts differ in it
            equal = ~(bit[0, :] ^ bit[1, :])
            plus, minus = bit[0, :] & ~bit[1, :] | plus & equal, bit[1, :] & ~bit[0, :] | minus & equal
        return xp.stack([plus, minus])

    return xp.reshape(blocks.by_columns(body, stacked, width // 2, MANY_ROWS), (width,))


def _counts(votes: Any) -> list[Any]:
    """Number of set bits over the first axis, bit b of it in row b."""
    return [plane[0, ...] for plane in _counters(votes, 1)]


def _counters(votes: Any, voters: int) -> list[Any]:
    """Sums of bits over the first axis, lowest bit first, each with `voters` rows, by a tree of full adders.

    Twice as many voters hold half of the votes each, and one vote of an odd number goes in as the carry. So M votes
    take about M full adders on bytes, but a compiler sees a number of operations that grows as the square of log(M):
    adders on one row after the other, M of them, took XLA a minute to compile for M = 512.
    """
    half, odd = votes.shape[0] // voters // 2, votes.shape[0] // voters % 2
    if half == 0:
        return [votes]
    pairs = _counters(votes[: 2 * half * voters, ...], 2 * voters)
    carry = votes[2 * half * voters :, ...] if odd else None
    sums = []
    for pair in pairs:
        a, b = pair[:voters, ...], pair[voters:, ...]
        either = a ^ b
        if carry is None:
            sums.append(either)
            carry = a & b
        else:
            sums.append(either ^ carry)
            carry = (a & b) | (either & carry)
    return [*sums, carry]


def _check_votes(stacked: Any) -> None:
    checks.packed("stacked", stacked)
    if len(stacked.shape) != 2 or stacked.shape[0] == 0:
        raise ValueError(
            f"`stacked` has shape {tuple(stacked.shape)}; stack the packed bytes of at least one worker: (M, bytes)"
        )


def _check_coins(coins: Any, ties: str, stacked: Any) -> None:
    if (coins is None) == (ties == "random"):
        given = "not given" if coins is None else "given"
        raise ValueError(f"`coins` are {given} and `ties` is {ties!r}; pass coins with ties='random', and only then")
    if coins is None:
        return
    checks.packed("coins", coins)
    checks.same_home("coins", Leaf("", coins), "stacked", Leaf("", stacked))
    if tuple(coins.shape) != tuple(stacked.shape[1:]):
        raise ValueError(
            f"`coins` has shape {tuple(coins.shape)}, and `stacked` {tuple(stacked.shape)}; "
            f"pass one bit per coordinate: {tuple(stacked.shape[1:])}"
        )
