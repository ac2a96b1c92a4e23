"""Trees: what is taken apart is put together again, and paths name every leaf."""

from collections import OrderedDict, defaultdict
from typing import NamedTuple

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signcore.tree import Leaf, flatten, unflatten


class Pair(NamedTuple):
    weight: object
    bias: object


class Single(NamedTuple):
    only: object


def trees(leaves):
    return st.recursive(
        leaves,
        lambda child: st.one_of(
            st.lists(child, max_size=3),
            st.lists(child, max_size=3).map(tuple),
            st.dictionaries(st.text("abc", max_size=2), child, max_size=3),
            st.dictionaries(st.integers(0, 20), child, max_size=3),
            st.dictionaries(st.text("abc", max_size=2), child, max_size=3).map(OrderedDict),
            st.builds(Pair, child, child),
            st.builds(Single, child),
        ),
        max_leaves=12,
    )


TREES = trees(st.one_of(st.none(), st.integers()))


def types(tree):
    if isinstance(tree, dict):
        return type(tree), {key: types(child) for key, child in tree.items()}
    return (type(tree), *map(types, tree)) if isinstance(tree, (list, tuple)) else None


@settings(deadline=None, max_examples=80)
@given(TREES)
def test_putting_together_undoes_taking_apart(tree):
    rebuilt = unflatten(tree, [leaf.value for leaf in flatten(tree)])
    assert rebuilt == tree
    assert types(rebuilt) == types(tree)


@settings(deadline=None, max_examples=80)
@given(TREES)
def test_values_come_back_at_their_paths(tree):
    leaves = flatten(tree)
    other = unflatten(tree, list(range(len(leaves))))
    assert flatten(other) == [Leaf(path, i) for i, (path, _) in enumerate(leaves)]
    assert types(other) == types(tree)


@settings(deadline=None, max_examples=80)
@given(trees(st.integers()))
def test_the_leaves_are_those_of_jax(tree):
    # jax.tree_util sorts integer keys as numbers and leaves out None, so sets of leaves and only then their order.
    assert sorted(leaf.value for leaf in flatten(tree)) == sorted(jax.tree.leaves(tree))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=5), st.randoms())
def test_the_order_of_insertion_moves_no_leaf_and_is_kept(entries, rng):
    shuffled = list(entries.items())
    rng.shuffle(shuffled)
    assert flatten(dict(shuffled)) == flatten(entries)
    assert list(unflatten(dict(shuffled), list(range(len(entries))))) == [key for key, _ in shuffled]


def test_paths_are_keys_joined_by_slashes():
    tree = {"b": [1, (2, None)], "a": Pair(3, {10: 4, 9: 5})}
    assert [tuple(leaf) for leaf in flatten(tree)] == [
        ("a/weight", 3),
        ("a/bias/10", 4),
        ("a/bias/9", 5),
        ("b/0", 1),
        ("b/1/0", 2),
        ("b/1/1", None),
    ]


@pytest.mark.parametrize("leaf", [1, None, "text", 2.0])
def test_a_bare_leaf_has_the_empty_path(leaf):
    assert flatten(leaf) == [("", leaf)]
    assert unflatten(leaf, [7]) == 7


@pytest.mark.parametrize("tree", [{}, [], (), {"a": {}, "b": []}])
def test_an_empty_tree_has_no_leaves(tree):
    assert flatten(tree) == []
    assert unflatten(tree, []) == tree


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_too_many_values(count):
    with pytest.raises((ValueError, IndexError)):
        unflatten({"a": 1, "b": 2}, [0] * count)


def test_two_keys_that_read_alike_are_refused():
    with pytest.raises(ValueError, match=r"two keys .* have the same name as text: '1', 1; rename"):
        flatten({"a": {1: 0, "1": 1}})


def test_dicts_of_other_classes_come_back_as_they_were():
    tree = defaultdict(list, a=1)
    rebuilt = unflatten(tree, [2])
    assert rebuilt == {"a": 2}
    assert rebuilt["missing"] == []
    assert tree == {"a": 1}


def test_the_input_is_not_written_to():
    tree = {"a": [1, 2], "b": OrderedDict(c=3)}
    unflatten(tree, [4, 5, 6])
    assert tree == {"a": [1, 2], "b": {"c": 3}}
