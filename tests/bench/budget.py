"""How long a bench may go on: so that all of them end in a quarter of an hour, on a slow machine with fewer runs."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

from tests.bench.cost import pace_ms

USUAL_PACE_MS: Final = 8.0
"""What an interpreter's start takes where all benches end in less than 12 minutes.

Servers and guests take longer to start on a slower machine; what is left for the runs is less by as much. With two
loops beside it, which made that 10.6, a run with all of its time took 16 and a half.
"""


@cache
def of_this_machine() -> float:
    """Return how much of its time a bench may take here, at most all of it; measured once."""
    return min(1.0, USUAL_PACE_MS / pace_ms())


def runs_within(
    seconds: float,
    runs: int,
    least: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    share: Callable[[], float] = of_this_machine,
) -> Iterator[int]:
    """Yield the numbers of at most `runs` runs from 0 on, `least` of them however long they take, others while time is
    left: so many seconds on a machine that is as fast as usual."""
    begun, seconds = clock(), seconds * share()
    for number in range(runs):
        if number >= least and clock() - begun >= seconds:
            return
        yield number
