"""The processes of a chaos fleet: who each is, and who starts it again when it has died."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from tests.bed.process import Daemon
from tests.e2e.kit import Livesnap

SUPERVISED: Final[Mapping[str, str]] = {
    "manager": "manager.worker",
    "api": "manager.api",
    "spm": "spm.worker",
    "agent": "hostagent.worker",
    "guard": "hostagent.guard",
}
"""What every standalone instance starts again by itself, by the words of its command line."""


class Part(Protocol):
    """One process that a fault may meet."""

    def pid(self) -> int:
        """Return its process id, 0 while it is dead."""

    def revive(self) -> None:
        """Start it if it is dead and nobody else does."""


@dataclass(frozen=True, slots=True)
class Child:
    """A child of `livesnap standalone`, which starts it again."""

    livesnap: Livesnap
    words: str

    def pid(self) -> int:
        """Look for it among the processes of that session."""
        with suppress(AssertionError):
            return self.livesnap.pid_of(self.words)
        return 0

    def revive(self) -> None:
        """Leave it to its supervisor."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A process that systemd would start again: here the harness does."""

    daemon: Daemon

    def pid(self) -> int:
        """Ask its handle."""
        return self.daemon.pid if self.daemon.alive else 0

    def revive(self) -> None:
        """Start it. One that dies while it starts, or whose broker is away, is tried again by the next call."""
        if not self.daemon.alive:
            with suppress(AssertionError, RuntimeError):
                self.daemon.start()


def send(part: Part, number: signal.Signals) -> int:
    """Send a signal to a process that may just have died of something else; return its pid, 0 if it is not there."""
    pid = part.pid()
    if not pid:
        return 0
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return 0
    return pid
