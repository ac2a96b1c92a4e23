"""Votes: the sign of a sum of signs, and its mean, exact whatever the order."""

import numpy as np
import pytest

import signcore as sc

STACKS = np.random.default_rng(0).integers(-1, 2, (7, 5, 11)).astype(np.float32)


@pytest.mark.parametrize("ties", ["zero", "plus", "minus"])
@pytest.mark.parametrize("workers", [1, 2, 3, 6, 7])
def test_the_majority_is_the_sign_of_the_sum(workers, ties, backend, same):
    total = STACKS[:workers].sum(axis=0)
    undecided = {"zero": 0.0, "plus": 1.0, "minus": -1.0}[ties]
    expected = np.where(total == 0.0, np.float32(undecided), np.sign(total))
    same(sc.vote.majority(backend.array(STACKS[:workers]), ties=ties), expected)


def test_ties_go_to_zero_unless_told_otherwise(same):
    same(sc.vote.majority(STACKS), sc.vote.majority(STACKS, ties="zero"))


@pytest.mark.parametrize("vote", [sc.vote.majority, sc.vote.mean])
def test_the_order_of_the_workers_does_not_matter(vote, same):
    same(vote(STACKS), vote(STACKS[::-1]))


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 6, 7])
def test_the_mean_is_correctly_rounded(workers, backend, same):
    exact = STACKS[:workers].astype(np.float64).sum(axis=0) / workers  # one rounding to float64, 29 bits to spare
    same(sc.vote.mean(backend.array(STACKS[:workers])), exact.astype(np.float32))


def test_a_vote_of_one_is_its_own_answer(same):
    same(sc.vote.majority(STACKS[:1]), STACKS[0])
    same(sc.vote.mean(STACKS[:1]), STACKS[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    for vote in (sc.vote.majority, sc.vote.mean):
        assert vote(STACKS.astype(dtype)).dtype == dtype


def test_an_unknown_policy_for_ties():
    with pytest.raises(ValueError, match="`ties` is 'up'; choose one of 'zero', 'plus', 'minus'"):
        sc.vote.majority(STACKS, ties="up")


def test_a_vote_on_a_single_number(backend, same):
    stacked = backend.array(np.float32([1.0, -1.0, 1.0]))
    assert sc.vote.majority(stacked).shape == ()
    same(sc.vote.majority(stacked), np.asarray(1.0, np.float32))
    same(sc.vote.mean(stacked), np.asarray(np.float32(1.0) / np.float32(3.0)))
