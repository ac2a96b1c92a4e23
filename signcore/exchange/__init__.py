"""Steps of several processes, with one bit per coordinate on the wire.

`Group` computes a worker's step over a `Transport`, which an adapter implements with its framework's collectives; every
rank gets the parameters that `signcore.simulate` gives, to the bit. `Threads` are ranks of one process.
"""

from __future__ import annotations

from .group import Group
from .threads import Threads
from .transport import DisagreementError, Transport, TransportError

__all__ = ["DisagreementError", "Group", "Threads", "Transport", "TransportError"]
