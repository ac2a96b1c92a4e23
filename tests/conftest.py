"""What the tests share: the libraries, and equality of words. Exact means bits; NaN is compared by class."""

import os
from dataclasses import fields
from typing import Any, NamedTuple

import array_api_strict
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from signcore.marks import marks
from signcore.rule import Rule, classes
from signcore_conformance import golden

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras' own default needs TensorFlow

INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def to_numpy(x: Any) -> np.ndarray:
    """A host array with the same words."""
    if isinstance(x, torch.Tensor):
        x = x.detach()
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()
    return np.asarray(x)


def words(x: Any) -> np.ndarray:
    """Integer view of an array of any library, every NaN as the same word."""
    x = to_numpy(x)
    if x.dtype.kind in "iub":
        return x
    nan = x != x
    return np.where(nan, -1, np.ascontiguousarray(x).view(INTEGERS[x.dtype.itemsize]).reshape(x.shape))


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of plain containers; not signcore's own, which is under test."""
    if isinstance(tree, dict):
        children = [(str(key), tree[key]) for key in sorted(tree, key=str)]
    elif isinstance(tree, (list, tuple)):
        children = list(zip(getattr(tree, "_fields", map(str, range(len(tree)))), tree, strict=True))
    else:
        return [("", tree)]
    return [(f"/{key}{path}", leaf) for key, child in children for path, leaf in leaves(child)]


def assert_same(left: Any, right: Any) -> None:
    """Two trees of arrays of any library hold the same words in the same places, in the same dtypes."""
    ours, theirs = leaves(left), leaves(right)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b, path
            continue
        a, b = to_numpy(a), to_numpy(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        different = np.flatnonzero(words(a).reshape(-1) != words(b).reshape(-1))
        first = different[:1]
        assert not different.size, (
            f"{different.size} of {a.size} words differ at {path!r}, "
            f"first at {first}: {a.reshape(-1)[first]} and {b.reshape(-1)[first]}"
        )


def differ(left: Any, right: Any) -> bool:
    """Whether two trees of the same structure differ in a word."""
    pairs = zip(leaves(left), leaves(right), strict=True)
    return any(words(a).tobytes() != words(b).tobytes() for (_, a), (_, b) in pairs if a is not None)


class Backend(NamedTuple):
    """A library, and how NumPy arrays get there."""

    name: str
    array: Any

    def compiled(self, function: Any) -> Any:
        """The function, jitted for JAX: that costs one compilation instead of one per operation."""
        return jax.jit(function) if self.name == "jax" else function

    def tree(self, node: Any) -> Any:
        """A tree of NumPy arrays as one of this library's."""
        if isinstance(node, dict):
            return {key: self.tree(child) for key, child in node.items()}
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*map(self.tree, node))
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.tree, node))
        return None if node is None else self.array(np.asarray(node))


def _read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _torch(x: np.ndarray) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.tensor(x.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(x)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("numpy", np.copy),
        Backend("numpy-readonly", _read_only),
        Backend("array-api-strict", array_api_strict.asarray),
        Backend("torch", _torch),
        Backend("jax", lambda x: jnp.asarray(x)),
    )
}


@pytest.fixture(params=list(BACKENDS))
def backend(request):
    """Each library in turn; float64 and JAX without x64 exclude each other, see the tests that need it."""
    return BACKENDS[request.param]


@pytest.fixture(params=[name for name in BACKENDS if name != "numpy"])
def other(request):
    """Each library but NumPy, whose words it has to give."""
    return BACKENDS[request.param]


# The contracts of the adapters are tested with these; that every rule gives its words through every adapter is
# tests/adapters/test_every_rule.py.
PLAIN = golden.plain()


def _features(name: str) -> set[str]:
    """What an adapter may have to treat by itself: the kinds of fields in a rule's state, the hooks it defines."""
    cls = classes()[name]
    hooks = {hook for hook in vars(cls) if hasattr(Rule, hook) and not hook.startswith("_") and hook != "check"}
    return {mark.kind for mark in marks(cls.State).values()} | hooks


def _covering() -> list[str]:
    chosen: list[str] = []
    missing = set().union(*map(_features, PLAIN))
    while missing:
        best = max(PLAIN, key=lambda name: (len(missing & _features(name)), -len(fields(classes()[name]))))
        chosen.append(best)
        missing -= _features(best)
    return chosen


# Plain rules that have, between them, every kind of state field and every hook that any of them has. What an
# adapter does around a step (wrappers, transforms, spellings, refusals) depends on nothing else of a rule, and each
# such test compiles for a second or more. So it runs for these; that the bits are right is tested for every rule.
REPRESENTATIVES = _covering()


@pytest.fixture(params=REPRESENTATIVES)
def representative(request):
    """The name of each rule that stands for others in what does not depend on the arithmetic."""
    return request.param


@pytest.fixture(scope="session")
def representatives():
    return REPRESENTATIVES


@pytest.fixture(scope="session")
def libraries():
    return BACKENDS


@pytest.fixture(scope="session")
def same():
    return assert_same


@pytest.fixture(scope="session", name="differ")
def _differ():
    return differ


@pytest.fixture(scope="session", name="words")
def _words():
    return words


@pytest.fixture(scope="session", name="to_numpy")
def _to_numpy():
    return to_numpy


@pytest.fixture
def traces_afresh():
    """Nothing compiled before a test is used in it, and nothing compiled in it afterwards."""
    jax.clear_caches()
    yield
    jax.clear_caches()
