"""A process session of the instance's own, so that a terminal's signals reach the supervisor only.

Started by a service manager or a program, the process itself becomes the session's leader. Started on a terminal it
must stay in the terminal's foreground, else Ctrl-C would not reach it: it then stays in front, and its child leads.
"""

import os
import signal
from collections.abc import Callable


def in_own_session(supervise: Callable[[int | None], int]) -> int:
    """Run `supervise` in a session of its own and return its exit status.

    It gets None, or a file descriptor that becomes readable when the process in front of it has died.
    """
    if not _has_terminal():
        if os.getpid() == os.getsid(0):
            return supervise(None)
        if os.getpgrp() != os.getpid():  # the leader of a process group cannot begin a session (setsid(2))
            os.setsid()
            return supervise(None)
    end_of_front, front = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(front)
        os.setsid()
        os._exit(_shielded(supervise, end_of_front))
    os.close(end_of_front)
    return _stay_in_front(child)


def _shielded(supervise: Callable[[int | None], int], end_of_front: int) -> int:
    """Run `supervise` in the forked child, whose way out must not lead through its parent's code."""
    from manager.cli.guarded import guarded

    return guarded(lambda: supervise(end_of_front), as_json=False)


def _stay_in_front(child: int) -> int:
    """Hand the terminal's signals on until the child ends; return its exit status."""

    def forward(number: int, _: object) -> None:
        os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
