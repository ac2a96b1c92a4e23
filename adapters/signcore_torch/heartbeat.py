"""Who is dead or stalled, where the engine does not say: each rank writes into the group's store that it lives."""

from __future__ import annotations

import threading
import time
from typing import Any

BEAT = 0.5  # seconds between two beats
PATIENCE = 5 * BEAT  # how long a rank that lives may be silent


class Heartbeat:
    """A thread that writes this rank's beats and progress while collectives may fail.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        Whose store is used.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.size = group.rank(), group.size()
        self.progress = 0  # collectives begun
        self._store = group.get_group_store().clone()  # a connection of its own: a call may block the other
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signcore-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more beats."""
        self._quiet.set()

    def blamed(self) -> list[int]:
        """The ranks that do not live, or else those that are behind; the first verdict of any rank is everybody's."""
        try:
            told = self._store.compare_set("signcore/verdict", "", "") if self._known("signcore/verdict") else b""
            if not told:
                mine = ",".join(map(str, self._found()))
                told = self._store.compare_set("signcore/verdict", "", mine)
            text = told.decode()
            return [int(rank) for rank in text.split(",") if rank and int(rank) != self.rank]
        except Exception:  # the store is gone, and with it the rank that kept it
            return [0] if self.rank else []

    def _found(self) -> list[int]:
        before = self._read()
        time.sleep(PATIENCE)
        after = self._read()
        others = [n for n in range(self.size) if n != self.rank]
        dead = [n for n in others if after[n] is None or after[n] == before[n]]
        if dead:
            return dead
        return [n for n in others if int(str(after[n]).split(":")[1]) < self.progress]

    def _read(self) -> list[str | None]:
        """The last word of each rank."""
        names = [f"signcore/{n}" for n in range(self.size)]
        return [self._store.get(name).decode() if self._known(name) else None for name in names]

    def _known(self, name: str) -> bool:
        return bool(self._store.check([name]))

    def _beat(self) -> None:
        beats = 0
        while not self._quiet.wait(BEAT if beats else 0.0):
            beats += 1
            try:
                self._store.set(f"signcore/{self.rank}", f"{beats}:{self.progress}")
            except Exception:
                return  # the store is gone: the collectives will say so
