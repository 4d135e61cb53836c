"""`python -m tests.bench [--only NAME]`: measure, print the table, write JSON; 1 if one is worse or broke."""

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bed.need import need
from tests.bench import burst, command_line, fleet, idle, latency, merge, recovery, throughput, window
from tests.bench.compare import change, kept
from tests.bench.cost import pace_ms
from tests.bench.published import published, with_block
from tests.bench.row import Row
from tests.bench.table import table

PREVIOUS = Path(__file__).with_name("previous.json")
PAGE = Path(__file__).parents[1] / "BENCHMARKS.md"
GUESTS = ("guest", "redis-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What yields rows, what it needs on this machine, and how its rows' names begin."""

    rows: Callable[..., Iterator[Row]]
    keys: tuple[str, ...]
    needs: tuple[str, ...] = GUESTS

    def is_wanted(self, only: str) -> bool:
        """Tell whether one of its rows may have a name that begins with `only`."""
        return any(key.startswith(only) or only.startswith(key) for key in self.keys)


def _with_latency(disks: int) -> Bench:
    keys = (f"latency/{disks}-disk", f"window/{disks}-disk-writer")
    return Bench(rows=partial(latency.rows, disks), keys=keys)


def _window(disks: int, load: window.Load) -> Bench:
    return Bench(rows=partial(window.rows, disks, load), keys=(f"window/{disks}-disk-{load}",))


BENCHES: Sequence[Bench] = (
    _with_latency(1),
    _with_latency(8),
    _window(4, "writer"),
    *(_window(disks, "idle") for disks in (1, 4, 8)),
    Bench(rows=command_line.rows, keys=("command-line",)),
    *(
        Bench(
            rows=partial(throughput.rows, kind),
            keys=(f"saga-throughput/{kind}",),
            needs=("redis-server" if kind == "redis" else kind, "postgres"),
        )
        for kind in throughput.BROKERS
    ),
    Bench(rows=idle.rows, keys=("idle",)),
    Bench(rows=merge.rows, keys=("live-merge",), needs=(*GUESTS, "virsh")),
    Bench(rows=recovery.rows, keys=("recovery",)),
    Bench(rows=fleet.rows, keys=("fleet", "inventory"), needs=("redis-server", "postgres")),
    Bench(rows=burst.rows, keys=("burst",)),
)


def main() -> int:
    """Run the chosen benches and return the exit status."""
    options = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    options.add_argument("--only", default="", help="the benches that have a row whose name begins so")
    options.add_argument("--quick", action="store_true", help="a few runs each: does it work at all?")
    options.add_argument("--times", type=float, default=1.0, help="as many runs, for a narrower spread")
    options.add_argument("--json", type=Path, default=Path("bench.json"), help="where every sample is written")
    options.add_argument("--save", action="store_true", help=f"keep the figures: in {PREVIOUS.name} and {PAGE.name}")
    chosen = options.parse_args()
    previous = json.loads(PREVIOUS.read_text()) if PREVIOUS.exists() else {"rows": {}}
    machine, begun = about(), time.monotonic()
    rows: list[Row] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers and guests end with us
    stopped = False
    try:
        for row in measured(BENCHES, chosen.only, quick=chosen.quick, times=chosen.times):
            rows.append(row)
            sys.stderr.write(f"{time.monotonic() - begun:.0f} s: {row.key}: {row.verdict}\n")
    except KeyboardInterrupt:
        stopped = True  # what was measured until then is shown and kept all the same
    if not rows and not stopped:
        sys.stderr.write(
            f"no bench is called {chosen.only!r}: {', '.join(key for each in BENCHES for key in each.keys)}\n"
        )
        return 2
    machine |= {"load_at_end": os.getloadavg(), "took_s": round(time.monotonic() - begun)}
    sys.stdout.write(f"{json.dumps(machine)}\n{table(rows, previous['rows'])}")
    chosen.json.write_text(json.dumps({"machine": machine, "rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    worse = [row.key for row in rows if change(row, previous["rows"]) == "worse"]
    if chosen.save:
        save(rows, machine, previous["rows"])
    if worse:
        sys.stdout.write(f"worse than {PREVIOUS.name}: {', '.join(worse)}\n")
    return 1 if worse or stopped or any(row.failed for row in rows) else 0


def save(rows: Sequence[Row], machine: dict[str, Any], before: dict[str, Any]) -> None:
    """Make these the figures that are compared with, and that stand on the page; rows that were not run stay."""
    figures = before | kept(rows, machine)
    # Steps keep their order, in which they are shown.
    text = json.dumps({"rows": dict(sorted(figures.items()))}, indent=1, ensure_ascii=False)
    PREVIOUS.write_text(f"{text}\n")
    PAGE.write_text(with_block(PAGE.read_text(), published(figures)))


def measured(benches: Sequence[Bench], only: str, *, quick: bool, times: float) -> Iterator[Row]:
    """Yield all rows of the benches that have one whose name begins with `only`; what cannot run or breaks says so."""
    for bench in benches:
        if not bench.is_wanted(only):
            continue
        if missing := need(*bench.needs):
            yield Row(key=bench.keys[0], why_not=missing)
            continue
        before_ms = pace_ms()
        try:
            for row in bench.rows(quick=quick, times=times):
                yield replace(row, pace_ms=(before_ms + pace_ms()) / 2)
        except Exception as broke:  # noqa: BLE001 a main loop: the others are measured, and the status says it
            traceback.print_exc()
            yield Row(key=bench.keys[0], why_not=f"the bench broke: {str(broke)[:200]!r}", failed=True)


def about() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpus": os.cpu_count(),
        "load_at_start": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
