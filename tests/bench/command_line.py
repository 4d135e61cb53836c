"""The command line, whole process, against the least that could do the same: `python -c pass` and a bare HTTP request.

The floor's request is made here on a new connection, to the same path of the same API, and its time is added to that of
an interpreter which starts and does nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from uuid import uuid4

from tests.bed.vm import BedVm
from tests.bench.budget import runs_within
from tests.bench.row import Row, Target
from tests.e2e.kit import Livesnap, place

RUNS = 16
QUICK_RUNS = 3
SECONDS = 15
"""For each command."""
DEEP = {"LIVESNAP_MAX_CHAIN": "200"}
"""Every pair leaves two volumes in one chain; with the default (40) the 20th pair of a quiet machine was refused."""
LIMIT = Target(measure="more", limit=150)


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure `vm list` and `snapshot create --no-wait`."""
    runs = QUICK_RUNS if quick else round(RUNS * times)
    within = partial(runs_within, SECONDS * times, runs + 1, QUICK_RUNS + 1)
    with place() as here, here.livesnap(environment=DEEP) as livesnap:
        vm = here.guest("told", pace_ms=200)
        livesnap.shows(vm)
        settle = partial(_await_end, livesnap, vm)
        listing = partial(_bare, partial(livesnap.ask, "/v1/vms"))
        yield _row("vm-list", within(), partial(_command, livesnap, "vm", "list"), listing, settle)
        create = partial(_command, livesnap, "snapshot", "create", vm.name, "--no-wait")
        yield _row("snapshot-create", within(), create, partial(_bare, partial(_asked, livesnap, vm)), settle)


def _row(
    name: str, runs: Iterator[int], ours: Callable[[], float], floor: Callable[[], float], settle: Callable[[], None]
) -> Row:
    """Alternate, settling outside of the time; the first pair fills caches and does not count."""
    took: dict[Callable[[], float], list[float]] = {ours: [], floor: []}
    for number in runs:
        for side in (ours, floor) if number % 2 else (floor, ours):
            took[side].append(side())
            settle()
    return Row(key=f"command-line/{name}", ours=took[ours][1:], floor=took[floor][1:], targets=(LIMIT,))


def _asked(livesnap: Livesnap, vm: BedVm) -> object:
    status, job = livesnap.post(f"/v1/vms/{vm.name}/snapshots", b"{}", key=uuid4().hex)
    assert status == 202, job
    return job


def _await_end(livesnap: Livesnap, vm: BedVm) -> None:
    busy = livesnap.ask(f"/v1/vms/{vm.name}")["busy_with"]
    if busy:
        assert livesnap.wait_for_end(busy)["state"] == "completed"


def _command(livesnap: Livesnap, *words: str) -> float:
    return _process([sys.executable, "-m", "manager.cli", "--state-dir", str(livesnap.state_dir), *words])


def _bare(request: Callable[[], object]) -> float:
    """Return what starting an interpreter and one request take, in ms."""
    started = _process([sys.executable, "-c", "pass"])
    begun = time.perf_counter()
    answer = request()
    took = (time.perf_counter() - begun) * 1000
    assert answer is not None, "the API refused the request"
    return started + took


def _process(words: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(words, check=True, env=os.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000
