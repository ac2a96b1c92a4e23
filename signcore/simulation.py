"""Many workers in one process: the reference that every distributed run must equal.

Nothing here is shared with a transport but the rule and the functions that aggregate (vote.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import checks, frameworks, random, totals, vote
from .checks import Range
from .marks import Wire
from .rule import Rule
from .tree import flatten, unflatten
from .walk import Work, words_of

# In which sums of weights that nearly cancel stay normal numbers of float32, and sums of many stay finite.
WEIGHTS = Range(2.0**-100, maximum=2.0**100, why="only their ratios count")


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
    weights: Sequence[float] | None = None,
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
    value_fn : function of params or sequence of functions, optional
        The loss of all workers together, or what each worker takes for it, which must be the same number to the bit.
    grad_fns : sequence of functions of params, optional
        Each worker's gradients of this step's sample.
    weights : sequence of float, optional
        What each worker's vote counts, above 0, for a rule with ``aggregation="weighted"``.

    Returns
    -------
    params : tree
    states : list
        Of every worker.

    Raises
    ------
    TypeError, ValueError
        What `Rule.step` raises; no workers; another number of states; a leaf with gradients on some workers only;
        losses by which two workers would decide that differ in a bit; weights of a rule that has no use for them.

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
    checks.is_rule("rule", rule, Rule)
    workers = len(grads_per_worker)
    if not workers:
        raise ValueError("`grads_per_worker` is empty; pass the gradients of at least one worker")
    states = [rule.init(params, worker=n) for n in range(workers)] if states is None else list(states)
    value_fns = list(value_fn) if isinstance(value_fn, (list, tuple)) else [value_fn] * workers
    for name, given in (("states", states), ("grad_fns", grad_fns), ("value_fn", value_fns)):
        if given is not None and len(given) != workers:
            raise ValueError(f"`{name}` has {len(given)} entries for {workers} workers; pass one for each")
    losses = list(value) if isinstance(value, (list, tuple)) else [value] * workers
    if len(losses) != workers:
        raise ValueError(f"`value` has {len(losses)} entries for {workers} workers; pass one for each, or their mean")
    for each in losses if "value" in rule.needs else ():
        if each is not None:
            checks.loss("value", each, "pass the loss of all workers, or a list of one for each")
    weights = _weights(rule, weights, workers)
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
    aggregate = aggregated(rule, messages, params, states[0].step, weights)
    if rule.settlements:
        settled = rule.settle(params, grads_per_worker[0], aggregate, states[0], scalars[0], hyper=hyper)
        scalars = [{**each, **rule.finish(settled)} for each in scalars]
    delta: Any = None
    agree = _agreement()
    for n in range(workers):
        delta, states[n] = rule.apply(
            params,
            grads_per_worker[n],
            aggregate,
            states[n],
            scalars[n],
            hyper=hyper,
            decay_mask=decay_mask,
            value_fn=value_fns[n],
            agree=agree,
        )
    return Work(rule, params, grads_per_worker[0], states[0], None, hyper, None).moved(delta), states


def aggregated(
    rule: Rule, messages: Sequence[Any], params: Any, step: Any, weights: Sequence[float] | None = None
) -> Any:
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
    weights : sequence of float, optional
        One per worker, for weighted votes.

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
                out.append(combined(rule, wire, sent, [scale[i] for scale in scales], coins, weights))
        fields[name] = unflatten(params, out)
    return rule.Message(**fields)


def combined(
    rule: Rule,
    wire: Wire,
    sent: list[Any],
    scales: list[Any],
    coins: Any,
    weights: Sequence[float] | None = None,
) -> Any:
    """One leaf of a field, of all workers."""
    xp, how = frameworks.namespace(sent[0]), _aggregation(rule, wire)
    stacked = xp.stack(sent)
    if how == "scaled":
        return vote.weighted_mean(stacked, xp.stack(scales))
    if len(sent) == 1:
        return sent[0]
    if how == "majority":
        return vote.majority(stacked, getattr(rule, "ties", "zero"), coins)
    if how == "weighted":
        every = frameworks.constant(xp, weights, stacked.dtype, stacked)
        return vote.weighted(stacked, every, getattr(rule, "ties", "zero"), coins)
    if how == "max":
        return xp.max(stacked, axis=0)
    return vote.total(stacked) if how == "sum" else vote.mean(stacked)


def _aggregation(rule: Rule, wire: Wire) -> str:
    """How a field is aggregated: as it declares, or a vote as the rule's option says."""
    how: str = wire.aggregate
    return getattr(rule, "aggregation", "majority") if how == "vote" else how


def _weights(rule: Rule, weights: Any, workers: int) -> list[float] | None:
    """Weights of the workers' votes, where the rule weighs them."""
    weighs = any(_aggregation(rule, wire) == "weighted" for wire in rule._wires.values())
    way_out = "pass a list of one number above 0 for each worker"
    if weights is None:
        if weighs and workers > 1:
            raise TypeError(f"`weights` is missing: votes of this {type(rule).__name__} are weighted; {way_out}")
        return None
    if not weighs:
        raise ValueError(
            f"`weights` is {weights!r}, and this {type(rule).__name__} counts all workers alike; leave it out, or "
            f"build a rule that votes with aggregation='weighted'"
        )
    try:
        found = list(weights)
    except TypeError:
        raise TypeError(f"`weights` is {weights!r}; {way_out}") from None
    if len(found) != workers:
        raise ValueError(f"`weights` has {len(found)} entries for {workers} workers; pass one for each")
    for n, weight in enumerate(found):
        if not checks.is_number(weight):
            raise TypeError(f"`weights[{n}]` is {weight!r}; {way_out}")
        checks.number(f"weights[{n}]", weight, WEIGHTS)
    return [float(weight) for weight in found]


def _coins(rule: Rule, wire: Wire, path: str, p: Any, step: Any, workers: int) -> Any:
    votes = _aggregation(rule, wire) in ("majority", "weighted")
    if not votes or getattr(rule, "ties", "zero") != "random" or workers == 1:
        return None
    xp = frameworks.namespace(p)
    # the streams of "ties", which is no worker's: whatever a leaf is called, its noise has other words
    key = frameworks.constant(xp, random.stream_key(getattr(rule, "seed", 0), path, "ties"), xp.int32, p)
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


def _agreement() -> Any:
    """What compares the words of the losses of one worker after the other, where their values are at hand."""
    seen: list[Any] = []

    def agree(words: Any) -> None:
        mine = frameworks.as_numpy(words)
        if mine is None:
            return
        seen.append(frameworks.from_bits(mine).tolist())
        for k, name in enumerate(("value", "value_fn(params)")):
            if repr(seen[0][k]) != repr(seen[-1][k]):  # other words are written otherwise
                raise ValueError(
                    f"`{name}` of worker 0 is {seen[0][k]!r} and that of worker {len(seen) - 1} is {seen[-1][k]!r}, "
                    f"for the same params; it must be the loss of all workers together, the same number on each"
                )

    return agree
