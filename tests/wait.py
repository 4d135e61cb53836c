"""Waiting for a condition with a deadline, the only way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fn: Callable[[], T], *, timeout_s: float, what: str, interval_s: float = 0.02) -> T:
    """Return the first truthy value of `fn()`, asking every `interval_s` seconds for at most `timeout_s` seconds.

    `fn` is called at least once, and once more after the deadline, so that a slow call is not blamed for the wait.
    Raises AssertionError that names `what` was awaited and the last value seen. What `fn` raises is not caught.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= deadline
        value = fn()
        if value:
            return value
        if late:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}; last value: {value!r}")
        time.sleep(interval_s)
