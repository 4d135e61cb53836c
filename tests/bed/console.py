"""What a guest has printed, and which records it says are safe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: Each needs its whole line: a kernel message may land in the middle of one, and such a line proves nothing.
SAID = re.compile(r"^(?:ACK (\w+) (\d+) (\d+)|(GUEST STARTS))\r?$", re.MULTILINE)
WRITE_ERROR = re.compile(r"^WRITE-ERROR (\w+) (\d+) (\d+)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ack:
    """The guest's word that record `n` of a disk is safe: its fsync returned at this uptime of its so manieth boot."""

    target: str
    n: int
    uptime_ms: int
    boot: int


@dataclass(frozen=True, slots=True)
class WriteError:
    """The guest's complaint that writing record `n` failed."""

    target: str
    n: int
    errno: int


class Console:
    """A machine's serial console over all its boots. The file grows only; what was read once is not read again, since
    waiting tests ask fifty times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0
        self._text = ""
        self._understood = 0
        self._acks: list[Ack] = []
        self._boots = 0

    def text(self) -> str:
        """Return all that was printed since the machine was defined, '' before its first start."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                fresh = file.read()
            self._read_bytes += len(fresh)
            self._text += fresh.decode(errors="replace")
        return self._text

    def acks(self) -> list[Ack]:
        """Return every acknowledged record, in the order of the console."""
        text = self.text()
        end = text.rfind("\n") + 1
        for said in SAID.finditer(text, self._understood, end):
            target, n, uptime_ms, starts = said.groups()
            if starts:
                self._boots += 1
            else:
                self._acks.append(Ack(target, int(n), int(uptime_ms), self._boots))
        self._understood = end
        return list(self._acks)

    def this_boots(self) -> list[Ack]:
        """Return those of the newest boot."""
        acks = self.acks()
        return [ack for ack in acks if ack.boot == self._boots]

    def write_errors(self) -> list[WriteError]:
        """Return every failed write that the guest has reported."""
        return [WriteError(target, int(n), int(errno)) for target, n, errno in WRITE_ERROR.findall(self.text())]
