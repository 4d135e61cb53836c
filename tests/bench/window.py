"""The frozen window: how long a guest stands still, against the bare freeze, snapshot, thaw.

Ours is what the agent measured and put on the receipt. The guest's own clock is held against it: the longest pause
between two acknowledged writes (`gap`) may be longer than the window, since a write, its fsync and the console take
time too; a window that the agent reports shorter than it was would show as a gap that the floor does not have.
"""

from collections.abc import Iterator, Sequence

from tests.bench.pairs import Load as Load
from tests.bench.pairs import Pair, pairs
from tests.bench.row import Row, Target
from tests.bench.stats import medians

RUNS = {1: 14, 4: 7, 8: 7}
"""Of pairs; 7 is what guests are kept for. Of 1 and 8 disks with writers more are measured for the latency."""
QUICK_RUNS = 3
SECONDS = 13
CLOCK_MS = 1.0
"""The guest prints whole milliseconds."""
LIMIT = Target(measure="ratio", limit=1.10)


def rows(disks: int, load: Load, *, quick: bool, times: float) -> Iterator[Row]:
    """Measure guests with so many disks, that write or are idle."""
    runs = QUICK_RUNS if quick else round(RUNS[disks] * times)
    yield from rows_of(disks, load, list(pairs(runs, disks=disks, seconds=SECONDS * times, load=load)))


def rows_of(disks: int, load: Load, measured: Sequence[Pair]) -> Iterator[Row]:
    """Yield the window, the part of it that the freeze's return begins, and what a writing guest says itself."""
    key = f"window/{disks}-disk-{load}"
    bare = {f"bare {name}": took for name, took in medians([pair.bare.steps for pair in measured]).items()}
    ours = {name: took for name, took in medians([pair.ours.steps for pair in measured]).items() if "at " not in name}
    yield Row(
        key=key,
        ours=[pair.ours.window for pair in measured],
        floor=[pair.bare.window for pair in measured],
        targets=(LIMIT,),
        steps=ours | bare,
    )
    yield Row(
        key=f"{key}-held",
        ours=[pair.ours.held for pair in measured],
        floor=[pair.bare.held for pair in measured],
    )
    if load == "writer":
        yield Row(
            key=f"{key}-guest-gap",
            ours=[pair.ours.gap for pair in measured],
            floor=[pair.bare.gap for pair in measured],
            notes=[_held_against(measured)],
        )


def _held_against(measured: Sequence[Pair]) -> str:
    """Say how the receipts and the guest's clock agree: no write while it is held, and no longer pause than a window.

    Beyond the window a pause has the writer's own, its fsync, and what the machine did meanwhile.
    """
    written = sum(pair.ours.gap < pair.ours.held - CLOCK_MS for pair in measured)
    beyond = max(pair.ours.gap - pair.ours.window for pair in measured)
    floor = max(pair.bare.gap - pair.bare.window for pair in measured)
    runs = len(measured)
    return (
        f"by the guest's clock: it wrote while it was held in {written} of {runs}; the longest pause beyond the window"
        f" {beyond:.0f} ms, beyond the bare one {floor:.0f} ms"
    )
