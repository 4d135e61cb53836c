"""Other processes as /proc shows them: who they are, whose session they are in, and ending them."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; `started` (clock ticks since boot) tells it from a later one with the same id (proc(5))."""

    pid: int
    session: int
    started: int
    name: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process still exists (a zombie does not)."""
        now = look(self.pid)
        return now is not None and now.started == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process still exists."""
        if self.is_alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # it ended by itself in between, which is what the signal was for

    def works_below(self, folder: Path) -> bool:
        """Whether its working directory is `folder` or lies in it."""
        try:
            where = Path(os.readlink(_PROC / str(self.pid) / "cwd"))
        except OSError:
            return False
        return where.is_relative_to(folder)


def boot_id() -> str:
    """Return what tells this boot of the machine from every other (random(4))."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def look(pid: int) -> Process | None:
    """Return the process with this id; None if there is none, or only its zombie."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, session=int(fields[3]), started=int(fields[19]), name=head.partition("(")[2])


def in_session(session: int) -> Iterator[Process]:
    """Yield the processes of a session."""
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            process = look(int(entry.name))
            if process is not None and process.session == session:
                yield process


def end(processes: Iterable[Process], *, patience_s: float) -> None:
    """Ask processes to end (SIGTERM, also when stopped); kill those that still live after `patience_s`."""
    left = list(processes)
    for process in left:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    deadline = time.monotonic() + patience_s
    while (left := [process for process in left if process.is_alive]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for process in left:
        process.signal(signal.SIGKILL)
    while any(process.is_alive for process in left):
        time.sleep(_POLL_S)
