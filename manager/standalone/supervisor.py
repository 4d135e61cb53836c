"""Keeps an instance's processes running, says when it is ready, and stops it."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

from common import logs
from manager.standalone.child import Child
from manager.standalone.readiness import Readiness

STOP_LIMIT_S = 10.0
"""Per wave. A worker may be in the middle of a snapshot; killing it after that is safe at any moment."""
LOOK_S, IDLE_LOOK_S = 0.1, 2.0
"""How often to look while something is due, and while nothing is: a death wakes the supervisor by its signal."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logs.get()


class Supervisor:
    """One run of an instance."""

    def __init__(
        self,
        children: Sequence[Child],
        readiness: Readiness,
        *,
        end_of_front: int | None,
        on_stop: Callable[[], None],
    ) -> None:
        """Supervise `children`, in the order of starting; stop when `end_of_front` becomes readable.

        `on_stop` is called when the stopping begins.
        """
        self._on_stop = on_stop
        self._children = children
        self._readiness = readiness
        self._front = [] if end_of_front is None else [end_of_front]
        self._stop_asked = False
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        for number in STOPPING:
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up

    def run(self) -> None:
        """Run until a signal asks to stop; then stop every child. Prints `ready` on standard output when it is."""
        try:
            while not self._stop_asked:
                for child in self._children:
                    child.keep_running()
                if self._readiness.reached():
                    sys.stdout.write("ready\n")
                    sys.stdout.flush()
                self._sleep()
        finally:
            self._stop()

    def _ask_to_stop(self, *_: object) -> None:
        self._stop_asked = True

    def _sleep(self) -> None:
        """Wait for a signal, or until something may be due."""
        is_idle = self._readiness.is_over and all(child.is_alive for child in self._children)
        limit_s = IDLE_LOOK_S if is_idle else LOOK_S
        readable, _, _ = select.select([self._wakeup, *self._front], [], [], limit_s)
        if self._wakeup in readable:
            os.read(self._wakeup, 4096)
        self._stop_asked |= bool(set(readable) & set(self._front))

    def _stop(self) -> None:
        """Stop the children wave by wave: TERM, then KILL for those that do not end in time."""
        self._on_stop()
        for wave in sorted({child.program.wave for child in self._children}):
            children = [child for child in self._children if child.program.wave == wave]
            for child in children:
                child.terminate()
            deadline = time.monotonic() + STOP_LIMIT_S
            while any(child.is_alive for child in children) and time.monotonic() < deadline:
                time.sleep(0.02)
            for child in children:
                if child.is_alive:
                    _log.warning("child.killed", name=child.program.name)
                    child.kill()
            while any(child.is_alive for child in children):
                time.sleep(0.02)
        _log.info("standalone.stopped")
