"""signcore over MPI, by mpi4py: ranks of NumPy or CuPy arrays that send each other signs.

``mpiexec -n 4 python train.py``, where ``group()`` is passed to `signcore_cupy.run`, or steps by itself.
"""

from __future__ import annotations

from .collectives import Collectives
from .groups import group

__all__ = ["Collectives", "group"]
