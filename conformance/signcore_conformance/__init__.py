"""The conformance suite of signcore: proof that every backend gives the same bits.

``python -m signcore_conformance`` runs it; `check` holds somebody else's step function against a rule.
"""

from __future__ import annotations

from .check import Verdict, check

__all__ = ["Verdict", "check"]
