"""What every rule of signs shares: the sign of something is sent, voted on, and stepped against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fields import Hyper, option
from .ops import descent, sign
from .rule import Rule


@dataclass(frozen=True, kw_only=True, eq=False)
class SignRule(Rule):
    """Base of the rules that send the sign of an `argument_leaf`, and step against the vote.

    Parameters
    ----------
    sign_zero : {"zero", "plus", "minus", "random"}, default "zero"
        What sign(0) is; 0 is the papers' definition (Safaryan and Richtarik 2019, arXiv 1905.12938, footnote 1), and
        what costs a second bit on the wire.
    ties : {"zero", "plus", "minus", "random"}, default "zero"
        What an undecided vote of several workers becomes; one worker's signs are no vote.
    aggregation : {"majority", "mean", "weighted"}, default "majority"
        How signs of several workers become one step: the sign of their sum, their mean, or the sign of their sum with
        the workers' weights, which are `signcore.simulate`'s and cost a number per worker. One worker has no vote.
    seed : int, default 0
        Of the coins.
    """

    sign_zero: str = option("zero", ("zero", "plus", "minus", "random"))
    ties: str = option("zero", ("zero", "plus", "minus", "random"))
    aggregation: str = option("majority", ("majority", "mean", "weighted"))
    seed: int = 0

    @property
    def draws_noise(self) -> bool:
        """For the coins of sign(0)."""
        return self.sign_zero == "random"

    def argument_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, Any]:
        """(What the sign is taken of, new state) of one leaf."""
        raise TypeError(f"{type(self).__name__} defines no argument_leaf")

    def message_leaf(self, p: Any, g: Any, s: Any, h: Hyper, noise: Any) -> tuple[Any, Any]:
        """The sign of the argument."""
        u, s = self.argument_leaf(p, g, s, h, noise)
        return self.Message(sign(u, self.sign_zero, noise)), s

    def apply_leaf(self, p: Any, aggregate: Any, s: Any, h: Hyper) -> tuple[Any, Any]:
        """Against the vote."""
        return descent(h.lr, aggregate.sign, h.weight_decay, p), s
