"""Training loop for signcore's rules on CuPy arrays, or on those of any other Array API library.

Nothing here imports CuPy: the arrays bring their library along.
"""

from __future__ import annotations

from .loop import Interrupted, run

__all__ = ["Interrupted", "run"]
