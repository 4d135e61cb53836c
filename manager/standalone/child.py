"""One child process: started with its log, started again when it dies, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import logs

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Between a death and the next start, doubling: a process that cannot start must not keep the machine busy."""
STEADY_AFTER_S = 10.0
"""Having run this long, a process that dies is not one that cannot start."""
LARGEST_LOG_BYTES = 16 * 1024 * 1024

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run. `wave` is its turn in stopping: lower ones first. No secret stands in `words`: all can see them."""

    name: str
    words: tuple[str, ...]
    wave: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Its environment, beside what it inherits."""


class Child:
    """A program under supervision."""

    def __init__(self, program: Program, *, folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        """Run `program` in `folder`, its output appended to `log`."""
        self.program = program
        self._folder, self._log, self._environment = folder, log, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._next_start = 0.0
        self._pause_s = FIRST_PAUSE_S

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def keep_running(self) -> None:
        """Start the process if it does not run and its pause is over. Never waits; call it again and again."""
        if self.is_alive:
            return
        now = time.monotonic()
        if self._process is not None:
            self._note_death(self._process.returncode, now)
            self._process = None
        if now >= self._next_start:
            self._start(now)

    def terminate(self) -> None:
        """Ask the process to end, also when it is stopped."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process."""
        self._signal(signal.SIGKILL)

    def _start(self, now: float) -> None:
        _make_room(self._log)
        with open(self._log, "ab", opener=_private) as output:
            self._process = subprocess.Popen(
                self.program.words,
                cwd=self._folder,
                env={**self._environment, **self.program.settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._began = now
        _log.info("child.started", name=self.program.name, pid=self._process.pid)

    def _note_death(self, status: int, now: float) -> None:
        if now - self._began >= STEADY_AFTER_S:
            self._pause_s = FIRST_PAUSE_S
        self._next_start = now + self._pause_s
        _log.warning("child.died", name=self.program.name, status=status, again_in_s=self._pause_s, log=str(self._log))
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_room(log: Path) -> None:
    """Put a log that has grown large aside, as the one before it."""
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.rename(log.with_suffix(".log.1"))
