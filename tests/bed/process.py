"""Programs and daemons of the bed, handled by pid only: nothing here ever looks for a process by its name."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.wait import eventually

#: What every child gets instead of the caller's environment.
CLEAN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class ToolFailed(Exception):
    """A program that the bed ran ended with an unexpected status."""


def run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, ok: Sequence[int] = (0,), timeout_s: float = 120
) -> str:
    """Run a program to its end and return what it printed.

    Raises ToolFailed, with its last words, for an exit status that is not in `ok`.
    """
    return outcome(argv, cwd=cwd, ok=ok, timeout_s=timeout_s)[1]


def outcome(
    argv: Sequence[str | Path], *, ok: Sequence[int], cwd: Path | None = None, timeout_s: float = 120
) -> tuple[int, str]:
    """Like `run`, but return the exit status as well."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**os.environ, **CLEAN_ENV},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout_s,
        check=False,
        text=True,
        errors="replace",
    )
    if done.returncode not in ok:
        words = " ".join(str(word) for word in argv)
        raise ToolFailed(f"{words}: status {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.returncode, done.stdout


def as_user(name: str) -> list[str]:
    """Return the words that put a command under another user, or none if we are not root and stay who we are."""
    if os.geteuid() != 0:
        return []
    entry = pwd.getpwnam(name)
    return ["setpriv", "--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--init-groups"]


def is_running(pid: int) -> bool:
    """Say whether a process of this id exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill_and_wait(pid: int, sig: signal.Signals = signal.SIGKILL, *, timeout_s: float = 10) -> None:
    """Send a signal to one process, ours or not, and wait until it is gone. A process that is gone already is fine."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return
    eventually(lambda: not is_running(pid), timeout_s=timeout_s, what=f"the end of process {pid}")


class Daemon:
    """One child process that a test may stop, kill, freeze and start again. Its output goes to a log file, appended.

    A context manager: starts on entry, closes on exit. Subclasses say how to spawn it and when it is ready.
    """

    def __init__(self, what: str, log: Path) -> None:
        self.what = what
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and return when it answers. Subclasses call `_spawn` and `_await`."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError when it was not started."""
        return self._require_child().pid

    @property
    def alive(self) -> bool:
        """Whether the process exists (a stopped one does)."""
        return self._child is not None and self._child.poll() is None

    def stop(self, *, timeout_s: float = 20) -> None:
        """Ask the daemon to end (SIGTERM, also when it is SIGSTOPped) and wait for it; kill it if it does not."""
        if not self.alive:
            return
        child = self._require_child()
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9()

    def kill9(self) -> None:
        """Kill the daemon as a crash would (SIGKILL), and wait until it is gone."""
        child = self._require_child()
        child.kill()
        child.wait(10)

    def sigstop(self) -> None:
        """Freeze the daemon: its sockets stay open and nothing answers."""
        self._require_child().send_signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Let a frozen daemon go on."""
        self._require_child().send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the daemon and start it again on the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the daemon for good. Subclasses also end what it left behind."""
        self.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> None:
        if self.alive:
            raise RuntimeError(f"{self.what} is already running, pid {self.pid}")
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [str(word) for word in argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _require_child(self) -> subprocess.Popen[bytes]:
        # Signals go through Popen, which looks first whether the child is gone: a reused pid is never hit.
        if self._child is None:
            raise RuntimeError(f"{self.what} was never started")
        return self._child

    def require_alive(self) -> None:
        """Raise RuntimeError with the daemon's last words if it has ended: no use in waiting for it."""
        if not self.alive:
            raise RuntimeError(f"{self.what} has ended: {self._last_words()}")

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
