"""Compares a trajectory with the reference, word by word, and describes the first difference in full."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import signcore as sc
from signcore.tree import flatten

from . import golden, reference, words
from .backends import Step
from .workloads import Workload, losses, make, mixed


class Trace(NamedTuple):
    """The reference's outcome of one step: parameters and state fields by path."""

    params: dict[str, np.ndarray]
    state: dict[str, Any]


class Outcome(NamedTuple):
    """What a comparison found."""

    words: dict[str, int]  # compared, by dtype of the leaf that they belong to
    mismatch: dict[str, Any] | None
    digest: str  # of all words of the leaves that quick runs have too


def find(name: str, rule: sc.Rule, dtype: str, large: int, dtypes: tuple[str, ...] = ()) -> Workload:
    """A workload by name; only `mixed` depends on the `dtypes` of a backend."""
    return mixed(dtypes) if name == "mixed" else make(name, rule, dtype, large)


@lru_cache(maxsize=3)
def expected(name: str, rule: sc.Rule, dtype: str, large: int, dtypes: tuple[str, ...] = ()) -> list[Trace]:
    """The reference's trajectory of a workload."""
    return list(trace(find(name, rule, dtype, large, dtypes), rule))


def trace(workload: Workload, rule: sc.Rule) -> Iterator[Trace]:
    """The reference's outcome after every step."""
    model = golden.reference(rule)
    params, state = workload.params, model.init(workload.params)
    for inputs in workload.inputs:
        grads = inputs
        if workload.is_network:
            grads = reference.network(params, inputs)[0] | by_path(inputs["rest"])
        params, state = model.step(params, grads, state, **losses(params, model.needs))
        yield Trace(params, state)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Leaves of a NumPy tree by path, without the Nones."""
    return {path: np.asarray(value) for path, value in flatten(tree) if value is not None}


def compare(steps: Iterable[Step], traces: Iterable[Trace]) -> Outcome:
    """Every word of every step; stops at the first step that differs."""
    counts: dict[str, int] = {}
    digest = words.Digest()
    done = 0
    iterator = iter(steps)
    for k, truth in enumerate(traces):
        try:
            params, state = next(iterator)
        except StopIteration:
            return Outcome(counts, {"step": k, "path": "", "problem": "the trajectory ends early"}, digest.hex())
        got = {f"params/{path}": value for path, value in by_path(params).items()}
        want = {f"params/{path}": value for path, value in truth.params.items()}
        kinds = {f"params/{path}": value.dtype.name for path, value in truth.params.items()}
        for field, value in truth.state.items():
            if field == "step":
                got["state/step"] = np.asarray(state.step)
                want["state/step"] = np.asarray(value, dtype=np.int32)
                continue
            if not isinstance(value, dict):  # one for the whole state
                got[f"state/{field}"] = np.asarray(getattr(state, field))
                want[f"state/{field}"] = value
                continue
            for path, leaf in by_path(getattr(state, field)).items():
                got[f"state/{field}/{path}"] = leaf
            for path, leaf in value.items():
                want[f"state/{field}/{path}"] = leaf
                kinds[f"state/{field}/{path}"] = kinds[f"params/{path}"]
        found = _first_difference(got, want)
        if found is not None:
            return Outcome(counts, {"step": k, **found}, digest.hex())
        for path in sorted(want):
            kind = kinds.get(path, next(iter(kinds.values())))
            counts[kind] = counts.get(kind, 0) + want[path].size
            if (path.endswith("/w1") or "/edge/" in path) and not path.startswith("state/stream/"):
                digest.add(got[path])
        done += 1
    return Outcome(counts, None if done else {"step": 0, "path": "", "problem": "no step was run"}, digest.hex())


def _first_difference(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if set(got) != set(want):
        odd = sorted(set(got) ^ set(want))[0]
        return {"path": odd, "problem": "missing" if odd in want else "not in the reference"}
    for path in sorted(want):
        a, b = got[path], want[path]
        if a.dtype != b.dtype or a.shape != b.shape:
            problem = f"{a.dtype.name}{list(a.shape)} where {b.dtype.name}{list(b.shape)} belongs"
            return {"path": path, "problem": problem}
        wrong = words.different(a, b)
        if len(wrong):
            i = int(wrong[0])
            flat_a, flat_b = a.reshape(-1), b.reshape(-1)
            floating = a.dtype.kind not in "iub"
            return {
                "path": path,
                "index": [int(x) for x in np.unravel_index(i, a.shape)] if a.shape else [],
                "got": words.hexadecimal(a, i),
                "expected": words.hexadecimal(b, i),
                "got_value": repr(float(flat_a[i])),
                "expected_value": repr(float(flat_b[i])),
                "ulps": words.ulps(flat_a[i], flat_b[i], a.dtype) if floating else None,
                "words_wrong_in_leaf": len(wrong),
            }
    return None


def versions() -> dict[str, str]:
    """Versions of everything that could matter."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    names = ("signcore", "numpy", "array-api-compat", "array-api-strict", "ml_dtypes", "torch", "jax", "jaxlib")
    for name in (*names, "optax", "cupy-cuda12x", "cupy-cuda13x", "mpmath"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
