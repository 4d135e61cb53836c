"""Time limits of libvirt calls: waiting for what libvirt says within one, and libvirt's whole seconds."""

import time
from collections.abc import Callable

POLL_S = 0.01


def within(limit_ms: int, done: Callable[[], bool]) -> bool:
    """Ask `done` again and again for at most so long; tell whether it came true. What it raises is not caught."""
    deadline = time.monotonic() + limit_ms / 1000
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def whole_seconds(limit_ms: int) -> int:
    """Return a limit in the whole seconds that libvirt knows, rounded up, at least one."""
    return max(1, -(-limit_ms // 1000))
