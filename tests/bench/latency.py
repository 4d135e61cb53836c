"""Latency: from the request to the completed job, against the bare script. Real guests that write, quiesced.

The same snapshots tell of the frozen window.
"""

from collections.abc import Iterator, Sequence

from tests.bench import window
from tests.bench.pairs import Pair, pairs
from tests.bench.row import Row, Target
from tests.bench.stats import medians

RUNS = {1: 28, 8: 14}
QUICK_RUNS = 3
SECONDS = 34
TARGETS = {
    1: (Target(measure="ratio", limit=1.40), Target(measure="more", limit=35)),
    8: (Target(measure="ratio", limit=1.10),),
}


def rows(disks: int, *, quick: bool, times: float) -> Iterator[Row]:
    """Measure machines with so many disks."""
    runs = QUICK_RUNS if quick else round(RUNS[disks] * times)
    measured = list(pairs(runs, disks=disks, seconds=SECONDS * times))
    yield row(disks, measured)
    yield from window.rows_of(disks, "writer", measured)


def row(disks: int, measured: Sequence[Pair]) -> Row:
    """Return the row of one number of disks."""
    return Row(
        key=f"latency/{disks}-disk",
        ours=[pair.ours.latency for pair in measured],
        floor=[pair.bare.latency for pair in measured],
        targets=TARGETS[disks],
        steps=medians([pair.ours.steps for pair in measured])
        | {f"bare {name}": took for name, took in medians([pair.bare.steps for pair in measured]).items()},
    )
