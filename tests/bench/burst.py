"""A burst: forty real guests on two hosts are snapshotted at once, against eight threads of the bare script.

The same guests for both. What the bare script has done is undone outside of the time: an active commit puts every guest
back on its leaf, since livesnap would otherwise find it off its chain. Guests are idle, and have the least memory.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt

from tests.bed.disks import make_disk
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.bench.budget import runs_within
from tests.bench.cost import cpu_ms_by_kind
from tests.bench.floor import bare_snapshot
from tests.bench.row import Row, Target
from tests.bench.stats import medians
from tests.e2e.hosts import Fleet, two_hosts
from tests.e2e.kit import Place
from tests.wait import eventually

GUESTS, QUICK_GUESTS = 40, 4
ROUNDS, QUICK_ROUNDS = 3, 1
SECONDS = 20
LOOK_S = 0.5
"""Each look costs the API what it needs for the burst; when a job ended, it says itself."""
AT_ONCE = 4
"""Guests that boot together: each takes seconds of a processor."""
THREADS = 8
TARGET = "vda"
LIMIT = Target(measure="ratio", limit=1.5)
COMMIT = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
PIVOT = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
KINDS = {
    "Manager": "manager.worker",
    "API": "manager.api",
    "SPM": "spm.worker",
    "agents": "hostagent.worker",
    "libvirtd": "libvirtd",
    "broker": "redis-server",
    "guests": "qemu-system",
}
"""By a word of their command lines: whose processor time a burst takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursting:
    """The fleet, its guests, and libvirt's handle of each on an open connection."""

    fleet: Fleet
    guests: Sequence[BedVm]
    handles: Sequence[libvirt.virDomain]

    def ours(self) -> float:
        """Ask for all at once; return from then to the end of the last job, in ms. All must be quiesced."""
        livesnap = self.fleet.livesnap
        with ThreadPoolExecutor(THREADS) as pool:
            begun = time.time()
            asked = list(pool.map(partial(_ask, self.fleet), self.guests))
        jobs = [livesnap.wait_for_end(job["id"], timeout_s=300, interval_s=LOOK_S) for job in asked]
        ends = [datetime.fromisoformat(job["finished_at"]).timestamp() for job in jobs]
        assert {job["state"] for job in jobs} == {"completed"}, jobs
        for vm in self.guests:
            newest = livesnap.snapshots(vm)[0]
            assert newest["consistency"] == "filesystem", newest["consistency_reason"]
        return (max(ends) - begun) * 1000

    def bare(self) -> float:
        """Let eight threads do the same by the bare script; return what that took, in ms. It is undone then."""
        leaves = [Path(vm.sources()[TARGET]) for vm in self.guests]
        owner = self.fleet.place.host.owner
        with ThreadPoolExecutor(THREADS) as pool:
            begun = time.perf_counter()
            each = zip(self.handles, leaves, strict=True)
            taken = list(pool.map(lambda one: bare_snapshot(one[0], {TARGET: one[1]}, 0, owner), each))
            took = (time.perf_counter() - begun) * 1000
        for handle, leaf, (_, new) in zip(self.handles, leaves, taken, strict=True):
            _undo(handle, leaf, new[TARGET])
        for vm, leaf in zip(self.guests, leaves, strict=True):
            eventually(partial(_is_shown_on, self.fleet, vm, leaf), timeout_s=60, what=f"{vm.name} on {leaf}")
        return took


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure both in turn."""
    count, rounds = (QUICK_GUESTS, QUICK_ROUNDS) if quick else (GUESTS, round(ROUNDS * times))
    ours: list[float] = []
    floor: list[float] = []
    cost: dict[str, list[dict[str, float]]] = {"": [], "bare ": []}
    with _bursting(count) as burst:
        burst.ours()  # the first adopts every volume
        for number in runs_within(SECONDS * times, rounds, QUICK_ROUNDS):
            sides = ((ours, burst.ours, ""), (floor, burst.bare, "bare "))
            for side, take, whose in sides[:: 1 if number % 2 else -1]:
                before = cpu_ms_by_kind(KINDS)
                side.append(take())
                cost[whose].append({kind: (now - before[kind]) / count for kind, now in cpu_ms_by_kind(KINDS).items()})
    steps = {f"{whose}{kind}": took for whose, each in cost.items() for kind, took in medians(each).items()}
    notes = [f"{count} guests on 2 hosts; the steps are CPU ms a snapshot, the bare one's with its undoing"]
    yield Row(key="burst", ours=ours, floor=floor, targets=(LIMIT,), notes=notes, steps=steps)


def _ask(fleet: Fleet, vm: BedVm) -> Any:
    status, job = fleet.livesnap.post(f"/v1/vms/{vm.name}/snapshots", b"{}", key=uuid4().hex)
    assert status == 202, job
    return job


def _undo(handle: libvirt.virDomain, leaf: Path, overlay: Path) -> None:
    """Put a guest back on its leaf, with all that it has written since."""
    handle.blockCommit(TARGET, str(leaf), None, 0, COMMIT)

    def ready() -> bool:
        told = handle.blockJobInfo(TARGET, 0)
        return bool(told) and told["cur"] == told["end"] and "ready='yes'" in handle.XMLDesc()

    eventually(ready, timeout_s=60, what=f"the commit of {overlay}")
    handle.blockJobAbort(TARGET, PIVOT)
    overlay.unlink()


def _is_shown_on(fleet: Fleet, vm: BedVm, leaf: Path) -> bool:
    shown = fleet.livesnap.ask(f"/v1/vms/{vm.name}")
    return bool(shown) and not shown["problem"] and [disk["path"] for disk in shown["disks"]] == [str(leaf)]


@contextmanager
def _bursting(count: int) -> Iterator[Bursting]:
    with two_hosts() as fleet, ExitStack() as stack:
        places = [fleet.place, replace(fleet.place, host=fleet.second.host)]
        connections = [stack.enter_context(each.host.connect()) for each in places]
        guests = [_define(places[number % 2], f"burst{number}") for number in range(count)]
        for first in range(0, count, AT_ONCE):
            _boot(guests[first : first + AT_ONCE])
        for vm in guests:
            fleet.livesnap.shows(vm)
        handles = [connections[number % 2].lookupByName(vm.name) for number, vm in enumerate(guests)]
        yield Bursting(fleet=fleet, guests=guests, handles=handles)


def _define(here: Place, name: str) -> BedVm:
    path = make_disk(here.storage / f"{name}.qcow2", owner=here.host.owner)
    return define_vm(here.host, VmSpec(name=name, disks=(DiskSpec(path=path),), load="idle"))


def _boot(guests: Sequence[BedVm]) -> None:
    for vm in guests:
        vm.start()
    for vm in guests:
        vm.wait_ready()
        vm.wait_agent()
