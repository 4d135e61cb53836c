"""How long a bench may go on: so that all of them end in a quarter of an hour, on a busy machine with fewer runs."""

import time
from collections.abc import Callable, Iterator


def runs_within(seconds: float, runs: int, least: int, *, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Yield the numbers of at most `runs` runs from 0 on, `least` of them however long they take, others while time is
    left."""
    begun = clock()
    for number in range(runs):
        if number >= least and clock() - begun >= seconds:
            return
        yield number
