"""A step of one of several workers: what it measures, sends and receives, in the boxes of `signcore.Rule`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import checks, frameworks
from ..rule import Rule
from ..walk import Work
from . import agreement, divergence
from .fields import aggregated, aggregation_of, carries_signs, has_zeros, ternary
from .partials import merged, over_workers
from .transport import Transport

BUCKET = 2**27  # coordinates: 16 MiB of bits, above which nothing is gained


class Group:
    """The workers of a run, as one of them sees them.

    Every rank keeps the same parameters, sees its own gradients, and computes with `delta` or `step` what
    `signcore.simulate` computes in one process, to the bit.

    Parameters
    ----------
    transport : Transport
        Of an adapter.
    bucket : int, default 2**27
        Most coordinates that travel together; leaves are not cut. At least 1.
    check_every : int, default 0
        Compare a digest of what all ranks share every so many steps and raise on all of them when one has parted;
        0 is never.
    weights : sequence of float, optional
        What each rank's vote counts, above 0, for a rule with ``aggregation="weighted"``.

    Raises
    ------
    TypeError, ValueError
        A number out of range, or another number of weights than ranks.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        bucket: int = BUCKET,
        check_every: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        checks.count("bucket", bucket, 1)
        checks.count("check_every", check_every, 0)
        self.transport, self.bucket, self.check_every = transport, bucket, check_every
        self.weights = None if weights is None else [float(weight) for weight in weights]
        if self.weights is not None and len(self.weights) != transport.size:
            raise ValueError(f"`weights` has {len(self.weights)} entries for {transport.size} ranks; pass one for each")

    def check_rule(self, rule: Rule) -> None:
        """Raise when a rule's messages cannot be aggregated by this group.

        Raises
        ------
        ValueError
            An even number of ranks may be undecided about one bit, and `ties` is "zero", which one bit cannot say;
            votes are weighted and there are no weights, or the other way round.
        """
        hows = {aggregation_of(rule, wire) for wire in rule._wires.values()}
        if self.transport.size == 1:
            return
        even = self.transport.size % 2 == 0
        if "majority" in hows and even and not ternary(rule) and getattr(rule, "ties", "zero") == "zero":
            raise ValueError(
                f"`ties` is 'zero' and `sign_zero` {rule.sign_zero!r}: {self.transport.size} ranks may be undecided, "  # type: ignore[attr-defined]
                f"and one bit has no zero; build the rule with ties='plus', 'minus' or 'random', or with "
                f"sign_zero='zero', which sends two bits"
            )
        if ("weighted" in hows) != (self.weights is not None):
            given = "missing" if self.weights is None else repr(self.weights)
            raise ValueError(
                f"`weights` is {given}, and the votes of this {type(rule).__name__} are aggregated by "
                f"{', '.join(sorted(hows))}; weights go with aggregation='weighted', and only with it"
            )

    def step(self, rule: Rule, params: Any, grads: Any, state: Any, **inputs: Any) -> tuple[Any, Any]:
        """One step of this rank; see `delta`.

        Returns
        -------
        (params, state)
        """
        delta, new = self.delta(rule, params, grads, state, **inputs)
        return Work(rule, params, grads, state, None, inputs.get("hyper"), None).moved(delta), new

    def delta(
        self,
        rule: Rule,
        params: Any,
        grads: Any,
        state: Any,
        *,
        hyper: Mapping[str, Any] | None = None,
        decay_mask: Any = None,
        value: Any = None,
        value_fn: Any = None,
        grad_fn: Any = None,
    ) -> tuple[Any, Any]:
        """The change of the parameters, the same on every rank, and this rank's next state.

        Parameters
        ----------
        rule : Rule
        params : tree
            The same words on every rank.
        grads : tree
            This rank's. A leaf has a gradient on every rank or on none.
        state : state
            This rank's: from ``rule.init(params, worker=rank)`` or the step before.
        hyper, decay_mask
            As `Rule.step` takes them; the same on every rank.
        value : number or 0-d array, optional
            This rank's loss at `params`; the mean is taken.
        value_fn : function of params, optional
            The loss of all ranks together, which must be the same number on each.
        grad_fn : function of params, optional
            This rank's gradients of the same sample.

        Returns
        -------
        (tree, state)

        Raises
        ------
        DisagreementError
            Ranks were given different rules, hyperparameters, trees or steps, gradients of different leaves, or losses
            that differ; or another rank raises. On every rank; nothing is changed on any.
        TransportError
            A rank died or stalled.
        TypeError, ValueError, FloatingPointError
            What `Rule.step` raises; the others raise a DisagreementError.
        """
        checks.is_rule("rule", rule, Rule)
        self.check_rule(rule)
        inputs = {"value": value, "grad_fn": grad_fn}
        if self.transport.size == 1 and self.transport.eager:  # traced, the result must be seen to be all devices'
            return rule.delta(
                params,
                grads,
                state,
                hyper=hyper,
                decay_mask=decay_mask,
                value=value,
                value_fn=value_fn,
                grad_fn=grad_fn,
            )
        return _Step(self, rule, params, grads, state, hyper).run(decay_mask, value_fn, inputs)

    def nothing(self, rule: Rule, like: Any, hyper: Mapping[str, Any] | None = None) -> None:
        """Tell the others that no leaf has a gradient in this step, which must be so on every rank.

        Raises
        ------
        DisagreementError
            Another rank has gradients.
        """
        if self.transport.size > 1:
            facts = agreement.describe(rule, {}, {}, rule.init({}), hyper or {}, self.facts())
            agreement.agree(self.transport, like, facts, None, 0)

    def facts(self) -> dict[str, Any]:
        """What must be the same of the groups of all ranks."""
        return {"weights": self.weights, "bucket": self.bucket, "ranks": self.transport.size}


