"""The commits that run in this SPM, by the volume that vanishes. A task only begins one, or looks at it.

They die with the process that they report to; a successor finds the locks free and begins again.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from common.ids import VmId, VolumeId
from common.images.qemu_img import Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A commit with the size of what it commits."""

    commit: Commit
    total_bytes: int

    @property
    def done_bytes(self) -> int:
        """Return how much of it is done, by its own word."""
        return int(self.total_bytes * self.commit.percent / 100)


class Merges:
    """Every commit that was begun and has not been asked about since it ended. Safe to share between threads."""

    def __init__(self, on_end: Callable[[VmId], object] = lambda _: None) -> None:
        """Begin with none; `on_end` is told, in some thread, of which vm one has ended, well or not."""
        self.on_end = on_end
        self._lock = threading.Lock()
        self._running: dict[VolumeId, Running] = {}

    def add(self, top: VolumeId, running: Running) -> None:
        """Remember one that has just begun."""
        with self._lock:
            self._running[top] = running

    def find(self, top: VolumeId) -> Running | None:
        """Return the one that commits that volume."""
        with self._lock:
            return self._running.get(top)

    def forget(self, top: VolumeId) -> None:
        """Forget one that is over."""
        with self._lock:
            self._running.pop(top, None)

    def close(self) -> None:
        """End all of them: the process ends."""
        with self._lock:
            running, self._running = list(self._running.values()), {}
        for each in running:
            each.commit.stop()


BRIEFLY = timedelta(seconds=1)
"""How long a task waits for a commit to end: most have little to copy."""
