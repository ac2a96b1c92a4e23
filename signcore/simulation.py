"""Many workers in one process: the reference that every distributed run must equal.

Nothing here is shared with a transport but the rule and the functions that aggregate (vote.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import checks, frameworks, random, totals, vote
from .marks import Wire
from .rule import Rule
from .tree import flatten, unflatten
from .walk import Work, words_of


def simulate(
    rule: Rule,
    params: Any,
    grads_per_worker: Sequence[Any],
    states: Sequence[Any] | None = None,
    *,
    hyper: Mapping[str, Any] | None = None,
    decay_mask: Any = None,
    value: Any = None,
    value_fn: Any = None,
    grad_fns: Sequence[Any] | None = None,
) -> tuple[Any, list[Any]]:
    """One step of several workers who see different gradients and keep the same parameters.

    Parameters
    ----------
    rule : Rule
    params : array or tree of arrays
        The same on every worker.
    grads_per_worker : sequence of trees
        One per worker, as `Rule.step` takes it. A leaf has a gradient on every worker or on none.
    states : sequence of states, optional
        One per worker: ``rule.init(params, worker=n)`` at first, which is the default.
    hyper, decay_mask
        As `Rule.step` takes them.
    value : number or sequence of numbers, optional
        The loss at `params` of all workers together, or each worker's, whose mean is taken.
    value_fn : function of params, optional
        The loss of all workers together.
    grad_fns : sequence of functions of params, optional
        Each worker's gradients of this step's sample.

    Returns
    -------
    params : tree
    states : list
        Of every worker.

    Raises
    ------
    TypeError, ValueError
        What `Rule.step` raises; no workers; another number of states; a leaf with gradients on some workers only; a
        `value_fn` that does not give the same number twice.

    Notes
    -----
    One worker's step is ``rule.step``, to the bit.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule, p = sc.SignSGD(lr=1.0), np.zeros(2, np.float32)
    >>> grads = [np.asarray(g, np.float32) for g in ([1.0, 2.0], [3.0, -1.0], [-1.0, -1.0])]
    >>> p, states = simulate(rule, p, grads)
    >>> p
    array([-1.,  1.], dtype=float32)
    """
    workers = len(grads_per_worker)
    if not workers:
        raise ValueError("`grads_per_worker` is empty; pass the gradients of at least one worker")
    states = [rule.init(params, worker=n) for n in range(workers)] if states is None else list(states)
    for name, given in (("states", states), ("grad_fns", grad_fns)):
        if given is not None and len(given) != workers:
            raise ValueError(f"`{name}` has {len(given)} entries for {workers} workers; pass one for each")
    losses = list(value) if isinstance(value, (list, tuple)) else [value] * workers
    if len(losses) != workers:
        raise ValueError(f"`value` has {len(losses)} entries for {workers} workers; pass one for each, or their mean")
    _same_leaves(grads_per_worker)

    found = []
    for n in range(workers):
        grad_fn = None if grad_fns is None else grad_fns[n]
        measured = rule.measure(params, grads_per_worker[n], states[n], hyper=hyper, value=losses[n], grad_fn=grad_fn)
        found.append(measured)
    scalars = [rule.finish(partials, workers=workers) for partials in _merged(rule, found)]
    messages = []
    for n in range(workers):
        message, states[n] = rule.message(params, grads_per_worker[n], states[n], scalars[n], hyper=hyper)
        messages.append(message)
    aggregate = aggregated(rule, messages, params, states[0].step)
    if rule.settlements:
        settled = rule.settle(params, grads_per_worker[0], aggregate, states[0], scalars[0], hyper=hyper)
        scalars = [{**each, **rule.finish(settled)} for each in scalars]
    trial = None if value_fn is None else _repeated(value_fn, workers)
    delta: Any = None
    for n in range(workers):
        delta, states[n] = rule.apply(
            params,
            grads_per_worker[n],
            aggregate,
            states[n],
            scalars[n],
            hyper=hyper,
            decay_mask=decay_mask,
            value_fn=trial,
        )
    return Work(rule, params, grads_per_worker[0], states[0], None, hyper, None).moved(delta), states


def aggregated(rule: Rule, messages: Sequence[Any], params: Any, step: Any) -> Any:
    """The workers' messages as one, each field as the rule's `Wire` declares it.

    A vote's coins, for ``ties="random"``, are the same for everybody: their key is of the seed and the leaf's path.

    Parameters
    ----------
    rule : Rule
    messages : sequence of messages
        One per worker, in order.
    params : tree
        Whose leaves the messages are of.
    step : 0-d int32 array
        Of the state; folded into the coins.

    Returns
    -------
    message
        A gathered field is None: what it scaled has used it.
    """
    fields: dict[str, Any] = {}
    for name, wire in rule._wires.items():
        if wire.aggregate == "gathered":
            fields[name] = None
            continue
        columns = [[leaf.value for leaf in flatten(getattr(message, name))] for message in messages]
        scales: list[list[Any]] = []
        if wire.aggregate == "scaled":
            scales = [[leaf.value for leaf in flatten(message.scale)] for message in messages]
        out: list[Any] = []
        for i, (path, p) in enumerate(flatten(params)):
            sent = [column[i] for column in columns]
            if p is None or sent[0] is None:
                out.append(None)
            else:
                coins = _coins(rule, wire, path, p, step, len(messages))
                out.append(combined(rule, wire, sent, [scale[i] for scale in scales], coins))
        fields[name] = unflatten(params, out)
    return rule.Message(**fields)


def combined(rule: Rule, wire: Wire, sent: list[Any], scales: list[Any], coins: Any) -> Any:
    """One leaf of a field, of all workers."""
    xp = frameworks.namespace(sent[0])
    stacked = xp.stack(sent)
    if wire.aggregate == "scaled":
        return vote.weighted_mean(stacked, xp.stack(scales))
    if len(sent) == 1:
        return sent[0]
    if wire.aggregate == "vote" and getattr(rule, "aggregation", "majority") == "majority":
        return vote.majority(stacked, getattr(rule, "ties", "zero"), coins)
    if wire.aggregate == "max":
        return xp.max(stacked, axis=0)
    return vote.total(stacked) if wire.aggregate == "sum" else vote.mean(stacked)


def _coins(rule: Rule, wire: Wire, path: str, p: Any, step: Any, workers: int) -> Any:
    if wire.aggregate != "vote" or getattr(rule, "ties", "zero") != "random" or workers == 1:
        return None
    xp = frameworks.namespace(p)
    key = frameworks.constant(xp, random.stream_key(getattr(rule, "seed", 0), f"ties/{path}"), xp.int32, p)
    return xp.reshape(words_of(p, key, step, 0), p.shape)


def _merged(rule: Rule, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each worker's partials, those over workers merged."""
    whole = found[0]
    for each in found[1:]:
        whole = totals.merge(rule, whole, each, over="workers")
    over = {name for name in whole if rule.partials[name].over == "workers"}
    return [{name: whole[name] if name in over else value for name, value in each.items()} for each in found]


def _same_leaves(grads_per_worker: Sequence[Any]) -> None:
    first = [leaf.path for leaf in flatten(grads_per_worker[0]) if leaf.value is not None]
    for n, grads in enumerate(grads_per_worker[1:], start=1):
        mine = [leaf.path for leaf in flatten(grads) if leaf.value is not None]
        checks.same_structure(f"grads_per_worker[{n}]", mine, "grads_per_worker[0]", first)


def _repeated(value_fn: Any, workers: int) -> Any:
    """`value_fn` for every worker, evaluated for each: replicas that decide differently would part for ever."""
    seen: list[Any] = []

    def evaluate(params: Any) -> Any:
        value = value_fn(params)
        readable = not hasattr(value, "dtype") or (frameworks.is_on_host(value) and not frameworks.is_traced(value))
        if readable and seen and float(value) != seen[0] and not (float(value) != float(value) and seen[0] != seen[0]):
            raise ValueError(
                f"`value_fn` gave {seen[0]!r} and then {float(value)!r} for the same params; it must return the loss "
                f"of all workers together, the same number on each"
            )
        if readable and not seen:
            seen.append(float(value))
        return value

    return evaluate if workers > 1 else value_fn