class _Step:
    """One step of a group: between two collectives a rank computes, and keeps an error until all can hear of it."""

    def __init__(self, group: Group, rule: Rule, params: Any, grads: Any, state: Any, hyper: Any) -> None:
        self.group, self.transport, self.eager = group, group.transport, group.transport.eager
        self.rule, self.given, self.state, self.hyper = rule, (params, grads), state, hyper
        self.problem: Exception | None = None
        self.like = state.step if hasattr(state, "step") else None

    def run(self, decay_mask: Any, value_fn: Any, inputs: Any) -> tuple[Any, Any]:
        rule, transport = self.rule, self.transport
        if self.eager:
            transport.at(int(frameworks.to_numpy(self.state.step)))
        # A rank that stopped by itself would leave the others waiting: all look, and all stop.
        looking = rule.replace(nonfinite="skip") if self.eager and rule.nonfinite == "raise" else rule
        facts = (self.eager and self._tried(self._facts)) or dict.fromkeys(agreement.FACTS, "")
        partials = self._tried(lambda: looking.measure(*self.given, self.state, hyper=self.hyper, **inputs))
        if over_workers(looking):
            self._agree(facts, 0)
            partials, facts = self._merged(looking, partials), {}
        found = self._tried(lambda: rule.finish(partials, workers=transport.size))
        sent = self._tried(lambda: rule.message(*self.given, self.state, found, hyper=self.hyper))
        zeros = self._zeros(facts, sent)
        message, state = sent
        whole = aggregated(
            rule,
            message,
            self.given[0],
            self.state,
            transport,
            zeros=zeros,
            bucket=self.group.bucket,
            weights=self.group.weights,
        )
        if rule.settlements:
            settled = rule.settle(*self.given, whole, state, found, hyper=self.hyper)
            found = {**found, **rule.finish(settled)}
        return self._applied(whole, state, found, decay_mask, value_fn)

    def _merged(self, looking: Rule, partials: dict[str, Any]) -> dict[str, Any]:
        whole = merged(looking, partials, self.transport)
        if looking is not self.rule and int(frameworks.to_numpy(whole.pop("nonfinite"))):
            raise FloatingPointError(
                "`grads` hold inf or NaN on some rank; nothing was changed: fix it, or build the rule with "
                "nonfinite='skip'"
            )
        return whole

    def _applied(self, whole: Any, state: Any, found: Any, decay_mask: Any, value_fn: Any) -> tuple[Any, Any]:
        decides, told = self.eager and "value_fn" in self.rule.needs, [False]

        def agree(words: Any) -> None:
            told[0] = True
            agreement.words_agree(self.transport, self.like, None, words)

        try:
            made: tuple[Any, Any] = self.rule.apply(
                *self.given,
                whole,
                state,
                found,
                hyper=self.hyper,
                decay_mask=decay_mask,
                value_fn=value_fn,
                agree=agree if decides else None,
            )
        except Exception as error:
            if decides and not told[0]:
                agreement.words_agree(self.transport, self.like, error, None)
            raise
        self._look_for_divergence(made[1])
        return made

    def _look_for_divergence(self, state: Any) -> None:
        every = self.group.check_every
        if self.eager and every and (int(frameworks.to_numpy(state.step)) % every) == 0:
            divergence.check(self.rule, self.given[0], self.state, self.transport)

    def _tried(self, compute: Any) -> Any:
        """What is computed, or None where it raises, or has raised before; traced functions raise as they are."""
        if not self.eager:
            return compute()
        try:
            return None if self.problem is not None else compute()
        except Exception as error:
            self.problem = error
            return None

    def _facts(self) -> dict[str, str]:
        params, grads = self.given
        Work(self.rule, params, grads, self.state, None, self.hyper, None)  # raises what does not fit
        return agreement.describe(self.rule, params, grads, self.state, self.hyper or {}, self.group.facts())

    def _agree(self, facts: dict[str, str], *numbers: int) -> list[list[int]]:
        if not self.eager:
            return []
        return agreement.agree(self.transport, self.like, facts, self.problem, *numbers)

    def _zeros(self, facts: dict[str, str], sent: Any) -> Any:
        """Whether signs travel that need two bits although the rule promised one; the same on every rank."""
        rule, xp = self.rule, frameworks.namespace(self.like)
        promised = not ternary(rule) and any(carries_signs(wire) for wire in rule._wires.values())
        promised = promised and rule.nonfinite == "propagate"  # else nothing is NaN
        if self.eager:
            mine = self._tried(lambda: promised and int(frameworks.to_numpy(has_zeros(rule, sent[0], xp, self.like))))
            return any(row[0] for row in self._agree(facts, int(mine or 0)))
        return self.transport.max(has_zeros(rule, sent[0], xp, self.like)) > 0 if promised else False
