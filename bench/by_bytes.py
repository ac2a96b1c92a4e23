"""Every rule's jitted step on JAX beside Signum's, scaled by the bytes that its arrays move; 4 M float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import Contestant, race, start

import signcore as sc

SIZE, QUICK = 4_000_000, 40_000


class Row(NamedTuple):
    """A rule as it is raced, and what it is held to: a multiple of Signum's time, plus multiples of others'."""

    name: str
    options: dict[str, Any]
    beside: tuple[str, ...] = ()  # "generator", and exact sums by their kind
    allowed: float = 1.15
    by_bytes: bool = True  # whether Signum's time is scaled


SUMS: dict[Any, Callable[[Any], Any]] = {
    "sum": sc.sums.exact_sum,
    "dot": lambda g: sc.sums.exact_dot(g, g),
    "norm1": sc.sums.norm1,
    "norm2": sc.sums.norm2,
}
FACTOR = 1.2  # of the generator's or a sum's time


def _unlisted(name: str) -> Row:
    kinds = [partial.kind for partial in sc.rule(name, lr=1e-3).partials.values()]
    return Row(name, {}, tuple(kind for kind in kinds if kind in SUMS))


# A rule that is not listed runs with its defaults, held to the bytes and to what ALIAS may take for each exact sum.
ROWS = {
    "alias": [
        Row("alias", {}, ("norm1",), 1.0, by_bytes=False),
        Row("alias", {"update_gap": 10}, (), 2.0, by_bytes=False),
    ],
    # measuring until the switch, elementwise after it
    "hybrid": [_unlisted("hybrid"), Row("hybrid", {"switch_step": 1})],
    "ssdm": [Row("ssdm", {}, ("generator",), 1.0, by_bytes=False)],
    "dithered_signum": [Row("dithered_signum", {}, ("generator",), 1.0, by_bytes=False)],
    "noisy_signsgd": [Row("noisy_signsgd", {}, ("generator",), 1.0, by_bytes=False)],
    "stosignsgd": [Row("stosignsgd", {}, ("generator",), 1.0, by_bytes=False)],
}


def moved(rule: sc.Rule) -> float:
    """Bytes per parameter: params and state read and written, gradients read."""
    state = 8.0 * sum(kind in ("element", "copy") for kind in rule.kinds.values())
    return 12.0 + state + 0.25 * sum(kind == "packed" for kind in rule.kinds.values())


def _step(rule: sc.Rule, size: int) -> Callable[[Any], object]:
    params = jnp.asarray(np.random.default_rng(0).standard_normal(size, np.float32))
    state = rule.init(params)
    values = {"value": jnp.float32(10.0)} if "value" in rule.needs else {}

    def advance(params: Any, state: Any, grads: Any, values: Any) -> Any:
        return rule.step(params, grads, state, **values)

    compiled = jax.jit(advance, donate_argnums=(0, 1))

    def step(grads: Any) -> None:
        nonlocal params, state
        params, state = jax.block_until_ready(compiled(params, state, grads, values))

    return step


def _called(function: Callable[[Any], Any]) -> Callable[[Any], object]:
    compiled = jax.jit(function)
    return lambda grads: jax.block_until_ready(compiled(grads))


def rows() -> Iterator[tuple[Row, sc.Rule]]:
    """What is raced; a rule that calls back is not, because its time is the caller's."""
    for name in sc.rules():
        for row in ROWS.get(name) or [_unlisted(name)]:
            rule = sc.rule(name, lr=1e-3, **row.options)
            if not rule.needs & {"value_fn", "grad_fn"}:
                yield row, rule


def run(seconds: float, patience: float, quick: bool) -> Iterator[dict[str, Any]]:
    """A message per rule: medians, and the ratio to what it is held to, formed inside the rounds."""
    size = QUICK if quick else SIZE
    grads = [jnp.asarray(np.random.default_rng(seed).standard_normal(size, np.float32)) for seed in (1, 2, 3)]
    key = jax.random.key(0)

    def words(grads: Any) -> Any:
        return jax.random.bits(key, (size,))

    base = sc.rule("signum", lr=1e-3)
    for row, rule in rows():
        entered = [
            Contestant("rule", "jit", True, _step(rule, size)),
            Contestant("signum", "jit", False, _step(base, size)),
        ]
        for label in dict.fromkeys(row.beside):
            entered.append(Contestant(label, "jit", False, _called(SUMS.get(label, words))))
        found = {each.label: each for each in start(entered, grads[0], patience)}
        if set(found) != {each.label for each in entered}:
            yield {"by_bytes": row.name, "options": row.options, "late": True}
            continue
        cycle = row.options.get("update_gap", 1)  # steps that measure and steps that do not
        race(list(found.values()), grads, seconds, least=max(7, 3 * cycle))
        scale = moved(rule) / moved(base) if row.by_bytes else 1.0
        times = {label: _means(each.times, cycle) for label, each in found.items()}
        bound = [
            row.allowed * scale * base + FACTOR * sum(others)
            for base, *others in zip(times["signum"], *(times[label] for label in row.beside), strict=True)
        ]
        ratios = [mine / most for mine, most in zip(times["rule"], bound, strict=True)]
        yield {
            "by_bytes": row.name,
            "options": row.options,
            "bytes": moved(rule),
            "bound": _text(row, scale),
            "medians": {label: statistics.median(each) for label, each in times.items()},  # of means over a cycle
            "of_bound": statistics.quantiles(ratios, n=4, method="inclusive"),
        }


def _means(times: list[float], cycle: int) -> list[float]:
    whole = range(0, len(times) - cycle + 1, cycle)
    return [statistics.fmean(times[start : start + cycle]) for start in whole]


def _text(row: Row, scale: float) -> str:
    base = f"{row.allowed:g} x {scale:g} x Signum"
    return " + ".join([base, *(f"{FACTOR:g} x {label}" for label in row.beside)])
